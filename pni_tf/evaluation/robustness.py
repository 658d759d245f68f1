"""Robust accuracy: adversarial examples are found on some draws, scored on others."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from pni_tf.attacks import FGSM, PGD, Attack, ExpectationOverNoise
from pni_tf.attacks.base import check_number
from pni_tf.export import Target
from pni_tf.validation import validate_images, validate_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """What to do to the images before they are scored.

    Args:
        name: What the tables call it.
        attack: The attack, or None for clean images.
        expectation: Draws of the expectation over noise that the attack sees. A
            deterministic target is attacked without one, since all draws are equal.
    """

    name: str
    attack: Attack | None = None
    expectation: int = 1

    def __post_init__(self):
        check_number("expectation", self.expectation, minimum=1, integer=True)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the attack may be weaker than its name says."""
        if isinstance(self.attack, PGD) and not self.attack.reaches_boundary:
            return (
                f"{self.name}: steps * step_size = "
                f"{self.attack.steps * self.attack.step_size:.4g} is less than "
                f"2 * epsilon = {2 * self.attack.epsilon:.4g}, so the attack cannot "
                "cross its ball",
            )
        return ()


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
        seed: The seed of the evaluation.
    """

    scenario: Scenario
    target: str
    stochastic: bool
    labels: np.ndarray
    predictions: np.ndarray
    seed: int

    @property
    def draws(self) -> int:
        return len(self.predictions)

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

    def summary(self) -> dict:
        """Returns the numbers with everything needed to read them, for JSON."""
        return {
            "scenario": self.scenario.name,
            "target": self.target,
            "attack": repr(self.scenario.attack),
            "expectation": self.scenario.expectation if self.stochastic else 1,
            "stochastic": self.stochastic,
            "images": len(self.labels),
            "draws": self.draws,
            "seed": self.seed,
            "accuracy_mean": self.mean,
            "accuracy_std": self.std,
            "accuracy_vote": self.vote,
            "accuracy_worst": self.worst,
            "warnings": list(self.scenario.warnings),
        }


def standard_scenarios(
    *,
    epsilon: float,
    steps: tuple[int, ...] = (7, 40),
    expectation: int = 20,
    step_size: float | None = None,
    step_size_of: dict[int, float] | None = None,
    norm: str = "linf",
    restarts: int = 1,
) -> list[Scenario]:
    """Returns the rows of the standard table.

    They are: clean images, FGSM (Linf only), PGD for each number of steps, and the
    last PGD again with expectation over noise.

    Args:
        epsilon: Radius of the ball, in the units of the images.
        steps: Numbers of PGD steps.
        expectation: Draws of the expectation over noise; 1 leaves that row out.
        step_size: Step size of PGD; None takes `2.5 * epsilon / steps`, with which the
            attack can cross its ball.
        step_size_of: Step sizes for some numbers of steps, such as that of training.
        norm: `"linf"` or `"l2"`.
        restarts: Restarts of PGD.
    """
    scenarios = [Scenario(name="clean")]
    if norm == "linf":
        scenarios.append(Scenario(name="FGSM", attack=FGSM(epsilon=epsilon)))
    for count in steps:
        check_number("steps", count, minimum=1, integer=True)
        size = step_size
        if size is None:
            size = (step_size_of or {}).get(count, 2.5 * epsilon / count)
        attack = PGD(
            epsilon=epsilon,
            step_size=size,
            steps=count,
            norm=norm,
            restarts=restarts,
        )
        scenarios.append(Scenario(name=f"PGD-{count}", attack=attack))
    if expectation > 1 and steps:
        last = scenarios[-1]
        scenarios.append(
            dataclasses.replace(
                last, name=f"{last.name} EOT-{expectation}", expectation=expectation
            )
        )
    return scenarios


def evaluate_robustness(
    target: Target,
    images: np.ndarray,
    labels: np.ndarray,
    scenarios: list[Scenario],
    *,
    draws: int = 5,
    batch_size: int = 128,
    seed: int = 0,
    progress: Callable[[Iterator, str], Iterator] | None = None,
) -> list[Result]:
    """Attacks a target and scores the adversarial images on fresh draws.

    Each adversarial image is found once, on draws of its own, and then classified by
    `draws` further forward passes. A deterministic target is scored once.

    Args:
        target: What `load_target` returns.
        images: Float32 `[N, H, W, C]` in `[0, 1]`.
        labels: Integers `[N]`.
        scenarios: What to evaluate, in the order of the results.
        draws: Number of draws that score each image.
        batch_size: Images in a batch.
        seed: Seed of the noise, where the target can be reseeded, and of the attacks.
        progress: Wraps the iterator over batches, as
            `lambda batches, name: tqdm(batches, desc=name)` does.

    Returns:
        One result for each scenario.

    Raises:
        ValueError: If the images or labels are not what the target takes, or `draws`
            or `batch_size` is not positive.

    Example:

    >>> target = load_target(model)
    >>> results = evaluate_robustness(
    ...     target, images, labels, standard_scenarios(epsilon=8 / 255)
    ... )
    """
    check_number("draws", draws, minimum=1, integer=True)
    check_number("batch_size", batch_size, minimum=1, integer=True)
    images = validate_images(images, image_shape=target.image_shape)
    labels = validate_labels(labels, target.num_classes, num_examples=len(images))
    if target.reseed is not None:
        target.reseed(seed)
    results = []
    for number, scenario in enumerate(scenarios):
        twin = next((r for r in results if r.scenario.attack == scenario.attack), None)
        if twin is not None and not target.stochastic:  # expectation changes nothing
            results.append(dataclasses.replace(twin, scenario=scenario))
            continue
        attack_and_score = _compiled(target, scenario)
        starts = range(0, len(images), batch_size)
        predictions = []
        for i in progress(starts, scenario.name) if progress else starts:
            batch = slice(i, i + batch_size)
            predictions.append(
                attack_and_score(
                    tf.constant(images[batch]),
                    tf.constant(labels[batch]),
                    tf.constant([seed, number * 2**32 + i], tf.int64),
                    tf.constant(draws if target.stochastic else 1),
                ).numpy()
            )
        results.append(
            Result(
                scenario=scenario,
                target=target.name,
                stochastic=target.stochastic,
                labels=labels,
                predictions=np.concatenate(predictions, axis=1),
                seed=seed,
            )
        )
    return results


def _compiled(target, scenario):
    """Returns one graph that attacks a batch and classifies it `draws` times."""
    logits = target.logits
    attacked = logits
    if target.stochastic and scenario.expectation > 1:
        attacked = ExpectationOverNoise(logits, scenario.expectation)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *target.image_shape], tf.float32),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([2], tf.int64),
            tf.TensorSpec([], tf.int32),
        ]
    )
    def attack_and_score(images, labels, seed, draws):
        if scenario.attack is not None:
            images = scenario.attack.perturb(attacked, images, labels, seed=seed)
        return tf.map_fn(
            lambda _: tf.argmax(logits(images), -1),
            tf.range(draws),
            fn_output_signature=tf.int64,
            parallel_iterations=1,
        )

    # Traced here, once: calls of a fresh function each time look like retracing.
    return attack_and_score.get_concrete_function()
