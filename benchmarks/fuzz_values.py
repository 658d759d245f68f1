"""What each flag may be, from its help and not from the library's checks."""

import dataclasses
import math
import re
import unicodedata
from collections.abc import Callable

NASTY = (
    *("", " ", "nan", "NaN", "inf", "-inf", "Infinity", "-0", "-0.0", "0", "1", "-1"),
    *("1e400", "-1e400", "1e-400", "1e999999999", "1e39", "1e300", "0x10", "0o7"),
    *("1_000", "٣", "１", "²", "½", "1.0", "1.5", "1e3", "+1", " 1", "1 ", "0b1", "1L"),
    *("2147483647", "2147483648", "9223372036854775808", "1" + "0" * 30, "9" * 5000),
    *("true", "True", "None", "none", "null", "[]", "[1]", "1;2", "(", "()", '"', "'"),
    *("../x", "../../x", "x/y", "/dev/null/x", "/proc/x", "~", "~x-y/x", ".", ".."),
    *("a\nb", "a\n--epochs=1", "\n", "\t", "1\t", "a\x0bb", "a\u2028b", "a\x85b"),
    *("\udcff", "a\udcffb", "😀", "é", "e\u0301", "\u200b", "\ufeff", "\x1b[31m"),
    *("$(x)", "`x`", "%s%n", "{}", "--", "-", "=", "a=b", "==", "#", "# 1", "a" * 3000),
    *(
        ",",
        ",,",
        "7,",
        ",7",
        "7,,40",
        "7, 40",
        "7,7",
        "40,7",
        "7,40,",
        '"7,40',
        '"7",8',
    ),
    *("8/255", "1/0", "-1/255", "8/", "/8", "8/255/2", "0/1", "8 / 255", "8.0/255"),
    *("pgd(", "pgd)", "pgd()", "pgd(steps)", "pgd(steps=)", "pgd(=1)", "PGD", "fgsm,"),
    *(
        "pgd(steps=1,steps=2)",
        "pgd(steps=1e400)",
        "pgd(steps=1e999999999)",
        "fgsm fgsm",
    ),
    *("pgd(steps=10)(restarts=2)", "pgd((steps=1))", "pgd(epsilon=1/0)", "cw,,fgsm"),
)
MOST = 2**31 - 1


class Invalid(ValueError):
    """Said of a value that the documentation does not allow."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag: values that are fine, and a function that returns what one means."""

    good: tuple[str, ...]
    value: Callable[[str], object]
    is_bool: bool = False

    def draw(self, generator) -> str:
        chance = generator.random()
        if chance < 0.4:
            return generator.choice(NASTY)
        text = generator.choice(self.good)
        if chance < 0.75:
            return text
        place = generator.randrange(len(text) + 1)
        return generator.choice(
            (
                text[:place] + generator.choice("0x,.-e/ ²(=\n\t") + text[place:],
                text[:place] + text[place + 1 :],
                text[:place] + generator.choice("9a,.-_/(") + text[place + 1 :],
                text + text,
                text.upper(),
            )
        )


def plain(text):
    """Refuses what a flagfile, and so `flags.cfg`, cannot hold."""
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text):
        raise Invalid
    return text


def _integer(text, low, high=MOST):
    text = plain(text).strip()
    if re.fullmatch(r"[+-]?\d+(_\d+)*", text):  # any digits that Python reads
        if len(text) > 4000:
            raise Invalid
        value = int(text)
    elif re.fullmatch(r"0x[0-9a-f]+", text):
        value = int(text, 16)
    elif re.fullmatch(r"0o[0-7]+", text):
        value = int(text, 8)
    else:
        raise Invalid
    if not low <= value <= high:
        raise Invalid
    return value


def _number(text, low=0.0, high=math.inf):
    text = plain(text).strip()
    above, slash, below = text.partition("/")
    try:
        if slash:
            if not re.fullmatch(r"[+-]?\d+", above) or not re.fullmatch(r"\d+", below):
                raise Invalid
            value = int(above) / int(below)
        else:
            value = float(text)
    except (ValueError, ArithmeticError):
        raise Invalid from None
    if not (low <= value <= high and value < 3e38):  # of float32
        raise Invalid
    return value


