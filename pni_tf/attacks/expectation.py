"""Expectation over the noise of a random network (EOT)."""

import tensorflow as tf

from pni_tf.attacks.base import (
    LogitsFn,
    check_number,
    value_and_gradient,
)


class ExpectationOverNoise:
    """Wraps `logits_fn` so that an attack sees the average over several draws.

    Each draw is a forward pass of its own. Repeating an image within one batch would
    not do: weight noise is drawn once a call and shared by the batch, so the copies
    would all see the same draw.

    Gradient-based attacks get the mean over draws of the loss and of its gradient, the
    gradient of the expected loss. The passes run one after the other, so memory does
    not grow with the number of draws. Called directly, the object returns the mean
    logits.

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
        self.draws = draws

    def __repr__(self):
        return f"ExpectationOverNoise({self.logits_fn!r}, draws={self.draws})"

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the mean logits of the draws, `[N, K]`."""
        return self._mean(lambda: [self.logits_fn(images)])[0]

    def expected_loss(self, loss_fn, images):
        """Returns the mean of the losses over the draws, `[N]`."""
        return self._mean(lambda: [loss_fn(self.logits_fn(images))])[0]

    def value_and_gradient(self, loss_fn, images):
        """Returns the means of the losses and of their gradients over the draws."""
        return self._mean(lambda: value_and_gradient(self.logits_fn, loss_fn, images))

    def _mean(self, draw):
        total = list(draw())
        total = tf.while_loop(
            lambda i, _: i < self.draws,
            lambda i, total: (
                i + 1,
                [a + b for a, b in zip(total, draw(), strict=True)],
            ),
            [tf.constant(1), total],
            parallel_iterations=1,
        )[1]
        return [value / self.draws for value in total]
