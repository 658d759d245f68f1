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

# How kernel and bias start; `None` is no bias. Keras' own `he_normal` would be a
# truncated normal distribution, torch's `kaiming_normal_` is not.
_kaiming_normal = functools.partial(
    VarianceScaling, 2, distribution="untruncated_normal"
)
_RESNET_CONV = functools.partial(_kaiming_normal, mode="fan_out"), None
_RESNET_DENSE = functools.partial(_kaiming_normal, mode="fan_in"), "zeros"
_MADRY = functools.partial(TruncatedNormal, stddev=0.1), Constant(0.1)


def cifar_resnet(
    depth: int = 20,
    width: float = 1,
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weight_decay: float = 0.0,
    synchronized: bool = False,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds the residual network of He et al. for CIFAR, of depth 6n + 2.

    Three stages of n blocks with 16, 32 and 64 channels (times `width`). Where the
    resolution halves, the shortcut takes every second pixel and appends zero channels
    (option A), so it has no parameters. Convolutions have no bias, are initialised
    from N(0, sqrt(2 / (kh * kw * out))) and see one pixel of padding on each side;
    batch normalisation uses epsilon 1e-5 and momentum 0.9 (torch's 0.1). These are the
    choices of the PNI authors' code.

    Layers are named after Table 1 of the paper: `conv0`, then `conv<stage>_<index>`
    (`conv1_0` is the table's Conv1.0), and `logits` for its FC.

    Args:
        depth: Number of layers with a kernel: 8, 14, 20, 26, 32, ...
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
        name: Name of the model, by default `resnet<depth>`.

    Returns:
        A Functional `keras.Model`: float images `[N, height, width, channels]` in
        [0, 1] to float32 logits `[N, num_classes]`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> model = cifar_resnet(20, width=1.5)
        >>> sum(w.shape.num_elements() for w in model.trainable_weights)
        605026

    Reference:
        - [Deep Residual Learning](https://arxiv.org/abs/1512.03385), section 4.2
        - [Parametric Noise Injection](https://arxiv.org/abs/1811.09310), section 4.1
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(
            "`depth` must be 6n + 2 with n >= 1 (8, 14, 20, 26, 32, ...). "
            f"Received: depth={depth}"
        )
    channels = _scaled(16, width)
    make = _LayerMaker(weight_decay, synchronized, seed)
    inputs, x = _normalized_input(input_shape, mean, std)
    x = make.stem(x, channels)
    for stage in (1, 2, 3):
        filters = channels * 2 ** (stage - 1)
        for block in range((depth - 2) // 6):
            strides = 2 if stage > 1 and block == 0 else 1
            shortcut = x if strides == 1 else _pool_and_pad(x, f"shortcut{stage}")
            x = make.residual_block(x, shortcut, filters, strides, stage, block)
    outputs = make.classifier(x, num_classes)
    return keras.Model(inputs, outputs, name=name or f"resnet{depth}")


def resnet18(
    width: float = 1,
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weight_decay: float = 0.0,
    synchronized: bool = False,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds ResNet-18 for small images: the paper's redundant network.

    A 3x3 stem of stride 1 without pooling, then four stages of two blocks with 64, 128,
    256 and 512 channels (times `width`). Where the resolution halves, the shortcut is a
    1x1 convolution with batch normalisation, named `projection<stage>`.

    Args:
        width: Factor on the number of channels.
        input_shape, num_classes, mean, std, weight_decay, synchronized, seed, name:
            As in `cifar_resnet`.

    Returns:
        A Functional `keras.Model`, as `cifar_resnet` returns.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> model = resnet18(num_classes=100)

    Reference:
        - [Deep Residual Learning](https://arxiv.org/abs/1512.03385), table 1
    """
    channels = _scaled(64, width)
    make = _LayerMaker(weight_decay, synchronized, seed)
    inputs, x = _normalized_input(input_shape, mean, std)
    x = make.stem(x, channels)
    for stage in (1, 2, 3, 4):
        filters = channels * 2 ** (stage - 1)
        for block in (0, 1):
            strides = 2 if stage > 1 and block == 0 else 1
            shortcut = x
            if strides == 2:
                shortcut = make.conv(x, filters, f"projection{stage}", 1, strides=2)
                shortcut = make.batch_norm(shortcut, f"projection{stage}_bn")
            x = make.residual_block(x, shortcut, filters, strides, stage, block)
    outputs = make.classifier(x, num_classes)
    return keras.Model(inputs, outputs, name=name or "resnet18")


def mnist_cnn(
    width: float = 1,
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weight_decay: float = 0.0,
    synchronized: bool = False,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds the MNIST network of Madry et al.

    Convolution 5x5 with 32 channels, ReLU, 2x2 max pooling; the same with 64 channels;
    a dense layer of 1024 units, ReLU; logits. Kernels start from a normal distribution
    of standard deviation 0.1 cut off at two of them, biases at 0.1, as in its authors'
    code.

    Args:
        width: Factor on the 32 and 64 channels and on the 1024 units.
        synchronized: Without effect, as the network has no batch normalisation.
        input_shape, num_classes, mean, std, weight_decay, seed, name: As in
            `cifar_resnet`. Madry et al. use no normalisation.

    Returns:
        A Functional `keras.Model`, as `cifar_resnet` returns.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> model = mnist_cnn(width=0.5)

    Reference:
        - [Towards Deep Learning Models Resistant to Adversarial Attacks](
          https://arxiv.org/abs/1706.06083), section 5
    """
    make = _LayerMaker(weight_decay, synchronized, seed)
    inputs, x = _normalized_input(input_shape, mean, std)
    for index, channels in enumerate((32, 64)):
        x = make.conv(x, _scaled(channels, width), f"conv{index}", 5, initial=_MADRY)
        x = layers.ReLU(name=f"relu{index}")(x)
        x = layers.MaxPooling2D(2, padding="same", name=f"pool{index}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = make.dense(x, _scaled(1024, width), "fc0", _MADRY)
    x = layers.ReLU(name="relu2")(x)
    outputs = make.logits(x, num_classes, _MADRY)
    return keras.Model(inputs, outputs, name=name or "mnist_cnn")


MODELS: dict[str, Callable[..., keras.Model]] = {
    # Small enough to train on 8x8 digits within a minute on a CPU.
    "resnet8": functools.partial(cifar_resnet, 8),
    "resnet20": functools.partial(cifar_resnet, 20),
    "resnet32": functools.partial(cifar_resnet, 32),
    "resnet44": functools.partial(cifar_resnet, 44),
    "resnet56": functools.partial(cifar_resnet, 56),
    "resnet18": resnet18,
    "mnist_cnn": mnist_cnn,
}


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
    """Builds one of the networks of `MODELS` by its name.

    Args:
        name: A key of `MODELS`, e.g. `"resnet20"`.
        width, input_shape, num_classes, mean, std, weight_decay, synchronized, seed:
            As in `cifar_resnet`.

    Returns:
        A Functional `keras.Model` called `name`, as `cifar_resnet` returns.

    Raises:
        ValueError: If the name is unknown or an argument is out of its range.

    Example:
        >>> model = build_model("resnet8", input_shape=(8, 8, 1), num_classes=10)
    """
    if name not in MODELS:
        raise ValueError(
            f"Unknown model. Known models: {', '.join(MODELS)}. Received: name={name!r}"
        )
    return MODELS[name](
        width=width,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        weight_decay=weight_decay,
        synchronized=synchronized,
        seed=seed,
        name=name,
    )


@dataclasses.dataclass(frozen=True)
class _LayerMaker:
    """Applies layers that share weight decay, synchronisation and seed."""

    weight_decay: float
    synchronized: bool
    seed: int | None

    def __post_init__(self):
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                "`weight_decay` must be finite and at least 0. "
                f"Received: weight_decay={self.weight_decay}"
            )

    def conv(self, x, filters, name, size=3, strides=1, initial=_RESNET_CONV):
        padding = "same"
        if strides > 1:
            # "same" would pad an even-sized image at the bottom and right only.
            padding = "valid"
            if size > 1:
                x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
        options = self._kernel_and_bias(name, *initial)
        return layers.Conv2D(filters, size, strides, padding, **options)(x)

    def dense(self, x, units, name, initial):
        return layers.Dense(units, **self._kernel_and_bias(name, *initial))(x)

    def logits(self, x, num_classes, initial=_RESNET_DENSE):
        if num_classes < 2:
            raise ValueError(
                f"`num_classes` must be at least 2. Received: num_classes={num_classes}"
            )
        options = self._kernel_and_bias("logits", *initial)
        # Under mixed precision, losses and attacks still get float32.
        return layers.Dense(num_classes, dtype="float32", **options)(x)

    def batch_norm(self, x, name):
        return layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            gamma_regularizer=self._regularizer(),
            beta_regularizer=self._regularizer(),
            synchronized=self.synchronized,
            name=name,
        )(x)

    def stem(self, x, filters):
        x = self.batch_norm(self.conv(x, filters, "conv0"), "bn0")
        return layers.ReLU(name="relu0")(x)

    def residual_block(self, x, shortcut, filters, strides, stage, block):
        first, second = f"{stage}_{2 * block}", f"{stage}_{2 * block + 1}"
        x = self.conv(x, filters, f"conv{first}", strides=strides)
        x = self.batch_norm(x, f"bn{first}")
        x = layers.ReLU(name=f"relu{first}")(x)
        x = self.conv(x, filters, f"conv{second}")
        x = self.batch_norm(x, f"bn{second}")
        x = layers.Add(name=f"add{stage}_{block}")([x, shortcut])
        return layers.ReLU(name=f"relu{second}")(x)

    def classifier(self, x, num_classes):
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        return self.logits(x, num_classes)

    def _kernel_and_bias(self, name, kernel, bias):
        # A seed of the layer's own, so that equally shaped layers start differently;
        # from its name, so that another layer more leaves it as it was.
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
        return keras.regularizers.L2(self.weight_decay / 2)  # gradient weight_decay * w


def _pool_and_pad(x, name):
    """Option A: every second pixel, followed by as many zero channels again."""
    x = layers.AveragePooling2D(pool_size=1, strides=2, name=name)(x)
    return keras.ops.pad(x, [(0, 0), (0, 0), (0, 0), (0, x.shape[-1])])


def _scaled(channels, width):
    if not 0 < width < math.inf or round(channels * width) < 1:
        raise ValueError(
            f"`width` must be positive, finite and leave at least one of {channels} "
            f"channels. Received: width={width}"
        )
    return round(channels * width)


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
    if mean is None or std is None:
        raise ValueError(f"Give both `mean` and `std`, or neither. {received}")
    mean, std = [float(m) for m in mean], [float(s) for s in std]
    if not len(mean) == len(std) == shape[-1]:
        raise ValueError(
            f"`mean` and `std` must have a value for each of the {shape[-1]} channels. "
            f"{received}"
        )
    if not all(0 <= m <= 1 and 0 < s <= 1 for m, s in zip(mean, std, strict=True)):
        raise ValueError(
            "`mean` must be in [0, 1] and `std` in (0, 1], as images are: divide "
            f"values for 0..255 by 255. {received}"
        )
    variance = [s**2 for s in std]
    normalize = layers.Normalization(mean=mean, variance=variance, name="normalization")
    return inputs, normalize(inputs)