def count(low=1, high=MOST):
    good = (str(low), str(low + 1), "3", "128", str(high))
    return Flag(good, lambda text: _integer(text, low, high))


def number(low=0.0, high=math.inf):
    good = ("0", "0.1", "8/255", "1/2", "2e-4", ".5", "0.99")
    return Flag(good, lambda text: _number(text, low, high))


def choice(*names):
    def value(text):
        if text not in names:
            raise Invalid
        return text

    return Flag(names, value)


def truth():
    def value(text):
        found = {"true": True, "t": True, "1": True, "false": False, "f": False}
        found["0"] = False
        if text.lower() not in found:
            raise Invalid
        return found[text.lower()]

    return Flag(("true", "false", "1", "0", "True", "F"), value, is_bool=True)


def words(*good):
    def value(text):
        if not plain(text) or text != text.strip():
            raise Invalid
        return text

    return Flag(good, value)


def several(of, *good):
    """A comma-separated list, in which quotes have the meaning they have in CSV."""

    def value(text):
        parts = [part.strip() for part in plain(text).split(",")]
        parts = [re.sub(r'^"([^"]*)"$', r"\1", part) for part in parts]
        if any('"' in part for part in parts):
            raise Invalid
        return [of(part) for part in parts]

    return Flag(good, value)


def _attacks(text):
    names = "fgsm pgd apgd-ce apgd-dlr apgd-t cw square zoo random transfer substitute"
    for item in re.split(r",(?![^()]*\))", plain(text)) if text else []:
        match = re.fullmatch(r"\s*([a-z-]+)(?:\(([^()]*)\))?\s*", item)
        if match is None or match[1] not in names.split():
            raise Invalid
        keys = []
        for part in filter(str.strip, (match[2] or "").split(",")):
            key, equals, value = map(str.strip, part.partition("="))
            if not (key.isidentifier() and equals and value) or "1e400" in value:
                raise Invalid
            if "1e999999999" in value or "1/0" in value:
                raise Invalid
            keys.append(key)
        if len(keys) > len(set(keys)):
            raise Invalid
    return text


_LIST_OF_COUNTS = several(lambda t: _integer(_decimal(t), 1), "7,40", "7", "7,40,100")
_STRATEGY = {
    "cpu_devices": count(1, 64),
    "cluster_timeout": count(),
}
_DATA = {
    "dataset": words("digits", "mnist", "svhn"),
    "data_dir": words("data", "~/data", "a folder"),
    "download": truth(),
}


def _decimal(text):
    if not re.fullmatch(r"\d+", text):
        raise Invalid
    return text


