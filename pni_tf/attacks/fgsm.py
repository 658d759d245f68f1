"""The fast gradient sign method."""

import dataclasses

import tensorflow as tf

from pni_tf.attacks.base import (
    Attack,
    check_number,
    cross_entropy,
    value_and_gradient,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of size epsilon along the sign of the gradient (eq. 1).

    Args:
        epsilon: Largest change of a pixel, in the units of the images (`[0, 1]`).

    Raises:
        ValueError: If epsilon is negative or not finite.

    Example:

    >>> adversarial = FGSM(epsilon=8 / 255).perturb(model, images, labels)

    Reference: https://arxiv.org/abs/1412.6572; the paper's eq. 1.
    """

    epsilon: float = 8 / 255

    def __post_init__(self):
        check_number("epsilon", self.epsilon, minimum=0)

    def perturb(self, logits_fn, images, labels, *, seed=None):
        images = tf.cast(images, tf.float32)
        _, gradient = value_and_gradient(logits_fn, cross_entropy(labels), images)
        return tf.clip_by_value(images + self.epsilon * tf.sign(gradient), 0.0, 1.0)
