"""The paper's networks, built from stock Keras layers.

Every operation is a layer of its own: nothing is fused into a convolution or a dense
layer, so `inject_pni` can put noise on exactly the tensor that the paper names. Models
map images in [0, 1] to logits.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence

import keras
from keras import layers
from keras.initializers import Constant, TruncatedNormal, VarianceScaling

from pni_tf.checks import check_choice, check_number

# How kernel and bias start; a bias of `None` means there is none. Keras' own
# `he_normal` would be a truncated normal distribution, unlike torch's.
_kaiming_normal = functools.partial(
    VarianceScaling, 2, distribution="untruncated_normal"
)
_RESNET_CONV = functools.partial(_kaiming_normal, mode="fan_out"), None
_RESNET_DENSE = functools.partial(_kaiming_normal, mode="fan_in"), "zeros"
_MADRY = functools.partial(TruncatedNormal, stddev=0.1), Constant(0.1)


def build_model(
    name: str,
    *,
    width: float = 1,
    input_shape: tuple[int, int, int],
    num_classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weight_decay: float = 0.0,
    synchronized: bool = False,
    seed: int | None = None,
) -> keras.Model:
    """Builds one of the networks of `MODELS`.

    - `"resnet8"`, `"resnet20"`, `"resnet32"`, `"resnet44"`, `"resnet56"`: the residual
      networks of He et al. for CIFAR; the first is small enough to train on 8x8 digits
      within a minute on a CPU.
    - `"resnet18"`: the wide one, the paper's redundant network.
    - `"mnist_cnn"`: the network of Madry et al. for MNIST, who use no normalisation.

    Layers with a kernel are named after Table 1 of the paper: `conv0`, then
    `conv<stage>_<index>` (`conv1_0` is the table's Conv1.0), and `logits` for its FC.

    Args:
        name: A key of `MODELS`.
        width: Factor on the number of channels, e.g. 1.5 for 24, 48 and 96.
        input_shape: `(height, width, channels)` of one image.
        num_classes: Number of logits, at least 2.
        mean: Channel means, in units of [0, 1]. With `std`, a non-trainable layer
            `normalization` computes `(images - mean) / std` in front of the network.
        std: Channel standard deviations, in units of [0, 1].
        weight_decay: Coefficient wd of torch's coupled rule, which adds `wd * w` to the
            gradient of *every* trainable parameter `w`, biases and batch normalisation
            included. It is an L2(wd / 2) regularizer on each of them, so noise scales
            that are added later are outside it.
        synchronized: Whether batch normalisation takes its statistics over all
            replicas of a `tf.distribute` strategy.
        seed: Seed of all initial weights; each layer derives its own from it. `None`
            draws them from Keras' global generator.

    Returns:
        A Functional `keras.Model` called `name`: float images `[N, height, width,
        channels]` in [0, 1] to float32 logits `[N, num_classes]`.

    Raises:
        ValueError: If the name is unknown or an argument is out of its range.

    Example:
        >>> model = build_model(
        ...     "resnet20", width=1.5, input_shape=(32, 32, 3), num_classes=10
        ... )
        >>> sum(w.shape.num_elements() for w in model.trainable_weights)
        605026

    Reference:
        - [Deep Residual Learning](https://arxiv.org/abs/1512.03385), section 4.2 and
          table 1
        - [Parametric Noise Injection](https://arxiv.org/abs/1811.09310), section 4.1
        - [Towards Deep Learning Models Resistant to Adversarial Attacks](
          https://arxiv.org/abs/1706.06083), section 5
    """
    check_choice("name", name, tuple(MODELS))
    check_number("num_classes", num_classes, minimum=2, integer=True)
    check_number("weight_decay", weight_decay, minimum=0)
    make = _LayerMaker(width, num_classes, weight_decay, synchronized, seed)
    inputs, x = _normalized_input(input_shape, mean, std)
    return keras.Model(inputs, MODELS[name](make, x), name=name)


def _resnet(make, x, *, channels, blocks, shortcut):
    """A 3x3 stem without pooling, then stages of so many residual blocks each.

    Each stage but the first halves the resolution and doubles the channels; `shortcut`
    does so to what passes by its first block. Convolutions have no bias, are
    initialised from N(0, sqrt(2 / (kh * kw * out))) and see one pixel of padding on
    each side; batch normalisation uses epsilon 1e-5 and momentum 0.9 (torch's 0.1).
    These are the choices of the PNI authors' code.
    """
    filters = make.scaled(channels)
    x = make.conv_and_norm(x, filters, "conv0", "bn0")
    x = layers.ReLU(name="relu0")(x)
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            passing, strides = x, 1
            if stage > 1 and block == 0:
                filters, strides = 2 * filters, 2
                passing = shortcut(make, x, stage)
            x = make.residual_block(x, passing, filters, strides, stage, block)
    return make.logits(layers.GlobalAveragePooling2D(name="pool")(x))


def _pool_and_pad(make, x, stage):
    """Option A: every second pixel, followed by as many zero channels again."""
    pool = layers.AveragePooling2D(pool_size=1, strides=2, name=f"shortcut{stage}")
    return keras.ops.pad(pool(x), [(0, 0), (0, 0), (0, 0), (0, x.shape[-1])])


def _project(make, x, stage):
    """Option B: a 1x1 convolution to twice as many channels."""
    name, filters = f"projection{stage}", 2 * x.shape[-1]
    return make.conv_and_norm(x, filters, name, f"{name}_bn", size=1, strides=2)


def _mnist_cnn(make, x):
    """Two 5x5 convolutions with 32 and 64 channels, and a dense layer of 1024 units.

    ReLU follows each, and 2x2 max pooling each convolution. Kernels start from a normal
    distribution of standard deviation 0.1 cut off at two of them, biases at 0.1, as in
    the code of its authors.
    """
    for index, channels in enumerate((32, 64)):
        x = make.conv(x, make.scaled(channels), f"conv{index}", 5, initial=_MADRY)
        x = layers.ReLU(name=f"relu{index}")(x)
        x = layers.MaxPooling2D(2, padding="same", name=f"pool{index}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = make.dense(x, make.scaled(1024), "fc0", _MADRY)
    x = layers.ReLU(name="relu2")(x)
    return make.logits(x, _MADRY)


MODELS: dict[str, Callable] = {
    **{
        f"resnet{depth}": functools.partial(
            _resnet, channels=16, blocks=3 * ((depth - 2) // 6,), shortcut=_pool_and_pad
        )
        for depth in (8, 20, 32, 44, 56)
    },
    "resnet18": functools.partial(
        _resnet, channels=64, blocks=(2, 2, 2, 2), shortcut=_project
    ),
    "mnist_cnn": _mnist_cnn,
}


@dataclasses.dataclass(frozen=True)
class _LayerMaker:
    """Applies the layers of a network with what they share; see `build_model`."""

    width: float
    num_classes: int
    weight_decay: float
    synchronized: bool
    seed: int | None

    def scaled(self, channels):
        if not 0 < self.width < math.inf or round(channels * self.width) < 1:
            raise ValueError(
                "`width` must be positive, finite and leave at least one of "
                f"{channels} channels. Received: width={self.width}"
            )
        return round(channels * self.width)

    def conv(self, x, filters, name, size=3, strides=1, initial=_RESNET_CONV):
        padding = "same"
        if strides > 1:
            # "same" would pad an even-sized image at the bottom and right only.
            padding = "valid"
            if size > 1:
                x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
        options = self._kernel_and_bias(name, *initial)
        return layers.Conv2D(filters, size, strides, padding, **options)(x)

    def dense(self, x, units, name, initial, dtype=None):
        options = self._kernel_and_bias(name, *initial)
        return layers.Dense(units, dtype=dtype, **options)(x)

    def logits(self, x, initial=_RESNET_DENSE):
        # Under mixed precision, losses and attacks still get float32.
        return self.dense(x, self.num_classes, "logits", initial, dtype="float32")

    def conv_and_norm(self, x, filters, conv, norm, size=3, strides=1):
        x = self.conv(x, filters, conv, size, strides)
        return layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            gamma_regularizer=self._regularizer(),
            beta_regularizer=self._regularizer(),
            synchronized=self.synchronized,
            name=norm,
        )(x)

    def residual_block(self, x, shortcut, filters, strides, stage, block):
        first, second = f"{stage}_{2 * block}", f"{stage}_{2 * block + 1}"
        names = f"conv{first}", f"bn{first}"
        x = self.conv_and_norm(x, filters, *names, strides=strides)
        x = layers.ReLU(name=f"relu{first}")(x)
        x = self.conv_and_norm(x, filters, f"conv{second}", f"bn{second}")
        x = layers.Add(name=f"add{stage}_{block}")([x, shortcut])
        return layers.ReLU(name=f"relu{second}")(x)

    def _kernel_and_bias(self, name, kernel, bias):
        # Each layer has a seed of its own, or layers of one shape would start alike. It
        # follows from the name, so that a further layer leaves it as it is.
        seed = None if self.seed is None else zlib.crc32(f"{self.seed}/{name}".encode())
        return {
            "name": name,
            "use_bias": bias is not None,
            "kernel_initializer": kernel(seed=seed),
            "bias_initializer": bias,
            "kernel_regularizer": self._regularizer(),
            "bias_regularizer": self._regularizer(),
        }

    def _regularizer(self):
        if not self.weight_decay:
            return None
        return keras.regularizers.L2(self.weight_decay / 2)  # Its gradient is wd * w.


def _normalized_input(input_shape, mean, std):
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            "`input_shape` must be three positive integers (height, width, channels). "
            f"Received: input_shape={input_shape}"
        )
    inputs = keras.Input(shape, name="images")
    if mean is None and std is None:
        return inputs, inputs
    received = f"Received: mean={mean}, std={std}"
    if mean is None or std is None or not len(mean) == len(std) == shape[-1]:
        raise ValueError(
            "Give both `mean` and `std`, with a value for each of the "
            f"{shape[-1]} channels, or neither. {received}"
        )
    mean, std = [float(m) for m in mean], [float(s) for s in std]
    if not all(0 <= m <= 1 and 0 < s <= 1 for m, s in zip(mean, std, strict=True)):
        raise ValueError(
            "`mean` must be in [0, 1] and `std` in (0, 1], as images are: divide "
            f"values for 0..255 by 255. {received}"
        )
    variance = [s**2 for s in std]
    normalize = layers.Normalization(mean=mean, variance=variance, name="normalization")
    return inputs, normalize(inputs)
