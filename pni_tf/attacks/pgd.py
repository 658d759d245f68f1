"""Projected gradient descent on the cross-entropy."""

import dataclasses

import tensorflow as tf

from pni_tf.attacks.base import (
    Attack,
    check_number,
    cross_entropy,
    expected_loss,
    make_seed,
    value_and_gradient,
)
from pni_tf.attacks.norms import NORMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient ascent on the cross-entropy (eq. 2, and eq. 12 with noise).

    The graph has the same size for any number of steps and restarts.

    Args:
        epsilon: Radius of the ball, in the units of the images (`[0, 1]`).
        step_size: Length of a step in the norm of the ball.
        steps: Number of steps.
        norm: `"linf"` or `"l2"`.
        random_start: Whether to start at a uniformly random point of the ball; else at
            the image itself.
        restarts: Number of runs; each example keeps the one with the largest loss.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> attack = PGD(epsilon=8 / 255, step_size=2 / 255, steps=7)
    >>> adversarial = attack.perturb(model, images, labels)

    Reference: https://arxiv.org/abs/1706.06083; the paper's eq. 2.
    """

    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 7
    norm: str = "linf"
    random_start: bool = True
    restarts: int = 1

    def __post_init__(self):
        check_number("epsilon", self.epsilon, minimum=0)
        check_number("step_size", self.step_size, minimum=0)
        check_number("steps", self.steps, minimum=0, integer=True)
        check_number("restarts", self.restarts, minimum=1, integer=True)
        if self.norm not in NORMS:
            raise ValueError(
                f"`norm` must be one of {tuple(NORMS)}. Received: norm={self.norm!r}"
            )
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                "Restarts without a random start repeat one run: set "
                "`random_start=True` or `restarts=1`. "
                f"Received: restarts={self.restarts}"
            )

    @property
    def reaches_boundary(self) -> bool:
        """Whether the steps can cross the ball; else the attack is weaker than it says.

        The criterion is `steps * step_size >= 2 * epsilon`.
        """
        return self.steps * self.step_size >= 2 * self.epsilon

    def perturb(self, logits_fn, images, labels, *, seed=None):
        images = tf.cast(images, tf.float32)
        loss_fn = cross_entropy(labels)
        seed = make_seed(seed)
        if self.restarts == 1:
            return self._run(logits_fn, loss_fn, images, seed)

        def restart(i, best, best_loss):
            fresh = tf.random.experimental.stateless_fold_in(seed, i)
            adversarial = self._run(logits_fn, loss_fn, images, fresh)
            loss = expected_loss(logits_fn, loss_fn, adversarial)
            worse = loss > best_loss
            best = tf.where(worse[:, None, None, None], adversarial, best)
            return i + 1, best, tf.where(worse, loss, best_loss)

        nothing = tf.fill([tf.shape(images)[0]], -float("inf"))
        return tf.while_loop(
            lambda i, *_: i < self.restarts,
            restart,
            [tf.constant(0), images, nothing],
            parallel_iterations=1,
        )[1]

    def _run(self, logits_fn, loss_fn, images, seed):
        norm = NORMS[self.norm]

        def project(adversarial):
            delta = norm.project(adversarial - images, self.epsilon)
            return tf.clip_by_value(images + delta, 0.0, 1.0)

        def step(i, adversarial):
            _, gradient = value_and_gradient(logits_fn, loss_fn, adversarial)
            direction = norm.ascent_direction(gradient)
            return i + 1, project(adversarial + self.step_size * direction)

        start = images
        if self.random_start:
            start = project(images + norm.random(tf.shape(images), self.epsilon, seed))
        # `tf.while_loop` keeps the graph small. A random network must see the steps in
        # order, hence one iteration at a time.
        return tf.while_loop(
            lambda i, _: i < self.steps,
            step,
            [tf.constant(0), start],
            parallel_iterations=1,
        )[1]
