"""A frozen model is a deterministic copy with one draw of the noise baked in."""

import keras
import numpy as np
import pytest
from converted_models import (
    every_model,
    images_of,
    layer_shared_with_a_nested_model,
    layer_used_twice,
    nested_model_used_twice,
    network,
)
from keras import layers as kl

from pni_tf import alphas, freeze_noise, inject_pni, strip_noise
from pni_tf.noise.layers import NoiseWrapper


@every_model
def test_freeze_is_deterministic_and_a_copy(make, count):
    images = images_of((6, 6, 3))
    noisy = inject_pni(make(), seed=1, initial_alpha=1.0)
    before = [v.numpy() for v in noisy.variables]
    frozen = freeze_noise(noisy, 1)
    for variable, value in zip(noisy.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert not {id(v) for v in frozen.variables} & {id(v) for v in noisy.variables}
    assert not any(isinstance(p, NoiseWrapper) for p in frozen._flatten_layers())

    outputs = frozen(images)
    np.testing.assert_array_equal(frozen(images), outputs)
    np.testing.assert_array_equal(freeze_noise(noisy, 1)(images), outputs)
    others = [freeze_noise(noisy, 2), strip_noise(noisy), noisy]
    assert not any(np.allclose(other(images), outputs) for other in others)

    moved = [
        (ours.numpy(), theirs.numpy())
        for ours, theirs in zip(frozen.weights, strip_noise(noisy).weights, strict=True)
        if np.any(ours.numpy() != theirs.numpy())
    ]
    assert len(moved) == count  # Only kernels moved, and all of them.


@pytest.mark.parametrize(
    "make",
    [layer_used_twice, layer_shared_with_a_nested_model, nested_model_used_twice],
)
def test_a_layer_in_two_places_gets_its_noise_once(make):
    shared = make()
    once = keras.Sequential(
        [keras.Input((6, 6, 3)), kl.Conv2D(3, 3, padding="same", name="conv")]
    )
    once.set_weights(shared.get_weights())
    for ours, theirs in zip(
        freeze_noise(inject_pni(shared), 5).get_weights(),
        freeze_noise(inject_pni(once), 5).get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("granularity", ["layerwise", "channelwise", "elementwise"])
def test_freeze_adds_alpha_sigma_normal_to_the_kernels(granularity):
    source = keras.Sequential([keras.Input((80,)), kl.Dense(100, name="fc")])
    noisy = inject_pni(source, granularity=granularity, seed=1)
    (alpha,) = noisy.get_layer("fc_pni_weight").alphas
    values = np.random.default_rng(2).uniform(0.1, 1, alpha.shape).astype("float32")
    clean = source.layers[0].kernel.numpy()
    sigma = clean.std(ddof=1)

    def noise(scale):
        alpha.assign(scale * values)
        return freeze_noise(noisy, 7).layers[0].kernel.numpy() - clean

    z = noise(1.0) / (values * sigma)
    np.testing.assert_allclose(noise(2.0) / (2 * values * sigma), z, atol=1e-3)
    np.testing.assert_array_equal(noise(0.0), 0.0)
    # Standard normal: mean and variance of 8,000 samples within 5 standard errors,
    # wrong by chance once in 870,000 seeds.
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)


def test_frozen_activation_noise():
    """One draw for all examples, scaled by alpha and by each example's sigma."""
    source = keras.Sequential([keras.Input((6,)), kl.Dense(5, name="fc")])
    images = images_of((6,), batch=4)
    noisy = inject_pni(source, "a-a", sigma_over="example", granularity="elementwise")
    (alpha,) = noisy.layers[0].alphas
    alpha.assign([0.0, 0.2, 0.3, 0.4, 0.5])
    frozen, clean = freeze_noise(noisy, 3), source(images).numpy()
    outputs = frozen(images).numpy()
    sigma = clean.std(1, ddof=1, keepdims=True)
    noise = (outputs - clean) / sigma
    np.testing.assert_allclose(noise, np.tile(noise[:1], (4, 1)), rtol=1e-3)
    assert len(np.unique(noise[0])) == 5
    np.testing.assert_array_equal(noise[:, 0], 0)
    np.testing.assert_array_equal(frozen(images), outputs)
    np.testing.assert_allclose(frozen(images[2:3]), outputs[2:3], rtol=1e-5)
    np.testing.assert_array_equal(strip_noise(frozen)(images), clean)

    alpha.assign(2 * alpha)
    doubled = (freeze_noise(noisy, 3)(images) - clean) / sigma
    np.testing.assert_allclose(doubled, 2 * noise, rtol=1e-3, atol=1e-6)
    other = (freeze_noise(noisy, 4)(images) - clean) / sigma
    assert not np.any(np.isclose(other, doubled)[:, 1:])


@pytest.mark.parametrize("location", ["a-b", "i", "w+a-a", "w+a-b"])
def test_freeze_of_other_locations(location):
    source, images = network(), images_of((6, 6, 3))
    noisy = inject_pni(source, location, sigma_over="example", initial_alpha=0.7)
    frozen = freeze_noise(noisy, 1)
    outputs = frozen(images)
    np.testing.assert_array_equal(frozen(images), outputs)
    np.testing.assert_allclose(frozen(images[1:2]), outputs[1:2], rtol=1e-4, atol=1e-5)
    assert not np.any(np.equal(freeze_noise(noisy, 2)(images), outputs))
    assert set(alphas(frozen).values()) == {np.float32(0.7)}
    kept = [key for key in alphas(noisy) if "." in key]  # Weight noise is baked in.
    assert list(alphas(frozen)) == kept
