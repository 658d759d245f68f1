"""The checklist, from results alone: a table of checks and their rules."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

from pni_tf.evaluation import significance
from pni_tf.evaluation.names import OF_PAPER
from pni_tf.evaluation.results import Result

PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT RUN"
LEAST_DRAWS = 10

# What numbers and sentences call the attacks.
_NAMES = {
    "pgd": "PGD",
    "fgsm": "FGSM",
    "long": "PGD, many steps",
    "restarts": "restarts",
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "square": "Square",
    "random": "random search",
    "transfer": "noise off while attacking",
    "white-box": "white-box",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One line of the checklist.

    Attributes:
        name: What should hold.
        source: `OF_PAPER`, Table 7 of the PNI paper, or `"later"`.
        status: `"PASS"`, `"FAIL"` or `"NOT RUN"`.
        numbers: What was measured: accuracies in `[0, 1]` by name.
        meaning: What the outcome says, in a sentence.
    """

    name: str
    source: str
    status: str
    numbers: dict[str, float]
    meaning: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checklist:
    """What attacks have found, and what follows from it. Made by `run_checklist`.

    Attributes:
        attacks: The result of each attack by its key.
        curves: The points of each curve (`"epsilon"`, `"draws"`) by their value.
        headline: The number to quote: the worst case over all attacks within the ball,
            image by image.
        draws: Draws that score each image.
    """

    attacks: dict[str, Result]
    curves: dict[str, dict[float, Result]]
    headline: Result
    draws: int = LEAST_DRAWS

    @functools.cached_property
    def items(self) -> list[Item]:
        """One for each check."""
        return [
            Item(name=name, source=source, **rule(self))
            for source, checks in _CHECKS.items()
            for name, rule in checks.items()
        ]

    @property
    def results(self) -> dict[str, Result]:
        """All results by name: a key, or `"epsilon 0.1"` for a point of a curve."""
        points = {
            f"{kind} {value:.6g}": result
            for kind, curve in self.curves.items()
            for value, result in curve.items()
        }
        return {**self.attacks, **points}

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

    def get(self, key: str) -> Result | None:
        """Returns a result; `"white-box"` is the strongest of those with gradients."""
        if key != "white-box":
            return self.attacks.get(key)
        white = [self.get(k) for k in ("pgd", "apgd-ce", "apgd-dlr")]
        return min(filter(None, white), key=lambda r: r.mean, default=None)

    def curve(self, kind: str) -> dict[float, Result]:
        """Returns the points of a curve in the order of their values."""
        return dict(sorted(self.curves.get(kind, {}).items()))


# Returns status, numbers and meaning of an item.
Rule = Callable[[Checklist], dict[str, object]]


def _verdict(good, numbers, if_good, if_bad):
    status, meaning = (PASS, if_good) if good else (FAIL, if_bad)
    return {"status": status, "numbers": numbers, "meaning": meaning}


def _not_run(reason):
    return {"status": NOT_RUN, "numbers": {}, "meaning": reason}


def _lower(a: Result, b: Result) -> bool:
    return significance.lower(a.correct_share, b.correct_share)


def _no_weaker(trusted: str, *rivals: str) -> Rule:
    """PASS unless a rival attack is stronger than the one that is trusted."""

    def rule(evidence):
        reference, name = evidence.get(trusted), _NAMES[trusted]
        found = {_NAMES[k]: r for k in rivals if (r := evidence.get(k)) is not None}
        if reference is None or not found:
            return _not_run("the attacks were not run")
        gaps = [
            significance.chance_gap(r.correct_share, reference.correct_share)
            for r in found.values()
        ]
        stronger = [n for n, r in found.items() if _lower(r, reference)]
        return _verdict(
            not stronger,
            {name: reference.mean, **{n: r.mean for n, r in found.items()}},
            f"nothing here does better than {name} by more than chance "
            f"({100 * max(gaps):.1f} points)",
            f"{' and '.join(stronger)} left fewer images than {name}: the accuracy "
            f"under {name} is overrated",
        )

    return rule


def _unbounded(evidence):
    found = evidence.curve("epsilon").get(1.0)
    if found is None:
        return _not_run("the attack was not run")
    return _verdict(
        found.mean <= 0.01,
        {"accuracy at epsilon 1": found.mean},
        "with no bound the attack always succeeds",
        "with no bound at most 1 % may survive: the attack does not work here",
    )


