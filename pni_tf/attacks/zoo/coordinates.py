"""What ZOO moves: a modifier of fewer pixels, coordinate by coordinate, in a box."""

from typing import NamedTuple

import tensorflow as tf

from pni_tf.attacks.base import fold_in

_REGIONS = 8  # Importance is that of regions; so many lie along a side.
_ROUNDING = 1e-6  # In float32, x + (1 - x) may exceed 1.


class Grid(NamedTuple):
    """The pixels of a modifier `[N, count]`, which bilinear scaling makes an image.

    Attributes:
        height: Rows of the modifier.
        width: Columns of the modifier.
        image: `(H, W, C)` of the images; the modifier has as many channels.
    """

    height: int
    width: int
    image: tuple[int, int, int]

    @classmethod
    def stages(cls, shape, size: int | None, doublings: int) -> list["Grid"]:
        """Returns a grid of side `size`, and `doublings` more, each of twice the side.

        A size of None makes one grid of all pixels. Of the shape `[N, H, W, C]` of the
        images, only N may be unknown.
        """
        if shape.rank != 4 or None in shape[1:]:
            raise ValueError(
                "ZOO needs images `[N, H, W, C]` of which only N may be unknown. "
                f"Received: images of shape {shape}"
            )
        image = tuple(shape[1:])
        if size is None:
            return [cls(*image[:2], image)]
        if size * 2**doublings > min(image[:2]):
            raise ValueError(
                "`attack_size`, doubled at each of `upscale_at`, must not exceed the "
                f"side of the image. Received: attack_size={size}, {doublings} "
                f"doublings, images of shape {shape}"
            )
        return [cls(size * 2**k, size * 2**k, image) for k in range(doublings + 1)]

    @property
    def count(self) -> int:
        """Number of coordinates."""
        return self.height * self.width * self.image[2]

    @property
    def is_full(self) -> bool:
        """Whether each coordinate is one pixel of the image."""
        return (self.height, self.width) == self.image[:2]

    def unflatten(self, modifier: tf.Tensor) -> tf.Tensor:
        """Returns a modifier as `[N, height, width, C]`."""
        return tf.reshape(modifier, (-1, self.height, self.width, self.image[2]))

    def upscale(self, modifier: tf.Tensor) -> tf.Tensor:
        """Returns the change of the image, `[N, H, W, C]`."""
        return tf.image.resize(self.unflatten(modifier), self.image[:2])

    def resample(self, modifier: tf.Tensor, source: "Grid") -> tf.Tensor:
        """Returns a modifier of another grid on this one, `[N, count]`."""
        value = tf.image.resize(source.unflatten(modifier), (self.height, self.width))
        return tf.reshape(value, (-1, self.count))

    def offsets(self, coordinates: tf.Tensor) -> tf.Tensor:
        """Returns how `upscale` changes when a coordinate grows by one.

        From int32 `[M]` to float32 `[M, H, W, C]`, without a matrix product: a GPU may
        round those to ten bits.
        """
        rows, columns = self._profiles()
        channels = self.image[2]
        row = coordinates // (self.width * channels)
        column = coordinates // channels % self.width
        channel = tf.one_hot(coordinates % channels, channels)
        return (
            tf.gather(rows, row)[:, :, None, None]
            * tf.gather(columns, column)[:, None, :, None]
            * channel[:, None, None, :]
        )

    def collect(self, values: tf.Tensor, *, squared: bool = False) -> tf.Tensor:
        """Returns, for each coordinate, the sum over pixels of its offset times values.

        This takes derivatives with respect to the image's change `[N, H, W, C]` to
        those with respect to the modifier `[N, count]`; second ones need the squared
        offsets.
        """
        if not self.is_full:
            # Float64, because a GPU may round a float32 matrix product to ten bits.
            rows, columns = (tf.cast(p, tf.float64) for p in self._profiles())
            if squared:
                rows, columns = tf.square(rows), tf.square(columns)
            values = tf.einsum(
                "nhwc,ih,jw->nijc", tf.cast(values, tf.float64), rows, columns
            )
        return tf.reshape(tf.cast(values, tf.float32), (-1, self.count))

    def _profiles(self):
        """Returns what a unit row and column become: `[height, H]`, `[width, W]`."""

        def profile(size, side):
            units = tf.eye(size)[:, :, None, None]
            return tf.image.resize(units, (side, 1))[:, :, 0, 0]

        height, width, _ = self.image
        return profile(self.height, height), profile(self.width, width)


class Tanh(NamedTuple):
    """Images as `(tanh(w) + 1) / 2`, the change being one of `w`."""

    images: tf.Tensor
    origin: tf.Tensor

    @classmethod
    def of(cls, images):
        return cls(images, tf.atanh((2.0 * images - 1.0) * 0.999999))

    def image(self, change):
        # The same function as the tanh, with more digits where it is nearly black.
        return tf.sigmoid(2.0 * (self.origin + change))

    def query(self, change, offset):
        return self.image(change + offset)

    def derivatives(self, change):
        image = self.image(change)
        first = 2.0 * image * (1.0 - image)
        return first, 2.0 * first * (1.0 - 2.0 * image)

    def project(self, modifier, grid):
        return modifier


