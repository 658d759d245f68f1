"""Accuracy over epsilon, over the number of steps and over the number of draws."""

import dataclasses

from pni_tf.attacks.pgd import PGD
from pni_tf.checks import check_choice
from pni_tf.evaluation.results import Result, Scenario
from pni_tf.evaluation.robustness import evaluate_robustness
from pni_tf.evaluation.suites import scenario_of
from pni_tf.targets import Target

CURVES = ("epsilon", "steps", "draws")
_STEPS = (1, 2, 5, 10, 20, 50, 100)
_DRAWS = (1, 2, 5, 10, 20, 50)
_SHARES_OF_EPSILON = (0.25, 0.5, 1, 2, 4)


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
    scenarios = {}
    for value in _default(kind, attack) if values is None else values:
        scenarios[value] = _scenario(kind, value, target, attack, expectation)
    if kind == "draws" and not target.stochastic:
        scenarios = dict(list(scenarios.items())[:1])
    results = evaluate_robustness(
        target, images, labels, list(scenarios.values()), **options
    )
    return dict(zip(scenarios, results, strict=True))


def _default(kind, attack):
    if kind == "epsilon":
        return (*(share * attack.epsilon for share in _SHARES_OF_EPSILON), 1.0)
    return _STEPS if kind == "steps" else _DRAWS


def _scenario(kind, value, target, attack, expectation) -> Scenario:
    changes = {kind: value} if kind != "draws" else {}
    attack = dataclasses.replace(attack, **changes)
    size = 2.5 * attack.epsilon / max(attack.steps, 1)
    attack = dataclasses.replace(attack, step_size=size)
    draws = value if kind == "draws" else expectation
    return scenario_of(attack, target, draws, name=f"{kind} {value:.6g}")
