"""A view of a network in which batch normalisation costs next to nothing.

Keras computes batch normalisation by a dozen passes over the activations. In inference
mode the view folds it into the noisy kernel and a bias of the convolution before it; in
training mode it calls TensorFlow's fused operation. Training and evaluation use this
view of their own accord.
"""

import collections

import keras
import tensorflow as tf

from pni_tf.noise.formula import alpha_shape, output_channel_axes
from pni_tf.noise.graph import (
    PLAIN_CONVOLUTIONS,
    call_layer,
    is_convertible,
    is_transparent,
    rebuild,
    unwrapped,
    wrappers_of,
)
from pni_tf.noise.layers import FixedNoise, PNIInput, PNIWeight

# Only these very classes: a subclass may compute something else.
_FOLDABLE = (*PLAIN_CONVOLUTIONS, keras.layers.Dense)


def fuse_batch_norm(model: keras.Model) -> keras.Model:
    """Returns a view of a model that computes the same at less cost.

    In inference mode, a convolution or dense layer and the `BatchNormalization` after
    it become one layer with the kernel `gamma * kernel / sqrt(variance + epsilon)` and
    a bias, where `kernel` has the noise of `PNIWeight`, freshly drawn. In training mode
    batch normalisation of images is one fused operation. What does not match stays as
    it is: noise on the output of a convolution (PNI-A-a) comes before batch
    normalisation and cannot be folded.

    On the same draws the outputs, the gradients and the updates of the moving
    statistics are those of `model` up to rounding.

    Args:
        model: A built Keras model. One that is neither Functional nor Sequential, has a
            `call` of its own, or no batch normalisation, is returned as it is.

    Returns:
        A model that shares every variable and noise generator with `model`. It is made
        for calling: save and convert `model` itself, and make a new view after layers
        were added or removed.

    Example:

    >>> fast = fuse_batch_norm(model)
    >>> adversarial = PGD()(lambda x: fast(x, training=False), images, labels)
    """
    if not is_transparent(model) or not any(
        isinstance(layer, keras.layers.BatchNormalization)
        for layer in model._flatten_layers()
    ):
        return model
    # Only the rebuilt graph shows what else takes the output of a folded convolution.
    # That one would be computed twice, so the graph is built again without folding it.
    unfoldable = set()
    while True:
        fuser = _Fuser(unfoldable)
        result = rebuild(model, lambda layer: layer, fuser.call, is_transparent)
        shared = fuser.shared(result)
        if not shared:
            return result
        unfoldable |= shared


class _Fuser:
    """Replaces layers while a graph is rebuilt, and finds what it should have left."""

    def __init__(self, unfoldable):
        self._unfoldable = unfoldable  # Identities of layers.
        self._convolutions = {}  # The keys are the identities of their outputs.
        self._folded = []
        self._uses = collections.Counter()

    def call(self, layer, *args, **kwargs):
        self._uses.update(map(id, keras.tree.flatten((args, kwargs))))
        if len(args) == 1:
            (images,) = args
            if _is_last_axis_norm(layer, images) and kwargs.get("mask") is None:
                kwargs.pop("mask", None)
                convolution, inputs = self._convolutions.get(id(images), (None, images))
                if convolution is not None:
                    self._folded.append((convolution, images))
                return FusedBatchNormalization(layer, convolution)(inputs, **kwargs)
            if _is_foldable(layer) and id(layer) not in self._unfoldable:
                outputs = call_layer(layer, *args, **kwargs)
                self._convolutions[id(outputs)] = (layer, images)
                return outputs
        return call_layer(layer, *args, **kwargs)

    def shared(self, result):
        """Returns the identities of folded convolutions whose output has other uses."""
        for layer in result._flatten_layers():
            if is_convertible(layer) and hasattr(layer, "outputs"):
                self._uses.update(map(id, layer.outputs))
        return {
            id(convolution)
            for convolution, outputs in self._folded
            if self._uses[id(outputs)] > 1
        }


