"""Noise of a fixed strength and random self-ensemble: where it is, and how much."""

import math

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from small_resnet import IMAGES, resnet

from pni_tf import (
    FixedNoise,
    freeze_noise,
    fuse_batch_norm,
    inject_pni,
    inject_rse,
    strip_noise,
)
from pni_tf.noise.graph import noise_wrappers


def identity(**options):
    layer = FixedNoise(keras.layers.Identity(), **{"scale": 0.5, "seed": 3, **options})
    layer.build([None, 40, 50])
    return layer


class TestLayer:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("distribution", ["gaussian", "laplace"])
    def test_distribution(self, distribution, training):
        """Kolmogorov-Smirnov on 20,000 draws; the failure probability is 1e-4."""
        layer = identity(distribution=distribution)
        draw = layer(tf.ones([10, 40, 50]), training=training).numpy() - 1
        name = {"gaussian": "norm", "laplace": "laplace"}[distribution]
        found = scipy.stats.kstest(draw.ravel(), name, args=(0, 0.5))
        assert found.pvalue > 1e-4

    def test_each_example_and_each_call_has_its_own(self):
        layer = identity()
        first, second = layer(tf.zeros([2, 40, 50])), layer(tf.zeros([2, 40, 50]))
        draws = [*first.numpy(), *second.numpy()]
        correlation = np.corrcoef([draw.ravel() for draw in draws])
        # 2,000 entries: five standard errors, failure probability 6 * 6e-7.
        assert np.abs(correlation - np.eye(4)).max() < 5 / math.sqrt(2000)

    def test_position(self):
        dense = keras.layers.Dense(3, kernel_initializer="zeros")
        before = FixedNoise(dense, 1.0)(tf.ones([4, 5]))
        after = FixedNoise(dense, 1.0, position="output")(tf.ones([4, 5]))
        assert np.abs(before).max() == 0
        assert np.abs(after).min() > 0

    def test_config_and_state_outlive_saving(self, tmp_path):
        model = inject_rse(resnet(), seed=5)
        model(IMAGES)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"scale": -1.0}, "`scale` must be .*scale=-1.0"),
            ({"position": "middle"}, "`position` must be one of .*'middle'"),
            ({"distribution": "cauchy"}, "`distribution` must be one of .*'cauchy'"),
            ({"frozen": True, "seed": None}, "`frozen=True` needs an integer `seed`"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ValueError, match=message):
            identity(**options)


class TestRSE:
    def test_noise_is_before_every_convolution_and_nowhere_else(self):
        model = inject_rse(resnet(), first=0.3, others=0.05)
        noisy = [layer for layer in model.layers if isinstance(layer, FixedNoise)]
        convolutions = [
            layer for layer in resnet().layers if isinstance(layer, keras.layers.Conv2D)
        ]
        assert [layer.layer.name for layer in noisy] == [c.name for c in convolutions]
        assert [layer.scale for layer in noisy] == [0.3] + 6 * [0.05]
        assert {layer.position for layer in noisy} == {"input"}

    def test_logits_of_a_linear_network_have_the_variance_of_the_noise(self):
        """Of one output: `scale^2` times the squared norm of its kernel."""
        inputs = keras.Input([6, 6, 2])
        convolution = keras.layers.Conv2D(3, 3)
        model = keras.Model(inputs, convolution(inputs))
        noisy = inject_rse(model, first=0.2)
        images = np.ones([500, 6, 6, 2], "float32")
        spread = noisy(images).numpy() - model(images).numpy()
        kernel = convolution.kernel.numpy()
        expected = 0.2 * np.sqrt((kernel**2).sum((0, 1, 2)))
        # 500 independent examples of 16 dependent outputs each: a standard error of at
        # most 1 / sqrt(1000) = 3.2 %; 16 % are five (failure probability 2e-6).
        np.testing.assert_allclose(spread.std((0, 1, 2)), expected, rtol=0.16)

    def test_views(self):
        model = resnet()
        noisy = inject_rse(model, seed=1)
        assert {id(v) for v in model.weights} <= {id(v) for v in noisy.weights}
        np.testing.assert_allclose(
            strip_noise(noisy)(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5
        )
        frozen = freeze_noise(noisy, seed=2)
        np.testing.assert_array_equal(frozen(IMAGES), frozen(IMAGES))
        assert np.abs(frozen(IMAGES) - model(IMAGES)).max() > 1e-3

    def test_folded_view_computes_the_same(self):
        noisy = inject_rse(resnet(), seed=1)
        fast = fuse_batch_norm(noisy)
        assert fast is not noisy
        found = []
        for network in (noisy, fast):
            for wrapper in noise_wrappers(noisy):
                wrapper.seed_generator.state.assign([7, 7])
            found.append(network(IMAGES, training=False).numpy())
        np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)

    def test_no_convolution(self):
        inputs = keras.Input([4])
        model = keras.Model(inputs, keras.layers.Dense(2)(inputs), name="dense")
        with pytest.raises(ValueError, match="'dense' has no convolution"):
            inject_rse(model)

    def test_noise_twice(self):
        with pytest.raises(ValueError, match="already has noise, at layer"):
            inject_rse(inject_pni(resnet()))
