"""The best point so far, the constant to try next, and who still runs."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from pni_tf.attacks.base import per_example
from pni_tf.attacks.draws import LogitsFn, LossFn, expected_loss
from pni_tf.attacks.goals import Goal

_LARGEST_CONSTANT = 1e10  # An infinite one would make the loss NaN.


class Best(NamedTuple):
    """The best adversarial image so far: first what fools a vote, then by loss.

    Attributes:
        images: Float32 `[N, H, W, C]`.
        fooled: bool `[N]`: more than half of the draws are fooled.
        loss: Float32 `[N]`.
    """

    images: tf.Tensor
    fooled: tf.Tensor
    loss: tf.Tensor

    @classmethod
    def none(cls, images: tf.Tensor) -> "Best":
        """Starts from images that any other point beats."""
        count = tf.shape(images)[:1]
        return cls(images, tf.fill(count, False), tf.fill(count, -float("inf")))

    def update(
        self, images: tf.Tensor, fooled_share: tf.Tensor, loss: tf.Tensor
    ) -> "Best":
        """Takes the images that are better.

        Args:
            images: Float32 `[N, H, W, C]`.
            fooled_share: Share of the draws that each one fools, `[N]`.
            loss: Mean loss over the draws, `[N]`.
        """
        fooled = fooled_share > 0.5
        better = (fooled & ~self.fooled) | (
            (fooled == self.fooled) & (loss > self.loss)
        )
        return Best(
            tf.where(per_example(better, images), images, self.images),
            fooled | self.fooled,
            tf.where(better, loss, self.loss),
        )


def rows_of(mask: tf.Tensor) -> tf.Tensor:
    """Returns the indices, int64 `[M]`, at which a mask `[N]` is true."""
    return tf.where(mask)[:, 0]


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
    """Returns the mean loss `[N]`, and the share of the draws that are fooled.

    The loss is the margin, unless another one is given.
    """
    loss_fn = loss_fn or goal.margin
    return expected_loss(
        logits_fn, lambda logits: [loss_fn(logits), goal.fooled(logits)], images
    )


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
    return tf.while_loop(
        lambda i, *state: (i < count) & going(*state),
        lambda i, *state: (i + 1, *step(i, *state)),
        (tf.constant(0), *state),
        parallel_iterations=1,
    )[1:]


def searched(best: Best, early_stop: bool) -> tf.Tensor:
    """Returns the rows still searched: with `early_stop`, those that do not fool."""
    if early_stop:
        return rows_of(~best.fooled)
    return tf.range(tf.shape(best.fooled, tf.int64)[0])


def going(best: Best, early_stop: bool) -> tf.Tensor:
    """Returns whether any image is still searched."""
    return ~(tf.constant(early_stop) & tf.reduce_all(best.fooled))


class BinarySearch(NamedTuple):
    """The search for the smallest constant `c` that fools the network, for each image.

    The attacks minimise `distance + c * loss`: a small `c` gives a small perturbation
    that may fail, a large one a large perturbation that fools the network.

    Attributes:
        lower: Float32 `[N]`: the largest constant that failed, 0 at first.
        upper: Float32 `[N]`: the smallest constant that succeeded, infinite at first.
        c: Float32 `[N]`: the constant to try next.

    Example:

    >>> search = BinarySearch.start(tf.shape(images)[0], 1e-3)
    >>> search = search.update(succeeded=tf.constant([True, False]))

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
        """Narrows the bounds: `c` did, or did not, fool the network.

        The next constant is the middle of the bounds, or ten times this one while no
        constant has succeeded.

        Args:
            succeeded: bool `[N]`.
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
        if steps < 10:
            return self
        return tf.cond(step + 1 == steps, self.at_upper, lambda: self)

    def at_upper(self) -> "BinarySearch":
        """Tries the upper bound again, where there is one."""
        c = tf.where(tf.math.is_finite(self.upper), self.upper, self.c)
        return BinarySearch(self.lower, self.upper, c)


class Smallest(NamedTuple):
    """The accepted image nearest to the input so far; the input itself before any.

    Attributes:
        images: Float32 `[N, H, W, C]`.
        distance: Float32 `[N]`: squared L2 distance, infinite where none is accepted.
        found: bool `[N]`: one has been accepted.
    """

    images: tf.Tensor
    distance: tf.Tensor
    found: tf.Tensor

    @classmethod
    def none(cls, images: tf.Tensor) -> "Smallest":
        """Starts from the unchanged images, which any accepted one beats."""
        count = tf.shape(images)[:1]
        return cls(images, tf.fill(count, float("inf")), tf.fill(count, False))

    def update(
        self, candidates: tf.Tensor, accepted: tf.Tensor, distance: tf.Tensor
    ) -> "Smallest":
        """Takes the candidates that are accepted and nearer.

        Args:
            candidates: Float32 `[N, H, W, C]`.
            accepted: bool `[N]`.
            distance: Float32 `[N]`: squared L2 distance to the input.
        """
        better = accepted & (distance < self.distance)
        return Smallest(
            tf.where(per_example(better, candidates), candidates, self.images),
            tf.where(better, distance, self.distance),
            self.found | better,
        )


class Verdict(NamedTuple):
    """When a point counts as fooling the network.

    Attributes:
        confidence: Margin by which each draw must be fooled.
        agreement: Share of the draws that must be fooled.
    """

    confidence: float
    agreement: float

    def judge(self, goal: Goal, logits: tf.Tensor) -> list[tf.Tensor]:
        """Returns the loss of one draw, and 1.0 where it is fooled, each `[N]`."""
        margin = goal.margin(logits)
        fooled = goal.fooled(logits) * tf.cast(margin >= self.confidence, tf.float32)
        return [tf.nn.relu(self.confidence - margin), fooled]

    def accepts(self, fooled_share: tf.Tensor) -> tf.Tensor:
        """Returns bool `[N]`: enough of the draws are fooled."""
        return fooled_share >= self.agreement - 1e-6  # A mean of draws is rounded.

    def confirm(
        self, logits_fn: LogitsFn, goal: Goal, points: tf.Tensor, claimed: tf.Tensor
    ) -> tf.Tensor:
        """Returns which of the claimed points fool fresh draws too, bool `[N]`.

        Among thousands of points some fool a few draws by luck; no other is asked.
        """

        def vote():
            rows = rows_of(claimed)
            some = goal.take(rows)
            _, share = expected_loss(
                logits_fn,
                lambda logits: self.judge(some, logits),
                gather(points, rows),
            )
            return scatter(claimed, rows, self.accepts(share))

        return tf.cond(tf.reduce_any(claimed), vote, lambda: claimed)
