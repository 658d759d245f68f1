"""The settings of an evaluation."""

import dataclasses
from typing import Literal

from pni_tf.settings.base import FROM_0, Group, setting
from pni_tf.settings.machine import Devices, Source

# The short names of `attacks/presets.py`, and two that need a further network.
ATTACKS = (
    *("fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "cw", "square", "zoo", "random"),
    *("transfer", "substitute"),
)
_Column = Literal["model", "noise_on", "noise_off", "mean", "twin"]
_DEFAULT_ATTACKS = {
    "linf": "fgsm,pgd(steps=7),pgd(steps=40)",
    "l2": "pgd(steps=7),pgd(steps=40)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestData(Source):
    """What to attack."""

    dataset: str | None = setting(
        None, "Dataset whose test images are attacked: see bin/train."
    )
    examples: int | None = setting(None, "Number of test images; all by default.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attacks(Group):
    """The attacks of the table."""

    heading = "Attacks"

    attacks: str | None = setting(
        None,
        f"List of attacks, of {', '.join(ATTACKS)}; settings in parentheses, "
        "where expectation=K takes the place of --expectation. By default "
        f"{_DEFAULT_ATTACKS['linf']}, or none with --suite. Clean images are always "
        "scored.",
        may_be_empty=True,
    )
    suite: Literal["paper", "strong"] | None = setting(
        None,
        "A set of attacks: those of the PNI paper, or those for claims, all with "
        "expectation over the noise of a random model.",
    )
    preset: Literal["paper", "reference", "strong"] = setting(
        "reference", "Settings of --attacks that are not given in parentheses."
    )
    epsilons: tuple[float, ...] | None = setting(
        None,
        "Radii of the ball, for pixels in [0, 1]; fractions such as 8/255 are "
        "accepted. The curves and the checklist take the first.",
    )
    norm: Literal["linf", "l2"] = setting("linf", "Norm of the ball.")
    expectation: tuple[int, ...] = setting(
        (1, 20),
        "Draws of the expectation over noise, one row each for --attacks; a suite, the "
        "curves and the checklist take the largest. A deterministic model is attacked "
        "once.",
    )
    towards: Literal["next", "random", "least_likely"] | None = setting(
        None, "Makes the attacks of --attacks targeted, towards this class."
    )
    transfer_from: tuple[str, ...] | None = setting(
        None,
        "Models from which examples are transferred, besides the one without noise.",
    )
    substitute_images: int = setting(
        150, "Test images, not among the attacked ones, that `substitute` starts from."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.norm != "linf" and self.suite == "paper":
            raise ValueError(
                f"--suite=paper is for --norm=linf. Received: --norm={self.norm}"
            )
        if self.towards and self.suite and not self.attacks:
            raise ValueError(
                "--towards is for the attacks of --attacks: those of a suite are "
                "untargeted"
            )

    @property
    def listed(self) -> str:
        """The list of attacks: by default one, unless there is a suite."""
        if self.attacks is None:
            return "" if self.suite else _DEFAULT_ATTACKS[self.norm]
        return self.attacks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analyses(Group):
    """What is found out in addition to the table."""

    heading = "Analyses"

    curves: tuple[Literal["epsilon", "steps", "draws"], ...] | None = setting(
        None, "Accuracy of PGD over: epsilon, steps, draws. With figures."
    )
    checklist: bool = setting(
        False,
        "Check for masked gradients and lucky randomness (Linf): Table 7 of the paper "
        "and what came later.",
    )
    ensemble: int = setting(
        1,
        "Above 1, a further column for a random model: prediction by the mean of the "
        "softmax over this many draws, attacked through that mean.",
    )
    certify: bool = setting(
        False, "Certified radii of a PixelDP network, and the accuracy over the radius."
    )
    certify_draws: int = setting(2000, "Draws of the noise for each certified radius.")
    pictures: int = setting(
        0,
        "Number of images to draw, of those with which the first attack fools the "
        "model, with the predictions and their confidence.",
        bounds=(0, 16),
    )
    columns: tuple[_Column, ...] | None = setting(
        None,
        "Columns of the table and lines of the curves, from: model or noise_on, "
        "noise_off, mean (of --ensemble), twin; all that there are by default.",
    )
    twin: str | None = setting(
        None,
        "The deterministic model of equal cost, adversarially trained without noise: "
        "a further column, and part of the checklist.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring(Group):
    """How images are scored, and where the results go."""

    heading = "Scoring and output"

    draws: int = setting(10, "Draws of the noise that score each image.")
    batch_size: int = setting(128, "Images in a batch.")
    seed: int = setting(0, "Seed of the noise and the attacks.", bounds=FROM_0)
    output_dir: str | None = setting(
        None,
        "Folder of the results; by default MODEL/evaluation for a run directory, else "
        "MODEL_evaluation.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """All settings of `bin/evaluate`.

    Raises:
        ValueError: If settings of different groups contradict each other.
    """

    data: TestData = TestData()
    attacks: Attacks = Attacks()
    analyses: Analyses = Analyses()
    scoring: Scoring = Scoring()
    devices: Devices = Devices()  # noqa: RUF009

    def __post_init__(self):
        if self.analyses.checklist and self.attacks.norm != "linf":
            raise ValueError(
                f"--checklist is for --norm=linf. Received: --norm={self.attacks.norm}"
            )