def _larger_bound(evidence):
    curve = evidence.curve("epsilon")
    if len(curve) < 2:
        return _not_run("the curve was not run")
    pairs = itertools.pairwise(curve)
    rises = [f"{b:.4g}" for a, b in pairs if _lower(curve[a], curve[b])]
    first, *_, last = curve.values()
    # A network without any robustness has nothing left to lose.
    falls = _lower(last, first) or first.mean <= 0.01
    return _verdict(
        falls and not rises,
        {f"epsilon {e:.4g}": r.mean for e, r in curve.items()},
        "accuracy falls as epsilon grows",
        f"accuracy rises at epsilon {', '.join(rises)}: masked gradients"
        if rises
        else "accuracy does not fall with epsilon: masked gradients",
    )


def _saturates(evidence):
    curve = evidence.curve("draws")
    if len(curve) < 2:
        return _not_run("the curve was not run")
    first, *_ = curve.values()
    *_, before, last = curve.values()
    drop = 100 * (first.mean - last.mean)
    return _verdict(
        not _lower(last, before),
        {f"{k:.0f} draws": r.mean for k, r in curve.items()},
        f"more draws add nothing; averaging took {drop:.2f} points in all",
        "accuracy still falls with more draws: use more",
    )


def _frozen(evidence):
    frozen, fresh = evidence.get("frozen"), evidence.get("pgd")
    if frozen is None or fresh is None:
        return _not_run("the target cannot be reseeded")
    return _verdict(
        not _lower(fresh, frozen),
        {"frozen draw": frozen.mean, "fresh draws": fresh.mean},
        "one frozen draw is no harder to attack than the random network",
        "the attack fails even where there is no randomness: the gradients are masked "
        "by something else",
    )


def _enough_draws(evidence):
    draws = evidence.draws
    meaning = f"{draws} draws score each adversarial image"
    return _verdict(draws >= LEAST_DRAWS, {}, meaning, meaning)


def _beats(key: str, reason: str) -> Rule:
    """PASS if the target is above another network."""

    def rule(evidence):
        other, headline = evidence.get(key), evidence.headline
        if other is None:
            return _not_run(reason)
        return _verdict(
            _lower(other, headline),
            {"worst case": headline.mean, key: other.mean},
            f"the noise adds robustness over {key!r}",
            f"no gain over {key!r} that these images can show: do not credit the noise "
            "with the robustness",
        )

    return rule


def _of_noise(rule: Rule) -> Rule:
    """NOT RUN on a target without noise."""

    def rule_of_noise(evidence):
        if not evidence.headline.stochastic:
            return _not_run("the target has no noise")
        return rule(evidence)

    return rule_of_noise


# Who asks, what should hold, and how it is judged.
_CHECKS: dict[str, dict[str, Rule]] = {
    OF_PAPER: {
        "one-step attacks do no better than iterative ones": _no_weaker("pgd", "fgsm"),
        "black-box attacks do no better than white-box ones": _no_weaker(
            "white-box", "square", "random"
        ),
        "unbounded attacks reach 100 % success": _unbounded,
        "random sampling finds no more than gradients do": _no_weaker("pgd", "random"),
        "a larger bound raises success": _larger_bound,
    },
    "later": {
        "expectation over noise saturates": _of_noise(_saturates),
        "many more steps find no more": _no_weaker("pgd", "long"),
        "restarts find no more": _no_weaker("pgd", "restarts"),
        "APGD finds no more than PGD": _no_weaker("pgd", "apgd-ce", "apgd-dlr"),
        "averaged Square finds no more than PGD": _no_weaker("pgd", "square"),
        "the attack succeeds on one frozen draw": _of_noise(_frozen),
        "examples of the noise-free twin are no worse than white-box ones": _no_weaker(
            "white-box", "transfer"
        ),
        f"scored on at least {LEAST_DRAWS} fresh draws": _of_noise(_enough_draws),
        "noise beats the same network with its noise off": _beats(
            "noise off", "there is no noise to turn off"
        ),
        "noise beats the deterministic twin": _beats(
            "twin", "no deterministic twin was given"
        ),
    },
}
