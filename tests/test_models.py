import keras
import numpy as np
import pytest
import tensorflow as tf

from pni_tf import build_model
from pni_tf.models import MODELS

SMALL = {"input_shape": (8, 8, 1), "num_classes": 10}


def network(name="resnet8", **options):
    return build_model(
        name, **{"input_shape": (32, 32, 3), "num_classes": 10, **options}
    )


def trainable_parameters(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def random_images(model, count=3, seed=0):
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def randomize_batch_norm(model, seed=0):
    """Moves batch normalisation off its start, where mistakes in it do not show."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.variables:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))


class NumpyNetwork:
    """The residual networks written out in NumPy, with the model's variables."""

    def __init__(self, model):
        self.layers = {layer.name: layer for layer in model.layers}

    def conv(self, x, name, strides=1):
        kernel = self.layers[name].kernel.numpy().astype(np.float64)
        size = kernel.shape[0]
        margin = (size // 2, size // 2)  # For a 3x3 kernel, this is torch's padding=1.
        x = np.pad(x, [(0, 0), margin, margin, (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
        windows = windows[:, ::strides, ::strides]  # [N, H, W, C, kh, kw]
        return np.einsum("nhwcij,ijco->nhwo", windows, kernel)

    def batch_norm(self, x, name):
        layer = self.layers[name]
        gamma, beta, mean, variance = (
            variable.numpy().astype(np.float64)
            for variable in (
                layer.gamma,
                layer.beta,
                layer.moving_mean,
                layer.moving_variance,
            )
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def __call__(self, images, blocks, stages, mean=0.0, std=1.0):
        x = (images.astype(np.float64) - mean) / std
        x = np.maximum(self.batch_norm(self.conv(x, "conv0"), "bn0"), 0)
        for stage in range(1, stages + 1):
            for block in range(blocks):
                strides = 2 if stage > 1 and block == 0 else 1
                first, second = f"{stage}_{2 * block}", f"{stage}_{2 * block + 1}"
                y = self.conv(x, f"conv{first}", strides)
                y = np.maximum(self.batch_norm(y, f"bn{first}"), 0)
                y = self.batch_norm(self.conv(y, f"conv{second}"), f"bn{second}")
                if strides == 2 and f"projection{stage}" in self.layers:
                    x = self.conv(x, f"projection{stage}", 2)
                    x = self.batch_norm(x, f"projection{stage}_bn")
                elif strides == 2:
                    x = x[:, ::2, ::2]
                    x = np.concatenate([x, 0 * x], axis=-1)
                x = np.maximum(x + y, 0)
        logits = self.layers["logits"]
        return x.mean((1, 2)) @ logits.kernel.numpy() + logits.bias.numpy()


class TestArchitecture:
    @pytest.mark.parametrize(
        ("name", "width", "count"),
        [
            ("resnet20", 1, 269_722),
            ("resnet32", 1, 464_154),
            ("resnet44", 1, 658_586),
            ("resnet56", 1, 853_018),
            ("resnet20", 1.5, 605_026),
            ("resnet20", 2, 1_073_962),
            ("resnet20", 4, 4_286_026),
            ("resnet18", 1, 11_173_962),
        ],
    )
    def test_trainable_parameters_of_the_paper(self, name, width, count):
        model = build_model(name, width=width, input_shape=(32, 32, 3), num_classes=10)
        assert trainable_parameters(model) == count
        assert model.name == name
        assert model.input_shape == (None, 32, 32, 3)
        assert model.output_shape == (None, 10)

    def test_trainable_parameters_of_madrys_network(self):
        conv = 5 * 5 * 1 * 32 + 32 + 5 * 5 * 32 * 64 + 64
        dense = 7 * 7 * 64 * 1024 + 1024 + 1024 * 10 + 10
        model = network("mnist_cnn", input_shape=(28, 28, 1))
        assert trainable_parameters(model) == conv + dense

    # An odd size too: there stride and padding are the easiest to get wrong.
    @pytest.mark.parametrize("input_shape", [(8, 8, 1), (11, 9, 3)])
    @pytest.mark.parametrize(("name", "blocks"), [("resnet8", 1), ("resnet20", 3)])
    def test_cifar_resnet_equals_numpy(self, name, blocks, input_shape):
        channels = input_shape[-1]
        mean, std = [0.3, 0.5, 0.6][:channels], [0.2, 0.3, 0.4][:channels]
        model = network(
            name, width=0.5, input_shape=input_shape, mean=mean, std=std, seed=0
        )
        randomize_batch_norm(model)
        images = random_images(model)
        expected = NumpyNetwork(model)(images, blocks, 3, mean, std)
        # atol: float32 against float64, logits of order 1.
        logits = model.predict(images, verbose=0)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("input_shape", [(8, 8, 3), (9, 11, 1)])
    def test_resnet18_equals_numpy(self, input_shape):
        model = network("resnet18", width=0.125, input_shape=input_shape, seed=0)
        randomize_batch_norm(model)
        images = random_images(model)
        expected = NumpyNetwork(model)(images, 2, 4)
        logits = model.predict(images, verbose=0)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)

    def test_mnist_cnn_equals_numpy(self):
        model = network("mnist_cnn", width=0.25, input_shape=(9, 10, 1), seed=0)
        written_out = NumpyNetwork(model)
        images = random_images(model)
        x = images.astype(np.float64)
        for index in (0, 1):
            name = f"conv{index}"
            x = written_out.conv(x, name) + written_out.layers[name].bias.numpy()
            x = np.maximum(x, 0)
            odd = [(0, size % 2) for size in x.shape[1:3]]
            x = np.pad(x, [(0, 0), *odd, (0, 0)])  # 0 is the least that ReLU gives.
            count, height, width, channels = x.shape
            x = x.reshape(count, height // 2, 2, width // 2, 2, channels).max((2, 4))
        x = x.reshape(len(x), -1)
        for name, activation in (("fc0", lambda x: np.maximum(x, 0)), ("logits", None)):
            layer = written_out.layers[name]
            x = x @ layer.kernel.numpy().astype(np.float64) + layer.bias.numpy()
            x = activation(x) if activation else x
        logits = model.predict(images, verbose=0)
        np.testing.assert_allclose(logits, x, rtol=1e-4, atol=1e-4)

    def test_shortcut_takes_every_second_pixel_and_appends_zero_channels(self):
        model = network(input_shape=(7, 8, 3))
        add = model.get_layer("add2_0")
        probe = keras.Model(
            model.input, [model.get_layer("relu1_1").output, *add.input]
        )
        before, _, shortcut = (t.numpy() for t in probe(random_images(model)))
        assert before.shape == (3, 7, 8, 16) and shortcut.shape == (3, 4, 4, 32)
        np.testing.assert_array_equal(shortcut[..., :16], before[:, ::2, ::2])
        assert not shortcut[..., 16:].any()

    def test_shortcut_doubles_for_every_width(self):
        for width in (0.1, 1.1, 1.3):
            model = network(width=width, input_shape=(8, 8, 3))
            filters = [model.get_layer(f"conv{stage}_0").filters for stage in (1, 2, 3)]
            assert filters == [filters[0] * factor for factor in (1, 2, 4)]
            assert filters[0] == round(16 * width)

    def test_one_operation_a_layer(self):
        for name in MODELS:
            model = build_model(name, width=0.25, **SMALL)
            for layer in model.layers:
                if hasattr(layer, "activation"):
                    assert layer.activation is keras.activations.linear

    def test_layers_with_a_kernel_are_named_after_table_1(self):
        names = [
            layer.name
            for layer in network("resnet20").layers
            if hasattr(layer, "kernel")
        ]
        stages = [f"conv{stage}_{index}" for stage in (1, 2, 3) for index in range(6)]
        assert names == ["conv0", *stages, "logits"]

    def test_batch_norm_settings(self):
        for synchronized in (False, True):
            model = network(synchronized=synchronized)
            found = [
                (layer.momentum, layer.epsilon, layer.synchronized)
                for layer in model.layers
                if isinstance(layer, keras.layers.BatchNormalization)
            ]
            assert found == [(0.9, 1e-5, synchronized)] * 7


class TestNormalization:
    def test_is_applied_and_has_nothing_to_train(self):
        mean, std = (0.1, 0.5, 0.9), (0.2, 0.25, 0.3)
        model = network(input_shape=(4, 4, 3), mean=mean, std=std)
        layer = model.get_layer("normalization")
        assert model.layers[1] is layer and not layer.variables
        images = random_images(model)
        np.testing.assert_allclose(layer(images), (images - mean) / std, atol=1e-5)
        plain = network(input_shape=(4, 4, 3))
        assert trainable_parameters(model) == trainable_parameters(plain)

    def test_is_absent_unless_asked_for(self):
        names = [layer.name for layer in network().layers]
        assert "normalization" not in names

    def test_gradients_reach_the_images(self):
        model = build_model("resnet8", mean=[0.3], std=[0.4], **SMALL)
        images = tf.constant(random_images(model))
        with tf.GradientTape() as tape:
            tape.watch(images)
            loss = tf.reduce_sum(model(images, training=False)[:, 0])
        assert np.abs(tape.gradient(loss, images)).max() > 0


class TestInitialWeights:
    def test_resnet_kernels(self):
        model = network("resnet18", width=0.5, seed=0)
        for layer in model.layers:
            if not hasattr(layer, "kernel"):
                continue
            kernel = layer.kernel.numpy()
            is_conv = isinstance(layer, keras.layers.Conv2D)
            fan = (
                np.prod(kernel.shape[:2]) * kernel.shape[3] if is_conv else len(kernel)
            )
            std = np.sqrt(2 / fan)
            # 5 standard errors: exceeded by none of 2 figures of 21 kernels with
            # probability 0.99998.
            error = std / np.sqrt(kernel.size)
            assert abs(kernel.mean()) < 5 * error
            assert abs(kernel.std() - std) < 5 * error / np.sqrt(2)
            # A normal distribution cut off at two standard deviations ends at 2.28 of
            # its own; one of 864 or more draws is beyond 2.6 with probability 0.9997.
            assert np.abs(kernel).max() > 2.6 * std
            if is_conv:
                assert not layer.use_bias
            else:
                assert not layer.bias.numpy().any()

    def test_madrys_kernels_and_biases(self):
        model = network("mnist_cnn", input_shape=(28, 28, 1), seed=0)
        for name in ("conv0", "conv1", "fc0", "logits"):
            layer = model.get_layer(name)
            kernel = layer.kernel.numpy()
            assert np.abs(kernel).max() <= 0.2
            # 0.08796 is the standard deviation of N(0, 0.1) cut off at 0.2; 5 standard
            # errors, of a distribution with a lighter tail than the normal one.
            assert abs(kernel.std() - 0.08796) < 5 * 0.08796 / np.sqrt(2 * kernel.size)
            np.testing.assert_allclose(layer.bias.numpy(), 0.1)

    def test_one_seed_gives_one_network(self):
        def weights(seed):
            return build_model("resnet8", seed=seed, **SMALL).get_weights()

        for one, same in zip(weights(3), weights(3), strict=True):
            np.testing.assert_array_equal(one, same)
        for seed in (4, None):
            assert not np.array_equal(weights(3)[0], weights(seed)[0])
        assert not np.array_equal(weights(None)[0], weights(None)[0])

    def test_layers_do_not_share_their_numbers(self):
        for seed in (0, None):
            model = network("resnet20", seed=seed)
            kernels = [
                model.get_layer(f"conv1_{index}").kernel.numpy().tobytes()
                for index in range(4)
            ]
            assert len(set(kernels)) == 4

    def test_keras_seed_decides_where_none_is_given(self):
        def kernel():
            keras.utils.set_random_seed(1)
            return network().get_layer("conv0").kernel.numpy()

        np.testing.assert_array_equal(kernel(), kernel())


class TestWeightDecay:
    @pytest.mark.parametrize("name", ["resnet8", "resnet18", "mnist_cnn"])
    def test_gradient_is_torchs_coupled_rule(self, name):
        weight_decay = 3e-4
        model = build_model(name, width=0.25, weight_decay=weight_decay, **SMALL)
        with tf.GradientTape() as tape:
            loss = tf.add_n(model.losses)
        variables = [variable.value for variable in model.trainable_variables]
        gradients = tape.gradient(loss, variables)
        assert len(variables) == len(model.losses)
        for variable, gradient in zip(variables, gradients, strict=True):
            np.testing.assert_allclose(gradient, weight_decay * variable, rtol=1e-6)

    def test_none_by_default(self):
        assert network().losses == []


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "mnist_cnn"])
class TestKeras:
    def build(self, name):
        model = build_model(
            name,
            width=0.25,
            mean=[0.3],
            std=[0.4],
            weight_decay=1e-4,
            seed=0,
            **SMALL,
        )
        randomize_batch_norm(model)
        return model

    def test_file_round_trip(self, name, tmp_path):
        model = self.build(name)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        images = random_images(model)
        np.testing.assert_array_equal(loaded(images), model(images))
        assert len(loaded.losses) == len(model.losses)
        np.testing.assert_allclose(tf.add_n(loaded.losses), tf.add_n(model.losses))

    def test_clones_with_shared_layers(self, name):
        model = self.build(name)
        clone = keras.models.clone_model(model, clone_function=lambda layer: layer)
        images = random_images(model)
        np.testing.assert_array_equal(clone(images), model(images))
        shared = {id(variable) for variable in model.variables}
        assert {id(variable) for variable in clone.variables} == shared

    def test_graph_equals_eager(self, name):
        model = self.build(name)
        images = random_images(model)
        graph = tf.function(lambda images: model(images, training=False))
        np.testing.assert_allclose(
            graph(images), model(images, training=False), rtol=1e-4, atol=1e-5
        )

    def test_logits_are_float32_under_mixed_precision(self, name):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_float16")
        try:
            model = self.build(name)
        finally:
            keras.config.set_dtype_policy(before)
        assert model.layers[-2].compute_dtype == "float16"
        assert model(random_images(model)).dtype == "float32"


class TestErrors:
    @pytest.mark.parametrize("name", ["resnet8", "resnet18", "mnist_cnn"])
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"width": 0}, "`width` must be positive.*width=0"),
            ({"width": -1}, "`width` must be positive.*width=-1"),
            ({"width": 0.001}, "at least one of .* channels.*width=0.001"),
            ({"width": float("inf")}, "`width` must be .*finite.*width=inf"),
            ({"width": float("nan")}, "`width` must be .*finite.*width=nan"),
            ({"num_classes": 1}, "`num_classes` must be .* at least 2.*=1"),
            ({"weight_decay": -1e-4}, "`weight_decay` must be .*=-0.0001"),
            ({"weight_decay": float("nan")}, "`weight_decay` must be a finite .*=nan"),
            ({"input_shape": (8, 8)}, r"`input_shape` must be three .*\(8, 8\)"),
            ({"input_shape": (8, 0, 1)}, r"`input_shape` must be .*\(8, 0, 1\)"),
            ({"input_shape": (None, 8, 1)}, r"`input_shape` .*\(None, 8, 1\)"),
            ({"mean": [0.5]}, r"both `mean` and `std`.*mean=\[0.5\], std=None"),
            ({"std": [0.5]}, r"both `mean` and `std`.*mean=None, std=\[0.5\]"),
            ({"mean": [0.5] * 3, "std": [0.5] * 3}, "for each of the 1 channels"),
            ({"mean": [125.3], "std": [0.2]}, "by 255.*mean=.*125.3"),
            ({"mean": [0.5], "std": [0.0]}, r"`std` in \(0, 1\].*std=\[0.0\]"),
        ],
    )
    def test_settings(self, name, options, message):
        with pytest.raises(ValueError, match=message):
            build_model(name, **{**SMALL, **options})

    def test_unknown_name_lists_the_known_ones(self):
        with pytest.raises(ValueError, match="'resnet8', 'resnet20', .*'vgg'"):
            build_model("vgg", **SMALL)
