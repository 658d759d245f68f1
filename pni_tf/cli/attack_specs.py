"""The little language of `--attacks`: `fgsm,pgd(steps=40,restarts=2),cw`."""

import math
import re
from typing import NamedTuple

from pni_tf.cli import app

_ITEM = re.compile(r"([a-z][a-z0-9-]*)(?:\(([^()]*)\))?")


class AttackSpec(NamedTuple):
    """One attack of the list: its short name and the settings in parentheses."""

    name: str
    settings: dict[str, object]

    def __str__(self):
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name}({settings})" if settings else self.name


def parse_attacks(text: str, known: tuple[str, ...]) -> list[AttackSpec]:
    """Returns the attacks of a comma-separated list.

    Args:
        text: Names, each with optional settings in parentheses. A value is an integer,
            a number or fraction (`8/255`), true, false, none, a word, or several of
            them, such as `100:300`.
        known: The names that may occur.

    Raises:
        ValueError: If the text does not have this form, or a name is unknown.
    """
    specs = []
    for item in re.split(r",(?![^()]*\))", text):
        match = _ITEM.fullmatch(item.strip())
        if match is None or match[1] not in known:
            raise ValueError(
                "--attacks must be a list such as fgsm,pgd(steps=40,restarts=2),cw "
                f"with names from: {', '.join(known)}. Received: {item.strip()!r}"
            )
        specs.append(AttackSpec(match[1], _settings(match[2] or "", item.strip())))
    return specs


def _settings(text, item):
    settings = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, equals, value = map(str.strip, part.partition("="))
        if not equals or not key.isidentifier() or not value:
            raise ValueError(
                "--attacks: settings look like (steps=40, epsilon=8/255). "
                f"Received: {part!r} in {item!r}"
            )
        if key in settings:
            raise ValueError(f"--attacks: {key} is given twice in {item!r}")
        settings[key] = _value(value, item)
    return settings


def _value(text, item):
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if ":" in text:
        return tuple(_value(part, item) for part in text.split(":"))
    number = app.number(text)
    if re.fullmatch(r"[+-]?\d+", text) and abs(number) <= app.MOST:
        return int(text)
    if not math.isnan(number):
        return number
    if re.fullmatch(r"(?!nan|inf)[a-z_][a-z0-9_-]*", text, re.IGNORECASE):
        return text
    raise ValueError(
        "--attacks: a value is an integer, a finite number or a fraction such as "
        f"8/255, or a word. Received: {text!r} in {item!r}"
    )
