"""PixelDP: where its noise is, how much, and that nothing of the image evades it.

The bound on its convolution is compared with the SVD of the unrolled operator.
"""

import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from small_resnet import IMAGES, resnet

from pni_tf import (
    BoundedSensitivity,
    FixedNoise,
    PNIAdversarialModel,
    inject_pixeldp,
)
from pni_tf.noise.graph import noise_wrappers
from pni_tf.noise.pixeldp import (
    convolution_sensitivity,
    factors_before,
    pixeldp_scale,
)


def convolution(**options):
    return layers.Conv2D(2, 3, padding="same", name="first", **options)


def test_scale_is_that_of_the_paper():
    assert pixeldp_scale(0.1) == pytest.approx(0.2537, abs=5e-5)
    assert pixeldp_scale(0.3, 0.5, 0.01) == pytest.approx(
        0.3 * math.sqrt(2 * math.log(125)) / 0.5
    )
    assert pixeldp_scale(0.3, 2.0, distribution="laplace") == pytest.approx(0.15)


@pytest.mark.parametrize("distribution", ["gaussian", "laplace"])
def test_noise_follows_the_first_convolution(distribution):
    model = inject_pixeldp(resnet(), distribution=distribution)
    (noisy,) = (layer for layer in model.layers if isinstance(layer, FixedNoise))
    assert (noisy.layer.name, noisy.position) == ("conv0", "output")
    assert noisy.scale == pixeldp_scale(0.1, distribution=distribution)
    assert noisy.distribution == distribution


