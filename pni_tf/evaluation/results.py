"""What is evaluated, and what came out of it."""

import dataclasses

import numpy as np

from pni_tf.attacks.base import Attack
from pni_tf.attacks.pgd import PGD
from pni_tf.attacks.transfer import Transfer
from pni_tf.checks import check_choice, check_number
from pni_tf.evaluation.record import row_of

TOWARDS = ("next", "random", "least_likely")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """What to do to the images before they are scored.

    Args:
        name: What the tables call it.
        attack: The attack, or None for clean images.
        expectation: Draws of the expectation over noise that the attack sees. A
            deterministic target is attacked without one, since all draws are equal.
        towards: Makes the attack targeted: at the class after the label (`"next"`), a
            random wrong one (`"random"`), or the one that the network finds least
            likely (`"least_likely"`). None is untargeted.
        source: Name of the other network that the examples are made on, if there is.

    Raises:
        ValueError: If a number or a choice is out of its range.
    """

    name: str
    attack: Attack | None = None
    expectation: int = 1
    towards: str | None = None
    source: str | None = None

    def __post_init__(self):
        check_number("expectation", self.expectation, minimum=1, integer=True)
        if self.towards is not None:
            check_choice("towards", self.towards, TOWARDS)

    def warnings(self, stochastic: bool) -> tuple[str, ...]:
        """Returns why the accuracy may be higher than it would be under more effort.

        Args:
            stochastic: Whether the target is random.
        """
        found, attack = [], self._on_source
        if isinstance(attack, PGD) and not attack.reaches_boundary:
            found.append(
                f"steps * step_size = {attack.steps * attack.step_size:.4g} is less "
                f"than 2 * epsilon = {2 * attack.epsilon:.4g}, so the attack cannot "
                "cross its ball"
            )
        if isinstance(self.attack, Transfer):
            of_source = getattr(self.attack.source, "warnings", ())
            return (*found, *(f"source: {warning}" for warning in of_source))
        if attack is None or not stochastic:
            return tuple(found)
        if self.expectation == 1:
            found.append(
                "the target is random and the attack takes no expectation over its "
                "noise, so the accuracy is overrated"
            )
        if getattr(attack, "early_stop", False):
            found.append(
                f"early_stop leaves an image once {self.expectation} draws are fooled, "
                "which proves little on a random target"
            )
        if getattr(attack, "abort_early", False):
            found.append(
                "abort_early compares noisy losses, so the attack may end too soon"
            )
        if getattr(attack, "query_noise", "independent") != "independent":
            found.append(
                f"query_noise={attack.query_noise!r} shares draws between queries, "
                "which no attacker from outside can"
            )
        return tuple(found)

    @property
    def ball(self) -> tuple[str, float] | None:
        """Norm and epsilon of the ball that bounds the attack; None without a bound."""
        attack = self._on_source
        if not hasattr(attack, "epsilon"):
            return None
        return getattr(attack, "norm", "linf"), attack.epsilon

    @property
    def _on_source(self):
        """The attack, or that on the source of a `Transfer`."""
        return getattr(self.attack, "attack", self.attack)

    @property
    def gradient_based(self) -> bool:
        """Whether the attack differentiates the target."""
        return self.attack is not None and self.attack.needs_gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of one scenario on one target.

    Attributes:
        scenario: The scenario.
        target: Name of the target.
        stochastic: Whether the target is random.
        labels: int64 `[N]`, the true labels.
        predictions: int64 `[draws, N]`: the label that each fresh draw gives to each
            (adversarial) image. Weight noise is one draw for each batch of images.
        selection: int64 `[M, N]`: the same on further draws, by which `union` picks the
            attack of each image; equal to `predictions` for a deterministic target.
        claimed: bool `[N]`: the attack's own verdict, on the draws that found the
            image. None for clean images.
        l2: Float32 `[N]`: Euclidean norm of the perturbation.
        linf: Float32 `[N]`: largest change of a pixel.
        queries: int64 `[N]`: forward passes that the attack spent on each image.
        gradients: int64 `[N]`: gradient evaluations that it spent.
        towards: int64 `[N]`: the classes that a targeted attack aimed at, or None.
        images: Float32 `[N, H, W, C]`, or None where they were written to a store.
        seed: The seed of the evaluation.
        warnings: What makes the numbers misleading.
        components: Of a `union`, the names of its rows.
        ensemble: Draws in each prediction: more than 1 for `Target.ensemble`.
    """

    scenario: Scenario
    target: str
    stochastic: bool
    labels: np.ndarray
    predictions: np.ndarray
    seed: int
    selection: np.ndarray | None = None
    claimed: np.ndarray | None = None
    l2: np.ndarray | None = None
    linf: np.ndarray | None = None
    queries: np.ndarray | None = None
    gradients: np.ndarray | None = None
    towards: np.ndarray | None = None
    images: np.ndarray | None = dataclasses.field(default=None, repr=False)
    warnings: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    ensemble: int = 1

    @property
    def kind(self) -> str:
        """What the row is: `"clean"`, `"attack"` or `"worst_case"`, a `union`."""
        if self.components:
            return "worst_case"
        return "clean" if self.scenario.attack is None else "attack"

    @property
    def draws(self) -> int:
        return len(self.predictions)

    @property
    def correct_share(self) -> np.ndarray:
        """Share of the draws that classify each image correctly, float64 `[N]`."""
        return np.mean(self.predictions == self.labels, axis=0)

    @property
    def accuracies(self) -> np.ndarray:
        """The accuracy of each draw, float64 `[draws]` in `[0, 1]`."""
        return np.mean(self.predictions == self.labels, axis=1)

    @property
    def mean(self) -> float:
        """Mean of the single-draw accuracies."""
        return float(np.mean(self.accuracies))

    @property
    def std(self) -> float:
        """Standard deviation (N - 1) of the single-draw accuracies; 0 for one draw."""
        return float(np.std(self.accuracies, ddof=1)) if self.draws > 1 else 0.0

    @property
    def vote(self) -> float:
        """Accuracy of the majority vote; a tie goes to the smallest class index."""
        classes = int(max(self.predictions.max(), self.labels.max())) + 1
        counts = sum(np.eye(classes, dtype=int)[draw] for draw in self.predictions)
        return float(np.mean(np.argmax(counts, axis=1) == self.labels))

    @property
    def worst(self) -> float:
        """Share of the images that every draw classifies correctly."""
        return float(np.mean(np.all(self.predictions == self.labels, axis=0)))

    @property
    def claimed_accuracy(self) -> float | None:
        """Accuracy by the attack's own verdict, on the draws that found the images."""
        return None if self.claimed is None else 1 - float(np.mean(self.claimed))

    @property
    def upheld(self) -> float | None:
        """Of the images that the attack claims: the share that fresh draws uphold.

        The mean over the draws of the share that is misclassified (for a targeted
        attack: as the class aimed at). None where nothing is claimed.
        """
        if self.claimed is None or not self.claimed.any():
            return None
        if self.towards is None:
            fooled = self.predictions != self.labels
        else:
            fooled = self.predictions == self.towards
        return float(np.mean(fooled[:, self.claimed]))

    def summary(self) -> dict:
        """Returns the numbers with everything needed to read them, for JSON."""
        return row_of(self)


