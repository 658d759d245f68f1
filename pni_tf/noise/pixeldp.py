"""Defence by PixelDP: noise of a fixed strength after a bounded first convolution.

Its networks predict by the mean over several draws: see `Target.ensemble`. What they
certify is in `pni_tf.evaluation.certification`.
"""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from pni_tf.checks import check_choice, check_number
from pni_tf.noise.graph import is_transparent, rebuild
from pni_tf.noise.injection import check_noise_free, convolutions_of, seeds_from
from pni_tf.noise.layers import DISTRIBUTIONS, FixedNoise

NORMS = ("l2", "l1")


def convolution_sensitivity(
    kernel: tf.Tensor,
    image_size: tuple[int, int],
    scale: np.ndarray | None = None,
    dilation: tuple[int, int] = (1, 1),
    norm: str = "l2",
) -> tf.Tensor:
    """Returns an upper bound on the operator norm of a convolution.

    Every entry of its output, whatever the zero padding and the strides, is one of the
    full convolution of the image with the kernel. That one is a circular convolution on
    a grid of `H + kh - 1` by `W + kw - 1`, whose L2 norm is the largest singular value
    over all frequencies (https://arxiv.org/abs/1805.10408). The L1 norm is the largest
    sum of magnitudes of what one entry of the image is multiplied by.

    Args:
        kernel: `[kh, kw, C, filters]`.
        image_size: `(H, W)` of the images.
        scale: `[C]`, what each channel of the image is multiplied by before, or None.
        dilation: Dilation of the kernel.
        norm: `"l2"`, from L2 to L2, or `"l1"`, from L1 to L1.

    Returns:
        A scalar in the dtype of the kernel. Without padding it may be above the exact
        norm by a few per cent, never below.
    """
    check_choice("norm", norm, NORMS)
    if scale is not None:
        kernel *= tf.reshape(tf.cast(scale, kernel.dtype), [1, 1, -1, 1])
    if norm == "l1":
        return tf.reduce_max(tf.reduce_sum(tf.abs(kernel), [0, 1, 3]))
    height, width, channels, filters = kernel.shape
    row_waves = _waves(height, dilation[0], image_size[0], kernel.dtype)  # [F, kh]
    column_waves = _waves(width, dilation[1], image_size[1], kernel.dtype)
    transform = tf.einsum(
        "fh,gw,hwio->fgio", row_waves, column_waves, tf.cast(kernel, row_waves.dtype)
    )
    # The Gram matrix of the smaller side: its eigenvalues are the squares.
    sides = "fgio,fgjo->fgij" if channels <= filters else "fgoi,fgoj->fgij"
    gram = tf.einsum(sides, transform, tf.math.conj(transform))
    largest = tf.reduce_max(tf.math.real(tf.linalg.eigvalsh(gram)))
    return tf.sqrt(tf.maximum(largest, 0))


def _waves(taps, dilation, size, dtype):
    """Returns the Fourier transform of each tap of a kernel along one axis."""
    grid = size + (taps - 1) * dilation
    angle = tf.range(grid)[:, None] * tf.range(0, taps * dilation, dilation)
    angle = tf.cast(angle, dtype) * (-2 * np.pi / grid)
    return tf.complex(tf.cos(angle), tf.sin(angle))


