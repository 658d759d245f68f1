"""Accuracy over epsilon, over the number of steps and over the number of draws."""

import dataclasses

from pni_tf.attacks.pgd import PGD
from pni_tf.checks import check_choice
from pni_tf.evaluation.results import Result
from pni_tf.evaluation.robustness import evaluate_robustness
from pni_tf.evaluation.suites import scenario_of
from pni_tf.targets import Target

CURVES = ("epsilon", "steps", "draws")
_STEPS = (1, 2, 5, 10, 20, 50, 100)
_DRAWS = (1, 2, 5, 10, 20, 50)


def evaluate_curve(
    kind: str,
    target: Target,
    images,
    labels,
    *,
    attack: PGD,
    expectation: int = 20,
    values: tuple[float, ...] | None = None,
    **options,
) -> dict[float, Result]:
    """Returns the accuracy under PGD while one of its settings varies.

    The step size is always `2.5 * epsilon / steps`, so that each attack can reach the
    edge of its ball. What a sound evaluation shows: accuracy falls to zero as epsilon
    grows, and levels out over steps and over draws. The curve over draws has one point
    for a deterministic target.

    Args:
        kind: `"epsilon"`, `"steps"`, or `"draws"` (of the expectation over noise).
        target: What `load_target` returns.
        images: Float32 `[N, H, W, C]` in `[0, 1]`.
        labels: Integers `[N]`.
        attack: The PGD whose other settings are kept.
        expectation: Draws of the expectation, for the curves over epsilon and steps.
        values: The points; by default 0.25 to 4 times the attack's epsilon and 1.0,
            1 to 100 steps, or 1 to 50 draws.
        **options: Passed on to `evaluate_robustness`.

    Raises:
        ValueError: If `kind` is unknown or a value is out of its range.

    Reference: the paper's Fig. 3; https://arxiv.org/abs/1902.06705, section 4.
    """
    check_choice("kind", kind, CURVES)
    if values is None:
        shares = (0.25, 0.5, 1, 2, 4)
        epsilons = (*(share * attack.epsilon for share in shares), 1.0)
        values = {"epsilon": epsilons, "steps": _STEPS, "draws": _DRAWS}[kind]
    if kind == "draws" and not target.stochastic:
        values = values[:1]
    scenarios = {v: _scenario(kind, v, target, attack, expectation) for v in values}
    results = evaluate_robustness(
        target, images, labels, list(scenarios.values()), **options
    )
    return dict(zip(scenarios, results, strict=True))


def _scenario(kind, value, target, attack, expectation):
    if kind == "draws":
        expectation = value
    else:
        attack = dataclasses.replace(attack, **{kind: value})
    size = 2.5 * attack.epsilon / max(attack.steps, 1)
    attack = dataclasses.replace(attack, step_size=size)
    return scenario_of(attack, target, expectation, name=f"{kind} {value:.6g}")
