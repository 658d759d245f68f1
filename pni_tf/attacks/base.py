"""What every attack shares: the contract, averages over draws, gradients."""

import abc
import dataclasses
import numbers
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

LogitsFn = Callable[[tf.Tensor], tf.Tensor]
LossFn = Callable[[tf.Tensor], Any]

# Input gradients are small; in float16 they would vanish without a scale.
_FLOAT16_LOSS_SCALE = 1024.0


class Outcome(NamedTuple):
    """What an attack made of each image, by its own judgement.

    The judgement comes from the draws that found the image, so for a random network it
    is a claim: `pni_tf.evaluation` scores the images on fresh draws.

    Attributes:
        images: Float32 `[N, H, W, C]` in `[0, 1]`. Where an attack without a bound
            failed (`CarliniWagnerL2`, `ZOO`) this is the unchanged input.
        found: bool `[N]`: the network is fooled, by a vote of the draws.
        queries: int64 `[N]`: forward passes of each image, those of gradients not
            included; every draw of an expectation counts.
        gradients: int64 `[N]`: gradient evaluations of each image.
    """

    images: tf.Tensor
    found: tf.Tensor
    queries: tf.Tensor
    gradients: tf.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack(abc.ABC):
    """Base class of the attacks: an immutable object that holds the settings.

    A subclass is a frozen dataclass, so `repr` shows every setting and
    `dataclasses.replace` makes a variant.

    Attributes:
        needs_gradient: Whether the attack differentiates the network that it is given.
    """

    needs_gradient: ClassVar[bool] = True

    @abc.abstractmethod
    def run(
        self,
        logits_fn: LogitsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        *,
        targets: tf.Tensor | None = None,
        seed: tf.Tensor | None = None,
    ) -> Outcome:
        """Attacks a batch of images. Pure TensorFlow: it can be traced.

        Wrap it in `tf.function` where speed counts: in eager mode its loops run in
        Python.

        Args:
            logits_fn: Callable from images to logits `[N, K]`; for a random network
                each call is a fresh draw. Wrap it in `ExpectationOverNoise` to attack
                the expectation.
            images: Float32 `[N, H, W, C]` in `[0, 1]`.
            labels: Integers `[N]` (any integer dtype): the labels to move away from.
            targets: Integers `[N]`: the labels to move towards (a targeted attack);
                None is satisfied with any wrong label.
            seed: Integer tensor `[2]` for the attack's own randomness, such as a random
                start. None draws one from TensorFlow's global generator.

        Returns:
            The images with the attack's verdict and cost.
        """

    def perturb(
        self,
        logits_fn: LogitsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        *,
        targets: tf.Tensor | None = None,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the adversarial images of `run` alone."""
        return self.run(logits_fn, images, labels, targets=targets, seed=seed).images

    def __call__(self, logits_fn, images, labels, *, targets=None, seed=None):
        """Calls `perturb`."""
        return self.perturb(logits_fn, images, labels, targets=targets, seed=seed)


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
    later step; `gradient_warnings` names them.

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
    return average(logits_fn, lambda draw: _differentiate(draw, loss_fn, images))


def _differentiate(logits_fn, loss_fn, images):
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = logits_fn(images)
        scale = _FLOAT16_LOSS_SCALE if logits.dtype == tf.float16 else 1.0
        values = loss_fn(logits)
        losses = values[0] if isinstance(values, (list, tuple)) else values
        # Examples are independent, so the gradient of the sum is that of each.
        total = scale * tf.reduce_sum(losses)
    gradient = tape.gradient(total, images)
    if gradient is None:
        raise ValueError(
            "The logits have no gradient with respect to the images, so no gradient-"
            "based attack can work. Look for a cast to integers, NumPy code or "
            f"`tf.stop_gradient` in the model. Received: logits_fn={logits_fn!r}"
        )
    return values, tf.where(tf.math.is_finite(gradient), gradient / scale, 0.0)


def per_example(values: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Returns values `[N]` shaped to broadcast against images: `[N, 1, 1, 1]`."""
    return tf.reshape(values, [-1] + [1] * (images.shape.rank - 1))


def constant_count(images: tf.Tensor, count: int) -> tf.Tensor:
    """Returns int64 `[N]`, the same number of queries or gradients for each image."""
    return tf.fill(tf.shape(images)[:1], tf.constant(count, tf.int64))


def make_seed(seed: tf.Tensor | None) -> tf.Tensor:
    """Returns `seed` as an int64 tensor `[2]`, drawing one where it is None."""
    if seed is None:
        return tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int64)
    return tf.cast(seed, tf.int64)


def fold_in(seed: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    """Returns the seed of part `number` of whatever `seed` seeds."""
    return tf.random.experimental.stateless_fold_in(seed, tf.cast(number, seed.dtype))


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


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {tuple(choices)}. Received: {name}={value!r}"
        )
