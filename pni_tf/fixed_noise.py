"""Defences by noise of a fixed strength: random self-ensemble (RSE) and PixelDP.

Neither trains its noise. Their networks predict by the mean over several draws: see
`Target.ensemble`.
"""

import math

import keras
import tensorflow as tf

from pni_tf import noise
from pni_tf.attacks.base import check_number
from pni_tf.conversion import check_noise_free, leaf_layers, rebuild, seeds_from
from pni_tf.layers import NoiseWrapper
from pni_tf.sensitivity import BoundedSensitivity

DISTRIBUTIONS = ("gaussian", "laplace")
POSITIONS = ("input", "output")
_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


@keras.saving.register_keras_serializable(package="pni_tf")
class FixedNoise(NoiseWrapper):
    """Adds noise of a fixed scale to the input or output of a layer.

    Each element of the batch gets its own noise, in training and inference alike, and
    each replica of a distribution strategy its own draw.

    Args:
        layer: Any layer with one input and one output tensor.
        scale: Standard deviation of `"gaussian"` noise, or `b` of `"laplace"` noise,
            whose density is `exp(-|x| / b) / 2b`.
        position: `"input"` or `"output"` of the layer.
        distribution: `"gaussian"` or `"laplace"`.
        frozen: Whether to use the same draw at every call, shared by all examples,
            which makes the layer deterministic (see `freeze_pni`).
        seed: Integer seed of the noise, or None for a random one.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input and output shapes: those of `layer`.

    Raises:
        ValueError: If an argument is unknown, or the scale is negative.
    """

    def __init__(
        self,
        layer,
        scale,
        position="input",
        distribution="gaussian",
        frozen=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(layer, seed, **kwargs)
        check_number("scale", scale, minimum=0)
        for name, value, known in (
            ("position", position, POSITIONS),
            ("distribution", distribution, DISTRIBUTIONS),
        ):
            if value not in known:
                raise ValueError(
                    f"`{name}` must be one of {known}. Received: {name}={value!r}"
                )
        if frozen and seed is None:
            raise ValueError("`frozen=True` needs an integer `seed`. Received: None")
        self.scale = float(scale)
        self.position = position
        self.distribution = distribution
        self.frozen = frozen

    def call(self, inputs):
        if self.position == "output":
            return self.add_noise(self.layer(inputs))
        return self.layer(self.add_noise(inputs))

    def add_noise(self, activations):
        """Returns a noisy copy of a batch of activations, in their dtype."""
        shape = tf.shape(activations)
        if self.frozen:
            # One draw for every example, so that it does not change with the batch.
            seed = tf.constant([self.seed, 0], "int64")
            shape = tf.concat([[1], shape[1:]], 0)
        else:
            seed = noise.fold_in_replica(self.seed_generator.next())
        draw = self.scale * _standard(self.distribution, shape, seed)
        return tf.cast(tf.cast(activations, "float32") + draw, activations.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "scale": self.scale,
            "position": self.position,
            "distribution": self.distribution,
            "frozen": self.frozen,
        }


def _standard(distribution, shape, seed):
    if distribution == "gaussian":
        return tf.random.stateless_normal(shape, seed)
    # The difference of two exponential variables; 1 - u is never zero.
    uniform = tf.random.stateless_uniform(tf.concat([[2], shape], 0), seed)
    first, second = tf.unstack(-tf.math.log1p(-uniform))
    return first - second


def inject_rse(
    model: keras.Model,
    *,
    first: float = 0.2,
    others: float = 0.1,
    seed: int | None = None,
) -> keras.Model:
    """Returns a view of a model with the noise of random self-ensemble (RSE).

    Train it without adversarial examples, and predict by the mean of the softmax over
    several draws: `load_target(model).ensemble(10)`.

    Args:
        model: A built Functional or Sequential model, nested ones included.
        first: Standard deviation of the noise on the input of the first convolution.
        others: Standard deviation on the inputs of the other convolutions.
        seed: Integer seed from which each layer gets its own, or None.

    Returns:
        A model that shares all variables of `model`.

    Raises:
        ValueError: If the model already has noise, is not built, or has no convolution.
        TypeError: If `model` is neither Functional nor Sequential.

    Reference: https://arxiv.org/abs/1712.00673.
    """
    check_noise_free(model)
    convolutions = _convolutions(model)
    seeds = seeds_from(seed, len(convolutions))
    scales = {id(layer): others if i else first for i, layer in enumerate(convolutions)}

    def wrap(layer):
        if id(layer) not in scales:
            return layer
        name = f"{layer.name}_rse_noise"
        return FixedNoise(layer, scales[id(layer)], seed=next(seeds), name=name)

    return rebuild(model, wrap)


def inject_pixeldp(
    model: keras.Model,
    *,
    bound: float = 0.1,
    epsilon: float = 1.0,
    delta: float = 0.05,
    distribution: str = "gaussian",
    seed: int | None = None,
) -> keras.Model:
    """Returns a view of a model with the noise layer of PixelDP.

    The noise follows the first convolution, before its activation. Its scale makes the
    network `(epsilon, delta)` differentially private with respect to changes of the
    image by up to `bound`: in the L2 norm with Gaussian noise of standard deviation
    `bound * sqrt(2 ln(1.25 / delta)) / epsilon`, in the L1 norm with Laplace noise of
    scale `bound / epsilon`. Both take the sensitivity of what comes before the noise to
    be at most 1, so the kernel of that convolution is scaled down to it, now and after
    each step of training.

    Args:
        model: A built Functional or Sequential model. Between its input and its first
            convolution, a `Conv2D`, there may be normalisation and padding only.
        bound: L of the paper: the construction attack bound, for pixels in `[0, 1]`.
        epsilon: Of differential privacy, in `(0, 1]` for Gaussian noise.
        delta: Of differential privacy, in `(0, 1)`; Laplace noise has none.
        distribution: `"gaussian"` or `"laplace"`.
        seed: Integer seed of the noise, or None.

    Returns:
        A model that shares all variables of `model`.

    Raises:
        ValueError: If an argument is out of range, the model already has noise, or what
            comes before its first convolution is not understood.
        TypeError: If `model` is neither Functional nor Sequential.

    Reference: https://arxiv.org/abs/1802.03471, sections 3.1 and 3.2.
    """
    check_noise_free(model)
    scale = pixeldp_scale(bound, epsilon, delta, distribution)
    first = _convolutions(model)[0]
    constraint = BoundedSensitivity(
        *_before(model, first),
        dilation=first.dilation_rate,
        norm={"gaussian": "l2", "laplace": "l1"}[distribution],
    )
    # Saved with the layer, and applied by Keras' optimizers after each step.
    first.kernel_constraint = first.kernel.constraint = constraint
    first.kernel.assign(constraint(first.kernel))
    (seed,) = seeds_from(seed, 1)

    def wrap(layer):
        if layer is not first:
            return layer
        return FixedNoise(
            layer,
            scale,
            position="output",
            distribution=distribution,
            seed=seed,
            name=f"{layer.name}_pixeldp_noise",
        )

    return rebuild(model, wrap)


def pixeldp_scale(
    bound: float, epsilon: float = 1.0, delta: float = 0.05, distribution="gaussian"
) -> float:
    """Returns the scale of PixelDP's noise for a sensitivity of 1 (see above)."""
    check_number("bound", bound, minimum=0)
    check_number("epsilon", epsilon, minimum=0)
    check_number("delta", delta, minimum=0)
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"`distribution` must be one of {DISTRIBUTIONS}. "
            f"Received: distribution={distribution!r}"
        )
    if bound == 0 or epsilon == 0 or (distribution == "gaussian" and epsilon > 1):
        raise ValueError(
            "`bound` and `epsilon` must be positive, and the Gaussian mechanism holds "
            f"for epsilon up to 1. Received: bound={bound}, epsilon={epsilon}"
        )
    if distribution == "laplace":
        return bound / epsilon
    if not 0 < delta < 1:
        raise ValueError(f"`delta` must be in (0, 1). Received: delta={delta}")
    return bound * math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def _convolutions(model):
    found = [layer for layer in leaf_layers(model) if isinstance(layer, _CONVOLUTIONS)]
    if not found:
        raise ValueError(f"{model.name!r} has no convolution to add noise to")
    return found


