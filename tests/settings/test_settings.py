"""Settings check themselves, and say the same as the library that they are for."""

import dataclasses

import pytest

from pni_tf import Adversarial, Computation, Network, Optimisation, Recipe
from pni_tf.attacks.presets import ATTACKS, PRESETS
from pni_tf.evaluation.curves import CURVES
from pni_tf.evaluation.results import TOWARDS
from pni_tf.noise.formula import GRANULARITIES, SIGMA_SCOPES
from pni_tf.noise.injection import LOCATIONS
from pni_tf.noise.layers import DISTRIBUTIONS
from pni_tf.settings import evaluation, machine, training
from pni_tf.settings.base import kind_of
from pni_tf.training.trainer import ATTACK_LABELS


def choices(group, name):
    (field,) = (f for f in dataclasses.fields(group) if f.name == name)
    return kind_of(field)[2]


@pytest.mark.parametrize(
    ("group", "name", "known"),
    [
        (training.Network, "pni", LOCATIONS),
        (training.Network, "pni_granularity", GRANULARITIES),
        (training.Network, "pni_sigma", SIGMA_SCOPES),
        (training.Network, "pixeldp_distribution", DISTRIBUTIONS),
        (training.Adversarial, "attack_labels", ATTACK_LABELS),
        (evaluation.Attacks, "preset", tuple(PRESETS)),
        (evaluation.Attacks, "towards", TOWARDS),
        (evaluation.Analyses, "curves", CURVES),
    ],
)
def test_choices_are_those_of_the_library(group, name, known):
    """They stand in both places, because the settings must not import TensorFlow."""
    assert sorted(choices(group, name)) == sorted(known)


def test_attacks_are_those_of_the_library():
    assert {*evaluation.ATTACKS} == {*ATTACKS, "transfer", "substitute"}
    strategies = {*choices(training.TrainingDevices, "strategy")}
    assert {*choices(machine.Devices, "strategy")} == strategies - {"tpu"}


@pytest.mark.parametrize(
    ("group", "values", "words"),
    [
        (Network, {"width": -1.0}, "--width.*finite number.*at least 0.*-1"),
        (Network, {"width": float("nan")}, "--width.*nan"),
        (Network, {"width": 0}, "--width must be positive"),
        (Network, {"width": True}, "--width.*True"),
        (Network, {"pni": "everywhere"}, "--pni.*w, a-a.*everywhere"),
        (Network, {"model": ""}, "--model.*not empty"),
        (Optimisation, {"epochs": 1.5}, "--epochs.*integer.*1.5"),
        (Optimisation, {"epochs": None}, "--epochs.*None"),
        (Optimisation, {"epochs": 2**31}, "--epochs.*2147483647.*2147483648"),
        (Optimisation, {"drop_epochs": ()}, "--drop_epochs.*such as 7,40"),
        (Optimisation, {"drop_epochs": [3]}, r"--drop_epochs.*\[3\]"),
        (Optimisation, {"drop_epochs": (3, 2)}, "--drop_epochs.*increasing.*3,2"),
        (Optimisation, {"nesterov": 1}, "--nesterov.*true or false"),
        (Computation, {"seed": -1}, "--seed.*-1"),
        (Adversarial, {"adversarial": False, "epoch_delay": 1}, "--epoch_delay needs"),
    ],
)
def test_what_a_group_refuses(group, values, words):
    with pytest.raises(ValueError, match=words):
        group(**values)


def test_an_undefended_recipe_is_the_same_but_for_its_defences():
    recipe = Recipe(
        network=Network(model="resnet20", noise="rse"),
        adversarial=Adversarial(noise_in_attack=False, epoch_delay=3, epsilon=0.1),
        optimisation=Optimisation(epochs=7),
    )
    plain = recipe.undefended()
    assert plain.is_undefended and not recipe.is_undefended
    assert plain.network.model == "resnet20"
    assert plain.optimisation is recipe.optimisation


def test_the_rate_is_scaled_by_the_batch_only_if_asked():
    assert Optimisation(batch_size=512).initial_rate == 0.1
    scaled = Optimisation(batch_size=512, base_batch_size=128)
    assert scaled.initial_rate == pytest.approx(0.4)
