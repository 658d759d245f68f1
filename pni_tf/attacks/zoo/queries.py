"""The queries of an iteration of ZOO, and what their differences say."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from pni_tf.attacks.base import constant_count
from pni_tf.attacks.bookkeeping import gather, repeat, rows_of, scatter
from pni_tf.attacks.draws import LogitsFn, average
from pni_tf.attacks.goals import Goal
from pni_tf.attacks.zoo.coordinates import Grid


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Whom ZOO asks, and how the answers are judged.

    Attributes:
        logits_fn: The network.
        judge: From a goal and logits to the losses and, as 0 or 1, the verdicts.
        goal: Of each image.
    """

    logits_fn: LogitsFn
    judge: Callable[[Goal, tf.Tensor], list[tf.Tensor]]
    goal: Goal

    def ask(self, images: tf.Tensor) -> list[tf.Tensor]:
        """Returns the loss and the fooled share of images, averaged over the draws."""
        return average(self.logits_fn, lambda draw: self.judge(self.goal, draw(images)))

    def take(self, rows: tf.Tensor) -> "Oracle":
        """Returns the oracle for some rows of the batch."""
        return dataclasses.replace(self, goal=self.goal.take(rows))


@dataclasses.dataclass(frozen=True)
class Points:
    """What an iteration asks about: a point, and two beside it for each coordinate.

    Attributes:
        space: `Tanh` or `Box`.
        change: Float32 `[N, H, W, C]`: the point, in that space.
        grid: Where the coordinates lie.
        coordinates: int32 `[N, B]`.
        difference: How far a coordinate is raised and lowered.
    """

    space: Any
    change: tf.Tensor
    grid: Grid
    coordinates: tf.Tensor
    difference: float

    def take(self, rows: tf.Tensor) -> "Points":
        """Returns the points of some rows of the batch."""
        moving = (self.space, self.change, self.coordinates)
        space, change, coordinates = gather(moving, rows)
        return Points(space, change, self.grid, coordinates, self.difference)


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


def ask_each(oracle: Oracle, points: Points) -> Answers:
    """Asks with a forward pass for each of the `2 * B + 1` points.

    All images go through each pass together.
    """
    space, change, coordinates = points.space, points.change, points.coordinates
    number = coordinates.shape[1]
    loss, share = oracle.ask(space.image(change))

    def pair(j, above, below):
        offset = points.difference * points.grid.offsets(coordinates[:, j])
        raised, _ = oracle.ask(space.query(change, offset))
        lowered, _ = oracle.ask(space.query(change, -offset))
        return above.write(j, raised), below.write(j, lowered)

    arrays = (
        tf.TensorArray(tf.float32, number, element_shape=[None]) for _ in range(2)
    )
    above, below = repeat(number, pair, tuple(arrays))
    return Answers(
        loss,
        share,
        tf.transpose(above.stack()),
        tf.transpose(below.stack()),
        constant_count(loss, 2 * number + 1),
    )


def ask_together(oracle: Oracle, points: Points, batch: int) -> Answers:
    """Asks about all points of an image with one forward pass.

    As many images share a pass as make at most `batch` rows, but at least one.
    """
    number, image = points.coordinates.shape[1], points.grid.image
    each = 2 * number + 1
    images_a_pass = max(1, batch // each)
    count = tf.shape(points.change)[0]

    def ask_some(start, losses, shares):
        rows = tf.range(start, tf.minimum(start + images_a_pass, count))
        moved = tf.reshape(tf.gather(points.coordinates, rows), [-1])
        offset = points.grid.offsets(moved)
        offset = points.difference * tf.reshape(offset, (-1, number, *image))
        offset = tf.concat([tf.zeros_like(offset[:, :1]), offset, -offset], 1)
        repeated = tf.repeat(rows, each)
        some = points.take(repeated)
        images = some.space.query(some.change, tf.reshape(offset, (-1, *image)))
        loss, share = oracle.take(repeated).ask(images)
        return (
            start + images_a_pass,
            tf.concat([losses, tf.reshape(loss, (-1, each))], 0),
            tf.concat([shares, tf.reshape(share, (-1, each))[:, 0]], 0),
        )

    _, losses, shares = tf.while_loop(
        lambda start, *_: start < count,
        ask_some,
        (tf.constant(0), tf.zeros((0, each)), tf.zeros((0,))),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None, each]),
            tf.TensorShape([None]),
        ),
        parallel_iterations=1,
    )
    loss, above, below = tf.split(losses, (1, number, number), 1)
    return Answers(loss[:, 0], shares, above, below, constant_count(shares, each))


def ask_needed(
    oracle: Oracle, points: Points, batch: int, confidence: float
) -> Answers:
    """Asks about the point of an image, and about the others where that can matter.

    Where the margin exceeds `confidence` by a thousand times `difference`, the loss is
    zero, and so it is at the other points of any network that is not a thousand times
    as steep. For deterministic networks: of a random one, the point and the others
    would see different draws. `batch` is that of `ask_together`.
    """

    def judge_point(goal, logits):
        return [*oracle.judge(goal, logits), goal.margin(logits)]

    at_point = dataclasses.replace(oracle, judge=judge_point)
    loss, share, margin = at_point.ask(points.space.image(points.change))
    rows = rows_of(margin < confidence + 1000.0 * points.difference)
    part = ask_together(oracle.take(rows), points.take(rows), batch)
    nothing, asked = tf.zeros(tf.shape(points.coordinates)), constant_count(loss, 1)
    rest = scatter(
        (nothing, nothing, asked), rows, (part.above, part.below, part.asked + 1)
    )
    return Answers(loss, share, *rest)


def _finite(values):
    # One that is not would spoil every later step of its coordinate.
    return tf.where(tf.math.is_finite(values), values, 0.0)
