"""What every attack shares: the contract, settings in and an `Outcome` out."""

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import tensorflow as tf

from pni_tf.attacks.draws import LogitsFn


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
        towards: tf.Tensor | None = None,
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
            towards: Integers `[N]`: the labels to move towards (a targeted attack);
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
        towards: tf.Tensor | None = None,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the adversarial images of `run` alone."""
        return self.run(logits_fn, images, labels, towards=towards, seed=seed).images

    def __call__(self, logits_fn, images, labels, *, towards=None, seed=None):
        """Calls `perturb`."""
        return self.perturb(logits_fn, images, labels, towards=towards, seed=seed)


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
