"""What each flag may be and means, from its help and not from the library's checks."""

import csv
import dataclasses
import math
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace

from hypothesis import strategies as st

MOST = 2**31 - 1  # TensorFlow's integers hold no more.
NASTY = (
    *("", " ", "nan", "inf", "-0", "0", "1", "1e400", "0x10", "0o7", "+1", "1_000"),
    *(
        "٣",
        "１",
        "½",
        "1.0",
        "1e3",
        " 1",
        "1 ",
        "0b1",
        "1L",
        "9" * 5000,
        "true",
        "null",
    ),
    *("[1]", "(", '"', "'", "$(x)", "`x`", "%s%n", "{}", "../x", "x/y", "/dev/null/x"),
    *("/proc/x", "~", "~x-y/x", ".", "..", "a" * 3000, "a\nb", "a\n--epochs=1", "\t"),
    *("a\x0bb", "a\u2028b", "a\x85b", "\udcff", "😀", "e\u0301", "\u200b", "\ufeff"),
    *("\x1b[31m", "--", "-", "=", "a=b", "#", ",", "7,", "7,,40", "7, 40", '"7",8'),
    *("8 / 255", "8/", "/8", "8/255/2", "0/1", "8.0/255", "pgd(", "pgd(steps)", "PGD"),
    *("pgd(=1)", "fgsm,", "pgd(steps=1,steps=2)", "pgd(steps=1e400)", "pgd((steps=1))"),
)


class Invalid(ValueError):
    """Said of a value that the documentation does not allow."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of flags.

    Attributes:
        good: Texts that are fine.
        meaning: Returns what a text means, or raises Invalid.
        edges: Texts that every flag of the kind must meet: just outside, mostly.
        is_bool: Whether `--name` and `--noname` will do.
    """

    good: st.SearchStrategy
    meaning: Callable[[str], object]
    edges: tuple[str, ...] = ("", " ", "q")
    is_bool: bool = False

    def texts(self):
        """Texts of which most are fine, or nearly so."""
        random = st.text(st.characters(exclude_characters="/"), max_size=6)
        random |= st.sampled_from(self.edges)
        return st.one_of(
            self.good, _mistyped(self.good), st.sampled_from(NASTY), random
        )


@st.composite
def _mistyped(draw, good):
    text = draw(good)
    place = draw(st.integers(0, len(text)))
    typed = draw(st.sampled_from(["", *"0x,.-e9a_ ²(=\n"]))
    return text[:place] + typed + text[place + draw(st.integers(0, 1)) :]


def plain(text):
    """Refuses what a line of a flagfile cannot hold."""
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text):
        raise Invalid
    return text


def _integer(text, low, high):
    base = {"0x": 16, "0o": 8}.get(text[:2], 10)
    try:
        value = int(plain(text), base)
    except ValueError:
        raise Invalid from None
    if not low <= value <= high:
        raise Invalid
    return value


def _number(text, low=0.0, high=math.inf):
    try:
        value = float(Fraction(text) if "/" in plain(text) else text)
    except (ValueError, ArithmeticError):
        raise Invalid from None
    # This is the range of float32.
    if not (low <= value <= high and abs(value) < 3e38):
        raise Invalid
    return value


def count(low=1, high=MOST):
    good = st.integers(low, min(high, low + 300)) | st.just(high)
    edges = (f"{low}", f"{low - 1}", f"{high}", f"{high + 1}", "1.5", "nan", "²", "")
    return Kind(good.map(str), lambda text: _integer(text, low, high), edges)


def number(low=0.0, high=math.inf):
    fine = st.floats(low, min(high, 1e30)).map(repr)
    parts = st.tuples(st.integers(1, 9), st.integers(10, 255))
    edges = ("0", "1", "1.01", "-1", "-1/255", "nan", "inf", "-inf", "1/0", "1e999", "")
    edges += ("1e39", "1e999999999")  # As a fraction the latter would take hours.
    return Kind(
        fine | parts.map("{0[0]}/{0[1]}".format),
        lambda text: _number(text, low, high),
        edges,
    )


def choice(*names):
    def meaning(text):
        if text not in names:
            raise Invalid
        return text

    return Kind(st.sampled_from(names), meaning)


def _truth(text):
    found = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
    if text.lower() not in found:
        raise Invalid
    return found[text.lower()]


def _words(text):
    if not plain(text) or text != text.strip():
        raise Invalid
    return text