class Box(NamedTuple):
    """Images plus their change, projected into `[0, 1]`."""

    images: tf.Tensor

    @classmethod
    def of(cls, images):
        return cls(images)

    def image(self, change):
        return tf.clip_by_value(self.images + change, 0.0, 1.0)

    def query(self, change, offset):
        # A pixel at 0 or 1 leaves the box by the offset: the difference must have both
        # sides. One that is clipped does not move.
        return self.image(change) + self.derivatives(change)[0] * offset

    def derivatives(self, change):
        inside = tf.abs(self.images + change - 0.5) < 0.5 + _ROUNDING
        return tf.cast(inside, tf.float32), tf.zeros_like(change)

    def project(self, modifier, grid):
        if not grid.is_full:
            return modifier  # A coordinate moves many pixels, which `image` clips.
        least = tf.reshape(-self.images, (-1, grid.count))
        return tf.clip_by_value(modifier, least, 1.0 + least)


SPACES = {"tanh": Tanh, "box": Box}


class Modifier(NamedTuple):
    """The modifier of each image, and Adam's state of each of its coordinates.

    Attributes:
        value: Float32 `[N, count]`, as all the others.
        mean: Adam's first moment.
        square: Adam's second moment.
        steps: Updates of each coordinate.
    """

    value: tf.Tensor
    mean: tf.Tensor
    square: tf.Tensor
    steps: tf.Tensor

    @classmethod
    def start(cls, value: tf.Tensor) -> "Modifier":
        """Starts at `value` with a fresh state."""
        zeros = tf.zeros_like(value)
        return cls(value, zeros, zeros, zeros)

    def adam(self, coordinates, gradient, learning_rate, betas) -> "Modifier":
        """Takes a step of Adam along some coordinates `[N, B]` of each image."""
        value, mean, square, steps = tf.nest.map_structure(
            lambda all_of_it: tf.gather(all_of_it, coordinates, batch_dims=1), self
        )
        steps += 1.0
        mean = betas[0] * mean + (1.0 - betas[0]) * gradient
        square = betas[1] * square + (1.0 - betas[1]) * tf.square(gradient)
        # Each coordinate has its own number of steps: most iterations leave it out.
        correction = tf.sqrt(1.0 - betas[1] ** steps) / (1.0 - betas[0] ** steps)
        value -= learning_rate * correction * mean / (tf.sqrt(square) + 1e-8)
        return tf.nest.map_structure(
            lambda old, new: _put(old, coordinates, new),
            self,
            Modifier(value, mean, square, steps),
        )

    def newton(self, coordinates, gradient, curvature, learning_rate) -> "Modifier":
        """Takes a damped step of Newton along some coordinates `[N, B]`."""
        curvature = tf.where(curvature < 0.0, 1.0, tf.maximum(curvature, 0.1))
        value = tf.gather(self.value, coordinates, batch_dims=1)
        value -= learning_rate * gradient / curvature
        return self._replace(value=_put(self.value, coordinates, value))


def sample(seed, count: tf.Tensor, grid: Grid, number: int, weights=None):
    """Draws distinct coordinates of each image, int32 `[count, number]`.

    Args:
        seed: Integer tensor `[2]`.
        count: Number of images.
        grid: Where the coordinates lie.
        number: Coordinates an image.
        weights: Float32 `[count, grid.count]`: chances of the coordinates, up to a
            factor; None makes them equal. Those of weight zero come last.
    """
    # The largest of noisy keys are a draw without replacement (Gumbel's trick).
    keys = tf.random.stateless_uniform(
        (count, grid.count), fold_in(seed, 0), minval=1e-30
    )
    if weights is not None:
        keys = tf.math.log(tf.maximum(weights, 1e-30)) - tf.math.log(-tf.math.log(keys))
    return tf.math.top_k(keys, number).indices


def importance(grid: Grid, modifier: tf.Tensor) -> tf.Tensor:
    """Returns the weight of each coordinate: the largest change in its region.

    Modifiers and weights are float32 `[N, grid.count]`.
    """
    side = max(1, grid.height // _REGIONS), max(1, grid.width // _REGIONS)
    rest = -grid.height % side[0], -grid.width % side[1]
    padding = ((0, 0), (0, rest[0]), (0, rest[1]), (0, 0))
    change = tf.pad(tf.abs(grid.unflatten(modifier)), padding)
    largest = tf.nn.max_pool2d(change, side, side, "VALID")
    spread = tf.repeat(tf.repeat(largest, side[0], 1), side[1], 2)
    return tf.reshape(spread[:, : grid.height, : grid.width], (-1, grid.count))


def _put(values, coordinates, updates):
    rows = tf.broadcast_to(
        tf.range(tf.shape(values)[0])[:, None], tf.shape(coordinates)
    )
    return tf.tensor_scatter_nd_update(
        values, tf.stack([rows, coordinates], -1), updates
    )
