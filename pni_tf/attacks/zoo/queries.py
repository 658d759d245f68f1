"""The queries of an iteration of ZOO, and what their differences say."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from pni_tf.attacks.base import constant_count
from pni_tf.attacks.bookkeeping import gather, rows_of, scatter
from pni_tf.attacks.draws import LogitsFn, average
from pni_tf.attacks.goals import Goal
from pni_tf.attacks.zoo.coordinates import Grid

JudgeFn = Callable[[Goal, tf.Tensor], list[tf.Tensor]]


class Answers(NamedTuple):
    """What the network said about the points of an iteration.

    Attributes:
        loss: Float32 `[N]`: at the point itself.
        fooled_share: Float32 `[N]`: share of the draws that are fooled there.
        above: Float32 `[N, B]`: the loss with a coordinate raised.
        below: Float32 `[N, B]`: the loss with a coordinate lowered.
        asked: int64 `[N]`: points asked about, for one draw.
    """

    loss: tf.Tensor
    fooled_share: tf.Tensor
    above: tf.Tensor
    below: tf.Tensor
    asked: tf.Tensor

    def slope(self, difference: float) -> tf.Tensor:
        """Returns the first derivative along each coordinate, `[N, B]`."""
        return _finite((self.above - self.below) / (2.0 * difference))

    def curvature(self, difference: float) -> tf.Tensor:
        """Returns the second derivative along each coordinate, `[N, B]`."""
        rise = (self.above - self.loss[:, None]) + (self.below - self.loss[:, None])
        return _finite(rise / difference**2)


def ask(logits_fn: LogitsFn, judge: JudgeFn, goal: Goal, images: tf.Tensor):
    """Returns the loss and the fooled share of images, averaged over the draws."""
    return average(logits_fn, lambda draw: judge(goal, draw(images)))


def ask_each(
    logits_fn: LogitsFn,
    judge: JudgeFn,
    goal: Goal,
    space,
    change: tf.Tensor,
    grid: Grid,
    coordinates: tf.Tensor,
    difference: float,
) -> Answers:
    """Asks with a forward pass for each of the `2 * B + 1` points.

    All images go through each pass together.

    Args:
        logits_fn: The network.
        judge: Returns the losses and, as 0 or 1, the verdicts of logits.
        goal: Of each image.
        space: `Tanh` or `Box`.
        change: Float32 `[N, H, W, C]`: the point, in that space.
        grid: Where the coordinates lie.
        coordinates: int32 `[N, B]`.
        difference: How far a coordinate is raised and lowered.
    """
    number = coordinates.shape[1]
    loss, share = ask(logits_fn, judge, goal, space.image(change))

    def pair(j, above, below):
        offset = difference * grid.offsets(coordinates[:, j])
        raised, _ = ask(logits_fn, judge, goal, space.query(change, offset))
        lowered, _ = ask(logits_fn, judge, goal, space.query(change, -offset))
        return j + 1, above.write(j, raised), below.write(j, lowered)

    above, below = (
        tf.TensorArray(tf.float32, number, element_shape=[None]) for _ in range(2)
    )
    _, above, below = tf.while_loop(
        lambda j, *_: j < number,
        pair,
        (tf.constant(0), above, below),
        parallel_iterations=1,
    )
    return Answers(
        loss,
        share,
        tf.transpose(above.stack()),
        tf.transpose(below.stack()),
        constant_count(loss, 2 * number + 1),
    )


def ask_together(
    logits_fn: LogitsFn,
    judge: JudgeFn,
    goal: Goal,
    space,
    change: tf.Tensor,
    grid: Grid,
    coordinates: tf.Tensor,
    difference: float,
    batch: int,
) -> Answers:
    """Asks about all points of an image with one forward pass.

    As many images share a pass as make at most `batch` rows, but at least one.
    The other arguments are those of `ask_each`.
    """
    number = coordinates.shape[1]
    points = 2 * number + 1
    images_a_pass = max(1, batch // points)
    count = tf.shape(change)[0]

    def ask_some(start, losses, shares):
        rows = tf.range(start, tf.minimum(start + images_a_pass, count))
        repeated = tf.repeat(rows, points)
        moved = tf.reshape(tf.gather(coordinates, rows), [-1])
        offset = difference * tf.reshape(grid.offsets(moved), (-1, number, *grid.image))
        offset = tf.concat([tf.zeros_like(offset[:, :1]), offset, -offset], 1)
        images = gather(space, repeated).query(
            tf.gather(change, repeated), tf.reshape(offset, (-1, *grid.image))
        )
        loss, share = ask(logits_fn, judge, goal.take(repeated), images)
        return (
            start + images_a_pass,
            tf.concat([losses, tf.reshape(loss, (-1, points))], 0),
            tf.concat([shares, tf.reshape(share, (-1, points))[:, 0]], 0),
        )

    start = (tf.constant(0), tf.zeros((0, points)), tf.zeros((0,)))
    _, losses, shares = tf.while_loop(
        lambda start, *_: start < count,
        ask_some,
        start,
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None, points]),
            tf.TensorShape([None]),
        ),
        parallel_iterations=1,
    )
    loss, above, below = tf.split(losses, (1, number, number), 1)
    return Answers(loss[:, 0], shares, above, below, constant_count(shares, points))


def ask_needed(
    logits_fn: LogitsFn,
    judge: JudgeFn,
    goal: Goal,
    space,
    change: tf.Tensor,
    grid: Grid,
    coordinates: tf.Tensor,
    difference: float,
    batch: int,
    confidence: float,
) -> Answers:
    """Asks about the point of an image, and about the others where that can matter.

    Where the margin exceeds `confidence` by a thousand times `difference`, the loss is
    zero, and so it is at the other points of any network that is not a thousand times
    as steep. For deterministic networks: of a random one, the point and the others
    would see different draws. The arguments are those of `ask_together`.
    """
    slack = 1000.0 * difference

    def judge_point(goal, logits):
        return [*judge(goal, logits), goal.margin(logits)]

    loss, share, margin = ask(logits_fn, judge_point, goal, space.image(change))
    rows = rows_of(margin < confidence + slack)
    nothing = tf.zeros(tf.shape(coordinates))
    asked = constant_count(loss, 1)

    part = ask_together(
        logits_fn,
        judge,
        goal.take(rows),
        *gather((space, change), rows),
        grid,
        tf.gather(coordinates, rows),
        difference,
        batch,
    )
    rest = scatter(
        (nothing, nothing, asked), rows, (part.above, part.below, part.asked + 1)
    )
    return Answers(loss, share, *rest)


def _finite(values):
    # One that is not would spoil every later step of its coordinate.
    return tf.where(tf.math.is_finite(values), values, 0.0)
