"""Is the robustness real? The symptoms of masked gradients and of lucky randomness."""

import dataclasses
import functools
import math

from pni_tf.attacks import Transfer, make_attack
from pni_tf.evaluation.checklist_items import LEAST_DRAWS, Evidence, Item, judge
from pni_tf.evaluation.curves import evaluate_curve
from pni_tf.evaluation.results import Result, Scenario, union
from pni_tf.evaluation.robustness import evaluate_robustness
from pni_tf.evaluation.suites import scenario_of
from pni_tf.targets import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checklist:
    """The items, and the number to quote.

    Attributes:
        items: One for each check.
        evidence: All results that they are judged by.
    """

    items: list[Item]
    evidence: Evidence

    @property
    def headline(self) -> Result:
        """The worst case over all attacks within the ball, image by image."""
        return self.evidence.headline

    @property
    def results(self) -> dict[str, Result]:
        """All results by name: a key, or `"epsilon 0.1"` for a point of a curve."""
        points = {
            f"{kind} {value:.6g}": result
            for kind, curve in self.evidence.curves.items()
            for value, result in curve.items()
        }
        return {**self.evidence.results, **points}

    def to_json(self) -> dict:
        """Returns the content as JSON can hold it."""
        return {
            "items": [dataclasses.asdict(item) for item in self.items],
            "headline": self.headline.summary(),
            "results": {k: r.summary() for k, r in self.results.items()},
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
    stronger than another if the paired differences over the images show it (see
    `pni_tf.evaluation.significance`); so of the checks that compare two equal attacks,
    about one in 40 fails by chance. The table says how large a difference would show.

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
    if twin is not None and twin.stochastic:
        raise ValueError(
            "The twin is the deterministic network, trained without noise. "
            f"Received: {twin.name!r}, which is random"
        )
    options |= {"images": images, "labels": labels, "draws": draws}
    pgd = make_attack("pgd", epsilon=epsilon, steps=steps)
    attacks = _attacks(target, pgd, many_steps, queries)
    scenarios = {"clean": Scenario(name="clean")}
    for key, attack in attacks.items():
        scenarios[key] = scenario_of(attack, target, expectation, name=key)
    found = evaluate_robustness(target, scenarios=[*scenarios.values()], **options)
    results = dict(zip(scenarios, found, strict=True))
    curves, apart = {}, {}  # What lies apart has no part in the headline.
    if target.has_gradient:
        curve = functools.partial(
            evaluate_curve,
            target=target,
            attack=pgd,
            expectation=expectation,
            **options,
        )
        # The point at the attack's own epsilon, or number of draws, is the row "pgd".
        shares = [*(epsilon * share for share in (0.25, 0.5, 2, 4)), 1.0]
        points = curve("epsilon", values=shares)
        curves["epsilon"] = {epsilon: results["pgd"], **points}
        if target.stochastic:
            known = [k for k in (1, 2, 5, 10, 20) if k < expectation]
            points = curve("draws", values=[*known, math.ceil(2.5 * expectation)])
            curves["draws"] = {expectation: results["pgd"], **points}
            if target.reseed is not None:
                frozen = target.frozen(options.get("seed", 0))
                scenario = scenario_of(pgd, frozen, name="PGD on one frozen draw")
                (apart["frozen"],) = evaluate_robustness(
                    frozen, scenarios=[scenario], **options
                )
    for name, other in {"noise off": target.noise_free, "twin": twin}.items():
        if other is not None:
            # No stronger than those on the target: a comparison must not favour it.
            scenarios = [
                scenario_of(attack, other, name=f"{key} on {name}")
                for key, attack in _ascents(other, epsilon, many_steps).items()
            ]
            found = evaluate_robustness(other, scenarios=scenarios, **options)
            apart[name] = union(found, name=name)
    own = [*results.values(), *(r for c in curves.values() for r in c.values())]
    within = [r for r in own if (r.scenario.ball or ("linf", 0))[1] <= epsilon]
    evidence = Evidence(
        results={**results, **apart},
        curves=curves,
        headline=union(within),
        draws=draws,
    )
    return Checklist(items=judge(evidence), evidence=evidence)


def _ascents(target, epsilon, steps):
    """Returns the long attacks by gradients on a target."""
    names = {"long": "pgd", "apgd-ce": "apgd-ce", "apgd-dlr": "apgd-dlr"}
    if target.num_classes < 3:
        del names["apgd-dlr"]
    return {
        key: make_attack(name, epsilon=epsilon, steps=steps)
        for key, name in names.items()
    }


def _attacks(target, pgd, many_steps, queries):
    """Returns the attacks whose results need neither a curve nor another target."""
    epsilon, stochastic = pgd.epsilon, target.stochastic
    ascents, attacks = _ascents(target, epsilon, many_steps), {}
    if target.has_gradient:
        attacks = {
            "pgd": pgd,
            "fgsm": make_attack("fgsm", epsilon=epsilon),
            "long": ascents["long"],
            "restarts": dataclasses.replace(pgd, restarts=5),
            **ascents,
        }
    attacks["random"] = make_attack(
        "random", epsilon=epsilon, samples=queries, stochastic=stochastic
    )
    if not target.labels_only:
        attacks["square"] = make_attack(
            "square", epsilon=epsilon, queries=queries, stochastic=stochastic
        )
    if target.noise_free is not None:
        attacks["transfer"] = Transfer(
            attack=ascents["long"],
            source=target.noise_free,
            source_name="noise-free twin",
        )
    return attacks
