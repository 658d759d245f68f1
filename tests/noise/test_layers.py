"""The noise of the three wrappers, against stock layers and NumPy.

`test_layers_keras.py` is about how the wrappers behave inside Keras.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from pni_tf import PNIInput, PNIOutput, PNIWeight
from pni_tf.noise.formula import GRANULARITIES

SEED = 5

# Layer, shape of one example, and for each kernel the shape of its channelwise alpha.
LAYERS = {
    "Dense": (lambda: kl.Dense(3), (4,), [(1, 3)]),
    "EinsumDense": (
        lambda: kl.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
        (3, 4),
        [(1, 2, 3)],
    ),
    "Conv1D": (lambda: kl.Conv1D(3, 2), (5, 2), [(1, 1, 3)]),
    "Conv2D": (lambda: kl.Conv2D(3, 2, strides=2), (5, 5, 2), [(1, 1, 1, 3)]),
    "Conv3D": (lambda: kl.Conv3D(3, 2), (3, 3, 3, 2), [(1, 1, 1, 1, 3)]),
    "Conv1DTranspose": (lambda: kl.Conv1DTranspose(3, 2), (4, 2), [(1, 3, 1)]),
    "Conv2DTranspose": (lambda: kl.Conv2DTranspose(3, 2), (4, 4, 2), [(1, 1, 3, 1)]),
    "Conv3DTranspose": (
        lambda: kl.Conv3DTranspose(3, 2),
        (2, 2, 2, 2),
        [(1, 1, 1, 3, 1)],
    ),
    "DepthwiseConv1D": (
        lambda: kl.DepthwiseConv1D(2, depth_multiplier=2),
        (5, 3),
        [(1, 3, 2)],
    ),
    "DepthwiseConv2D": (
        lambda: kl.DepthwiseConv2D(2, depth_multiplier=2),
        (4, 4, 3),
        [(1, 1, 3, 2)],
    ),
    "SeparableConv1D": (
        lambda: kl.SeparableConv1D(6, 2, depth_multiplier=2),
        (5, 3),
        [(1, 3, 2), (1, 1, 6)],
    ),
    "SeparableConv2D": (
        lambda: kl.SeparableConv2D(6, 2, depth_multiplier=2),
        (4, 4, 3),
        [(1, 1, 3, 2), (1, 1, 1, 6)],
    ),
    "LSTM": (lambda: kl.LSTM(3), (4, 2), [(1, 12), (1, 12)]),
    "GRU": (lambda: kl.GRU(3), (4, 2), [(1, 9), (1, 9)]),
    "SimpleRNN": (lambda: kl.SimpleRNN(3), (4, 2), [(1, 3), (1, 3)]),
    "Bidirectional": (lambda: kl.Bidirectional(kl.LSTM(2)), (4, 2), [(1, 8)] * 4),
    "TimeDistributed": (lambda: kl.TimeDistributed(kl.Dense(3)), (4, 2), [(1, 3)]),
}
RECURRENT = ("LSTM", "GRU", "SimpleRNN", "Bidirectional")

every_layer = pytest.mark.parametrize("name", LAYERS)
every_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


def images_of(shape, batch=3):
    return tf.constant(np.random.default_rng(1).normal(size=(batch, *shape)), "float32")


def restart(layer):
    """Takes the generators of a layer and of those inside it to the first draw."""
    while hasattr(layer, "seed_generator"):
        layer.seed_generator.state.assign([SEED, 0])
        layer = layer.layer


def draw(shape, count=0):
    """The normal draw that a restarted wrapper makes as its `count`-th."""
    return tf.random.stateless_normal(shape, tf.constant([SEED, count], "int64"))


def randomise(variables, seed=2):
    rng = np.random.default_rng(seed)
    for variable in variables:
        variable.assign(rng.normal(0.3, 0.2, variable.shape))


def build(name, granularity="layerwise"):
    make, shape, _ = LAYERS[name]
    layer = PNIWeight(make(), granularity, seed=SEED)
    images = images_of(shape)
    layer(images)
    randomise(layer.weights)
    restart(layer)
    return layer, images


def eta_of(kernels):
    """Noise of each kernel as eq. 6 has it, before alpha."""
    return [
        np.std(kernel.numpy(), ddof=1) * draw(kernel.shape, count).numpy()
        for count, kernel in enumerate(kernels)
    ]


@every_granularity
@every_layer
def test_output_and_gradients_are_the_stock_layers_with_noisy_kernels(
    name, granularity
):
    layer, images = build(name, granularity)
    kernels, stock = layer.kernels, layer.layer
    clean = [kernel.numpy() for kernel in kernels]
    etas = eta_of(kernels)

    def run(function, variables):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = function(images)
            loss = tf.reduce_sum(outputs * tf.cos(outputs))
        return outputs, tape.gradient(loss, [images, *(v.value for v in variables)])

    outputs, gradients = run(layer, kernels + layer.alphas)
    for kernel, before in zip(kernels, clean, strict=True):
        np.testing.assert_array_equal(kernel, before)

    for kernel, alpha, eta in zip(kernels, layer.alphas, etas, strict=True):
        kernel.assign(kernel + alpha * eta)
    expected, expected_gradients = run(stock, kernels)
    # The chain rule: alpha's gradient is the kernel's times eta, summed.
    for gradient, alpha, eta in zip(
        expected_gradients[1:], layer.alphas, etas, strict=True
    ):
        covered = tuple(i for i, n in enumerate(alpha.shape) if n < eta.shape[i])
        total = np.sum(gradient * eta, covered if len(alpha.shape) else None)
        expected_gradients.append(np.reshape(total, alpha.shape))

    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    for gradient, right in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, right, rtol=1e-3, atol=1e-4)


@every_layer
def test_gradient_of_alpha_by_finite_differences(name):
    """Along a random direction, with eta held by restarting the generator."""
    layer, images = build(name, "channelwise")
    start = [alpha.numpy() for alpha in layer.alphas]
    rng = np.random.default_rng(3)
    direction = [rng.normal(size=alpha.shape) for alpha in layer.alphas]

    def loss(step):
        for alpha, value, slope in zip(layer.alphas, start, direction, strict=True):
            alpha.assign(value + step * slope)
        restart(layer)
        return tf.reduce_mean(tf.sin(layer(images)))

    with tf.GradientTape() as tape:
        value = loss(0.0)
    gradients = tape.gradient(value, [alpha.value for alpha in layer.alphas])
    slope = sum(np.sum(g * d) for g, d in zip(gradients, direction, strict=True))
    # Float32 rounding divided by the step is 1e-5, the truncation below 1e-3.
    difference = (loss(0.01) - loss(-0.01)) / 0.02
    np.testing.assert_allclose(slope, difference, rtol=2e-2, atol=5e-4)


@every_granularity
@every_layer
def test_shapes_of_alpha(name, granularity):
    make, shape, channelwise = LAYERS[name]
    layer = PNIWeight(make(), granularity)
    layer.build((None, *shape))
    expected = {
        "layerwise": [()] * len(layer.kernels),
        "channelwise": channelwise,
        "elementwise": [kernel.shape for kernel in layer.kernels],
    }[granularity]
    assert [alpha.shape for alpha in layer.alphas] == expected


@pytest.mark.parametrize("name", [n for n in LAYERS if n not in RECURRENT])
def test_channelwise_alpha_moves_its_output_channel_and_no_other(name):
    layer, images = build(name, "channelwise")
    for kernel in layer.kernels:
        if kernel.name == "pointwise_kernel":  # It shows the depthwise stage as it is.
            kernel.assign(np.eye(6).reshape(kernel.shape))
    clean = layer.layer(images)
    for alpha in layer.alphas:
        for channel in range(int(np.prod(alpha.shape))):
            for other in layer.alphas:
                other.assign(np.zeros(other.shape))
            alone = np.zeros(alpha.shape)
            alone.flat[channel] = 1.0
            alpha.assign(alone)
            change = np.reshape(layer(images) - clean, (-1, alone.size))
            assert np.flatnonzero(change.any(0)).tolist() == [channel]


@pytest.mark.parametrize("wrapper", [PNIWeight, PNIOutput, PNIInput])
@every_layer
def test_alpha_zero_equals_the_stock_layer_exactly(name, wrapper):
    make, shape, _ = LAYERS[name]
    layer = wrapper(make(), initial_alpha=0.0)
    images = images_of(shape)
    np.testing.assert_array_equal(layer(images), layer.layer(images))


@pytest.mark.parametrize("sigma_over", ["batch", "example"])
@every_granularity
@pytest.mark.parametrize("name", ["Dense", "Conv2D", "TimeDistributed"])
def test_activation_noise_is_alpha_sigma_z(name, granularity, sigma_over):
    make, shape, _ = LAYERS[name]
    images = images_of(shape)

    def add_noise(values, alpha):
        axes = tuple(range(1, len(values.shape))) if sigma_over == "example" else None
        sigma = np.std(values, axes, ddof=1, keepdims=True)
        return values + alpha.numpy() * sigma * draw(values.shape)

    for wrapper in (PNIOutput, PNIInput):
        layer = wrapper(make(), granularity, sigma_over=sigma_over, seed=SEED)
        layer(images)
        randomise(layer.alphas)
        restart(layer)
        (alpha,), stock = layer.alphas, layer.layer
        if wrapper is PNIOutput:
            example = stock(images).shape[1:]
            expected = add_noise(stock(images), alpha)
        else:
            example = images.shape[1:]
            expected = stock(add_noise(images, alpha))
        assert (
            alpha.shape
            == {
                "layerwise": (),
                "channelwise": (1,) * (len(example) - 1) + (example[-1],),
                "elementwise": tuple(example),
            }[granularity]
        )
        np.testing.assert_allclose(layer(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrapper", [PNIOutput, PNIInput])
@pytest.mark.parametrize(("sigma_over", "same"), [("example", True), ("batch", False)])
def test_sigma_over_example_makes_an_example_independent(wrapper, sigma_over, same):
    layer = wrapper(kl.Dense(4), sigma_over=sigma_over, seed=SEED)
    images = images_of((6,)).numpy()
    first = layer(images)[0]
    images[1:] *= 100
    restart(layer)
    assert np.array_equal(layer(images)[0], first) == same


def test_frozen_activation_noise_is_one_draw_for_every_example_and_call():
    layer = PNIOutput(kl.Dense(4), sigma_over="example", frozen=True, seed=SEED)
    images = images_of((6,), batch=5)
    outputs = layer(images)
    clean = layer.layer(images)
    sigma = np.std(clean, 1, ddof=1, keepdims=True)
    np.testing.assert_allclose(
        outputs, clean + 0.25 * sigma * draw((1, 4)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(layer(images), outputs)
    np.testing.assert_allclose(layer(images[3:4]), outputs[3:4], rtol=1e-5)


def test_wrappers_nest_and_each_adds_its_own_noise():
    images = images_of((5, 5, 2))
    conv = kl.Conv2D(3, 2)

    def noisy(values, alpha, draw_shape):
        return values + alpha * np.std(values, ddof=1) * draw(draw_shape)

    weight = PNIWeight(conv, initial_alpha=0.1, seed=SEED)
    both = PNIOutput(weight, initial_alpha=0.2, seed=SEED)
    three = PNIInput(both, initial_alpha=0.3, seed=SEED)
    three(images)
    restart(three)
    outputs = three(images)
    assert [float(w.alphas[0]) for w in (weight, both, three)] == pytest.approx(
        [0.1, 0.2, 0.3]
    )

    kernel = noisy(conv.kernel.numpy(), 0.1, conv.kernel.shape)
    expected = tf.nn.conv2d(noisy(images, 0.3, images.shape), kernel, 1, "VALID")
    expected = noisy(expected, 0.2, expected.shape)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [None, False, True])
@pytest.mark.parametrize("wrapper", [PNIWeight, PNIOutput, PNIInput])
def test_every_call_is_a_fresh_draw_whatever_the_mode(wrapper, training):
    layer = wrapper(kl.Dense(3), seed=SEED)
    images = images_of((4,))
    layer(images)

    def call():
        return layer(images, training=training)

    def loop():
        def body(i, outputs):
            return i + 1, outputs.write(i, call())

        outputs = tf.TensorArray(tf.float32, size=3)
        return tf.while_loop(lambda i, _: i < 3, body, [0, outputs])[1].stack()

    restart(layer)
    eager = np.stack([call() for _ in range(3)])
    assert len(np.unique(eager[:, 0, 0])) == 3
    graph = tf.function(call)
    restart(layer)
    np.testing.assert_allclose([graph() for _ in range(3)], eager, rtol=1e-5)
    restart(layer)
    np.testing.assert_allclose(tf.function(loop)(), eager, rtol=1e-5)


@pytest.mark.parametrize("wrapper", [PNIWeight, PNIOutput, PNIInput])
def test_xla_draws_fresh_noise(wrapper):
    layer = wrapper(kl.Dense(3), seed=SEED)
    images = images_of((4,))
    layer(images)
    compiled = tf.function(layer, jit_compile=True)
    first, second = compiled(images), compiled(images)
    assert not np.any(np.equal(first, second))
    layer.alphas[0].assign(0.0)
    np.testing.assert_allclose(compiled(images), layer.layer(images), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PNIWeight(kl.Dense(2), "pixelwise"), "granularity='pixelwise'"),
        (lambda: PNIOutput(kl.Dense(2), sigma_over="all"), "sigma_over='all'"),
        (lambda: PNIInput(kl.Dense(2), frozen=True), "needs an integer `seed`"),
        (lambda: PNIWeight(kl.ReLU(name="act")).build((1, 2)), "layer='act' .ReLU."),
        (
            lambda: PNIWeight(kl.GRU(2, stateful=True, name="s")).build((1, 2, 3)),
            "stateful recurrent layer.*layer='s'",
        ),
        (
            lambda: PNIOutput(kl.Conv2D(2, 3, name="c"), "elementwise").build(
                (None, None, None, 3)
            ),
            "layer 'c'; give the model a fixed input shape",
        ),
        (
            lambda: PNIWeight(kl.SpectralNormalization(kl.Dense(2), name="sn"))(
                images_of((3,)), training=True
            ),
            "layer='sn'",
        ),
    ],
)
def test_errors_name_what_was_received(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_alpha_of_several_kernels_is_named_after_its_kernel():
    layer, _ = build("LSTM")
    names = [alpha.name for alpha in layer.alphas]
    assert names == ["kernel_alpha", "recurrent_kernel_alpha"]
    both = kl.Bidirectional(kl.LSTM(2, name="l"))
    model = keras.Sequential([keras.Input((4, 2)), PNIWeight(both)])
    assert [alpha.name for alpha in model.layers[0].alphas] == [
        f"{direction}_l_lstm_cell_{kernel}_alpha"
        for direction in ("forward", "backward")
        for kernel in ("kernel", "recurrent_kernel")
    ]
