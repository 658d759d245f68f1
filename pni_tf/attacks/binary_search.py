"""What attacks without a bound share: the search over their constant, and the best."""

from typing import NamedTuple

import tensorflow as tf

from pni_tf.attacks.base import per_example

_LARGEST_CONSTANT = 1e10  # an infinite constant would make a loss of NaN


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

    def at_upper(self) -> "BinarySearch":
        """Tries the upper bound again where there is one: for the last of many steps.

        After many halvings the middle is likely to fail, the upper bound to succeed.
        """
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