def _before(model, first):
    """Returns the size of the images at a convolution, and each channel's factor."""
    scale = None
    for layer in leaf_layers(model):
        if layer is first:
            break
        if isinstance(layer, keras.layers.Normalization):
            deviation = tf.maximum(tf.sqrt(layer.variance), keras.config.epsilon())
            scale = (1 / tf.reshape(deviation, [-1])).numpy()
        elif isinstance(layer, keras.layers.Rescaling):
            scale = tf.reshape(tf.cast(layer.scale, "float32"), [-1]).numpy()
        elif not isinstance(
            layer, (keras.layers.InputLayer, keras.layers.ZeroPadding2D)
        ):
            raise ValueError(
                "PixelDP bounds the sensitivity of the first convolution to the image, "
                "so only normalisation and padding may come before it. Received: layer "
                f"{layer.name!r} ({type(layer).__name__})"
            )
    size = model.input_shape[1:-1]
    if type(first) is not keras.layers.Conv2D or first.groups != 1 or None in size:
        raise ValueError(
            "PixelDP needs a first convolution of type `Conv2D` with one group and "
            f"images of a fixed size. Received: layer {first.name!r} "
            f"({type(first).__name__}), images {size}"
        )
    channels = model.input_shape[-1]
    if scale is not None and len(scale) != channels:
        scale = scale.repeat(channels)
    return size, scale