def words(*good):
    return Kind(st.sampled_from(good), _words, ("", " ", "a ", "a\nb", "\udcff"))


def several(of, good):
    """A comma-separated list, in which quotes have the meaning they have in CSV."""

    def meaning(text):
        try:
            parts = next(csv.reader([plain(text)], strict=True), [])
        except csv.Error:
            raise Invalid from None
        if not parts:
            raise Invalid
        return [of(part.strip()) for part in parts]

    fine = st.lists(good, min_size=1, max_size=3).map(",".join)
    return Kind(
        fine, meaning, ("", "0", "7,-1", "7,a", "7;40", "1.5", "7,,40", "²", "nan")
    )


def _decimal(text):
    if not re.fullmatch(r"\d{1,19}", text):
        raise Invalid
    return _integer(text.lstrip("0") or "0", 1, MOST)


_NAMES = (
    *("fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "cw", "square", "zoo", "random"),
    *("transfer", "substitute"),
)


def _attacks(text):
    for item in re.split(r",(?![^()]*\))", plain(text)) if text else []:
        match = re.fullmatch(r"([a-z-]+)(?:\(([^()]*)\))?", item.strip())
        if match is None or match[1] not in _NAMES:
            raise Invalid
        keys = []
        for part in filter(str.strip, (match[2] or "").split(",")):
            key, _, value = map(str.strip, part.partition("="))
            if not key.isidentifier():
                raise Invalid
            keys.append(key)
            for each in map(str.strip, value.split(":")):
                if not re.fullmatch(r"(?!nan|inf)[a-z_][a-z0-9_-]*", each, re.I):
                    _number(each, -math.inf)
        if len(keys) > len(set(keys)):
            raise Invalid
    return text


_SETTING = st.sampled_from(
    ["steps=40", "restarts=2", "epsilon=8/255", "a=1:2", "b=none"]
)
_ATTACK = st.builds(
    lambda name, settings: name + (f"({','.join(settings)})" if settings else ""),
    st.sampled_from(_NAMES),
    st.lists(_SETTING, max_size=2, unique=True),
)
_COUNTS = several(_decimal, st.integers(1, 300).map(str))
_TRUTH = Kind(st.sampled_from(["true", "false", "1", "F"]), _truth, is_bool=True)


def _table(*rows):
    return {name: kind for names, kind in rows for name in names.split()}


_BOTH = _table(
    ("dataset", words("digits", "mnist", "svhn")),
    ("data_dir", words("data", "~/data", "a folder")),
    ("download", _TRUTH),
    ("cpu_devices", count(1, 64)),
    ("cluster_timeout batch_size", count()),
    ("seed", count(0)),
)
FLAGS = {
    "train": _BOTH
    | _table(
        ("train_examples test_examples attack_steps validation_draws epochs", count()),
        ("base_batch_size checkpoint_steps keep_checkpoints", count()),
        ("eval_draws eval_expectation eval_ensemble eval_examples", count()),
        ("epoch_delay warmup_epochs", count(0)),
        ("pni_alpha rse_first rse_others epsilon attack_step_size", number()),
        ("clean_weight adversarial_weight learning_rate drop_factor", number()),
        ("weight_decay pixeldp_bound checkpoint_minutes", number()),
        ("width", number(5e-324)),
        ("validation_split", number(0, 0.99)),
        ("momentum", number(0, 1)),
        ("adversarial attack_random_start noise_in_attack nesterov", _TRUTH),
        ("sync_batch_norm deterministic tensorboard evaluate export", _TRUTH),
        ("compare_undefended", _TRUTH),
        ("eval_steps drop_epochs", _COUNTS),
        ("model", words("resnet8", "mnist_cnn")),
        ("tpu", words("local", "my-tpu")),
        ("run_dir", words("run", "a folder/run", "x=y", "../x")),
        ("strategy", choice("none", "mirrored", "multi_worker", "tpu")),
        ("noise", choice("pni", "rse", "pixeldp")),
        ("pni", choice("w", "a-a", "a-b", "i", "w+a-a", "w+a-b", "none")),
        ("pni_granularity", choice("layerwise", "channelwise", "elementwise")),
        ("pni_sigma", choice("batch", "example")),
        ("pixeldp_distribution", choice("gaussian", "laplace")),
        ("attack_labels", choice("predicted", "true")),
        ("optimizer", choice("sgd", "adam")),
        ("schedule", choice("constant", "piecewise", "cosine")),
        ("mixed_precision", choice("none", "float16", "bfloat16")),
        ("jit", choice("auto", "on", "off")),
    ),
    "evaluate": _BOTH
    | _table(
        ("examples substitute_images ensemble certify_draws draws", count()),
        ("pictures", count(0, 16)),
        ("checklist certify", _TRUTH),
        ("strategy", choice("none", "mirrored", "multi_worker")),
        ("suite", choice("paper", "strong")),
        ("preset", choice("paper", "reference", "strong")),
        ("norm", choice("linf", "l2")),
        ("towards", choice("next", "random", "least_likely")),
        ("attacks", Kind(st.lists(_ATTACK, max_size=3).map(",".join), _attacks)),
        ("epsilons", several(_number, number().good)),
        ("expectation", _COUNTS),
        ("transfer_from", several(_words, st.sampled_from(["a", "b/c"]))),
        ("twin", words("twin.keras")),
        ("output_dir", words("out")),
        *(
            (name, several(choice(*known).meaning, st.sampled_from(known)))
            for name, known in (
                ("curves", ("epsilon", "steps", "draws")),
                ("columns", ("model", "noise_on", "noise_off", "mean", "twin")),
            )
        ),
    ),
}
_DEFAULTS = {
    **{"strategy": "none", "cpu_devices": 1, "norm": "linf", "checklist": False},
    **{"suite": None, "towards": None, "attacks": None, "adversarial": True},
    **{"noise": "pni", "pni": "w", "warmup_epochs": 0, "epochs": 160, "epoch_delay": 0},
    **{"clean_weight": 0.5, "adversarial_weight": 0.5, "drop_epochs": [80, 120]},
    **{"eval_ensemble": 1, "pixeldp_bound": 0.1, "schedule": "piecewise"},
    **{"noise_in_attack": True, "jit": "auto", "compare_undefended": False},
}
# Flags that are fine alone: what the refusal names, and when they exclude each other.
CONTRADICTIONS = {
    "train": {
        "--cpu_devices": lambda f: f.cpu_devices > 1 and f.strategy != "mirrored",
        "TF_CONFIG": lambda f: f.strategy == "multi_worker",  # Nobody has set it.
        "--drop_epochs": lambda f: f.drop_epochs != sorted(set(f.drop_epochs)),
        "--eval_ensemble": lambda f: f.eval_ensemble > 1 and not f.noisy,
        "--pixeldp_bound": lambda f: f.noise == "pixeldp" and not f.pixeldp_bound,
        "--schedule": lambda f: f.warmup_epochs and f.schedule != "cosine",
        "--warmup_epochs": lambda f: f.warmup_epochs >= f.epochs,
        "--nonoise_in_attack": lambda f: (
            not f.noise_in_attack and not (f.adversarial and f.noisy)
        ),
        "--epoch_delay": lambda f: (
            f.epoch_delay and (f.epoch_delay >= f.epochs or not f.adversarial)
        ),
        "--adversarial_weight": lambda f: (
            f.adversarial and not f.clean_weight + f.adversarial_weight
        ),
        "--jit": lambda f: f.jit == "on" and f.strategy != "none",
        "--compare_undefended": lambda f: (
            f.compare_undefended and not (f.adversarial or f.noisy)
        ),
    },
    "evaluate": {
        "--cpu_devices": lambda f: f.cpu_devices > 1 and f.strategy != "mirrored",
        "TF_CONFIG": lambda f: f.strategy == "multi_worker",
        "--norm": lambda f: f.norm == "l2" and (f.checklist or f.suite == "paper"),
        "--towards": lambda f: f.towards and f.suite and not f.attacks,
    },
}


def contradictions(command, given):
    """Returns the names of which a refusal must have one; none if all is well."""
    flags = SimpleNamespace(**{**_DEFAULTS, **given})
    flags.noisy = flags.noise != "pni" or flags.pni != "none"
    return [name for name, holds in CONTRADICTIONS[command].items() if holds(flags)]


def same(found, expected):
    """Whether a flag has a value; lists are texts until they are used."""
    if not isinstance(expected, list):
        return found == expected
    kinds = {int: int, float: lambda text: float(Fraction(text))}
    return [
        kinds.get(type(e), str)(f) for f, e in zip(found, expected, strict=True)
    ] == expected
