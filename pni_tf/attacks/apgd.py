"""Auto-PGD: projected gradient ascent that adapts its step size to each image."""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pni_tf.attacks.base import Attack, Outcome, constant_count, fold_in, make_seed
from pni_tf.attacks.bookkeeping import Best, search, unfooled
from pni_tf.attacks.draws import draws_of, value_and_gradient
from pni_tf.attacks.goals import prepare
from pni_tf.attacks.norms import NORMS
from pni_tf.checks import check_choice, check_number

LOSSES = ("ce", "dlr", "dlr-targeted")
_MOMENTUM = 0.75  # The share of the new step; the previous move has the rest.


@dataclasses.dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Auto-PGD on the cross-entropy or on the difference of logits ratio (DLR).

    There is no step size to choose. It starts at `2 * epsilon` and halves, for each
    image on its own, where the loss no longer rises; the ascent then continues from the
    best point. With an `ExpectationOverNoise`, the loss, the gradient, the best point
    and the verdict are all averages over the draws. (The reference's mode for random
    networks averages the gradient only, so its best point is a lucky draw.)

    Args:
        epsilon: Radius of the ball, in the units of the images (`[0, 1]`).
        steps: Number of steps of a run, which evaluates one gradient more.
        norm: `"linf"` or `"l2"`.
        loss: `"ce"`, `"dlr"` (at least 3 classes), or `"dlr-targeted"` (at least 4):
            an untargeted attack that tries the likeliest wrong classes one by one.
            Given `towards`, both forms of DLR are the targeted one.
        target_classes: Number of classes that `"dlr-targeted"` tries.
        restarts: Number of runs, for each class tried.
        rho: Share of the steps between two checkpoints that must raise the loss.
        early_stop: Whether an image is left alone once it fools the network; see `PGD`.

    Raises:
        ValueError: If an argument is out of its range, or the network has too few
            classes for the loss.

    Example:

    >>> attack = APGD(epsilon=8 / 255, steps=100, loss="dlr")
    >>> adversarial = attack.perturb(ExpectationOverNoise(model), images, labels)

    Reference: https://arxiv.org/abs/2003.01690, algorithm 1 and section 4.
    """

    epsilon: float = 8 / 255
    steps: int = 100
    norm: str = "linf"
    loss: str = "ce"
    target_classes: int = 9
    restarts: int = 1
    rho: float = 0.75
    early_stop: bool = False

    def __post_init__(self):
        check_number("epsilon", self.epsilon, minimum=0)
        check_number("steps", self.steps, minimum=1, integer=True)
        check_number("target_classes", self.target_classes, minimum=1, integer=True)
        check_number("restarts", self.restarts, minimum=1, integer=True)
        check_number("rho", self.rho, minimum=0)
        check_choice("norm", self.norm, tuple(NORMS))
        check_choice("loss", self.loss, LOSSES)

    @property
    def checkpoints(self) -> list[int]:
        """The steps, counted from 1, after which step sizes are reviewed.

        The first interval is 0.22 of the steps; each next one is shorter by 0.03 of
        them, down to 0.06.
        """
        length = max(int(0.22 * self.steps), 1)
        shortest = max(int(0.06 * self.steps), 1)
        decrease = max(int(0.03 * self.steps), 1)
        found = [length]
        while True:
            length = max(length - decrease, shortest)
            if found[-1] + length > self.steps:
                return found
            found.append(found[-1] + length)

    def run(self, logits_fn, images, labels, *, towards=None, seed=None):
        images, goal = prepare(images, labels, towards)
        seed, draws = make_seed(seed), draws_of(logits_fn)
        runs, queries, order = self.restarts, 0, None
        if self.loss == "dlr-targeted" and towards is None:
            logits = logits_fn(images)
            queries = draws
            order = _likeliest_wrong(logits, goal.labels)
            self._check_classes(logits, 4)
            # The number of classes may be known only when the graph runs.
            classes = tf.minimum(self.target_classes, tf.shape(logits)[1] - 1)
            runs *= classes

        def one(i, rows, best, gradients):
            some = ascended = goal.take(rows)
            if order is not None:
                towards = tf.gather(order, rows)[:, i % classes]
                ascended = some._replace(towards=towards)
            image = tf.gather(images, rows)
            found, spent = self._once(
                logits_fn, some, ascended, image, fold_in(seed, i)
            )
            return best.update(*found), gradients + spent

        active = unfooled if self.early_stop else None
        start = Best.none(images), constant_count(images, 0)
        best, gradients = search(runs, one, start, active)
        queries = constant_count(images, queries)
        return Outcome(best.images, best.fooled, queries, gradients * draws)

    def _once(self, logits_fn, goal, ascended, images, seed):
        """Makes one run: returns its best points and the gradients spent on each."""

        def evaluate(goal, ascended, points):
            def values(logits):
                if self.loss != "ce":
                    self._check_classes(logits, 3 if ascended.towards is None else 4)
                loss = ascended.cross_entropy if self.loss == "ce" else ascended.dlr
                return [loss(logits), goal.fooled(logits)]

            (loss, share), gradient = value_and_gradient(logits_fn, values, points)
            return share > 0.5, loss, gradient

        norm = NORMS[self.norm]
        noise = norm.random(tf.shape(images), self.epsilon, seed)
        start = norm.clip(images, images + noise, self.epsilon)
        fooled, loss, gradient = evaluate(goal, ascended, start)
        best = Best.none(start).update(start, fooled, loss)
        state = _State.start(start, loss, gradient, 2 * self.epsilon)

        def step(i, rows, best, state, count):
            i += 1  # The reference counts its steps from 1.
            image = tf.gather(images, rows)
            ascent = norm.ascent_direction(state.gradient)
            move = state.point + state.step[:, None, None, None] * ascent
            move = norm.clip(image, move, self.epsilon)
            inertia = tf.where(i == 1, 1.0, _MOMENTUM)
            point = state.point + inertia * (move - state.point)
            point += (1 - inertia) * (state.point - state.previous)
            point = norm.clip(image, point, self.epsilon)
            fooled, loss, gradient = evaluate(
                goal.take(rows), ascended.take(rows), point
            )
            state = state.advance(point, loss, gradient)
            needed = tf.constant(self._needed)[i]
            state = tf.cond(needed >= 0, lambda: state.review(needed), lambda: state)
            return best.update(point, fooled, loss), state, count + 1

        best, _, count = search(
            self.steps,
            step,
            (best, state, constant_count(images, 1)),
            lambda best, *_: ~(best.fooled & self.early_stop),
        )
        return best, count

    @property
    def _needed(self):
        """How many steps of an interval must raise the loss, by its last; else -1."""
        needed = np.full(self.steps + 1, -1, "float32")
        for first, last in itertools.pairwise([0, *self.checkpoints]):
            needed[last] = np.float32(self.rho) * (last - first)
        return needed

    def _check_classes(self, logits, minimum):
        if logits.shape[1] is not None and logits.shape[1] < minimum:
            raise ValueError(
                f"The {'targeted ' if minimum == 4 else ''}DLR loss needs at least "
                f"{minimum} classes: use loss='ce'. "
                f"Received: logits of {logits.shape[1]} classes"
            )


class _State(NamedTuple):
    """Where a run stands, one entry for each image."""

    point: tf.Tensor
    previous: tf.Tensor
    gradient: tf.Tensor
    loss: tf.Tensor
    step: tf.Tensor
    raised: tf.Tensor  # How many steps since the last checkpoint raised the loss.
    # The top is by loss alone: the ascent continues from there, whatever fools.
    top_point: tf.Tensor
    top_gradient: tf.Tensor
    top_loss: tf.Tensor
    top_loss_before: tf.Tensor  # That of the last checkpoint.
    just_halved: tf.Tensor

    @classmethod
    def start(cls, point, loss, gradient, step):
        zeros = tf.zeros_like(loss)
        return cls(
            *(point, point, gradient, loss, zeros + step, zeros),
            *(point, gradient, loss, loss, tf.zeros_like(loss, tf.bool)),
        )

    def advance(self, point, loss, gradient):
        higher = (loss > self.top_loss)[:, None, None, None]
        return self._replace(
            point=point,
            previous=self.point,
            gradient=gradient,
            loss=loss,
            raised=self.raised + tf.cast(loss > self.loss, tf.float32),
            top_point=tf.where(higher, point, self.top_point),
            top_gradient=tf.where(higher, gradient, self.top_gradient),
            top_loss=tf.maximum(loss, self.top_loss),
        )

    def review(self, needed):
        """Halves the step of images that stall, and returns them to their best."""
        stuck = ~self.just_halved & (self.top_loss <= self.top_loss_before)
        halve = (self.raised < needed) | stuck
        wide = halve[:, None, None, None]
        return self._replace(
            point=tf.where(wide, self.top_point, self.point),
            gradient=tf.where(wide, self.top_gradient, self.gradient),
            step=tf.where(halve, self.step / 2, self.step),
            raised=tf.zeros_like(self.raised),
            top_loss_before=self.top_loss,
            just_halved=halve,
        )


def _likeliest_wrong(logits, labels):
    """Returns the wrong classes of each image from the likeliest on, `[N, K - 1]`."""
    own = tf.one_hot(labels, tf.shape(logits)[1], on_value=-1e9, off_value=0.0)
    order = tf.argsort(tf.cast(logits, tf.float32) + own, direction="DESCENDING")
    return tf.cast(order[:, :-1], tf.int64)
