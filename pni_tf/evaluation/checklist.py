"""Is the robustness real? The symptoms of masked gradients and of lucky randomness."""

import dataclasses
import math

from pni_tf.attacks import Transfer, make_attack
from pni_tf.evaluation.checklist_items import LEAST_DRAWS, Item, judge
from pni_tf.evaluation.curves import evaluate_curve
from pni_tf.evaluation.results import Result, Scenario, union
from pni_tf.evaluation.robustness import evaluate_robustness
from pni_tf.evaluation.suites import scenario_of
from pni_tf.export import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checklist:
    """The items, and the number to quote.

    Attributes:
        items: One for each check.
        headline: The worst case over all attacks within the ball, image by image.
        results: Every result behind them, by a short name.
    """

    items: list[Item]
    headline: Result
    results: dict[str, Result]

    def to_json(self) -> dict:
        """Returns the content as JSON can hold it."""
        return {
            "items": [dataclasses.asdict(item) for item in self.items],
            "headline": self.headline.summary(),
            "results": {name: r.summary() for name, r in self.results.items()},
        }

    def to_markdown(self) -> str:
        """Returns a table with the status, the numbers and the meaning of each item."""
        lines = [
            "| check | status | numbers (%) | meaning |",
            "| --- | --- | --- | --- |",
        ]
        for item in self.items:
            numbers = ", ".join(f"{k} {100 * v:.2f}" for k, v in item.numbers.items())
            lines.append(
                f"| {item.name} ({item.source}) | {item.status} | {numbers or '-'} | "
                f"{item.meaning} |"
            )
        return "\n".join(lines)


def run_checklist(
    target: Target,
    images,
    labels,
    *,
    epsilon: float,
    expectation: int = 20,
    twin: Target | None = None,
    steps: int = 20,
    many_steps: int = 100,
    queries: int = 1000,
    draws: int = LEAST_DRAWS,
    **options,
) -> Checklist:
    """Attacks a target in every way that would expose a false robustness (Linf).

    All accuracies are means of single draws on fresh draws. One attack counts as
    stronger than another if the mean of the paired differences over the images exceeds
    two of its standard errors; so of the checks that compare two equal attacks, one in
    44 fails by chance.

    Args:
        target: What `load_target` returns.
        images: Float32 `[N, H, W, C]` in `[0, 1]`.
        labels: Integers `[N]`.
        epsilon: Radius of the Linf ball.
        expectation: Draws of the expectation over noise; the curve over draws goes on
            to 2.5 times as many.
        twin: The deterministic network of equal cost that was trained adversarially
            without noise, if there is one.
        steps: Steps of PGD.
        many_steps: Steps of the longer PGD and of APGD.
        queries: Queries of Square and of random search.
        draws: Draws that score each image.
        **options: `batch_size`, `seed`, `store` and `progress` of
            `evaluate_robustness`.

    Returns:
        The checklist. A check that the target does not allow is NOT RUN.

    Reference: the paper's Table 7, after https://arxiv.org/abs/1802.00420; and
    https://arxiv.org/abs/1902.06705.
    """
    options = {**options, "draws": draws}
    results = _attack(
        target,
        images,
        labels,
        epsilon,
        expectation,
        steps,
        many_steps,
        queries,
        options,
    )
    pgd = _pgd(target, epsilon, steps)
    for kind in ("epsilon", "draws"):
        values = None
        if kind == "draws":
            values = _draw_values(expectation)
        curve = evaluate_curve(
            kind,
            target,
            images,
            labels,
            attack=pgd,
            expectation=expectation,
            values=values,
            **options,
        )
        results |= {f"{kind} {value:.6g}": r for value, r in curve.items()}
    if target.stochastic and target.reseed is not None:
        frozen = target.frozen(options.get("seed", 0))
        (results["frozen"],) = evaluate_robustness(
            frozen,
            images,
            labels,
            [scenario_of(pgd, frozen, name="PGD on one frozen draw")],
            **options,
        )
    twins = {"noise off": target.noise_free, "twin": twin}
    for name, other in twins.items():
        if other is not None:
            scenarios = [
                scenario_of(make_attack(attack, "strong", epsilon=epsilon), other)
                for attack in ("pgd", "apgd-ce")
            ]
            scenarios = [
                dataclasses.replace(s, name=f"{s.name} on {name}") for s in scenarios
            ]
            found = evaluate_robustness(other, images, labels, scenarios, **options)
            results[name] = union(found, name=name)
    within = [r for key, r in results.items() if _within(key, r, epsilon)]
    headline = union(within)
    return Checklist(
        items=judge(results, headline, draws), headline=headline, results=results
    )


def _attack(
    target, images, labels, epsilon, expectation, steps, many_steps, queries, options
):
    """Runs the attacks that need neither a curve nor another target."""
    pgd = _pgd(target, epsilon, steps)
    attacks = {
        "pgd": pgd,
        "fgsm": make_attack("fgsm", epsilon=epsilon),
        "long": _pgd(target, epsilon, many_steps),
        "restarts": dataclasses.replace(pgd, restarts=5),
        "apgd-ce": make_attack("apgd-ce", epsilon=epsilon, steps=many_steps),
        "square": make_attack(
            "square", epsilon=epsilon, queries=queries, stochastic=target.stochastic
        ),
        "random": make_attack(
            "random", epsilon=epsilon, samples=queries, stochastic=target.stochastic
        ),
    }
    if target.num_classes >= 3:
        attacks["apgd-dlr"] = make_attack("apgd-dlr", epsilon=epsilon, steps=many_steps)
    if target.noise_free is not None:
        attacks["transfer"] = Transfer(
            attack=attacks["long"],
            source=target.noise_free,
            source_name="noise-free twin",
        )
    scenarios = {"clean": Scenario(name="clean")}
    scenarios |= {
        key: scenario_of(attack, target, expectation, name=key)
        for key, attack in attacks.items()
    }
    found = evaluate_robustness(
        target, images, labels, list(scenarios.values()), **options
    )
    return dict(zip(scenarios, found, strict=True))


def _pgd(target, epsilon, steps):
    return make_attack("pgd", epsilon=epsilon, steps=steps, early_stop=False)


def _draw_values(expectation):
    known = [k for k in (1, 2, 5, 10, 20) if k < expectation]
    return (*known, expectation, math.ceil(2.5 * expectation))


def _within(key, result, epsilon):
    """Whether a result is of an attack on the target itself within the ball."""
    if key in ("frozen", "noise off", "twin"):  # whose names may be the target's
        return False
    ball = result.scenario.ball
    return ball is None or ball[1] <= epsilon
