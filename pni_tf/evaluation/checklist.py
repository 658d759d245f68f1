"""Is the robustness real? The symptoms of masked gradients and of lucky randomness."""

import dataclasses
import math

import numpy as np

from pni_tf.attacks.presets import make_attack
from pni_tf.attacks.transfer import Transfer
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
    run = _Run(
        target, images, labels, epsilon, expectation, {**options, "draws": draws}
    )
    pgd = run.attack("pgd", steps=steps)
    results = run.attacks(pgd, many_steps, queries)
    curves, apart = {}, {}  # What lies apart has no part in the headline.
    if target.has_gradient:
        # The point at the attack's own epsilon, or number of draws, is the row "pgd".
        shares = [*(epsilon * share for share in _SHARES), 1.0]
        curve = run.curve("epsilon", pgd, shares)
        curves["epsilon"] = {epsilon: results["pgd"], **curve}
        if target.stochastic:
            known = [k for k in (1, 2, 5, 10, 20) if k < expectation]
            curve = run.curve("draws", pgd, [*known, math.ceil(2.5 * expectation)])
            curves["draws"] = {expectation: results["pgd"], **curve}
            if target.reseed is not None:
                apart["frozen"] = run.frozen(pgd)
    apart |= run.others({"noise off": target.noise_free, "twin": twin}, many_steps)
    own = [*results.values(), *(r for c in curves.values() for r in c.values())]
    evidence = Evidence(
        results={**results, **apart},
        curves=curves,
        headline=union([r for r in own if _within(r.scenario.ball, epsilon)]),
        draws=draws,
    )
    return Checklist(items=judge(evidence), evidence=evidence)


def _within(ball, epsilon):
    return ball is None or ball[1] <= epsilon


_SHARES = (0.25, 0.5, 2, 4)


@dataclasses.dataclass(frozen=True)
class _Run:
    """Evaluations of one target that share their images and options."""

    target: Target
    images: np.ndarray
    labels: np.ndarray
    epsilon: float
    expectation: int
    options: dict

    def attack(self, name, **settings):
        return make_attack(name, epsilon=self.epsilon, **settings)

    def ascents(self, target, steps):
        """Returns the long attacks by gradients on a target."""
        names = ["apgd-ce", "apgd-dlr"] if target.num_classes >= 3 else ["apgd-ce"]
        found = {"long": self.attack("pgd", steps=steps)}
        return found | {name: self.attack(name, steps=steps) for name in names}

    def attacks(self, pgd, many_steps, queries):
        """Returns the results that need neither a curve nor another target."""
        target, stochastic = self.target, self.target.stochastic
        ascents, attacks = self.ascents(target, many_steps), {}
        if target.has_gradient:
            attacks = {
                "pgd": pgd,
                "fgsm": self.attack("fgsm"),
                "long": ascents["long"],
                "restarts": dataclasses.replace(pgd, restarts=5),
                **ascents,
            }
        attacks["random"] = self.attack(
            "random", samples=queries, stochastic=stochastic
        )
        if not target.labels_only:
            attacks["square"] = self.attack(
                "square", queries=queries, stochastic=stochastic
            )
        if target.noise_free is not None:
            attacks["transfer"] = Transfer(
                attack=ascents["long"],
                source=target.noise_free,
                source_name="noise-free twin",
            )
        scenarios = {"clean": Scenario(name="clean")}
        scenarios |= {
            key: scenario_of(attack, target, self.expectation, name=key)
            for key, attack in attacks.items()
        }
        found = self._evaluate(target, list(scenarios.values()))
        return dict(zip(scenarios, found, strict=True))

    def curve(self, kind, attack, values):
        """Returns the points of a curve."""
        return evaluate_curve(
            kind,
            self.target,
            self.images,
            self.labels,
            attack=attack,
            expectation=self.expectation,
            values=tuple(values),
            **self.options,
        )

    def frozen(self, attack):
        """Returns the result of attacking and scoring one draw of the noise."""
        frozen = self.target.frozen(self.options.get("seed", 0))
        scenario = scenario_of(attack, frozen, name="PGD on one frozen draw")
        return self._evaluate(frozen, [scenario])[0]

    def others(self, targets, steps):
        """Returns the worst case of attacks on other targets.

        They are no stronger than those on the target itself, so that a comparison does
        not favour it.
        """
        results = {}
        for name, target in targets.items():
            if target is not None:
                scenarios = [
                    scenario_of(attack, target, name=f"{key} on {name}")
                    for key, attack in self.ascents(target, steps).items()
                ]
                results[name] = union(self._evaluate(target, scenarios), name=name)
        return results

    def _evaluate(self, target, scenarios):
        return evaluate_robustness(
            target, self.images, self.labels, scenarios, **self.options
        )
