"""The fast gradient sign method."""

import dataclasses

import tensorflow as tf

from pni_tf.attacks.base import Attack, Outcome, constant_count
from pni_tf.attacks.draws import draws_of, expected_loss, value_and_gradient
from pni_tf.attacks.goals import prepare
from pni_tf.checks import check_number


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

    def run(self, logits_fn, images, labels, *, towards=None, seed=None):
        images, goal = prepare(images, labels, towards)
        adversarial, draws = self._step(logits_fn, images, goal), draws_of(logits_fn)
        fooled = expected_loss(logits_fn, goal.fooled, adversarial)
        count = constant_count(adversarial, draws)
        return Outcome(adversarial, fooled > 0.5, count, count)

    def perturb(self, logits_fn, images, labels, *, towards=None, seed=None):
        # Without the verdict of `run`, which costs a forward pass.
        return self._step(logits_fn, *prepare(images, labels, towards))

    def _step(self, logits_fn, images, goal):
        _, gradient = value_and_gradient(logits_fn, goal.cross_entropy, images)
        return tf.clip_by_value(images + self.epsilon * tf.sign(gradient), 0.0, 1.0)
