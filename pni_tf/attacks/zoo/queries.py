"""The queries of an iteration of ZOO, and what their differences say."""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from pni_tf.attacks.base import constant_count
from pni_tf.attacks.bookkeeping import Judge, gather, repeat, scatter
from pni_tf.attacks.zoo.coordinates import Grid


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


def ask_each(judge: Judge, points: Points) -> Answers:
    """Asks with a forward pass for each of the `2 * B + 1` points.

    All images go through each pass together.
    """
    space, change, coordinates = points.space, points.change, points.coordinates
    number = coordinates.shape[1]
    loss, share, _ = judge.ask(space.image(change))

    def pair(j, above, below):
        offset = points.difference * points.grid.offsets(coordinates[:, j])
        raised, *_ = judge.ask(space.query(change, offset))
        lowered, *_ = judge.ask(space.query(change, -offset))
        return above.write(j, raised), below.write(j, lowered)

    start = [tf.TensorArray(tf.float32, number, element_shape=[None]) for _ in range(2)]
    arrays = repeat(number, pair, start)
    above, below = (tf.transpose(array.stack()) for array in arrays)
    return Answers(loss, share, above, below, constant_count(loss, 2 * number + 1))


def ask_together(judge: Judge, points: Points, batch: int) -> Answers:
    """Asks about all points of an image with one forward pass.

    As many images share a pass as make at most `batch` rows, but at least one.
    """
    number, image = points.coordinates.shape[1], points.grid.image
    each = 2 * number + 1
    images_a_pass = max(1, batch // each)
    count = tf.shape(points.change)[0]

    def ask_some(start, answers):
        rows = tf.range(start, tf.minimum(start + images_a_pass, count))
        moved = tf.reshape(tf.gather(points.coordinates, rows), [-1])
        offset = points.grid.offsets(moved)
        offset = points.difference * tf.reshape(offset, (-1, number, *image))
        offset = tf.concat([tf.zeros_like(offset[:, :1]), offset, -offset], 1)
        repeated = tf.repeat(rows, each)
        some = points.take(repeated)
        images = some.space.query(some.change, tf.reshape(offset, (-1, *image)))
        loss, share, _ = judge.take(repeated).ask(images)
        new = tf.reshape(tf.stack([loss, share], 1), (-1, each, 2))
        return start + images_a_pass, tf.concat([answers, new], 0)

    _, answers = tf.while_loop(
        lambda start, _: start < count,
        ask_some,
        (tf.constant(0), tf.zeros((0, each, 2))),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, each, 2])),
        parallel_iterations=1,
    )
    losses, shares = tf.unstack(answers, axis=-1)
    loss, above, below = tf.split(losses, (1, number, number), 1)
    asked = constant_count(shares, each)
    return Answers(loss[:, 0], shares[:, 0], above, below, asked)


def ask_needed(judge: Judge, points: Points, batch: int) -> Answers:
    """Asks about the point of an image, and about the others where that can matter.

    Where the margin exceeds the confidence by a thousand times `difference`, the loss
    is zero, and so it is at the other points of any network that is not a thousand
    times as steep. For deterministic networks: of a random one, the point and the
    others would see different draws. `batch` is that of `ask_together`.
    """
    loss, share, margin = judge.ask(points.space.image(points.change))
    near = margin < judge.confidence + 1000.0 * points.difference
    rows = tf.where(near)[:, 0]
    part = ask_together(judge.take(rows), points.take(rows), batch)
    nothing, asked = tf.zeros(tf.shape(points.coordinates)), constant_count(loss, 1)
    rest = scatter(
        (nothing, nothing, asked), rows, (part.above, part.below, part.asked + 1)
    )
    return Answers(loss, share, *rest)


def _finite(values):
    # One that is not would spoil every later step of its coordinate.
    return tf.where(tf.math.is_finite(values), values, 0.0)
