"""Attacks on random networks: expectation over noise, gradients, what is left alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from pni_tf import FGSM, PGD, ExpectationOverNoise, inject_pni
from pni_tf.attacks.draws import expected_loss, value_and_gradient
from pni_tf.attacks.goals import Goal
from pni_tf.noise.graph import noise_wrappers

IMAGES = np.random.default_rng(1).uniform(size=(3, 4, 4, 1)).astype("float32")
LABELS = np.array([0, 1, 2])
WEIGHTS = np.random.default_rng(2).normal(size=(16, 3)).astype("float32")


def linear(images):
    return tf.reshape(images, (-1, 16)) @ WEIGHTS


class Counting:
    """A network whose k-th call returns k times the logits of `linear`."""

    def __init__(self):
        self.calls = tf.Variable(0.0)

    def __call__(self, images):
        return linear(images) * self.calls.assign_add(1.0)


def noisy_network(seed=1):
    inputs = keras.Input((4, 4, 1))
    values = kl.BatchNormalization()(kl.Conv2D(2, 3)(inputs))
    values = kl.Dropout(0.5)(kl.Flatten()(values))
    return inject_pni(keras.Model(inputs, kl.Dense(3)(values)), "w", seed=seed)


def draws_made(model):
    return {int(w.seed_generator.state[1]) for w in noise_wrappers(model)}


def restart(model):
    for wrapper in noise_wrappers(model):
        wrapper.seed_generator.state.assign([wrapper.seed, 0])


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_expectation_is_the_mean_over_separate_calls(mode):
    run = tf.function if mode == "graph" else lambda function: function
    network = Counting()
    expectation = ExpectationOverNoise(network, draws=4)
    mean = run(expectation)(tf.constant(IMAGES))
    assert network.calls == 4
    np.testing.assert_allclose(mean, linear(IMAGES) * (1 + 2 + 3 + 4) / 4, rtol=1e-5)

    network.calls.assign(0.0)
    values, gradients = run(
        lambda images: value_and_gradient(
            expectation, Goal.of(LABELS).cross_entropy, images
        )
    )(tf.constant(IMAGES))
    assert network.calls == 4
    for count in range(1, 5):  # NumPy: the cross-entropy of count * linear
        logits = count * linear(IMAGES).numpy()
        odds = np.exp(logits - logits.max(1, keepdims=True))
        odds /= odds.sum(1, keepdims=True)
        values -= -np.log(odds[np.arange(3), LABELS]) / 4
        slope = count * (odds - np.eye(3)[LABELS]) @ WEIGHTS.T
        gradients -= slope.reshape(IMAGES.shape) / 4
    np.testing.assert_allclose(values, 0, atol=1e-5)
    np.testing.assert_allclose(gradients, 0, atol=1e-5)


def test_weight_noise_needs_separate_passes_because_tiling_is_one_draw():
    model = noisy_network()
    tiled = model(np.tile(IMAGES[:1], (5, 1, 1, 1))).numpy()
    np.testing.assert_allclose(tiled, np.tile(tiled[:1], (5, 1)), rtol=1e-5)

    restart(model)
    separate = [model(IMAGES).numpy() for _ in range(5)]
    assert len(np.unique(np.array(separate)[:, 0, 0])) == 5
    restart(model)
    mean = ExpectationOverNoise(model, 5)(IMAGES)
    np.testing.assert_allclose(mean, np.mean(separate, 0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("attack", "draws", "expected"),
    [
        (FGSM(), None, 1),
        (FGSM(), 3, 3),
        (PGD(steps=4), None, 4),
        (PGD(steps=4), 3, 12),
        # A restart scores its result with one more pass.
        (PGD(steps=4, restarts=2), None, 2 * 5),
        (PGD(steps=4, restarts=2), 3, 2 * 15),
    ],
)
def test_every_step_draws_noise_and_nothing_else_changes(attack, draws, expected):
    """The weights, the batch statistics and the seeds of dropout stay as they were."""
    model = noisy_network()
    generators = {id(w.seed_generator.state) for w in noise_wrappers(model)}
    before = [v.numpy() for v in model.variables]
    restart(model)
    target = model if draws is None else ExpectationOverNoise(model, draws)
    tf.function(attack.perturb)(target, tf.constant(IMAGES), tf.constant(LABELS))
    assert draws_made(model) == {expected}
    for variable, value in zip(model.variables, before, strict=True):
        if id(variable) not in generators:
            np.testing.assert_array_equal(variable, value)


def test_only_the_images_are_watched(monkeypatch):
    watched = []

    class Spy(tf.GradientTape):
        def gradient(self, *args, **kwargs):
            watched.append(self.watched_variables())
            return super().gradient(*args, **kwargs)

    monkeypatch.setattr(tf, "GradientTape", Spy)
    model = noisy_network()
    target = ExpectationOverNoise(model, 2)
    PGD(steps=2, restarts=2).perturb(target, IMAGES, LABELS)
    assert watched
    assert not any(watched)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_small_gradients_survive_half_precision(dtype):
    """A confident network: in float16 the gradient would be 0 without a loss scale."""
    images = tf.constant(IMAGES)

    def logits_fn(images):
        score = tf.cast(tf.reduce_sum(images, (1, 2, 3)), dtype) * 0.01
        return tf.stack([tf.ones_like(score) * 14, score], 1)

    losses, gradient = value_and_gradient(
        logits_fn, Goal.of(np.zeros(3, int)).cross_entropy, images
    )
    score = 0.01 * IMAGES.sum((1, 2, 3))
    assert losses.dtype == gradient.dtype == tf.float32
    probability = 1 / (1 + np.exp(14 - score))
    expected = 0.01 * np.broadcast_to(probability[:, None, None, None], IMAGES.shape)
    np.testing.assert_allclose(gradient, expected, rtol=0.02)

    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = Goal.of(np.zeros(3, int)).cross_entropy(logits_fn(images))
    assert np.any(tape.gradient(loss, images)) == (dtype != "float16")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_attack_on_a_half_precision_network(policy):
    body = [kl.Flatten(dtype=policy), kl.Dense(3, dtype=policy)]
    model = inject_pni(keras.Sequential([keras.Input((4, 4, 1)), *body]))
    adversarial = PGD(epsilon=0.2, steps=3).perturb(model, IMAGES, LABELS)
    assert adversarial.dtype == tf.float32
    assert np.all(np.any(adversarial != IMAGES, (1, 2, 3)))


@pytest.mark.parametrize(
    "blocked",
    [
        lambda x: tf.stop_gradient(linear(x)),
        lambda x: linear(tf.cast(tf.cast(255 * x, "uint8"), "float32")),
        lambda x: tf.numpy_function(
            lambda v: v.reshape(-1, 16) @ WEIGHTS, [x], "float32"
        ),
    ],
    ids=["stop_gradient", "integers", "NumPy"],
)
@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=1), PGD(steps=1, restarts=2)])
@pytest.mark.parametrize("draws", [None, 2])
def test_a_network_without_gradient_is_refused(blocked, attack, draws):
    target = blocked if draws is None else ExpectationOverNoise(blocked, draws)
    with pytest.raises(ValueError, match="no gradient with respect to the images"):
        attack.perturb(target, IMAGES, LABELS)


def test_repr_of_expectation_shows_the_network_and_the_draws():
    text = repr(ExpectationOverNoise(linear, draws=7))
    assert "draws=7" in text
    assert repr(linear) in text


def test_restarts_compare_the_loss_that_they_ascend():
    """The mean of the losses over the draws, which is not the loss of mean logits."""
    draw = tf.Variable(0)

    def logits_fn(images):
        sign = 1.0 - 2.0 * tf.cast(draw.assign_add(1) % 2, tf.float32)
        score = sign * tf.reduce_sum(images, (1, 2, 3))
        return tf.stack([tf.zeros_like(score), score], 1)

    loss_fn = Goal.of(np.zeros(3, int)).cross_entropy
    loss = expected_loss(ExpectationOverNoise(logits_fn, 2), loss_fn, IMAGES)
    score = IMAGES.sum((1, 2, 3))
    expected = (np.logaddexp(0, score) + np.logaddexp(0, -score)) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(
        expected_loss(linear, lambda z: z[:, 0], IMAGES), linear(IMAGES)[:, 0]
    )
