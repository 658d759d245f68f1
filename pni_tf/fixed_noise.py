"""Noise of a fixed strength, and the defence by random self-ensemble (RSE).

Its networks predict by the mean over several draws: see `Target.ensemble`.
"""

import keras
import tensorflow as tf

from pni_tf import noise
from pni_tf.attacks.base import check_number
from pni_tf.conversion import check_noise_free, leaf_layers, rebuild, seeds_from
from pni_tf.layers import NoiseWrapper

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
    convolutions = convolutions_of(model)
    seeds = seeds_from(seed, len(convolutions))
    scales = {id(layer): others if i else first for i, layer in enumerate(convolutions)}

    def wrap(layer):
        if id(layer) not in scales:
            return layer
        name = f"{layer.name}_rse_noise"
        return FixedNoise(layer, scales[id(layer)], seed=next(seeds), name=name)

    return rebuild(model, wrap)


def convolutions_of(model: keras.Model) -> list[keras.Layer]:
    """Returns the convolutions of a model, of which there must be one."""
    found = [layer for layer in leaf_layers(model) if isinstance(layer, _CONVOLUTIONS)]
    if not found:
        raise ValueError(f"{model.name!r} has no convolution to add noise to")
    return found
