"""The PNI function itself (eq. 5-8 of the paper) and the shapes of its alpha."""

import keras
import tensorflow as tf

from pni_tf.checks import check_choice

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "pni_tf needs Keras to run on TensorFlow: set KERAS_BACKEND=tensorflow, or "
        '"backend": "tensorflow" in keras.json. '
        f"Received: keras.backend.backend()={keras.backend.backend()!r}"
    )
GRANULARITIES = ("layerwise", "channelwise", "elementwise")
SIGMA_SCOPES = ("batch", "example")


def alpha_shape(
    shape: tuple[int, ...], granularity: str, channel_axes: tuple[int, ...] = (-1,)
) -> tuple[int, ...]:
    """Returns the shape of a tensor's coefficients alpha, which broadcast against it.

    Args:
        shape: Shape of the tensor that gets the noise, without the batch axis.
        granularity: `"layerwise"`: one alpha for the tensor, shape `()`.
            `"channelwise"`: one for each output channel; the other axes have size 1.
            `"elementwise"`: one for each element.
        channel_axes: Axes that index the output channels.

    Raises:
        ValueError: If `granularity` is unknown.
    """
    check_choice("granularity", granularity, GRANULARITIES)
    if granularity == "layerwise":
        return ()
    if granularity == "elementwise":
        return tuple(shape)
    channel_axes = {axis % len(shape) for axis in channel_axes}
    return tuple(n if i in channel_axes else 1 for i, n in enumerate(shape))


def output_channel_axes(layer, kernel):
    """Returns the axes of a kernel that index the output channels of its layer."""
    while isinstance(layer, keras.layers.Wrapper):
        layer = layer.layer
    if kernel.name == "depthwise_kernel" or isinstance(
        layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    ):
        return (-2, -1)  # One output channel is an input channel and a multiplier.
    transposed = (
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2DTranspose,
        keras.layers.Conv3DTranspose,
    )
    if isinstance(layer, transposed):
        return (-2,)
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, output = layer.equation.replace("...", "").split("->")
        images, letters = inputs.split(",")
        return tuple(
            axis
            for axis, letter in enumerate(letters)
            if letter in output and letter not in images
        )
    return (-1,)


def standard_deviation(
    values: tf.Tensor, axis: list[int] | None = None, keepdims: bool = False
) -> tf.Tensor:
    """Returns the unbiased standard deviation; 0 where there is a single element.

    The paper prints eq. 6 with N and without the square; the authors' code calls
    PyTorch's `std`, which divides by N - 1, and so does this function.

    Args:
        values: Floating-point tensor.
        axis: Axes to reduce, or None for all of them.
        keepdims: Whether the reduced axes stay, with size 1.
    """
    mean = tf.reduce_mean(values, axis, keepdims=True)
    squares = tf.reduce_sum(tf.math.squared_difference(values, mean), axis, keepdims)
    count = tf.size(values) // tf.maximum(tf.size(mean), 1)
    return tf.sqrt(squares / tf.cast(tf.maximum(count - 1, 1), values.dtype))


def parametric_noise(
    values: tf.Tensor,
    alpha: tf.Tensor,
    seed: tf.Tensor,
    *,
    sigma_over: str = "batch",
    noise_shape: tf.Tensor | None = None,
) -> tf.Tensor:
    """Adds Gaussian noise of trained strength (eq. 5): `v + alpha * eta`.

    `eta` has zero mean and the standard deviation of `values`. Both are constants for
    back-propagation, so the gradient with respect to `values` is that of the identity
    and the gradient with respect to `alpha` is `eta` (eq. 8).

    Args:
        values: Float32 tensor: a kernel, or a batch of activations or inputs.
        alpha: Noise coefficients, of a shape that broadcasts against `values`.
        seed: Integer tensor of shape `[2]` that determines the draw.
        sigma_over: `"batch"`: one standard deviation over the whole tensor, as in the
            paper. `"example"`: one for each entry of the first axis, so that the noise
            of one example does not depend on its neighbours in the batch.
        noise_shape: Shape of the draw where it differs from that of `values`; it must
            broadcast against it.

    Returns:
        The noisy tensor, with the shape and dtype of `values`.
    """
    axis = list(range(1, values.shape.rank)) if sigma_over == "example" else None
    sigma = standard_deviation(values, axis, keepdims=axis is not None)
    shape = tf.shape(values) if noise_shape is None else noise_shape
    normal = tf.random.stateless_normal(shape, seed, dtype=values.dtype)
    # The small factors first: one pass less over a batch of activations.
    return values + (alpha * tf.stop_gradient(sigma)) * normal


def fold_in_replica(seed: tf.Tensor) -> tf.Tensor:
    """Returns a seed `[2]` for each replica of a strategy from one that they share."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return seed
    return tf.random.experimental.stateless_fold_in(
        seed, tf.cast(context.replica_id_in_sync_group, seed.dtype)
    )
