"""Random search: the attack that knows nothing of the network."""

import dataclasses
from typing import ClassVar

import tensorflow as tf

from pni_tf.attacks.base import Attack, Outcome, constant_count, fold_in, make_seed
from pni_tf.attacks.bookkeeping import Best, judge, search, unfooled
from pni_tf.attacks.draws import draws_of
from pni_tf.attacks.goals import prepare
from pni_tf.attacks.norms import NORMS
from pni_tf.checks import check_choice, check_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSearch(Attack):
    """Tries uniformly random points of the ball.

    It needs no gradient and follows no path, so nothing can mislead it. It is a check
    of the other attacks: one that does worse than this does not work on the network.

    Each image keeps a point that fools the network, else the one with the largest
    margin. With the same seed, more samples contain the fewer, so on a deterministic
    network they never do worse.

    Args:
        epsilon: Radius of the ball, in the units of the images (`[0, 1]`).
        samples: Number of points, each a query.
        norm: `"linf"` or `"l2"`.
        early_stop: Whether an image is left alone once it fools the network; see `PGD`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> attack = RandomSearch(epsilon=8 / 255, samples=1000)
    >>> outcome = attack.run(model, images, labels)

    Reference: https://arxiv.org/abs/1802.00420, section 3.1, names random search that
    succeeds where gradients fail as a sign of masked gradients.
    """

    needs_gradient: ClassVar[bool] = False

    epsilon: float = 8 / 255
    samples: int = 1000
    norm: str = "linf"
    early_stop: bool = False

    def __post_init__(self):
        check_number("epsilon", self.epsilon, minimum=0)
        check_number("samples", self.samples, minimum=1, integer=True)
        check_choice("norm", self.norm, tuple(NORMS))

    def run(self, logits_fn, images, labels, *, towards=None, seed=None):
        images, goal = prepare(images, labels, towards)
        seed, draws = make_seed(seed), draws_of(logits_fn)
        none = constant_count(images, 0)

        def sample(i, rows, best, queries):
            noise = NORMS[self.norm].random(
                tf.shape(images), self.epsilon, fold_in(seed, i)
            )
            points = tf.gather(tf.clip_by_value(images + noise, 0.0, 1.0), rows)
            verdict, margin = judge(logits_fn, goal.take(rows), points)
            return best.update(points, verdict, margin), queries + draws

        active = unfooled if self.early_stop else None
        start = Best.none(images), none
        best, queries = search(self.samples, sample, start, active)
        return Outcome(best.images, best.fooled, queries, none)