class FusedBatchNormalization(keras.layers.Layer):
    """Batch normalisation, and the convolution before it, at the least cost.

    Where that would not be the same function, as with a mask, it calls the two layers.

    Args:
        batch_norm: A built `BatchNormalization` over the last axis.
        layer: The convolution before it, perhaps with noise, or None.
    """

    def __init__(self, batch_norm, layer=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.batch_norm = batch_norm
        self.layer = layer
        self.supports_masking = layer is None or layer.supports_masking
        self.built = True

    def compute_output_spec(self, inputs, training=None):
        if self.layer is not None:
            inputs = self.layer.compute_output_spec(inputs)
        return self.batch_norm.compute_output_spec(inputs)

    def call(self, inputs, training=None):
        norm, layer = self.batch_norm, self.layer
        training = training and norm.trainable
        # Looked at in each call, because users may change a layer after it was built.
        simple = (
            getattr(inputs, "_keras_mask", None) is None
            and norm.variable_dtype == "float32"
            and norm.activity_regularizer is None
        )
        if layer is not None:
            if simple and not training and _is_foldable(layer, norm):
                return self._folded(inputs)
            inputs = layer(inputs)
        if simple and training and _has_fused_operation(norm, inputs):
            return _normalise(norm, inputs)
        return norm(inputs, training=training)

    def _folded(self, inputs):
        # In inference mode batch normalisation multiplies and adds constants, and a
        # convolution is linear in its kernel: a scaled kernel spares all passes over
        # the activations. The kernel gets its noise before the scale, as outside.
        layer = unwrapped(self.layer)
        kernel = layer.kernel.value
        for wrapper in wrappers_of(self.layer):
            if isinstance(wrapper, PNIWeight):
                (kernel,) = wrapper.noisy_kernels()
            else:
                inputs = wrapper.add_noise(inputs)
        norm = self.batch_norm
        scale, bias = _scale_and_shift(
            norm, norm.moving_mean.value, norm.moving_variance.value
        )
        axes = output_channel_axes(layer, layer.kernel)
        shape = alpha_shape(kernel.shape, "channelwise", axes)
        values = [(layer.kernel, kernel * tf.reshape(scale, shape))]
        if layer.use_bias:
            values.append((layer.bias, bias + layer.bias.value * scale))
        with keras.StatelessScope(values):
            outputs = layer(inputs)
        if layer.use_bias:
            return outputs
        # This form becomes a part of the convolution in the optimised graph.
        return tf.nn.bias_add(outputs, tf.cast(bias, outputs.dtype))


def _scale_and_shift(norm, mean, variance):
    """Returns what batch normalisation by these statistics multiplies by and adds."""
    scale = tf.math.rsqrt(variance + norm.epsilon)
    if norm.scale:
        scale *= norm.gamma.value
    shift = -mean * scale
    if norm.center:
        shift += norm.beta.value
    return scale, shift


def _normalise(norm, images):
    """Returns normalised images and updates the moving statistics, as Keras does."""
    context = tf.distribute.get_replica_context()
    if norm.synchronized and context.num_replicas_in_sync > 1:
        outputs, mean, variance = _normalise_over_replicas(norm, images, context)
    else:
        outputs, mean, variance = _normalise_here(norm, images)
    momentum = norm.momentum
    for moving, value in ((norm.moving_mean, mean), (norm.moving_variance, variance)):
        moving.assign(moving.value * momentum + value * (1 - momentum))
    return outputs


def _normalise_here(norm, images):
    channels = norm.moving_mean.shape
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=images,
        scale=norm.gamma.value if norm.scale else tf.ones(channels),
        offset=norm.beta.value if norm.center else tf.zeros(channels),
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=norm.epsilon,
        is_training=True,
    )
    # The operation's variance has N - 1 in the denominator, Keras' has N.
    count = tf.cast(tf.size(images) // channels[0], "float32")
    return outputs, mean, variance * (count - 1) / count


def _normalise_over_replicas(norm, images, context):
    """By the statistics of all replicas, in one message where Keras sends three."""
    values = tf.cast(images, "float32")
    channels = norm.moving_mean.shape[0]
    axes = [0, 1, 2]
    count = tf.cast(tf.size(values) // channels, "float32")
    sums = tf.concat(
        [tf.reduce_sum(values, axes), tf.reduce_sum(values**2, axes), [count]], 0
    )
    sums = context.all_reduce(tf.distribute.ReduceOp.SUM, sums)
    total, squares, count = tf.split(sums, [channels, channels, 1])
    mean = total / count
    variance = tf.maximum(squares / count - mean**2, 0.0)
    scale, shift = _scale_and_shift(norm, mean, variance)
    return tf.cast(values * scale + shift, images.dtype), mean, variance


def _has_fused_operation(norm, images):
    return (
        len(images.shape) == 4
        and images.dtype.name == norm.compute_dtype
        and images.dtype in (tf.float16, tf.bfloat16, tf.float32)
        and not norm.renorm
    )


def _is_last_axis_norm(layer, images):
    if type(layer) is not keras.layers.BatchNormalization:
        return False
    return layer.axis in (-1, len(images.shape) - 1)


def _is_foldable(layer, norm=None):
    """Whether a layer is linear in its kernel, with stock behaviour all the way in."""
    wrappers, layer = wrappers_of(layer), unwrapped(layer)
    return (
        type(layer) in _FOLDABLE
        and all(type(w) in (PNIWeight, PNIInput, FixedNoise) for w in wrappers)
        and all(wrapper.position != "output" for wrapper in wrappers)
        and layer.activation is keras.activations.linear
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is None
        and layer.kernel.dtype == "float32"
        # The folded kernel may be too large for float16, or lose its small entries.
        and layer.compute_dtype in ("float32", "bfloat16")
        and (norm is None or layer.compute_dtype == norm.compute_dtype)
        and not any(part.activity_regularizer for part in [layer, *wrappers])
        and sum(isinstance(wrapper, PNIWeight) for wrapper in wrappers) <= 1
    )
