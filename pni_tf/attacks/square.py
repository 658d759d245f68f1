"""The Square attack: random search with square-shaped changes."""

import dataclasses
from typing import ClassVar

import tensorflow as tf

from pni_tf.attacks.base import Attack, Outcome, constant_count, fold_in, make_seed
from pni_tf.attacks.bookkeeping import Best, gather, judge, search, unfooled
from pni_tf.attacks.draws import draws_of
from pni_tf.attacks.goals import prepare
from pni_tf.checks import check_number

# The fraction of the pixels halves after each of these squares out of 10,000.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search in the Linf ball by squares; it needs no gradient.

    It starts from vertical stripes of ±epsilon. Each step sets a random square to
    ±epsilon, one sign a channel, and keeps it where the margin rises. Every pixel of
    the result has changed by ±epsilon, or as far as `[0, 1]` allows.

    The squares shrink from `initial_fraction` of the pixels to 1/512 of it, on a
    schedule stretched to the number of queries. All images are searched at once, with
    squares of their own. The graph has the same size for any number of queries.

    Differences from the authors' code: targeted attacks use the margin, not the
    cross-entropy; squares reach the last row and column, as in the paper's algorithm 2;
    signs that would change nothing get one of them turned, not all drawn anew.

    Args:
        epsilon: Largest change of a pixel, in the units of the images (`[0, 1]`).
        queries: Evaluations of each image. With `ExpectationOverNoise` each costs a
            forward pass for every draw, and the mean margin counts.
        initial_fraction: Share of the pixels in the first squares, in `(0, 1]`.
        early_stop: Whether an image is left alone once it fools the network; see `PGD`.
        reevaluate: For random networks. The margin with which an image was kept is a
            lucky draw that few later ones beat. With this, each step evaluates the kept
            image again beside the new one, in one forward pass: weight noise is then
            the same for both. Both count, so there are half as many squares.

    Raises:
        ValueError: If an argument is out of its range, or `early_stop` and `reevaluate`
            are combined.

    Example:

    >>> attack = Square(epsilon=8 / 255, queries=5000)
    >>> outcome = attack.run(model, images, labels)

    Reference: https://arxiv.org/abs/1912.00049, algorithms 1 and 2.
    """

    needs_gradient: ClassVar[bool] = False

    epsilon: float = 8 / 255
    queries: int = 5000
    initial_fraction: float = 0.8
    early_stop: bool = False
    reevaluate: bool = False

    def __post_init__(self):
        check_number("epsilon", self.epsilon, minimum=0)
        check_number(
            "queries", self.queries, minimum=2 if self.reevaluate else 1, integer=True
        )
        check_number("initial_fraction", self.initial_fraction, above=0, maximum=1)
        if self.early_stop and self.reevaluate:
            raise ValueError(
                "`early_stop` is for deterministic networks and `reevaluate` for "
                "random ones: choose one"
            )

    @property
    def _squares(self):
        return self.queries // 2 if self.reevaluate else self.queries - 1

    def run(self, logits_fn, images, labels, *, towards=None, seed=None):
        images, goal = prepare(images, labels, towards)
        seed, draws = make_seed(seed), draws_of(logits_fn)
        stripes = self._stripes(images, fold_in(seed, 0))
        best, queries = Best.none(stripes), constant_count(images, 0)
        if not self.reevaluate:  # Else the first step evaluates the stripes.
            best = best.update(stripes, *judge(logits_fn, goal, stripes))
            queries += draws

        def step(i, rows, best, queries):
            fresh = fold_in(seed, i + 1)
            proposals = self._propose(i, images, rows, best.images, fresh)
            some = goal.take(rows)
            if self.reevaluate:
                best = self._compare_afresh(logits_fn, some, best, proposals)
            else:
                best = best.update(proposals, *judge(logits_fn, some, proposals))
            return best, queries + (2 * draws if self.reevaluate else draws)

        active = unfooled if self.early_stop else None
        best, queries = search(self._squares, step, (best, queries), active)
        return Outcome(best.images, best.fooled, queries, constant_count(images, 0))

    @staticmethod
    def _compare_afresh(logits_fn, goal, best, proposals):
        """Keeps the better of two by their margins in the same forward pass."""
        pairs = tf.stack([best.images, proposals], axis=1)
        both = tf.reshape(pairs, tf.concat([[-1], tf.shape(proposals)[1:]], 0))
        twice = goal.take(tf.repeat(tf.range(tf.shape(proposals)[0]), 2))
        fooled, margin = judge(logits_fn, twice, both)
        fooled, margin = tf.reshape(fooled, [-1, 2]), tf.reshape(margin, [-1, 2])
        best = Best(best.images, fooled[:, 0], margin[:, 0])
        return best.update(proposals, fooled[:, 1], margin[:, 1])

    def _stripes(self, images, seed):
        count, _, width, channels = tf.unstack(tf.shape(images))
        signs = _random_signs([count, 1, width, channels], seed)
        return self._moved(images, signs)

    def _propose(self, i, images, chosen, current, seed):
        """Returns the current chosen images with a square of each set to ±epsilon."""
        count, height, width, channels = tf.unstack(tf.shape(images))
        seeds = tf.random.experimental.stateless_split(seed, 4)
        side = self._side(i, height, width)
        rows = _interval(count, height, side, seeds[0])[:, :, None, None]
        columns = _interval(count, width, side, seeds[1])[:, None, :, None]
        signs = _random_signs([count, 1, 1, channels], seeds[2])
        channel = tf.random.stateless_uniform(
            [count], seeds[3], maxval=channels, dtype=tf.int32
        )
        turned = tf.one_hot(channel, channels, on_value=-1.0, off_value=1.0)
        turned = signs * turned[:, None, None, :]
        # Drawn for the whole batch, so an image's do not depend on the others.
        square, signs, turned, images = gather(
            (rows & columns, signs, turned, images), chosen
        )

        def paint(signs):
            return tf.where(square, self._moved(images, signs), current)

        # A square of the same signs as before would waste the query.
        same = tf.reduce_all(paint(signs) == current, axis=[1, 2, 3], keepdims=True)
        return paint(tf.where(same, turned, signs))

    def _side(self, i, height, width):
        """Returns the side in pixels of square number `i`, counted from 0."""
        # As in the authors' code: out of the squares plus the stripes, rounded down.
        progress = tf.cast(i, tf.int64) * 10_000 // (self._squares + 1)
        halvings = tf.math.count_nonzero(progress > tf.constant(_HALVINGS, tf.int64))
        fraction = self.initial_fraction / tf.cast(2**halvings, tf.float64)
        pixels = fraction * tf.cast(height * width, tf.float64)
        side = tf.cast(tf.round(tf.sqrt(pixels)), tf.int32)
        return tf.clip_by_value(side, 1, tf.minimum(height, width))

    def _moved(self, images, signs):
        return tf.clip_by_value(images + self.epsilon * signs, 0.0, 1.0)


def _random_signs(shape, seed):
    bits = tf.random.stateless_uniform(shape, seed, maxval=2, dtype=tf.int32)
    return tf.cast(2 * bits - 1, tf.float32)


def _interval(count, size, side, seed):
    """Returns bool `[count, size]`: a random interval of length `side` in each row."""
    first = tf.random.stateless_uniform(
        [count, 1], seed, maxval=size - side + 1, dtype=tf.int32
    )
    positions = tf.range(size)
    return (positions >= first) & (positions < first + side)