TRAIN = (
    _DATA
    | _STRATEGY
    | {
        "strategy": choice("none", "mirrored", "tpu"),
        "train_examples": count(),
        "test_examples": count(),
        "validation_split": number(0, 0.99),
        "model": words("resnet8", "mnist_cnn"),
        "width": number(5e-324),
        "pni": choice("w", "a-a", "a-b", "i", "w+a-a", "w+a-b", "none"),
        "pni_granularity": choice("layerwise", "channelwise", "elementwise"),
        "pni_alpha": number(),
        "pni_sigma": choice("batch", "example"),
        "noise": choice("pni", "rse", "pixeldp"),
        "rse_first": number(),
        "rse_others": number(),
        "pixeldp_bound": number(),
        "pixeldp_distribution": choice("gaussian", "laplace"),
        "adversarial": truth(),
        "epsilon": number(),
        "attack_steps": count(),
        "attack_step_size": number(),
        "attack_random_start": truth(),
        "noise_in_attack": truth(),
        "attack_labels": choice("predicted", "true"),
        "clean_weight": number(),
        "adversarial_weight": number(),
        "epoch_delay": count(0),
        "validation_draws": count(),
        "epochs": count(),
        "batch_size": count(),
        "optimizer": choice("sgd", "adam"),
        "learning_rate": number(),
        "base_batch_size": count(),
        "momentum": number(0, 1),
        "nesterov": truth(),
        "schedule": choice("constant", "piecewise", "cosine"),
        "warmup_epochs": count(0),
        "drop_epochs": _LIST_OF_COUNTS,
        "drop_factor": number(),
        "weight_decay": number(),
        "sync_batch_norm": truth(),
        "tpu": words("local", "my-tpu"),
        "mixed_precision": choice("none", "float16", "bfloat16"),
        "jit": choice("auto", "on", "off"),
        "seed": count(0),
        "deterministic": truth(),
        "checkpoint_steps": count(),
        "checkpoint_minutes": number(),
        "keep_checkpoints": count(),
        "run_dir": words("run", "a folder/run", "x=y", "../x"),
        "tensorboard": truth(),
        "evaluate": truth(),
        "compare_undefended": truth(),
        "eval_draws": count(),
        "eval_steps": _LIST_OF_COUNTS,
        "eval_expectation": count(),
        "eval_ensemble": count(),
        "eval_examples": count(),
        "export": truth(),
    }
)
EVALUATE = (
    _DATA
    | _STRATEGY
    | {
        "strategy": choice("none", "mirrored"),
        "examples": count(),
        "attacks": Flag(
            ("fgsm", "pgd(steps=40,restarts=2),cw", "zoo", "apgd-t"), _attacks
        ),
        "suite": choice("paper", "strong"),
        "preset": choice("paper", "reference", "strong"),
        "epsilons": several(_number, "8/255", "0.1,0.2", "0"),
        "norm": choice("linf", "l2"),
        "expectation": _LIST_OF_COUNTS,
        "towards": choice("next", "random", "least_likely"),
        "transfer_from": several(words("x").value, "a", "a,b/c"),
        "substitute_images": count(),
        "curves": several(choice("epsilon", "steps", "draws").value, "epsilon,draws"),
        "checklist": truth(),
        "ensemble": count(),
        "certify": truth(),
        "certify_draws": count(),
        "twin": words("twin.keras"),
        "draws": count(),
        "batch_size": count(),
        "seed": count(0),
        "output_dir": words("out"),
    }
)


def contradiction(command, given):
    """Returns whether flags that are fine alone exclude each other."""
    get = given.get
    strategy = get("strategy", "none")
    if get("cpu_devices", 1) > 1 and strategy != "mirrored":
        return True
    if command == "evaluate":
        only_linf = get("checklist") or get("suite") == "paper"
        return bool(
            (get("norm") == "l2" and only_linf)
            or (get("towards") and get("suite") and not get("attacks"))
        )
    adversarial = get("adversarial", True)
    noise = get("noise", "pni")
    noisy = noise != "pni" or get("pni", "w") != "none"
    warmup = get("warmup_epochs", 0)
    weights = get("clean_weight", 0.5) + get("adversarial_weight", 0.5)
    steps = get("drop_epochs", [80, 120])
    delay = get("epoch_delay", 0)
    return bool(
        steps != sorted(set(steps))
        or (not noisy and get("eval_ensemble", 1) > 1)
        or (noise == "pixeldp" and not get("pixeldp_bound", 0.1))
        or (warmup and get("schedule", "piecewise") != "cosine")
        or warmup >= get("epochs", 160)
        or (not get("noise_in_attack", True) and not (adversarial and noisy))
        or (delay and not adversarial)
        or (adversarial and delay >= get("epochs", 160))
        or (adversarial and not weights)
        or (strategy != "none" and get("jit") == "on")
        or (get("compare_undefended") and not adversarial and not noisy)
    )


def value_of(found, expected):
    """Returns the value of a flag in the type of what is expected."""
    if isinstance(expected, list) and isinstance(found, list):
        kinds = {int: int, float: _number}
        return [
            kinds.get(type(e), str)(f) for f, e in zip(found, expected, strict=False)
        ]
    return found
