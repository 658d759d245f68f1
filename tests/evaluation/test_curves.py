"""Accuracy over epsilon, steps and draws."""

import numpy as np
import pytest
import tensorflow as tf

from pni_tf import PGD, load_target
from pni_tf.evaluation.curves import CURVES, evaluate_curve

SHAPE = (2, 3, 1)
IMAGES = np.random.default_rng(0).uniform(0.3, 0.7, (50, *SHAPE)).astype("float32")
KERNEL = np.random.default_rng(1).normal(size=(6, 2)).astype("float32")
ATTACK = PGD(epsilon=0.1, step_size=0.001, steps=4, random_start=False)


def linear(images):
    return (tf.reshape(images, [-1, 6]) - 0.5) @ KERNEL


@pytest.fixture(scope="module")
def quiet():
    return load_target(linear, image_shape=SHAPE)


@pytest.fixture(scope="module")
def noisy():
    generator = tf.random.Generator.from_seed(1)
    return load_target(
        lambda images: linear(images) + generator.normal([2]), image_shape=SHAPE
    )


def test_epsilon_against_the_closed_form(quiet):
    labels = np.arange(50) % 2
    curve = evaluate_curve("epsilon", quiet, IMAGES, labels, attack=ATTACK)
    assert list(curve) == pytest.approx([0.025, 0.05, 0.1, 0.2, 0.4, 1.0])
    difference = KERNEL[:, 1] - KERNEL[:, 0]
    signs = np.where(labels == 1, 1, -1)
    accuracies = []
    for epsilon, found in curve.items():
        attack = found.scenario.attack
        assert attack == PGD(
            epsilon=epsilon, step_size=2.5 * epsilon / 4, steps=4, random_start=False
        )
        assert found.scenario.name == f"epsilon {epsilon:.6g}"
        # The worst corner of the ball, which may leave [0, 1].
        worst = -epsilon * np.sign(difference) * signs[:, None]
        flat = np.clip(IMAGES.reshape(50, 6) + worst, 0, 1) - 0.5
        accuracies.append(np.mean(signs * (flat @ difference) > 0))
        assert found.mean == pytest.approx(accuracies[-1])
    assert accuracies[0] > 0.3 and accuracies[-1] == 0
    assert len(set(accuracies)) >= 3


def test_steps(quiet):
    labels = quiet.predict(IMAGES)
    curve = evaluate_curve("steps", quiet, IMAGES, labels, attack=ATTACK)
    assert list(curve) == [1, 2, 5, 10, 20, 50, 100]
    for steps, found in curve.items():
        attack = found.scenario.attack
        assert (attack.steps, attack.epsilon) == (steps, 0.1)
        assert attack.step_size == pytest.approx(2.5 * 0.1 / steps)
        assert found.scenario.warnings(stochastic=False) == ()
        np.testing.assert_array_equal(found.gradients, [steps] * 50)


def test_draws(noisy):
    labels = np.zeros(50, int)
    curve = evaluate_curve("draws", noisy, IMAGES, labels, attack=ATTACK, draws=2)
    assert list(curve) == [1, 2, 5, 10, 20, 50]
    for draws, found in curve.items():
        assert found.scenario.expectation == draws
        assert found.scenario.attack.step_size == pytest.approx(2.5 * 0.1 / 4)
        np.testing.assert_array_equal(found.gradients, [4 * draws] * 50)
        assert found.draws == 2


@pytest.mark.parametrize("values", [None, (3, 7)])
def test_draws_of_a_deterministic_target_are_one_point(quiet, values):
    labels = np.zeros(50, int)
    curve = evaluate_curve("draws", quiet, IMAGES, labels, attack=ATTACK, values=values)
    assert list(curve) == [3 if values else 1]
    (found,) = curve.values()
    assert (found.draws, found.scenario.expectation) == (1, 1)


@pytest.mark.parametrize("kind", ["epsilon", "steps"])
def test_settings_that_do_not_vary_are_kept(noisy, kind):
    attack = PGD(epsilon=0.1, steps=2, norm="l2", restarts=2)
    seen = []
    (found,) = evaluate_curve(
        kind,
        noisy,
        IMAGES[:20],
        np.zeros(20, int),
        attack=attack,
        expectation=3,
        values=(3,),
        draws=1,
        seed=5,
        batch_size=8,
        progress=lambda batches, name: seen.extend(batches) or batches,
    ).values()
    settings = {"epsilon": 0.1, "steps": 2, kind: 3}
    size = 2.5 * settings["epsilon"] / settings["steps"]
    expected = PGD(**settings, step_size=size, norm="l2", restarts=2)
    assert found.scenario.attack == expected
    assert (found.scenario.expectation, found.draws, found.seed) == (3, 1, 5)
    assert seen == [0, 8, 16]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("radius", None, f"`kind` must be one of .*{CURVES[0]}.*'radius'"),
        ("epsilon", (-0.1,), "epsilon=-0.1"),
        ("epsilon", (0.1, float("nan")), "epsilon=nan"),
        ("steps", (1, 2.5), "steps=2.5"),
        ("draws", (0,), "expectation=0"),
        ("draws", (1.5,), "expectation=1.5"),
    ],
)
def test_values_out_of_range(noisy, kind, values, message):
    with pytest.raises(ValueError, match=message):
        evaluate_curve(
            kind, noisy, IMAGES, np.zeros(50, int), attack=ATTACK, values=values
        )
