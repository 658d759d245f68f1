"""Keeping the best point of each image, and working on some images of a batch."""

from typing import NamedTuple

import tensorflow as tf

from pni_tf.attacks.base import per_example


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
