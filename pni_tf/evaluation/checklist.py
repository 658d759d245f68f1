"""Is the robustness real? The symptoms of masked gradients and of lucky randomness."""

import functools
import math

from pni_tf.attacks.presets import make_attack
from pni_tf.attacks.transfer import Transfer
from pni_tf.evaluation.checklist_items import LEAST_DRAWS, Checklist
from pni_tf.evaluation.curves import evaluate_curve
from pni_tf.evaluation.names import NOISE_FREE_TWIN
from pni_tf.evaluation.results import Scenario, union
from pni_tf.evaluation.robustness import evaluate_robustness
from pni_tf.evaluation.suites import scenario_of
from pni_tf.targets import Target


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
        expectation: Draws of the expectation over noise; the curve over draws
            continues to 2.5 times as many.
        twin: The deterministic network of equal cost that was trained adversarially
            without noise, if there is one.
        steps: Steps of PGD.
        many_steps: Steps of the longer PGD and of APGD.
        queries: Queries of Square and of random search.
        draws: Draws that score each image.
        **options: `batch_size`, `seed`, `store`, `workers` and `progress` of
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
    effort = {"steps": steps, "many_steps": many_steps, "queries": queries}
    attacks = _attacks(target, epsilon, **effort)
    pgd = attacks["pgd"]
    scenarios = {"clean": Scenario(name="clean")}
    for key, attack in attacks.items():
        if target.has_gradient or not attack.needs_gradient:
            scenarios[key] = scenario_of(attack, target, expectation, name=key)
    found = evaluate_robustness(target, scenarios=[*scenarios.values()], **options)
    results = dict(zip(scenarios, found, strict=True))
    curves, apart = {}, {}  # What lies apart has no part in the headline.
    if target.has_gradient:
        given = {"attack": pgd, "expectation": expectation, **options}
        # The point at the attack's own epsilon, or number of draws, is the row "pgd".
        shares = [*(epsilon * share for share in (0.25, 0.5, 2, 4)), 1.0]
        points = evaluate_curve("epsilon", target, values=shares, **given)
        curves["epsilon"] = {epsilon: results["pgd"], **points}
        if target.stochastic:
            counts = [k for k in (1, 2, 5, 10, 20) if k < expectation]
            counts.append(math.ceil(2.5 * expectation))
            points = evaluate_curve("draws", target, values=counts, **given)
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
                for key, attack in _attacks(other, epsilon, **effort).items()
                if key in ("long", "apgd-ce", "apgd-dlr")
            ]
            found = evaluate_robustness(other, scenarios=scenarios, **options)
            apart[name] = union(found, name=name)
    own = [*results.values(), *(r for c in curves.values() for r in c.values())]
    within = [r for r in own if (r.scenario.ball or ("linf", 0))[1] <= epsilon]
    return Checklist(
        attacks={**results, **apart},
        curves=curves,
        headline=union(within),
        draws=draws,
    )


def _attacks(target, epsilon, steps, many_steps, queries):
    """Returns the attacks that need neither a curve nor another target."""
    make = functools.partial(make_attack, epsilon=epsilon)
    found = {
        "pgd": make("pgd", steps=steps),
        "fgsm": make("fgsm"),
        "long": make("pgd", steps=many_steps),
        "restarts": make("pgd", steps=steps, restarts=5),
        "apgd-ce": make("apgd-ce", steps=many_steps),
        "apgd-dlr": make("apgd-dlr", steps=many_steps),
        "random": make("random", samples=queries, stochastic=target.stochastic),
        "square": make("square", queries=queries, stochastic=target.stochastic),
    }
    if target.num_classes < 3:
        del found["apgd-dlr"]
    if target.labels_only:
        del found["square"]
    if target.noise_free is not None:
        found["transfer"] = Transfer(
            attack=found["long"],
            source=target.noise_free,
            source_name=NOISE_FREE_TWIN,
        )
    return found
