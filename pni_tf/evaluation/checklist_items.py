"""The lines of the checklist, from results alone."""

import dataclasses

from pni_tf.evaluation.results import Result
from pni_tf.evaluation.significance import chance_gap, lower

PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT RUN"
LEAST_DRAWS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One line of the checklist.

    Attributes:
        name: What should hold.
        source: `"Table 7"` of the PNI paper, or `"later"`.
        status: `"PASS"`, `"FAIL"` or `"NOT RUN"`.
        numbers: What was measured: accuracies in `[0, 1]` by name.
        meaning: What the outcome says, in a sentence.
    """

    name: str
    source: str
    status: str
    numbers: dict[str, float]
    meaning: str


def judge(
    results: dict[str, Result], headline: Result, draws: int = LEAST_DRAWS
) -> list[Item]:
    """Returns the items that follow from results; see `run_checklist` for the names."""
    judged = _Judge(results)
    stochastic = headline.stochastic
    return [
        judged.no_weaker(
            "one-step attacks do no better than iterative ones",
            "Table 7",
            {"PGD": "pgd"},
            {"FGSM": "fgsm"},
        ),
        judged.no_weaker(
            "black-box attacks do no better than white-box ones",
            "Table 7",
            {"white-box": "white-box"},
            {"Square": "square", "random search": "random"},
        ),
        judged.unbounded(),
        judged.no_weaker(
            "random sampling finds no more than gradients do",
            "Table 7",
            {"PGD": "pgd"},
            {"random search": "random"},
        ),
        judged.larger_bound(),
        judged.saturates()
        if stochastic
        else judged.not_run(
            "expectation over noise saturates", "the target has no noise"
        ),
        judged.no_weaker(
            "many more steps find no more",
            "later",
            {"PGD": "pgd"},
            {"PGD, many steps": "long"},
        ),
        judged.no_weaker(
            "restarts find no more", "later", {"PGD": "pgd"}, {"restarts": "restarts"}
        ),
        judged.no_weaker(
            "APGD finds no more than PGD",
            "later",
            {"PGD": "pgd"},
            {"APGD-CE": "apgd-ce", "APGD-DLR": "apgd-dlr"},
        ),
        judged.no_weaker(
            "averaged Square finds no more than PGD",
            "later",
            {"PGD": "pgd"},
            {"Square": "square"},
        ),
        judged.frozen()
        if stochastic
        else judged.not_run(
            "the attack succeeds on one frozen draw", "the target has no noise"
        ),
        judged.no_weaker(
            "examples of the noise-free twin are no worse than white-box ones",
            "later",
            {"white-box": "white-box"},
            {"noise off while attacking": "transfer"},
        ),
        judged.enough_draws(draws)
        if stochastic
        else judged.not_run(
            "scored on at least 10 fresh draws", "the target has no noise"
        ),
        judged.twin(
            "noise off", "noise beats the same network with its noise off", headline
        ),
        judged.twin("twin", "noise beats the deterministic twin", headline),
    ]


class _Judge:
    def __init__(self, results):
        self.results = dict(results)
        white = [results[k] for k in ("pgd", "apgd-ce", "apgd-dlr") if k in results]
        if white:
            self.results["white-box"] = min(white, key=lambda r: r.mean)

    def no_weaker(self, name, source, trusted, rivals):
        """PASS unless a rival attack is stronger than the one that is trusted."""
        ((trusted_name, key),) = trusted.items()
        present = {n: self.results[k] for n, k in rivals.items() if k in self.results}
        if key not in self.results or not present:
            return self.not_run(name, "the attacks were not run", source)
        reference = self.results[key]
        numbers = {trusted_name: reference.mean}
        numbers |= {n: r.mean for n, r in present.items()}
        stronger = [n for n, r in present.items() if lower(r, reference)]
        if stronger:
            meaning = (
                f"{' and '.join(stronger)} left fewer images than {trusted_name}: "
                f"the accuracy under {trusted_name} is overrated"
            )
            return Item(
                name=name, source=source, status=FAIL, numbers=numbers, meaning=meaning
            )
        chance = max(100 * chance_gap(r, reference) for r in present.values())
        meaning = (
            f"nothing here does better than {trusted_name} by more than chance "
            f"({chance:.1f} points)"
        )
        return Item(
            name=name, source=source, status=PASS, numbers=numbers, meaning=meaning
        )

    def unbounded(self):
        name = "unbounded attacks reach 100 % success"
        if "epsilon 1" not in self.results:
            return self.not_run(name, "the attack was not run", "Table 7")
        accuracy = self.results["epsilon 1"].mean
        good = accuracy <= 0.01
        return Item(
            name=name,
            source="Table 7",
            status=PASS if good else FAIL,
            numbers={"accuracy at epsilon 1": accuracy},
            meaning="with no bound the attack always succeeds"
            if good
            else "with no bound at most 1 % may survive: the attack does not work here",
        )

    def larger_bound(self):
        name = "a larger bound raises success"
        curve = self._curve("epsilon")
        if len(curve) < 2:
            return self.not_run(name, "the curve was not run", "Table 7")
        pairs = zip(curve, list(curve)[1:], strict=False)
        rises = [f"{b:.4g}" for a, b in pairs if lower(curve[a], curve[b])]
        first, *_, last = curve.values()
        # A network without any robustness has nothing left to lose.
        falls = lower(last, first) or first.mean <= 0.01
        good = falls and not rises
        meaning = "accuracy falls as epsilon grows"
        if rises:
            meaning = f"accuracy rises at epsilon {', '.join(rises)}: masked gradients"
        elif not falls:
            meaning = "accuracy does not fall with epsilon: masked gradients"
        return Item(
            name=name,
            source="Table 7",
            status=PASS if good else FAIL,
            numbers={f"epsilon {e:.4g}": r.mean for e, r in curve.items()},
            meaning=meaning,
        )

    def saturates(self):
        name = "expectation over noise saturates"
        curve = self._curve("draws")
        if len(curve) < 2:
            return self.not_run(name, "the curve was not run")
        *_, before, last = curve.values()
        falling = lower(last, before)
        first = next(iter(curve.values()))
        drop = 100 * (first.mean - last.mean)
        return Item(
            name=name,
            source="later",
            status=FAIL if falling else PASS,
            numbers={f"{k:.0f} draws": r.mean for k, r in curve.items()},
            meaning="accuracy still falls with more draws: use more"
            if falling
            else f"more draws add nothing; averaging took {drop:.2f} points in all",
        )

    def frozen(self):
        name = "the attack succeeds on one frozen draw"
        if "frozen" not in self.results or "pgd" not in self.results:
            return self.not_run(name, "the target cannot be reseeded")
        frozen, fresh = self.results["frozen"], self.results["pgd"]
        higher = lower(fresh, frozen)
        return Item(
            name=name,
            source="later",
            status=FAIL if higher else PASS,
            numbers={"frozen draw": frozen.mean, "fresh draws": fresh.mean},
            meaning="the attack fails even where there is no randomness: the gradients "
            "are masked by something else"
            if higher
            else "one frozen draw is no harder to attack than the random network",
        )

    def enough_draws(self, draws):
        return Item(
            name=f"scored on at least {LEAST_DRAWS} fresh draws",
            source="later",
            status=PASS if draws >= LEAST_DRAWS else FAIL,
            numbers={},
            meaning=f"{draws} draws score each adversarial image",
        )

    def twin(self, key, name, headline):
        if key not in self.results:
            reason = (
                "no deterministic twin was given"
                if key == "twin"
                else "there is no noise to turn off"
            )
            return self.not_run(name, reason)
        other = self.results[key]
        better = lower(other, headline)
        return Item(
            name=name,
            source="later",
            status=PASS if better else FAIL,
            numbers={"worst case": headline.mean, key: other.mean},
            meaning=f"the noise adds robustness over {key!r}"
            if better
            else f"no gain over {key!r} that these images can show: do not credit the "
            "noise with the robustness",
        )

    def not_run(self, name, reason, source="later"):
        return Item(
            name=name, source=source, status=NOT_RUN, numbers={}, meaning=reason
        )

    def _curve(self, kind):
        found = {
            float(key.split(" ")[1]): result
            for key, result in self.results.items()
            if key.startswith(f"{kind} ")
        }
        return dict(sorted(found.items()))
