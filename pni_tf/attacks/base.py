"""What every attack shares: the contract, the loss and its gradient."""

import abc
import dataclasses
import numbers
from collections.abc import Callable

import tensorflow as tf

LogitsFn = Callable[[tf.Tensor], tf.Tensor]
LossFn = Callable[[tf.Tensor], tf.Tensor]

# Input gradients are small; in float16 they would vanish without a scale.
_FLOAT16_LOSS_SCALE = 1024.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack(abc.ABC):
    """Base class of the attacks: an immutable object that holds the settings.

    A subclass is a frozen dataclass, so `repr` shows every setting and
    `dataclasses.replace` makes a variant.
    """

    @abc.abstractmethod
    def perturb(
        self,
        logits_fn: LogitsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        *,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns adversarial images. Pure TensorFlow: it can be traced.

        Args:
            logits_fn: Callable from images to logits `[N, K]`; for a random network
                each call is a fresh draw. Wrap it in `ExpectationOverNoise` to attack
                the expectation.
            images: Float32 `[N, H, W, C]` in `[0, 1]`.
            labels: Integers `[N]` (any integer dtype): the labels to move away from.
            seed: Integer tensor `[2]` for the attack's own randomness, such as a random
                start. None draws one from TensorFlow's global generator.

        Returns:
            Float32 images of the same shape, in `[0, 1]` and in the attack's ball.
        """

    def __call__(self, logits_fn, images, labels, *, seed=None) -> tf.Tensor:
        """Calls `perturb`."""
        return self.perturb(logits_fn, images, labels, seed=seed)


def cross_entropy(labels: tf.Tensor) -> LossFn:
    """Returns the per-example cross-entropy of logits `[N, K]` for integer labels."""

    labels = tf.cast(labels, tf.int64)

    def loss(logits):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=labels, logits=tf.cast(logits, tf.float32)
        )

    return loss


def expected_loss(logits_fn: LogitsFn, loss_fn: LossFn, images: tf.Tensor) -> tf.Tensor:
    """Returns the loss of each example, `[N]`: what `value_and_gradient` ascends.

    An `ExpectationOverNoise` supplies the average of the losses over its draws, not the
    loss of its average logits.
    """
    average = getattr(logits_fn, "expected_loss", None)
    return loss_fn(logits_fn(images)) if average is None else average(loss_fn, images)


def value_and_gradient(
    logits_fn: LogitsFn, loss_fn: LossFn, images: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the loss of each example and its gradient with respect to the image.

    Only the input is watched, so nothing is computed for the weights. An
    `ExpectationOverNoise` supplies the average over its draws.

    Args:
        logits_fn: Callable from images to logits.
        loss_fn: Callable from logits `[N, K]` to losses `[N]`.
        images: Float32 `[N, H, W, C]`.

    Returns:
        Losses `[N]` and gradients `[N, H, W, C]`, both float32.

    Raises:
        ValueError: If the logits do not depend differentiably on the images.
    """
    average = getattr(logits_fn, "value_and_gradient", None)
    if average is not None:
        return average(loss_fn, images)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = logits_fn(images)
        scale = _FLOAT16_LOSS_SCALE if logits.dtype == tf.float16 else 1.0
        losses = loss_fn(logits)
        # Examples are independent, so the gradient of the sum is that of each.
        total = scale * tf.reduce_sum(losses)
    gradient = tape.gradient(total, images)
    if gradient is None:
        raise ValueError(
            "The logits have no gradient with respect to the images, so no gradient-"
            "based attack can work. Look for a cast to integers, NumPy code or "
            f"`tf.stop_gradient` in the model. Received: logits_fn={logits_fn!r}"
        )
    return losses, gradient / scale


def make_seed(seed: tf.Tensor | None) -> tf.Tensor:
    """Returns `seed` as an int64 tensor `[2]`, drawing one where it is None."""
    if seed is None:
        return tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int64)
    return tf.cast(seed, tf.int64)


def check_number(name: str, value: float, *, minimum: float, integer=False) -> None:
    """Raises a ValueError unless `value` is a finite number of at least `minimum`."""
    kind = numbers.Integral if integer else numbers.Real  # NumPy's scalars too
    if (
        not isinstance(value, kind)
        or isinstance(value, bool)
        or not minimum <= value < float("inf")
    ):
        noun = "an integer" if integer else "a finite number"
        raise ValueError(
            f"`{name}` must be {noun} of at least {minimum}. Received: {name}={value!r}"
        )
