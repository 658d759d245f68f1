"""Named attacks with the settings of the paper, of their own code, or for claims."""

import dataclasses

from pni_tf.attacks.apgd import APGD
from pni_tf.attacks.base import Attack, check_choice, check_number
from pni_tf.attacks.carlini_wagner import CarliniWagnerL2
from pni_tf.attacks.fgsm import FGSM
from pni_tf.attacks.pgd import PGD
from pni_tf.attacks.random_search import RandomSearch
from pni_tf.attacks.square import Square
from pni_tf.attacks.zoo import ZOO

PRESETS = ("paper", "reference", "strong")
_CLASSES = {
    "fgsm": FGSM,
    "pgd": PGD,
    "apgd-ce": APGD,
    "apgd-dlr": APGD,
    "apgd-t": APGD,
    "cw": CarliniWagnerL2,
    "square": Square,
    "zoo": ZOO,
    "random": RandomSearch,
}
ATTACKS = tuple(_CLASSES)


def make_attack(
    name: str,
    preset: str = "reference",
    *,
    epsilon: float = 8 / 255,
    norm: str = "linf",
    stochastic: bool = False,
    channels: int = 3,
    **settings,
) -> Attack:
    """Returns an attack by its short name, with the settings of a preset.

    The presets are `"paper"` (what the PNI paper used), `"reference"` (what the authors
    of each attack used) and `"strong"` (for claims of robustness). Where the paper says
    nothing of an attack, `"paper"` is `"reference"`.

    - `pgd`: paper 7 steps of 0.01 at epsilon 8/255, in proportion at others; reference
      20 steps of epsilon / 4 (Madry et al. on CIFAR-10); strong 100 steps and 5
      restarts, on a random network 50 and 3, of `2.5 * epsilon / steps`.
    - `apgd-ce`, `apgd-dlr`, `apgd-t` (targeted DLR): 100 steps; strong 5 restarts on a
      deterministic network.
    - `cw`: paper c 0.01, learning rate 5e-4, 10 iterations, which is far from
      converged; reference and strong up to 10,000 iterations at 1e-2.
    - `square`: 5,000 queries; strong on a random network 1,000, of which each takes all
      draws of the expectation.
    - `zoo`: 1,000 iterations in tanh space; for grey images 3,000 in the box, since in
      tanh space black and white pixels hardly move.
    - `random`, `fgsm`: the same in all presets.

    Args:
        name: One of `ATTACKS`.
        preset: One of `PRESETS`.
        epsilon: Radius of the ball; not for `cw` and `zoo`, which have none.
        norm: `"linf"` or `"l2"`, for those attacks that have both.
        stochastic: Whether the network is random. A deterministic one is attacked with
            `early_stop` by the strong preset and by `square` and `random`.
        channels: Channels of the images, for `zoo`.
        **settings: Arguments of the attack's class, in place of the preset's.

    Raises:
        ValueError: If a name, a setting or the norm is unknown to the attack.

    Example:

    >>> make_attack("pgd", "strong", epsilon=4 / 255, restarts=10)
    """
    check_choice("name", name, ATTACKS)
    check_choice("preset", preset, PRESETS)
    kind = _CLASSES[name]
    known = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(
            f"The attack {name!r} has no setting {', '.join(unknown)}. "
            f"It has: {', '.join(known)}"
        )
    if norm != "linf" and name in ("fgsm", "square"):
        raise ValueError(f"The attack {name!r} is for norm 'linf'. Received: {norm!r}")
    values = {"epsilon": epsilon, "norm": norm}
    values |= _preset(
        name, preset, settings.get("epsilon", epsilon), stochastic, channels
    )
    if name == "pgd" and "steps" in settings and "step_size" not in settings:
        check_number("steps", settings["steps"], minimum=0, integer=True)
        values["step_size"] = 2.5 * values["epsilon"] / max(settings["steps"], 1)
    values |= settings
    return kind(**{key: value for key, value in values.items() if key in known})


def _preset(name, preset, epsilon, stochastic, channels):
    strong = preset == "strong"
    stops = {"early_stop": not stochastic}
    if name == "pgd":
        if preset == "paper":
            return {"steps": 7, "step_size": 0.01 * epsilon / (8 / 255)}
        if preset == "reference":
            return {"steps": 20, "step_size": epsilon / 4}
        steps, restarts = (50, 3) if stochastic else (100, 5)
        size = 2.5 * epsilon / steps
        return {"steps": steps, "step_size": size, "restarts": restarts} | stops
    if name.startswith("apgd"):
        loss = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}[name]
        restarts = 5 if strong and not stochastic else 1
        return {"loss": loss, "restarts": restarts} | (stops if strong else {})
    if name == "cw":
        if preset == "paper":
            return {"initial_const": 0.01, "learning_rate": 5e-4, "steps": 10}
        return {"steps": 10_000}
    if name == "square":
        if stochastic:
            return {"reevaluate": True, "queries": 1000 if strong else 5000}
        return stops
    if name == "random":
        return stops
    if name == "zoo":
        values = {"query_noise": "independent" if stochastic else "none"}
        grey = {"space": "box", "iterations": 3000}
        return values | (grey if channels == 1 else {})
    return {}
