"""Sets of scenarios: the standard table, the paper's attacks, and those for claims."""

import dataclasses
from collections.abc import Mapping

from pni_tf.attacks.base import Attack
from pni_tf.attacks.fgsm import FGSM
from pni_tf.attacks.pgd import PGD
from pni_tf.attacks.presets import make_attack
from pni_tf.attacks.transfer import Transfer
from pni_tf.checks import check_number
from pni_tf.evaluation.names import NOISE_FREE_TWIN, attack_name, row_name
from pni_tf.evaluation.results import Scenario
from pni_tf.targets import Target

# One name for each row, whatever the settings, so that columns can be compared.
_STRONG = {
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "pgd": "PGD with restarts",
    "square": "Square",
    "random": "random search",
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
        last, name = scenarios[-1], row_name(scenarios[-1].name, expectation)
        scenarios.append(dataclasses.replace(last, name=name, expectation=expectation))
    return scenarios


def paper_suite(
    target: Target,
    *,
    epsilon: float = 8 / 255,
    sources: Mapping[str, Target] | None = None,
    zoo: bool = True,
) -> list[Scenario]:
    """Returns the attacks of the PNI paper, with its settings.

    They are FGSM, PGD-7, C&W, ZOO and transfer from each source; none averages over the
    noise, so on a random network they overrate it. A target without gradient gets ZOO
    and the transfers, one that gives labels only the transfers.

    Args:
        target: What is attacked.
        epsilon: Radius of the Linf ball, in the units of the images.
        sources: Networks from which PGD-7 examples are transferred, by name.
        zoo: Whether to include ZOO, which takes about a million queries an image: the
            paper runs it on 200 images.
    """
    names = ["fgsm", "pgd", "cw"] if target.has_gradient else []
    if zoo and not target.labels_only:
        names.append("zoo")
    scenarios = [Scenario(name="clean")]
    for name in names:
        attack = make_attack(
            name,
            "paper",
            epsilon=epsilon,
            stochastic=target.stochastic,
            channels=target.image_shape[-1],
        )
        scenarios.append(Scenario(name=label(attack), attack=attack))
    pgd = make_attack("pgd", "paper", epsilon=epsilon)
    return scenarios + [
        transfer_from(name, source, pgd) for name, source in (sources or {}).items()
    ]


def strong_suite(
    target: Target,
    *,
    epsilon: float = 8 / 255,
    norm: str = "linf",
    expectation: int = 20,
    sources: Mapping[str, Target] | None = None,
) -> list[Scenario]:
    """Returns the attacks for claims of robustness; report their `union`.

    They are APGD-CE, APGD-DLR (from 3 classes on), PGD with restarts, Square (Linf) and
    APGD-CE examples transferred from the noise-free twin and from each source; all with
    expectation over noise for a random target, plain for a deterministic one. A target
    without gradient gets Square, random search and the transfers, one that gives labels
    only the last two.

    Args:
        target: What is attacked.
        epsilon: Radius of the ball, in the units of the images.
        norm: `"linf"` or `"l2"`.
        expectation: Draws of the expectation over noise.
        sources: Further networks from which examples are transferred, by name.
    """
    names = ["random"]
    if target.has_gradient and not target.labels_only:
        names = ["apgd-ce", "apgd-dlr", "pgd"]
        if target.num_classes < 3:
            names.remove("apgd-dlr")
    if norm == "linf" and not target.labels_only:
        names.append("square")
    draws = expectation if target.stochastic else 1
    scenarios = [Scenario(name="clean")]
    for name in names:
        attack = make_attack(
            name, "strong", epsilon=epsilon, norm=norm, stochastic=target.stochastic
        )
        scenarios.append(Scenario(name=_STRONG[name], attack=attack, expectation=draws))
    sources = dict(sources or {})
    if target.noise_free is not None:
        sources = {NOISE_FREE_TWIN: target.noise_free, **sources}
    ascent = make_attack("apgd-ce", "reference", epsilon=epsilon, norm=norm)
    return scenarios + [
        transfer_from(name, source, ascent, draws) for name, source in sources.items()
    ]


def scenario_of(
    attack: Attack,
    target: Target,
    expectation: int = 1,
    *,
    name: str | None = None,
    towards: str | None = None,
) -> Scenario:
    """Returns a named scenario; a deterministic target gets no expectation."""
    draws = expectation if target.stochastic else 1
    name = row_name(name or label(attack), draws, towards)
    return Scenario(name=name, attack=attack, expectation=draws, towards=towards)


def label(attack: Attack) -> str:
    """Returns what tables call an attack: `PGD-40`, `APGD-DLR-100 ×5`, and so on."""
    kind = type(attack).__name__
    efforts = ("steps", "queries", "samples", "iterations")
    if kind == "CarliniWagnerL2":
        efforts = ("binary_search_steps", "steps")
    if kind == "APGD":
        kind += {"ce": "-CE", "dlr": "-DLR", "dlr-targeted": "-T"}[attack.loss]
    numbers = [getattr(attack, name) for name in efforts if hasattr(attack, name)]
    return attack_name(kind, *numbers, restarts=getattr(attack, "restarts", 1))


def transfer_from(
    name: str,
    source: Target,
    attack: Attack,
    expectation: int = 1,
    *,
    version: str = "",
) -> Scenario:
    """Returns the transfer of an attack's examples from a source, for any target.

    Args:
        name: What the tables call the source.
        source: The source. A random one is attacked over 20 draws of its noise.
        attack: What runs on the source.
        expectation: Draws of the target's noise in the attack's own verdict.
        version: Distinguishes sources of the same name, such as by a digest.
    """
    return Scenario(
        name=f"transfer from {name}",
        source=name,
        attack=Transfer(
            attack=attack,
            source=source,
            source_name=f"{name} {version}".strip(),
            source_draws=20 if source.stochastic else 1,
        ),
        expectation=expectation,
    )
