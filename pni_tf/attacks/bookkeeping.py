"""The best point so far, the constant to try next, and who is still searched."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from pni_tf.attacks.base import Outcome, constant_count
from pni_tf.attacks.draws import LogitsFn, LossFn, draws_of, expected_loss
from pni_tf.attacks.goals import Goal

_LARGEST_CONSTANT = 1e10  # An infinite one would make the loss NaN.


class Best(NamedTuple):
    """The best adversarial image so far: first what fools the network, then by score.

    Attributes:
        images: Float32 `[N, H, W, C]`.
        fooled: bool `[N]`.
        score: Float32 `[N]`: the loss that rises, or minus the distance that falls.
    """

    images: tf.Tensor
    fooled: tf.Tensor
    score: tf.Tensor

    @classmethod
    def none(cls, images: tf.Tensor, score: float = -float("inf")) -> "Best":
        """Starts from images that any other beats, or, at infinity, any that fools."""
        count = tf.shape(images)[:1]
        return cls(images, tf.fill(count, False), tf.fill(count, score))

    def update(self, images: tf.Tensor, fooled: tf.Tensor, score: tf.Tensor) -> "Best":
        """Takes those of other images, and what belongs to them, that are better."""
        better = (fooled & ~self.fooled) | (
            (fooled == self.fooled) & (score > self.score)
        )
        return Best(
            tf.where(better[:, None, None, None], images, self.images),
            fooled | self.fooled,
            tf.where(better, score, self.score),
        )


def gather(structure, rows: tf.Tensor):
    """Returns some rows of each tensor of a nested structure."""
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), structure)


def scatter(structure, rows: tf.Tensor, updates):
    """Returns the tensors of a nested structure with some rows replaced."""
    return tf.nest.map_structure(
        lambda tensor, update: tf.tensor_scatter_nd_update(
            tensor, rows[:, None], update
        ),
        structure,
        updates,
    )


def judge(
    logits_fn: LogitsFn, goal: Goal, images: tf.Tensor, loss_fn: LossFn | None = None
):
    """Returns whether images fool more than half of the draws, and their mean loss.

    The loss is the margin, unless another one is given.
    """
    loss_fn = loss_fn or goal.margin
    loss, share = expected_loss(
        logits_fn, lambda logits: [loss_fn(logits), goal.fooled(logits)], images
    )
    return share > 0.5, loss


def repeat(
    count: tf.Tensor | int,
    step: Callable[..., tuple],
    state: tuple,
    going: Callable[..., tf.Tensor] = lambda *state: tf.constant(True),
) -> tuple:
    """Returns the state after `count` steps, or fewer once `going(*state)` is false.

    A `tf.while_loop` keeps the graph small for any number of steps. A random network
    must see the steps in order, hence one iteration at a time.

    Args:
        count: Most steps.
        step: Called with the number of the step, from 0, and the entries of the state;
            returns those of the next.
        state: The first state.
        going: Called with the entries of the state.
    """
    if isinstance(count, int) and count == 1:
        return tuple(step(tf.constant(0), *state))  # A loop takes long to trace.
    return tf.while_loop(
        lambda i, *state: (i < count) & going(*state),
        lambda i, *state: (i + 1, *step(i, *state)),
        (tf.constant(0), *state),
        parallel_iterations=1,
    )[1:]


def unfooled(best: Best, *_) -> tf.Tensor:
    """Returns the images that no point has fooled so far, bool `[N]`."""
    return ~best.fooled


def search(
    count: tf.Tensor | int,
    step: Callable[..., tuple],
    state: tuple,
    active: Callable[..., tf.Tensor] | None,
) -> tuple:
    """Returns the state after `count` steps of the images that are still active.

    Args:
        count: Most steps.
        step: As in `repeat`, but called with the rows of the active images after its
            number, and with these rows of the entries of the state.
        state: The first state: tensors, or structures of them, with a row an image.
        active: Called with the entries of the state, returns bool `[N]`; None keeps all
            images, and all shapes known, as XLA needs them.
    """

    def rows_of(state):
        if active is None:
            return tf.range(tf.shape(tf.nest.flatten(state)[0], tf.int64)[0])
        return tf.where(active(*state))[:, 0]

    def on_rows(i, *state):
        rows = rows_of(state)
        return scatter(state, rows, step(i, rows, *gather(state, rows)))

    return repeat(count, on_rows, state, lambda *state: tf.size(rows_of(state)) > 0)


class BinarySearch(NamedTuple):
    """The search for the smallest constant `c` that fools the network, for each image.

    The attacks minimise `distance + c * loss`: a small `c` gives a small perturbation
    that may fail, a large one a large perturbation that fools the network.

    Attributes:
        lower: Float32 `[N]`: the largest constant that failed, 0 at first.
        upper: Float32 `[N]`: the smallest constant that succeeded, infinite at first.
        c: Float32 `[N]`: the constant to try next.

    Reference: https://arxiv.org/abs/1608.04644, section V.
    """

    lower: tf.Tensor
    upper: tf.Tensor
    c: tf.Tensor

    @classmethod
    def start(cls, count: tf.Tensor | int, initial: float) -> "BinarySearch":
        """Starts the search of `count` images at the constant `initial`."""
        return cls(
            tf.fill([count], 0.0),
            tf.fill([count], float("inf")),
            tf.fill([count], float(initial)),
        )

    def update(self, succeeded: tf.Tensor) -> "BinarySearch":
        """Narrows the bounds: `c` did, or did not, fool the network, bool `[N]`.

        The next constant is the middle of the bounds, or ten times this one while no
        constant has succeeded.
        """
        lower = tf.where(succeeded, self.lower, tf.maximum(self.lower, self.c))
        upper = tf.where(succeeded, tf.minimum(self.upper, self.c), self.upper)
        larger = tf.minimum(10.0 * self.c, _LARGEST_CONSTANT)
        c = tf.where(tf.math.is_finite(upper), (lower + upper) / 2.0, larger)
        return BinarySearch(lower, upper, c)

    def before(self, step: tf.Tensor, steps: int) -> "BinarySearch":
        """Returns the search for one of `steps`: the last of ten tries the upper bound.

        After many halvings the middle is likely to fail, the upper bound to succeed.
        """
        again = (step + 1 == steps) & (steps >= 10) & tf.math.is_finite(self.upper)
        return self._replace(c=tf.where(again, self.upper, self.c))


def search_constants(
    images: tf.Tensor, initial: float, steps: int, minimise: Callable[..., tuple]
) -> Outcome:
    """Returns the images of the smallest change that fool, over `steps` constants.

    `minimise` is called with the number of the step, the constants and the `Best` so
    far; it returns the `Best`, where the constants succeeded, queries and gradients.
    """

    def step(i, constants, best, queries, gradients):
        constants = constants.before(i, steps)
        best, succeeded, asked, spent = minimise(i, constants.c, best)
        return constants.update(succeeded), best, queries + asked, gradients + spent

    constants = BinarySearch.start(tf.shape(images)[0], initial)
    none = constant_count(images, 0)
    state = (constants, Best.none(images, float("inf")), none, none)
    _, best, queries, gradients = repeat(steps, step, state)
    return Outcome(best.images, best.fooled, queries, gradients)


class Judge(NamedTuple):
    """Whom an attack without a bound asks, and which of its points count as fooling.

    Those do by which a share of `agreement` of the draws is fooled, each by a margin of
    `confidence`.
    """

    logits_fn: LogitsFn
    goal: Goal
    confidence: float
    agreement: float

    def take(self, rows: tf.Tensor) -> "Judge":
        """Returns the judge of some rows of the batch."""
        return self._replace(goal=self.goal.take(rows))

    def values(self, logits: tf.Tensor) -> list[tf.Tensor]:
        """Returns the loss of one draw, 1.0 where it is fooled, and the margin."""
        margin = self.goal.margin(logits)
        clear = tf.cast(margin >= self.confidence, tf.float32)
        fooled = clear * self.goal.fooled(logits)
        return [tf.nn.relu(self.confidence - margin), fooled, margin]

    def ask(self, images: tf.Tensor) -> list[tf.Tensor]:
        """Returns the means of `values` over the draws, each `[N]`."""
        return expected_loss(self.logits_fn, self.values, images)

    def accept(
        self, points: tf.Tensor, fooled_share: tf.Tensor, useful: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor | int]:
        """Returns which points fool enough draws, and the queries that this took.

        Among thousands of points some fool a few draws of a random network by luck, so
        fresh draws must confirm them. Only those are asked about that are `useful`.
        """

        def enough(share):
            return share >= self.agreement - 1e-6  # A mean of draws is rounded.

        accepted, draws = enough(fooled_share), draws_of(self.logits_fn)
        if draws == 1:
            return accepted, 0
        claimed = accepted & useful

        def vote():
            rows = tf.where(claimed)[:, 0]
            _, share, _ = self.take(rows).ask(tf.gather(points, rows))
            return scatter(claimed, rows, enough(share))

        confirmed = tf.cond(tf.reduce_any(claimed), vote, lambda: claimed)
        return confirmed, draws * tf.cast(claimed, tf.int64)
