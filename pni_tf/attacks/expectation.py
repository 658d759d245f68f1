"""Expectation over the noise of a random network (EOT)."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from pni_tf.attacks.base import LogitsFn, average, check_number, draws_of


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