@keras.saving.register_keras_serializable(package="pni_tf")
class BoundedSensitivity(keras.constraints.Constraint):
    """Scales a kernel down after each step, so that its sensitivity is at most 1.

    Where PixelDP takes the Parseval step, which approaches the bound, this divides by
    the norm, which keeps it at every step.

    The arguments are those of `convolution_sensitivity`.

    Reference: https://arxiv.org/abs/1802.03471, section 3.2.
    """

    def __init__(self, image_size, scale=None, dilation=(1, 1), norm="l2"):
        self.image_size = tuple(image_size)
        self.scale = None if scale is None else [float(s) for s in scale]
        self.dilation = tuple(dilation)
        self.norm = norm

    def __call__(self, kernel):
        return kernel / tf.maximum(self.sensitivity(kernel), 1)

    def sensitivity(self, kernel) -> tf.Tensor:
        """Returns the bound that the constraint holds at 1."""
        return convolution_sensitivity(tf.convert_to_tensor(kernel), **vars(self))

    def get_config(self):
        return dict(vars(self))


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
        model: A built Functional or Sequential model. All that its image goes through
            is normalisation and padding, and then one `Conv2D` without activation.
        bound: L of the paper: the construction attack bound, for pixels in `[0, 1]`.
        epsilon: Of differential privacy, in `(0, 1]` for Gaussian noise.
        delta: Of differential privacy, in `(0, 1)`; Laplace noise has none.
        distribution: `"gaussian"` or `"laplace"`.
        seed: Integer seed of the noise, or None.

    Returns:
        A model that shares all variables of `model`.

    Raises:
        ValueError: If an argument is out of range, the model already has noise, its
            first convolution has another constraint, or something other than this
            convolution sees the image.
        TypeError: If `model` is neither Functional nor Sequential.

    Reference: https://arxiv.org/abs/1802.03471, sections 3.1 and 3.2.
    """
    check_noise_free(model)
    scale = pixeldp_scale(bound, epsilon, delta, distribution)
    first = convolutions_of(model)[0]
    constraint = bounded_sensitivity(model, first, distribution)
    present = first.kernel_constraint
    if present is not None and getattr(present, "norm", None) != constraint.norm:
        raise ValueError(
            f"The kernel of layer {first.name!r} has a constraint already, which that "
            f"of PixelDP in the {constraint.norm} norm would replace, in every view of "
            f"the network. Received: kernel_constraint={present!r}"
        )
    # Saved with the layer, and applied by Keras' optimizers after each step.
    first.kernel_constraint = first.kernel.constraint = constraint
    first.kernel.assign(constraint(first.kernel))
    (seed,) = seeds_from(seed, 1)
    name = f"{first.name}_pixeldp_noise"
    noisy = FixedNoise(first, scale, "output", distribution, seed=seed, name=name)
    return rebuild(model, lambda layer: noisy if layer is first else layer)


def pixeldp_scale(
    bound: float, epsilon: float = 1.0, delta: float = 0.05, distribution="gaussian"
) -> float:
    """Returns the scale of PixelDP's noise for a sensitivity of 1 (see above)."""
    check_choice("distribution", distribution, DISTRIBUTIONS)
    check_number("bound", bound, above=0)
    if distribution == "laplace":
        check_number("epsilon", epsilon, above=0)
        return bound / epsilon
    check_number("epsilon", epsilon, above=0, maximum=1)  # The mechanism's condition.
    check_number("delta", delta, above=0, below=1)
    return bound * math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def bounded_sensitivity(
    model: keras.Model, layer: keras.Layer, distribution: str
) -> BoundedSensitivity:
    """Returns the bound on what the image does to a network through one layer.

    It is that of the network as it is now, in the norm of the noise: L2 for Gaussian,
    L1 for Laplace noise. For arguments and errors see `factors_before`.
    """
    convolution = layer.layer if isinstance(layer, FixedNoise) else layer
    return BoundedSensitivity(
        scale=factors_before(model, layer),
        image_size=model.input_shape[1:-1],
        dilation=convolution.dilation_rate,
        norm={"gaussian": "l2", "laplace": "l1"}[distribution],
    )


