"""Zeroth-order optimisation: Carlini and Wagner's attack without gradients."""

import dataclasses
import itertools
from typing import ClassVar, NamedTuple

import tensorflow as tf

from pni_tf.attacks.base import Attack, constant_count, fold_in, make_seed
from pni_tf.attacks.bookkeeping import (
    Best,
    Judge,
    gather,
    repeat,
    scatter,
    search_constants,
)
from pni_tf.attacks.draws import draws_of
from pni_tf.attacks.goals import prepare
from pni_tf.attacks.zoo.coordinates import SPACES, Grid, Modifier, importance, sample
from pni_tf.attacks.zoo.queries import Points, ask_each, ask_needed, ask_together
from pni_tf.checks import check_choice, check_number


class _Progress(NamedTuple):
    """What one step of the binary search carries from iteration to iteration."""

    modifier: Modifier
    loss: tf.Tensor  # That of the last look at the progress.
    active: tf.Tensor
    succeeded: tf.Tensor
    best: Best
    queries: tf.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZOO(Attack):
    """The smallest L2 perturbation, found with nothing but queries of the network.

    Minimises `||x' - x||^2 + c * max(0, confidence - margin)` by coordinate descent.
    The slope of the margin along a coordinate `e` comes from two queries,
    `(f(x + h e) - f(x - h e)) / 2h`; the margin of the logits is that of the paper's
    log-probabilities. The slope of the distance needs no query. With one for the point
    itself, an iteration costs `2 * coordinates + 1` queries an image. All images of the
    batch move at once, and none asks for a gradient.

    At `difference=1e-4` float32 leaves the slope two digits and the second difference
    of `solver="newton"` none (250 on average instead of 1, on a digits network), so its
    steps are random in length; 1e-2 shows it the curvature. Where a GPU rounds to
    TensorFloat-32, the slope is rounding too: switch that off
    (`tf.config.experimental.enable_tensor_float_32_execution`).

    One draw proves little for a random network: wrap it in `ExpectationOverNoise`, and
    a second average on fresh draws must confirm that an image is found.

    Args:
        iterations: Most iterations of each step of the binary search.
        coordinates: Coordinates of each image that an iteration moves, all distinct.
        solver: `"adam"`, which counts the steps of each coordinate, or `"newton"`: the
            slope over the second difference.
        space: `"tanh"` moves `w` in `x' = (tanh(w) + 1) / 2`; `"box"` moves the pixels
            and projects. In tanh space a pixel at 0 or 1 hardly moves: use the box for
            digits. Its queries may leave `[0, 1]` by `difference`, its images not.
        learning_rate: Of the solver.
        beta_1: Decay of Adam's first moment.
        beta_2: Decay of Adam's second moment.
        difference: The `h` above, in the units of the space.
        confidence: Least margin of a found image, in logits.
        initial_const: First constant `c`.
        binary_search_steps: Number of constants tried; each starts afresh at the image.
            With 10 or more the last repeats the smallest that succeeded.
        abort_early: Whether an image stops when its loss has not fallen by a
            ten-thousandth in `patience` iterations.
        patience: See `abort_early`.
        early_stop: Whether an image is left alone at its first success: few queries,
            for a larger perturbation. The binary search then only raises the constant.
        attack_size: Side of a modifier of low resolution that is scaled up to the image
            (bilinear); None moves each pixel. For large images.
        upscale_at: Iterations at which the side of the modifier doubles.
        importance_sampling: Whether coordinates are drawn in proportion to the largest
            change in their region, an eighth of the side wide, from the first
            upscaling on.
        query_noise: `"independent"`: each query is a forward pass of its own, as it is
            for an attacker from outside; differences over a random network are then
            mostly noise. `"shared"`: the queries of an iteration of an image go through
            one forward pass, which shares one draw of weight noise (activation noise is
            still drawn for each) and flatters the attack. `"none"`, for a deterministic
            network: as shared, but where an image fools the network by a clear margin
            only the point itself is asked about, since the differences are zero;
            elsewhere it is asked about twice.
        query_batch: Most rows of a shared forward pass, but at least one image's.
        agreement: Share of the draws that must be fooled.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> attack = ZOO(query_noise="shared", binary_search_steps=3)
    >>> outcome = tf.function(attack.run)(model, images, labels)
    >>> outcome.images[outcome.found], outcome.queries

    Reference: https://arxiv.org/abs/1708.03999
    """

    needs_gradient: ClassVar[bool] = False

    iterations: int = 1000
    coordinates: int = 128
    solver: str = "adam"
    space: str = "tanh"
    learning_rate: float = 1e-2
    beta_1: float = 0.9
    beta_2: float = 0.999
    difference: float = 1e-4
    confidence: float = 0.0
    initial_const: float = 1e-2
    binary_search_steps: int = 9
    abort_early: bool = True
    patience: int = 100
    early_stop: bool = False
    attack_size: int | None = None
    upscale_at: tuple[int, ...] = ()
    importance_sampling: bool = False
    query_noise: str = "independent"
    query_batch: int = 4096
    agreement: float = 0.9

    def __post_init__(self):
        counts = "iterations", "coordinates", "binary_search_steps", "patience"
        for name in (*counts, "query_batch"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_number("confidence", self.confidence, minimum=0)
        for name in ("learning_rate", "difference", "initial_const"):
            check_number(name, getattr(self, name), above=0)
        for name in ("beta_1", "beta_2"):
            check_number(name, getattr(self, name), minimum=0, below=1)
        check_number("agreement", self.agreement, above=0, maximum=1)
        check_choice("solver", self.solver, ("adam", "newton"))
        check_choice("space", self.space, tuple(SPACES))
        check_choice("query_noise", self.query_noise, ("independent", "shared", "none"))
        has_size, stages = self.attack_size is not None, len(self.upscale_at)
        if has_size:
            check_number("attack_size", self.attack_size, minimum=1, integer=True)
        self._require(has_size or not stages, "needs `attack_size`", "upscale_at")
        self._require(
            stages or not self.importance_sampling,
            "begins at the first upscaling, so it needs `upscale_at`",
            "importance_sampling",
        )
        ends = (0, *self.upscale_at, self.iterations)
        self._require(
            all(a < b for a, b in itertools.pairwise(ends)),
            "must grow, and lie between 0 and `iterations`",
            *("upscale_at", "iterations"),
        )

    def _require(self, condition, message, *names):
        if not condition:
            received = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            raise ValueError(f"`{names[0]}` {message}. Received: {received}")

    def run(self, logits_fn, images, labels, *, towards=None, seed=None):
        images, goal = prepare(images, labels, towards)
        judge = Judge(logits_fn, goal, self.confidence, self.agreement)
        grids = Grid.stages(images.shape, self.attack_size, len(self.upscale_at))
        seed = make_seed(seed)

        def minimise(k, c, best):
            end = self._descend(judge, images, c, fold_in(seed, k), grids, best)
            return end.best, end.succeeded, end.queries, constant_count(images, 0)

        return search_constants(
            images, self.initial_const, self.binary_search_steps, minimise
        )

    def _descend(self, judge, images, c, seed, grids, best):
        """Minimises the loss for one constant of each image."""
        count = tf.shape(images)[0]
        space = SPACES[self.space].of(images)
        progress = _Progress(
            Modifier.start(tf.zeros((count, grids[0].count))),
            tf.fill([count], float("inf")),
            ~(best.fooled & self.early_stop),
            tf.fill([count], False),
            best,
            constant_count(images, 0),
        )
        spans = itertools.pairwise((0, *self.upscale_at, self.iterations))
        for stage, (grid, (begin, end)) in enumerate(zip(grids, spans, strict=True)):
            if stage:
                value = grid.resample(progress.modifier.value, grids[stage - 1])
                progress = progress._replace(modifier=Modifier.start(value))

            def iterate(i, progress, grid=grid, begin=begin, stage=stage):
                i += begin
                weigh = self.importance_sampling and stage
                # Drawn for the whole batch, so an image's do not depend on the others.
                chosen = sample(
                    fold_in(seed, i),
                    count,
                    grid,
                    min(self.coordinates, grid.count),
                    importance(grid, progress.modifier.value) if weigh else None,
                )
                rows = tf.where(progress.active)[:, 0]
                own, constant, which, part = gather((space, c, chosen, progress), rows)
                change = grid.upscale(part.modifier.value)
                points = Points(own, change, grid, which, self.difference)
                part = self._iterate(judge.take(rows), points, constant, part, i)
                return (scatter(progress, rows, part),)

            (progress,) = repeat(
                end - begin,
                iterate,
                (progress,),
                lambda progress: tf.reduce_any(progress.active),
            )
        return progress

    def _iterate(self, judge, points, c, progress, i):
        """Judges the points of the active images, then moves them."""
        if self.query_noise == "none":
            answers = ask_needed(judge, points, self.query_batch)
        elif self.query_noise == "shared":
            answers = ask_together(judge, points, self.query_batch)
        else:
            answers = ask_each(judge, points)
        candidates = points.space.image(points.change)
        away = candidates - points.space.images
        distance = tf.reduce_sum(tf.square(away), (1, 2, 3))
        useful = (-distance > progress.best.score) | ~progress.succeeded
        accepted, asked = judge.accept(candidates, answers.fooled_share, useful)
        asked += answers.asked * draws_of(judge.logits_fn)

        loss, last = distance + c * answers.loss, progress.loss
        look = i % self.patience == 0
        stuck = look & self.abort_early & (loss > 0.9999 * last)
        return _Progress(
            self._move(progress.modifier, c, answers, points),
            tf.where(look, loss, last),
            ~stuck & ~(accepted & self.early_stop),
            progress.succeeded | accepted,
            progress.best.update(candidates, accepted, -distance),
            progress.queries + asked,
        )

    def _move(self, modifier, c, answers, points):
        """Steps along the chosen coordinates, down the loss."""
        space, grid, chosen = points.space, points.grid, points.coordinates
        # Differences of the distance would lose digits that its derivatives keep.
        away = space.image(points.change) - space.images
        first, second = space.derivatives(points.change)
        slopes = grid.collect(2.0 * away * first)
        slope = tf.gather(slopes, chosen, batch_dims=1)
        slope += c[:, None] * answers.slope(self.difference)
        if self.solver == "adam":
            betas = (self.beta_1, self.beta_2)
            moved = modifier.adam(chosen, slope, self.learning_rate, betas)
        else:
            bends = 2.0 * (tf.square(first) + away * second)
            bends = grid.collect(bends, squared=True)
            curvature = tf.gather(bends, chosen, batch_dims=1)
            curvature += c[:, None] * answers.curvature(self.difference)
            moved = modifier.newton(chosen, slope, curvature, self.learning_rate)
        return moved._replace(value=space.project(moved.value, grid))
