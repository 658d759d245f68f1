"""Projected gradient descent on the cross-entropy."""

import dataclasses

import tensorflow as tf

from pni_tf.attacks.base import Attack, Outcome, constant_count, fold_in, make_seed
from pni_tf.attacks.bookkeeping import Best, judge, repeat, search, unfooled
from pni_tf.attacks.draws import draws_of, value_and_gradient
from pni_tf.attacks.goals import prepare
from pni_tf.attacks.norms import NORMS
from pni_tf.checks import check_choice, check_number


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
        restarts: Number of runs; each example keeps one that fools the network, else
            the one with the largest loss.
        early_stop: Whether an image is left alone from the step that fools the network
            on. It spares most of the work on a weak network. Right for deterministic
            networks only: fooling one draw of a random network proves little.

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
    early_stop: bool = False

    def __post_init__(self):
        check_number("epsilon", self.epsilon, minimum=0)
        check_number("step_size", self.step_size, minimum=0)
        check_number("steps", self.steps, minimum=0, integer=True)
        check_number("restarts", self.restarts, minimum=1, integer=True)
        check_choice("norm", self.norm, tuple(NORMS))
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

    def run(self, logits_fn, images, labels, *, towards=None, seed=None):
        images, goal = prepare(images, labels, towards)
        seed, draws = make_seed(seed), draws_of(logits_fn)
        none = constant_count(images, 0)

        def restart(i, rows, best, queries, gradients):
            # The first run is that of `restarts=1`, so more restarts never do worse.
            fresh = tf.cond(i == 0, lambda: seed, lambda: fold_in(seed, i))
            image, some = tf.gather(images, rows), goal.take(rows)
            found, spent = self._once(logits_fn, some, image, fresh)
            fooled, loss = judge(logits_fn, some, found, some.cross_entropy)
            best = best.update(found, fooled, loss)
            return best, queries + draws, gradients + spent * draws

        active = unfooled if self.early_stop else None
        start = Best.none(images), none, none
        best, queries, gradients = search(self.restarts, restart, start, active)
        return Outcome(best.images, best.fooled, queries, gradients)

    def perturb(self, logits_fn, images, labels, *, towards=None, seed=None):
        if self.restarts > 1 or self.early_stop:
            return super().perturb(
                logits_fn, images, labels, towards=towards, seed=seed
            )
        # Without the verdict of `run`, which costs a forward pass.
        images, goal = prepare(images, labels, towards)
        return self._ascend(logits_fn, goal, images, self._start(images, seed))

    def _once(self, logits_fn, goal, images, seed):
        """Returns the last points of one run, and the gradients spent on each."""
        start = self._start(images, seed)
        if not self.early_stop:
            points = self._ascend(logits_fn, goal, images, start)
            return points, constant_count(images, self.steps)

        def step(i, rows, point, count, going):
            image = tf.gather(images, rows)
            stepped, share = self._step(logits_fn, goal.take(rows), image, point)
            fooled = share > 0.5
            point = tf.where(fooled[:, None, None, None], point, stepped)
            return point, count + 1, ~fooled

        state = (start, constant_count(images, 0), tf.fill(tf.shape(images)[:1], True))
        return search(self.steps, step, state, lambda *state: state[-1])[:2]

    def _start(self, images, seed):
        if not self.random_start:
            return images
        norm = NORMS[self.norm]
        noise = norm.random(tf.shape(images), self.epsilon, make_seed(seed))
        return norm.clip(images, images + noise, self.epsilon)

    def _ascend(self, logits_fn, goal, images, start):
        def step(i, adversarial):
            return self._step(logits_fn, goal, images, adversarial)[:1]

        return repeat(self.steps, step, (start,))[0]

    def _step(self, logits_fn, goal, images, adversarial):
        """Returns the next points, and the share of the draws these ones fool."""
        (_, share), gradient = value_and_gradient(
            logits_fn,
            lambda logits: [goal.cross_entropy(logits), goal.fooled(logits)],
            adversarial,
        )
        norm = NORMS[self.norm]
        stepped = adversarial + self.step_size * norm.ascent_direction(gradient)
        return norm.clip(images, stepped, self.epsilon), share