@pytest.mark.parametrize("strategy", ["one device", "two devices"])
def test_sensitivity_is_bounded_during_training(strategy, mirrored_strategy, tmp_path):
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
    # The normalisation divides by 0.4.
    entries = tf.reshape(tf.eye(64), [64, 8, 8, 1]) / 0.4
    outputs = tf.nn.conv2d(entries, kernel, 1, "SAME")
    matrix = tf.reshape(outputs, [64, -1]).numpy()
    exact = np.linalg.svd(matrix, compute_uv=False)[0]
    assert 0.8 < exact <= 1 + 1e-5
    assert convolution.kernel_constraint.scale == pytest.approx([1 / 0.4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": 0}, "`bound` must be a finite number above 0.*bound=0"),
        ({"epsilon": 1.5}, "`epsilon` must be .* at most 1.*epsilon=1.5"),
        ({"epsilon": 0, "distribution": "laplace"}, "`epsilon` must .* above 0.*=0"),
        ({"delta": 1.0}, "`delta` must be .* below 1.*delta=1.0"),
        ({"distribution": "cauchy"}, "`distribution` must be one of"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        inject_pixeldp(resnet(), **options)


def network(outputs_of, shape=(6, 6, 2)):
    """Returns the model of a function from the image to what a dense layer gets."""
    inputs = keras.Input(shape, name="image")
    outputs = layers.Flatten()(outputs_of(inputs))
    return keras.Model(inputs, layers.Dense(3)(outputs), name="network")


def nested(*stack):
    return keras.Sequential([keras.Input((6, 6, 2)), *stack])


def twice(inputs):
    conv = convolution()
    return layers.Add()([conv(inputs), conv(layers.ZeroPadding2D(0)(inputs))])


class Doubled(keras.layers.Rescaling):
    def call(self, inputs):
        return 2 * super().call(inputs)


# What sees the image besides one plain convolution, and what the error names.
EVASIONS = {
    "layer before": (lambda x: convolution()(layers.ReLU(name="early")(x)), "'early'"),
    "operation before": (lambda x: convolution()(x * 255.0), "(Multiply)"),
    "subclass before": (lambda x: convolution()(Doubled(1.0)(x)), "(Doubled)"),
    "around": (
        lambda x: layers.Concatenate(name="both")([convolution()(x), x]),
        "'both'",
    ),
    "around, deep inside": (
        lambda x: nested(convolution(), layers.ReLU())(x) + nested(layers.ReLU())(x),
        "(ReLU)",
    ),
    "second convolution": (
        lambda x: layers.Add()([convolution()(x), layers.Conv2D(2, 1, name="two")(x)]),
        "'two'",
    ),
    "called twice": (twice, "layer 'first' (Conv2D) sees the image"),
    "factor for each pixel": (
        lambda x: convolution()(layers.Rescaling(np.ones([6, 6, 2]), name="map")(x)),
        "'map'",
    ),
    "no plain convolution": (
        lambda x: layers.DepthwiseConv2D(3, name="depth")(x),
        "'depth'",
    ),
    "groups": (lambda x: convolution(groups=2)(x), "one group"),
    "activation": (
        lambda x: convolution(activation="relu")(x),
        "activation='relu'",
    ),
}


@pytest.mark.parametrize("name", EVASIONS)
def test_what_evades_the_noise_is_refused(name):
    outputs_of, message = EVASIONS[name]
    model = network(outputs_of)
    before = model.get_weights()
    with pytest.raises(ValueError, match=re.escape(message)):
        inject_pixeldp(model)
    for kept, weight in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, weight)


def test_an_output_beside_the_noise_is_refused():
    inputs = keras.Input((6, 6, 2))
    scaled = layers.Rescaling(2.0)(inputs)
    outputs = layers.Dense(3)(layers.Flatten()(convolution()(scaled)))
    with pytest.raises(ValueError, match="does not come through the noise"):
        inject_pixeldp(keras.Model(inputs, [outputs, scaled]))


def test_two_images_are_refused():
    inputs = [keras.Input((6, 6, 2), name=name) for name in ("left", "right")]
    outputs = layers.Flatten()(convolution()(inputs[0])), layers.Flatten()(inputs[1])
    with pytest.raises(ValueError, match="to one image.*'left', 'right'"):
        inject_pixeldp(keras.Model(inputs, layers.Concatenate()(outputs)))


ACCEPTED = {
    "normalisation twice": lambda x: convolution()(
        layers.Normalization(mean=[0.5, 0.2], variance=[0.04, 0.25])(
            layers.Rescaling(3.0)(x)
        )
    ),
    "inverted": lambda x: convolution()(
        layers.Normalization(mean=0.5, variance=9.0, invert=True)(x)
    ),
    "padded": lambda x: layers.Conv2D(2, 3, dilation_rate=2)(
        layers.ZeroPadding2D(2)(layers.Rescaling([2.0, -5.0])(x))
    ),
    "nested": lambda x: nested(convolution(), layers.ReLU())(
        nested(layers.Rescaling(4.0), nested(layers.Rescaling(-0.5)))(x)
    ),
}


@pytest.mark.parametrize("distribution", ["gaussian", "laplace"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_bound_is_that_of_the_whole_way_from_the_image(name, distribution):
    """Against the Jacobian of the convolution's output by the image."""
    model = network(ACCEPTED[name])
    for layer in model._flatten_layers():
        if isinstance(layer, layers.Conv2D):
            layer.kernel.assign(tf.random.stateless_normal(layer.kernel.shape, [1, 2]))
    noisy = inject_pixeldp(model, distribution=distribution)
    seen = []
    (wrapper,) = noise_wrappers(noisy)
    wrapper.add_noise = lambda clean: (seen.append(clean), clean)[1]
    image = tf.Variable(tf.zeros([1, *noisy.input_shape[1:]]))
    with tf.GradientTape() as tape:
        noisy(image)
    (clean,) = seen
    entries = int(np.prod(image.shape))
    jacobian = tf.reshape(tape.jacobian(clean, image), [-1, entries]).numpy()
    exact = {
        "gaussian": np.linalg.svd(jacobian, compute_uv=False)[0],
        "laplace": np.abs(jacobian).sum(0).max(),
    }[distribution]
    assert 0.5 < exact <= 1 + 1e-5


def test_constraints_do_not_replace_each_other():
    model = resnet()
    inject_pixeldp(model, distribution="laplace")
    with pytest.raises(ValueError, match="'conv0' has a constraint.*Bounded"):
        inject_pixeldp(model)
    inject_pixeldp(model, bound=0.2, distribution="laplace")
    model = network(convolution(kernel_constraint="non_neg"))
    with pytest.raises(ValueError, match="'first' has a constraint.*NonNeg"):
        inject_pixeldp(model)


def test_way_through_layers_that_came_later_or_were_set_again():
    normalisation = layers.Normalization()
    normalisation.adapt(np.arange(2.0).reshape(2, 1, 1, 1).repeat(2, -1))
    model = network(lambda x: convolution()(normalisation(x)))
    noisy = inject_pixeldp(model)
    (wrapper,) = noise_wrappers(noisy)
    np.testing.assert_allclose(factors_before(noisy, wrapper), [2, 2])
    around = keras.Sequential([keras.Input((6, 6, 2)), layers.Rescaling(255.0), noisy])
    np.testing.assert_allclose(factors_before(around, wrapper), [510, 510])
    normalisation.adapt(4 * np.arange(2.0).reshape(2, 1, 1, 1).repeat(2, -1))
    np.testing.assert_allclose(factors_before(noisy, wrapper), [0.5, 0.5])


def unrolled(kernel, size, padding, stride=1, dilation=1, scale=1.0):
    """Returns the matrix of a convolution, one row for each entry of the image."""
    channels = kernel.shape[2]
    entries = size[0] * size[1] * channels
    images = tf.reshape(tf.eye(entries), [entries, *size, channels])
    return tf.reshape(
        tf.nn.conv2d(images * scale, kernel, stride, padding, dilations=dilation),
        [entries, -1],
    ).numpy()


SHAPES = [
    # kernel, size, padding, stride, dilation
    ((3, 3, 1, 16), (8, 8), "SAME", 1, 1),
    ((3, 3, 3, 5), (6, 9), "SAME", 1, 1),
    ((3, 2, 3, 2), (7, 5), "VALID", 1, 1),
    ((3, 3, 2, 4), (9, 8), "SAME", 2, 1),
    ((3, 3, 2, 3), (8, 9), "SAME", 1, 2),
    ((1, 1, 4, 3), (5, 5), "VALID", 1, 1),
]


@pytest.mark.parametrize(("kernel", "size", "padding", "stride", "dilation"), SHAPES)
def test_bounds_the_unrolled_operator(kernel, size, padding, stride, dilation):
    kernel = tf.random.stateless_normal(kernel, [0, 1])
    scale = np.linspace(0.5, 2, kernel.shape[2], dtype="float32")
    matrix = unrolled(kernel, size, padding, stride, dilation, scale)
    options = {"scale": scale, "dilation": (dilation, dilation)}
    bound = convolution_sensitivity(kernel, size, **options).numpy()
    exact = np.linalg.svd(matrix, compute_uv=False)[0]
    assert exact <= bound * (1 + 1e-5)
    if stride == 1:  # A stride leaves out outputs that the bound counts.
        assert bound <= 1.25 * exact
    bound = convolution_sensitivity(kernel, size, norm="l1", **options).numpy()
    exact = np.abs(matrix).sum(1).max()
    assert exact <= bound * (1 + 1e-5)
    if (padding, stride) == ("SAME", 1):
        assert bound == pytest.approx(exact, rel=1e-5)


def test_of_a_single_pixel_is_that_of_its_matrix():
    kernel = tf.random.stateless_normal([1, 1, 3, 5], [0, 1])
    exact = np.linalg.svd(kernel[0, 0].numpy(), compute_uv=False)[0]
    assert convolution_sensitivity(kernel, (4, 4)).numpy() == pytest.approx(exact)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_constraint_holds_after_each_step_of_an_optimizer(norm):
    constraint = BoundedSensitivity((6, 6), scale=[1.0, 3.0], norm=norm)
    layer = keras.layers.Conv2D(4, 3, kernel_constraint=constraint, padding="same")
    layer.build([None, 6, 6, 2])
    optimizer = keras.optimizers.SGD(0.5)
    for step in range(3):
        gradient = -tf.random.stateless_normal(layer.kernel.shape, [step, 1])
        optimizer.apply([gradient, -layer.bias.value], [layer.kernel, layer.bias])
        matrix = unrolled(
            tf.convert_to_tensor(layer.kernel), (6, 6), "SAME", scale=[1.0, 3.0]
        )
        exact = {
            "l2": np.linalg.svd(matrix, compute_uv=False)[0],
            "l1": np.abs(matrix).sum(1).max(),
        }[norm]
        assert 0.8 < exact <= 1 + 1e-5


def test_constraint_leaves_a_small_kernel_alone():
    kernel = tf.random.stateless_normal([3, 3, 1, 2], [0, 1]) / 100
    constraint = BoundedSensitivity((6, 6))
    np.testing.assert_array_equal(constraint(kernel), kernel)
    again = keras.constraints.deserialize(keras.constraints.serialize(constraint))
    assert again.get_config() == constraint.get_config()


def test_unknown_norm():
    with pytest.raises(ValueError, match="`norm` must be one of .*norm='linf'"):
        convolution_sensitivity(tf.ones([3, 3, 1, 1]), (4, 4), norm="linf")
