"""How far a convolution can move its output, and a constraint that bounds it.

PixelDP scales its noise by the sensitivity of what comes before it: the most that the
output changes, in one norm, for a change of the image by 1.
"""

import keras
import numpy as np
import tensorflow as tf

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
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {NORMS}. Received: norm={norm!r}")
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

    Args:
        image_size: See `convolution_sensitivity`.
        scale: See `convolution_sensitivity`.
        dilation: See `convolution_sensitivity`.
        norm: See `convolution_sensitivity`.

    Reference: https://arxiv.org/abs/1802.03471, section 3.2.
    """

    def __init__(self, image_size, scale=None, dilation=(1, 1), norm="l2"):
        self.image_size = tuple(image_size)
        self.scale = None if scale is None else [float(s) for s in scale]
        self.dilation = tuple(dilation)
        self.norm = norm

    def __call__(self, kernel):
        kernel = tf.convert_to_tensor(kernel)
        return kernel / tf.maximum(self.sensitivity(kernel), 1)

    def sensitivity(self, kernel) -> tf.Tensor:
        """Returns the bound that the constraint holds at 1."""
        return convolution_sensitivity(
            tf.convert_to_tensor(kernel), **self.get_config()
        )

    def get_config(self):
        return {
            "image_size": self.image_size,
            "scale": self.scale,
            "dilation": self.dilation,
            "norm": self.norm,
        }
