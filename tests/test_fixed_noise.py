"""Random self-ensemble and PixelDP: where their noise is, and how much."""

import math

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from pni_tf import (
    FixedNoise,
    PNIAdversarialModel,
    build_model,
    freeze_pni,
    inject_pixeldp,
    inject_pni,
    inject_rse,
    strip_pni,
)
from pni_tf.conversion import noise_wrappers
from pni_tf.fixed_noise import pixeldp_scale
from pni_tf.fusion import fuse_batch_norm

IMAGES = np.random.default_rng(0).uniform(size=(6, 8, 8, 1)).astype("float32")


def resnet():
    return build_model(
        "resnet8", input_shape=(8, 8, 1), num_classes=10, mean=[0.3], std=[0.4], seed=1
    )


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
            strip_pni(noisy)(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5
        )
        frozen = freeze_pni(noisy, seed=2)
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


class TestPixelDP:
    def test_scale_is_that_of_the_paper(self):
        assert pixeldp_scale(0.1) == pytest.approx(0.2537, abs=5e-5)
        assert pixeldp_scale(0.3, 0.5, 0.01) == pytest.approx(
            0.3 * math.sqrt(2 * math.log(125)) / 0.5
        )
        assert pixeldp_scale(0.3, 2.0, distribution="laplace") == pytest.approx(0.15)

    @pytest.mark.parametrize("distribution", ["gaussian", "laplace"])
    def test_noise_follows_the_first_convolution(self, distribution):
        model = inject_pixeldp(resnet(), distribution=distribution)
        (noisy,) = (layer for layer in model.layers if isinstance(layer, FixedNoise))
        assert (noisy.layer.name, noisy.position) == ("conv0", "output")
        assert noisy.scale == pixeldp_scale(0.1, distribution=distribution)
        assert noisy.distribution == distribution

    @pytest.mark.parametrize("strategy", ["one device", "two devices"])
    def test_sensitivity_is_bounded_during_training(
        self, strategy, mirrored_strategy, tmp_path
    ):
        scope = {
            "one device": tf.distribute.get_strategy(),
            "two devices": mirrored_strategy,
        }[strategy].scope()
        with scope:
            model = inject_pixeldp(resnet(), seed=0)
            trainer = PNIAdversarialModel(model)
            trainer.compile(keras.optimizers.SGD(0.5))
        before = model.get_layer("conv0_pixeldp_noise").layer.kernel.numpy()
        trainer.fit(IMAGES, np.arange(6), batch_size=2, epochs=2, verbose=0)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        convolution = loaded.get_layer("conv0_pixeldp_noise").layer
        kernel = convolution.kernel.numpy()
        assert np.abs(kernel - before).max() > 1e-4
        entries = tf.reshape(tf.eye(64), [64, 8, 8, 1]) / 0.4  # of the normalisation
        outputs = tf.nn.conv2d(entries, kernel, 1, "SAME")
        matrix = tf.reshape(outputs, [64, -1]).numpy()
        exact = np.linalg.svd(matrix, compute_uv=False)[0]
        assert 0.8 < exact <= 1 + 1e-5
        assert convolution.kernel_constraint.scale == pytest.approx([1 / 0.4])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bound": 0}, "`bound` and `epsilon` must be positive.*bound=0"),
            ({"epsilon": 1.5}, "holds for epsilon up to 1.*epsilon=1.5"),
            ({"delta": 1.0}, "`delta` must be in .*delta=1.0"),
            ({"distribution": "cauchy"}, "`distribution` must be one of"),
        ],
    )
    def test_bad_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            inject_pixeldp(resnet(), **options)

    def test_something_else_before_the_convolution(self):
        inputs = keras.Input([6, 6, 2])
        outputs = keras.layers.ReLU(name="early")(inputs)
        model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(outputs))
        with pytest.raises(ValueError, match="Received: layer 'early'"):
            inject_pixeldp(model)

    def test_an_unusual_convolution(self):
        inputs = keras.Input([6, 6, 2])
        outputs = keras.layers.DepthwiseConv2D(3, name="depth")(inputs)
        with pytest.raises(ValueError, match="Received: layer 'depth'"):
            inject_pixeldp(keras.Model(inputs, outputs))
