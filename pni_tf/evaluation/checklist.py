"""Is the robustness real? The symptoms of masked gradients and of lucky randomness."""

import dataclasses
import math

import numpy as np

from pni_tf.attacks import Transfer, make_attack
from pni_tf.evaluation.checklist_items import LEAST_DRAWS, Item, judge
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
    two of its standard errors; so of the checks that compare two equal attacks, about
    one in 44 fails by chance. The table says how large a difference would have shown.

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
    results = run.attacks(steps, many_steps, queries)
    if target.has_gradient:
        pgd = run.pgd(steps)
        # The point at the attack's own epsilon, or number of draws, is the row "pgd".
        results[f"epsilon {epsilon:.6g}"] = results["pgd"]
        results |= run.curve("epsilon", pgd, [*(epsilon * k for k in _SHARES), 1.0])
        if target.stochastic:
            results[f"draws {expectation}"] = results["pgd"]
            results |= run.curve("draws", pgd, _draw_values(expectation))
        if target.stochastic and target.reseed is not None:
            results["frozen"] = run.frozen(pgd)
    results |= run.others({"noise off": target.noise_free, "twin": twin}, many_steps)
    headline = union([r for key, r in results.items() if _within(key, r, epsilon)])
    return Checklist(
        items=judge(results, headline, draws), headline=headline, results=results
    )


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

    def pgd(self, steps):
        return make_attack("pgd", epsilon=self.epsilon, steps=steps)

    def attacks(self, steps, many_steps, queries):
        """Returns the results that need neither a curve nor another target."""
        target, stochastic = self.target, self.target.stochastic
        long = self.pgd(many_steps)
        attacks = {}
        if target.has_gradient:
            attacks = {
                "pgd": self.pgd(steps),
                "fgsm": make_attack("fgsm", epsilon=self.epsilon),
                "long": long,
                "restarts": dataclasses.replace(self.pgd(steps), restarts=5),
                "apgd-ce": self._apgd("apgd-ce", many_steps),
            }
            if target.num_classes >= 3:
                attacks["apgd-dlr"] = self._apgd("apgd-dlr", many_steps)
        attacks["random"] = make_attack(
            "random", epsilon=self.epsilon, samples=queries, stochastic=stochastic
        )
        if not target.labels_only:
            attacks["square"] = make_attack(
                "square", epsilon=self.epsilon, queries=queries, stochastic=stochastic
            )
        if target.noise_free is not None:
            attacks["transfer"] = Transfer(
                attack=long, source=target.noise_free, source_name="noise-free twin"
            )
        scenarios = {"clean": Scenario(name="clean")}
        scenarios |= {
            key: scenario_of(attack, target, self.expectation, name=key)
            for key, attack in attacks.items()
        }
        found = self._evaluate(target, list(scenarios.values()))
        return dict(zip(scenarios, found, strict=True))

    def curve(self, kind, attack, values):
        """Returns the points of a curve, under the names that `judge` expects."""
        curve = evaluate_curve(
            kind,
            self.target,
            self.images,
            self.labels,
            attack=attack,
            expectation=self.expectation,
            values=tuple(values),
            **self.options,
        )
        return {f"{kind} {value:.6g}": result for value, result in curve.items()}

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
                attacks = {"long": self.pgd(steps)}
                attacks["apgd-ce"] = self._apgd("apgd-ce", steps)
                if target.num_classes >= 3:
                    attacks["apgd-dlr"] = self._apgd("apgd-dlr", steps)
                scenarios = [
                    scenario_of(attack, target, name=f"{key} on {name}")
                    for key, attack in attacks.items()
                ]
                results[name] = union(self._evaluate(target, scenarios), name=name)
        return results

    def _apgd(self, name, steps):
        return make_attack(name, epsilon=self.epsilon, steps=steps)

    def _evaluate(self, target, scenarios):
        return evaluate_robustness(
            target, self.images, self.labels, scenarios, **self.options
        )


def _draw_values(expectation):
    known = [k for k in (1, 2, 5, 10, 20) if k < expectation]
    return (*known, math.ceil(2.5 * expectation))


def _within(key, result, epsilon):
    """Whether a result is of an attack on the target itself within the ball."""
    if key in ("frozen", "noise off", "twin"):  # whose names may be the target's
        return False
    ball = result.scenario.ball
    return ball is None or ball[1] <= epsilon
