"""Adversarial attacks in pure TensorFlow, right for random networks."""

from pni_tf.attacks.apgd import APGD
from pni_tf.attacks.base import Attack, Outcome
from pni_tf.attacks.carlini_wagner import CarliniWagnerL2
from pni_tf.attacks.draws import (
    ExpectationOverNoise,
    GradientProbe,
    probe_gradient,
    value_and_gradient,
)
from pni_tf.attacks.fgsm import FGSM
from pni_tf.attacks.pgd import PGD
from pni_tf.attacks.presets import ATTACKS, PRESETS, make_attack
from pni_tf.attacks.random_search import RandomSearch
from pni_tf.attacks.square import Square
from pni_tf.attacks.substitute import Substitute, train_substitute
from pni_tf.attacks.transfer import Transfer
from pni_tf.attacks.zoo.attack import ZOO

__all__ = [
    "APGD",
    "ATTACKS",
    "FGSM",
    "PGD",
    "PRESETS",
    "ZOO",
    "Attack",
    "CarliniWagnerL2",
    "ExpectationOverNoise",
    "GradientProbe",
    "Outcome",
    "RandomSearch",
    "Square",
    "Substitute",
    "Transfer",
    "make_attack",
    "probe_gradient",
    "train_substitute",
    "value_and_gradient",
]