def factors_before(model: keras.Model, layer: keras.Layer) -> np.ndarray:
    """Returns what each channel of the image is multiplied by on its way to a layer.

    Whoever bounds what the image does to the output of this layer bounds what it does
    to the output of the network: nothing else may see the image.

    Args:
        model: A built Functional or Sequential model of one image.
        layer: A `Conv2D`, or the noise layer of PixelDP around it.

    Returns:
        Float32 `[C]`.

    Raises:
        ValueError: If something other than `Normalization`, `Rescaling` and
            `ZeroPadding2D` comes before the layer or goes around it, the layer sees the
            image twice, or it is not a plain convolution of images of a fixed size.
    """
    if not is_transparent(model) or len(model.inputs) != 1:
        raise ValueError(
            "PixelDP bounds the sensitivity to one image in a network whose graph is "
            f"known. Received: model {model.name!r} ({type(model).__name__}), inputs "
            f"{[tensor.name for tensor in getattr(model, 'inputs', None) or ()]}"
        )
    _check_convolution(
        layer.layer if isinstance(layer, FixedNoise) else layer, model.input_shape
    )
    found = []

    # The graph itself is run, on a stand-in for the image: an operation sees the image
    # where it gets one, so no way around the noise can be overlooked.
    def follow(operation, *args, **kwargs):
        """Returns what an operation makes of the image: None where it is not clear."""
        inputs = keras.tree.flatten((args, kwargs))
        images = [value for value in inputs if isinstance(value, _Image)]
        if images and is_transparent(operation):
            return through(operation, *inputs[: len(operation.inputs)])
        if images and operation is layer and not found:
            found.append(images[0].factors)
        elif images:
            factors = images[0].factors
            return _Image(factors * _factor(operation, layer, len(factors)))
        return [None] * len(keras.tree.flatten(operation.output))

    def through(graph, *inputs):
        # As Keras runs a Functional model, which a Sequential one is here made to be.
        functional = keras.Model(graph.inputs, graph.outputs)
        return functional._run_through_graph(inputs, call_fn=follow)

    outputs = through(model, _Image(np.ones(model.input_shape[-1], "float32")))
    if not found or any(isinstance(x, _Image) for x in keras.tree.flatten(outputs)):
        raise ValueError(
            f"An output of model {model.name!r} does not come through the noise after "
            f"layer {layer.name!r}, which then hides nothing of the image from it"
        )
    return found[0]


@dataclasses.dataclass(frozen=True)
class _Image:
    """The image, up to shifts, padding and what each channel was multiplied by."""

    factors: np.ndarray


def _factor(operation, first, channels):
    """Returns what an operation before the first convolution multiplies by."""
    factor = None
    # Only these very classes: a subclass may compute something else.
    if type(operation) is keras.layers.ZeroPadding2D:
        factor = np.ones(1)
    if type(operation) is keras.layers.Rescaling:
        factor = np.ravel(operation.scale)
    if type(operation) is keras.layers.Normalization:
        variance = np.ravel(keras.ops.convert_to_numpy(operation.variance))
        deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
        factor = deviation if operation.invert else 1 / deviation
    if factor is None or len(factor) not in (1, channels):
        raise ValueError(
            "PixelDP bounds the sensitivity of one convolution to the image, so only "
            "padding, and normalisation by one factor for each channel, may come "
            f"before it, and nothing go around it. Received: layer {operation.name!r} "
            f"({type(operation).__name__}) sees the image, besides {first.name!r}"
        )
    return factor.astype("float32")


def _check_convolution(layer, input_shape):
    if (
        type(layer) is not keras.layers.Conv2D
        or layer.groups != 1
        or None in input_shape[1:]
    ):
        raise ValueError(
            "PixelDP needs a first convolution of type `Conv2D` with one group and "
            f"images of a fixed size. Received: layer {layer.name!r} "
            f"({type(layer).__name__}), images {input_shape[1:]}"
        )
    if layer.activation is not keras.activations.linear:
        raise ValueError(
            "The noise of PixelDP comes before the activation of the first "
            "convolution. Put it into a layer of its own, as `keras.layers.ReLU()`. "
            f"Received: layer {layer.name!r}, activation={layer.activation.__name__!r}"
        )
