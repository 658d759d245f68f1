"""The L2 attack of Carlini and Wagner."""

import dataclasses

import tensorflow as tf

from pni_tf.attacks.base import Attack, constant_count
from pni_tf.attacks.bookkeeping import Judge, gather, search, search_constants
from pni_tf.attacks.draws import draws_of, value_and_gradient
from pni_tf.attacks.goals import prepare
from pni_tf.checks import check_number

_INSIDE = 0.999999  # It keeps arctanh finite at black and white pixels.
_BETA_1, _BETA_2, _TINY = 0.9, 0.999, 1e-8  # These are Adam's.


@dataclasses.dataclass(frozen=True, kw_only=True)
class CarliniWagnerL2(Attack):
    """The smallest L2 perturbation that fools the network, sought by Adam.

    Minimises `||x' - x||^2 + c * max(0, Z_y - max_{i != y} Z_i + kappa)` over
    `x' = (tanh(w) + 1) / 2`, with a binary search for `c`. Each image has its own `c`,
    its own Adam and its own early stop, so its result does not depend on the rest of
    the batch; images that have stopped are left out of the computation.

    On a random network, success judged on the draw that found it is worthless: among
    thousands of iterates, some fool a lucky draw with hardly any perturbation. With an
    `ExpectationOverNoise`, a point counts only if `agreement` of the draws are fooled,
    and of as many fresh draws again.

    An image that is already misclassified gets a perturbation of about zero. A failure
    returns the image unchanged. Black and white pixels move slowly in tanh space: where
    an image has little else, `abort_early` may give up too soon.

    Args:
        confidence: kappa: the margin by which the network must be fooled.
        learning_rate: Of Adam, in tanh space.
        steps: Most iterations for one value of `c`.
        binary_search_steps: Number of values of `c`. With 10 or more, the last is the
            smallest that succeeded.
        initial_const: The first `c`.
        abort_early: Whether an image leaves an iteration early, when over a tenth of
            the steps its loss has not fallen below 0.9999 of what it was.
        agreement: Share of the draws that a point must fool, in `(0, 1]`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> attack = CarliniWagnerL2(steps=1000)
    >>> outcome = attack.run(ExpectationOverNoise(model), images, labels)
    >>> outcome.images[outcome.found]

    Reference: https://arxiv.org/abs/1608.04644, section VI.A; the paper's eq. 13.
    """

    confidence: float = 0.0
    learning_rate: float = 1e-2
    steps: int = 1000
    binary_search_steps: int = 9
    initial_const: float = 1e-3
    abort_early: bool = True
    agreement: float = 0.9

    def __post_init__(self):
        check_number("confidence", self.confidence, minimum=0)
        check_number("learning_rate", self.learning_rate, minimum=0)
        check_number("steps", self.steps, minimum=1, integer=True)
        check_number(
            "binary_search_steps", self.binary_search_steps, minimum=1, integer=True
        )
        check_number("initial_const", self.initial_const, minimum=0)
        check_number("agreement", self.agreement, above=0, maximum=1)

    def run(self, logits_fn, images, labels, *, towards=None, seed=None):
        images, goal = prepare(images, labels, towards)
        judge = Judge(logits_fn, goal, self.confidence, self.agreement)
        return search_constants(
            images,
            self.initial_const,
            self.binary_search_steps,
            lambda _, c, best: self._minimise(judge, images, c, best),
        )

    def _minimise(self, judge, images, c, best):
        """Runs Adam for one `c` per image; see `search_constants`."""
        review, draws = max(self.steps // 10, 1), draws_of(judge.logits_fn)

        def step(i, rows, now):
            image, own = gather((images, c), rows)
            some = judge.take(rows)
            tanh = tf.tanh(now["w"])
            candidate = (tanh + 1) / 2
            (hinge, share, _), gradient = value_and_gradient(
                judge.logits_fn, some.values, candidate
            )
            distance = tf.reduce_sum((candidate - image) ** 2, [1, 2, 3])
            # A success that would change nothing need not be confirmed.
            useful = (-distance > now["best"].score) | ~now["succeeded"]
            accepted, asked = some.accept(candidate, share, useful)

            weight = tf.reshape(own, [-1, 1, 1, 1])
            gradient = 2 * (candidate - image) + weight * gradient
            gradient *= (1 - tanh**2) / 2
            t = tf.cast(i + 1, tf.float32)
            mean = _BETA_1 * now["mean"] + (1 - _BETA_1) * gradient
            square = _BETA_2 * now["square"] + (1 - _BETA_2) * gradient**2
            scale = tf.sqrt(square / (1 - _BETA_2**t)) + _TINY
            move = self.learning_rate * mean / (1 - _BETA_1**t) / scale

            loss = distance + own * hinge
            due = self.abort_early & (i % review == 0)
            after = {
                "w": now["w"] - move,
                "mean": mean,
                "square": square,
                "best": now["best"].update(candidate, accepted, -distance),
                "succeeded": now["succeeded"] | accepted,
                "going": ~(due & (loss > 0.9999 * now["reference"])),
                "reference": tf.where(due, loss, now["reference"]),
                "queries": now["queries"] + asked,
                "gradients": now["gradients"] + draws,
            }
            return (after,)

        count = tf.shape(images)[:1]
        start = {
            "w": tf.atanh((2 * images - 1) * _INSIDE),
            "mean": tf.zeros_like(images),
            "square": tf.zeros_like(images),
            "best": best,
            "succeeded": tf.fill(count, False),
            "going": tf.fill(count, True),
            "reference": tf.fill(count, float("inf")),
            "queries": constant_count(images, 0),
            "gradients": constant_count(images, 0),
        }
        (end,) = search(self.steps, step, (start,), lambda state: state["going"])
        return end["best"], end["succeeded"], end["queries"], end["gradients"]
