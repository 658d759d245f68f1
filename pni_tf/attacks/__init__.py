"""Adversarial attacks in pure TensorFlow, right for random networks."""

from pni_tf.attacks.base import Attack, Outcome, value_and_gradient
from pni_tf.attacks.expectation import ExpectationOverNoise
from pni_tf.attacks.fgsm import FGSM
from pni_tf.attacks.pgd import PGD

__all__ = [
    "FGSM",
    "PGD",
    "Attack",
    "ExpectationOverNoise",
    "Outcome",
    "value_and_gradient",
]
