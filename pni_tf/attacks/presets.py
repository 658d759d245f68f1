"""Named attacks with the settings of the paper, of their own code, or for claims."""

import dataclasses

from pni_tf.attacks.apgd import APGD
from pni_tf.attacks.base import Attack
from pni_tf.attacks.carlini_wagner import CarliniWagnerL2
from pni_tf.attacks.fgsm import FGSM
from pni_tf.attacks.pgd import PGD
from pni_tf.attacks.random_search import RandomSearch
from pni_tf.attacks.square import Square
from pni_tf.attacks.zoo.attack import ZOO
from pni_tf.checks import check_choice, check_number

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
      20 steps of epsilon / 4 (Madry et al. on CIFAR-10); strong 3 runs of 50 steps of
      epsilon / 20.
    - `apgd-ce`, `apgd-dlr`, `apgd-t` (targeted DLR): 100 steps.
    - `cw`: paper c 0.01, learning rate 5e-4, 10 iterations, which is far from
      converged; reference and strong up to 10,000 iterations at 1e-2, on a random
      network 1,000, without `abort_early`.
    - `square`: 5,000 squares, strong 1,000; on a random network each costs two queries.
    - `zoo`: 1,000 iterations in tanh space; for grey images 3,000 in the box, since in
      tanh space black and white pixels hardly move.
    - `random`, `fgsm`: the same in all presets.

    Args:
        name: One of `ATTACKS`.
        preset: One of `PRESETS`.
        epsilon: Radius of the ball; not for `cw` and `zoo`, which have none.
        norm: `"linf"` or `"l2"`, for those attacks that have both.
        stochastic: Whether the network is random. A deterministic one is attacked with
            `early_stop` by the strong preset and by `square` and `random`; the effort
            is otherwise the same for both, so that they can be compared.
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
    if isinstance(values.get("upscale_at"), int):
        values["upscale_at"] = (values["upscale_at"],)
    return kind(**{key: value for key, value in values.items() if key in known})


def _preset(name, preset, epsilon, stochastic, channels):
    strong = preset == "strong"
    stops = {"early_stop": not stochastic}
    # Single noisy losses say nothing of progress.
    patient = {"abort_early": not stochastic}
    if name == "pgd":
        if preset == "paper":
            near = abs(epsilon - 8 / 255) < 1e-3  # People write 0.031, too.
            return {"steps": 7, "step_size": 0.01 * (1 if near else epsilon * 255 / 8)}
        if preset == "reference":
            return {"steps": 20, "step_size": epsilon / 4}
        return {"steps": 50, "step_size": epsilon / 20, "restarts": 3} | stops
    if name.startswith("apgd"):
        loss = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}[name]
        return {"loss": loss} | (stops if strong else {})
    if name == "cw":
        if preset == "paper":
            settings = {"initial_const": 0.01, "learning_rate": 5e-4, "steps": 10}
        else:
            settings = {"steps": 1000 if stochastic else 10_000}
        return settings | patient
    if name == "square":
        squares = 1000 if strong else 5000
        if stochastic:
            return {"reevaluate": True, "queries": 2 * squares}
        return {"queries": squares} | stops
    if name == "random":
        return stops
    if name == "zoo":
        values = {"query_noise": "independent" if stochastic else "none"} | patient
        grey = {"space": "box", "iterations": 3000}
        return values | (grey if channels == 1 else {})
    return {}