def union(results: list[Result], name: str = "worst case") -> Result:
    """Returns the worst case over attacks, image by image: the headline number.

    For each image the attack is picked whose adversarial image is classified correctly
    by the fewest of the `selection` draws (of equals, the attack that does best on all
    images), and scored by its `predictions`, which are other draws: a minimum over
    noisy scores would flatter the attacker.

    Args:
        results: Results of one target on the same images, clean ones included.
        name: What the tables call it.

    Raises:
        ValueError: If the results are not of one target, or of different images.

    Reference: the per-example worst case of AutoAttack, https://arxiv.org/abs/2003.01690.
    """
    if not results:
        raise ValueError("A worst case needs at least one result. Received: none")
    first = results[0]
    for other in results[1:]:
        if other.target != first.target or not np.array_equal(
            other.labels, first.labels
        ):
            raise ValueError(
                "A worst case is over attacks on one target and the same images. "
                f"Received: {first.scenario.name!r} of {first.target!r} and "
                f"{other.scenario.name!r} of {other.target!r}"
            )
    shares = [np.mean(r.selection == r.labels, axis=0) for r in results]
    order = np.argsort([share.mean() for share in shares], kind="stable")
    results, shares = [results[i] for i in order], [shares[i] for i in order]
    picked = np.argmin(shares, axis=0)
    images = np.arange(len(first.labels))

    def of_picked(name):
        return np.stack([getattr(r, name) for r in results])[picked, ..., images].T

    return Result(
        scenario=Scenario(name=name),
        target=first.target,
        stochastic=first.stochastic,
        labels=first.labels,
        predictions=of_picked("predictions"),
        selection=of_picked("selection"),
        seed=first.seed,
        warnings=tuple(dict.fromkeys(w for r in results for w in r.warnings)),
        components=tuple(r.scenario.name for r in results),
        ensemble=first.ensemble,
    )


def worst_cases(results: list[Result]) -> list[Result]:
    """Returns the `union` over each ball in which several attacks were run."""
    balls = {}
    for result in results:
        if result.scenario.ball is not None:
            balls.setdefault(result.scenario.ball, []).append(result)
    clean = [r for r in results if r.scenario.attack is None]
    several = {ball: found for ball, found in balls.items() if len(found) > 1}
    name = "worst case" if len(several) == 1 else "worst case {} ε={:.4g}"
    return [
        union([*clean, *found], name.format(*ball)) for ball, found in several.items()
    ]
