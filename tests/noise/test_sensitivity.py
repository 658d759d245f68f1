"""The bound on a convolution against the SVD of its unrolled operator."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pni_tf import BoundedSensitivity
from pni_tf.noise.pixeldp import convolution_sensitivity


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
    if stride == 1:  # a stride leaves out outputs, which the bound counts
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
