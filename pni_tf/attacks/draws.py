"""One draw of the noise or the mean of several: losses, gradients, warnings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from pni_tf.attacks.goals import Goal
from pni_tf.checks import check_number

LogitsFn = Callable[[tf.Tensor], tf.Tensor]
LossFn = Callable[[tf.Tensor], Any]
# Input gradients are small; in float16 they would vanish without a scale.
_FLOAT16_LOSS_SCALE = 1024.0
_DEAD = 1e-10  # Below this, float32 steps of an optimiser go nowhere.


class ExpectationOverNoise:
    """Wraps `logits_fn` so that an attack sees the average over several draws.

    Each draw is a forward pass of its own. Repeating an image within one batch would
    not do: weight noise is drawn once a call and shared by the batch, so the copies
    would all see the same draw.

    Attacks get the mean over draws of the loss, of its gradient (the gradient of the
    expected loss) and of their verdict. The passes run one after the other, so memory
    does not grow with the number of draws. Called directly, the object returns the mean
    logits; so an attack on `lambda images: expectation(images)` ascends the loss of the
    mean logits instead, with memory for all draws.

    Args:
        logits_fn: Callable from images to logits, a fresh draw at each call.
        draws: Number of draws.

    Raises:
        ValueError: If `draws` is not a positive integer.

    Example:

    >>> PGD(steps=40).perturb(ExpectationOverNoise(model, draws=20), images, labels)

    Reference: https://arxiv.org/abs/1802.00420, section 4.2.
    """

    def __init__(self, logits_fn: LogitsFn, draws: int = 20):
        check_number("draws", draws, minimum=1, integer=True)
        self.logits_fn = logits_fn
        self._draws = draws

    @property
    def draws(self) -> int:
        """Forward passes of an average."""
        return self._draws * draws_of(self.logits_fn)

    def __repr__(self):
        return f"ExpectationOverNoise({self.logits_fn!r}, draws={self._draws})"

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the mean logits of the draws, `[N, K]`."""
        return self.average(lambda draw: draw(images))

    def average(self, compute: Callable[[LogitsFn], Any]) -> Any:
        """Returns the mean over the draws of what `compute` makes of each."""

        def draw():
            return average(self.logits_fn, compute)

        def add(i, total):
            return i + 1, tf.nest.map_structure(tf.add, total, draw())

        _, total = tf.while_loop(
            lambda i, _: i < self._draws,
            add,
            (tf.constant(1), draw()),
            parallel_iterations=1,
        )
        return tf.nest.map_structure(lambda value: value / self._draws, total)


def average(logits_fn: LogitsFn, compute: Callable[[LogitsFn], Any]) -> Any:
    """Returns what `compute` makes of one draw, or its mean over the draws.

    Args:
        logits_fn: The network. An `ExpectationOverNoise` gives the mean over its draws.
        compute: Called with the network of a single draw; returns float tensors, in
            any nested structure.
    """
    mean = getattr(logits_fn, "average", None)
    return compute(logits_fn) if mean is None else mean(compute)


def draws_of(logits_fn: LogitsFn) -> int:
    """Returns the number of forward passes that `average` makes."""
    return getattr(logits_fn, "draws", 1)


def expected_loss(logits_fn: LogitsFn, loss_fn: LossFn, images: tf.Tensor) -> Any:
    """Returns the loss of each example, `[N]`: what `value_and_gradient` ascends.

    For an `ExpectationOverNoise` this is the average of the losses over its draws, not
    the loss of its average logits.
    """
    return average(logits_fn, lambda draw: loss_fn(draw(images)))


def value_and_gradient(
    logits_fn: LogitsFn, loss_fn: LossFn, images: tf.Tensor
) -> tuple[Any, tf.Tensor]:
    """Returns the loss of each example and its gradient with respect to the image.

    Only the input is watched, so nothing is computed for the weights. Entries of the
    gradient that are not finite count as zero, because one of them would spoil every
    later step; `probe_gradient` counts them.

    Args:
        logits_fn: Callable from images to logits. An `ExpectationOverNoise` gives the
            averages over its draws.
        loss_fn: Callable from logits `[N, K]` to losses `[N]`, or to a list of tensors
            of which the first is the loss and the others are only averaged.
        images: Float32 `[N, H, W, C]`.

    Returns:
        What `loss_fn` returns, and gradients `[N, H, W, C]`, all float32.

    Raises:
        ValueError: If the logits do not depend differentiably on the images.
    """

    def differentiate(draw):
        values, gradient = _differentiate(draw, loss_fn, images)
        if gradient is None:
            raise ValueError(
                "The logits have no gradient with respect to the images, so no "
                "gradient-based attack can work. Look for a cast to integers, NumPy "
                "code or `tf.stop_gradient` in the model. "
                f"Received: logits_fn={draw!r}"
            )
        return values, tf.where(tf.math.is_finite(gradient), gradient, 0.0)

    return average(logits_fn, differentiate)


def _differentiate(logits_fn, loss_fn, images):
    """Returns what `loss_fn` returns, and the gradient as it is, or None."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = logits_fn(images)
        scale = _FLOAT16_LOSS_SCALE if logits.dtype == tf.float16 else 1.0
        values = loss_fn(logits)
        losses = values[0] if isinstance(values, (list, tuple)) else values
        # Examples are independent, so the gradient of the sum is that of each.
        total = scale * tf.reduce_sum(losses)
    gradient = tape.gradient(total, images)
    return values, None if gradient is None else gradient / scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientProbe:
    """What `probe_gradient` has seen of the gradient with respect to some images.

    Attributes:
        images: Number of images.
        missing: Whether there is no gradient at all.
        not_finite: Number of images whose gradient is not finite.
        vanishing: Number of images whose gradient is zero, or as good as zero.
    """

    images: int
    missing: bool = False
    not_finite: int = 0
    vanishing: int = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say what attacks have to fear; none if all is well."""
        found = []
        if self.missing:
            found.append(
                "no gradient with respect to the images: white-box attacks cannot "
                "work; use attacks that need no gradient (Square, ZOO, substitute, "
                "transfer)"
            )
        if self.not_finite:
            found.append(
                f"the gradient is not finite on {self.not_finite} of {self.images} "
                "images: attacks take such entries for zero"
            )
        if self.vanishing:
            found.append(
                f"the gradient vanishes on {self.vanishing} of {self.images} images: "
                "attacks on the cross-entropy overrate this model; believe APGD-DLR, "
                "C&W and Square more"
            )
        return tuple(found)


def probe_gradient(logits_fn: LogitsFn, images, labels=None) -> GradientProbe:
    """Looks for a gradient that is missing, not finite or zero.

    Args:
        logits_fn: Callable from images to logits `[N, K]`.
        images: Float32 `[N, H, W, C]` in `[0, 1]`.
        labels: Integers `[N]`: the gradient is that of their cross-entropy. None takes
            the predicted labels: the gradient of any other survives saturated logits.
    """
    images = tf.convert_to_tensor(images, tf.float32)

    def loss_fn(logits):
        of = tf.argmax(logits, -1) if labels is None else labels
        return Goal.of(of).cross_entropy(logits)

    _, gradient = _differentiate(logits_fn, loss_fn, images)
    if gradient is None:
        return GradientProbe(images=len(images), missing=True)
    size = np.max(np.abs(gradient), axis=tuple(range(1, gradient.shape.rank)))
    return GradientProbe(
        images=len(size),
        not_finite=int(np.sum(~np.isfinite(size))),
        vanishing=int(np.sum(size < _DEAD)),
    )
