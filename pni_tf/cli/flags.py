"""Settings as flags: defined, read, written to `flags.cfg` and compared with it."""

import dataclasses
import math
import re
import unicodedata
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from absl import flags

from pni_tf.settings.base import (
    LARGEST_INTEGER,
    LARGEST_NUMBER,
    Group,
    check,
    description,
    groups_of,
    kind_of,
)

# In an installation the configs lie inside the package, in a checkout beside it.
_CONFIGS = Path(__file__).parents[1] / "configs"
if not _CONFIGS.exists():
    _CONFIGS = Path(__file__).parents[2] / "configs"


class _Parser(flags.ArgumentParser):
    """Reads the text of one setting, and refuses what the setting refuses."""

    def __init__(self, field: dataclasses.Field):
        self.field = field
        self.kind, self.several, choices = kind_of(field)
        if choices:
            self.syntactic_help = description(field)  # The line after the default.

    def parse(self, argument):
        if not isinstance(argument, str):
            return argument  # This is the default, which absl passes too.
        try:
            texts = argument.split(",") if self.several else [argument]
            values = tuple(map(self._convert, texts))
            value = values if self.several else values[0]
            check(self.field, value)
        except ValueError as error:
            raise ValueError(f"must be {description(self.field)}") from error
        return value

    def _convert(self, text):
        if self.kind is float:
            return number(text)
        if self.kind is int:
            return int(text) if len(text) < 20 else LARGEST_INTEGER + 1
        return text.strip() if self.several else text


class _Serializer(flags.ArgumentSerializer):
    """Writes what `_Parser` reads."""

    def serialize(self, value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def define(run: type) -> tuple[str, ...]:
    """Defines the settings of a command, such as `TrainingRun`, in absl's registry.

    Returns the headings of the help, each the `module_name` of the flags under it.
    """
    groups = list(groups_of(run()))
    for group in groups:
        for field in dataclasses.fields(group):
            where, text = {"module_name": group.heading}, field.metadata["help"]
            if kind_of(field)[0] is bool:
                flags.DEFINE_bool(field.name, field.default, text, **where)
            else:
                flags.DEFINE(
                    _Parser(field),
                    field.name,
                    field.default,
                    text,
                    serializer=_Serializer(),
                    **where,
                )
    return tuple(group.heading for group in groups)


def read(run: type):
    """Returns the settings of a command as the command line has set them.

    Raises:
        ValueError: If settings contradict each other.
    """
    values = {}
    for field in dataclasses.fields(run):
        if issubclass(run, Group):
            values[field.name] = flags.FLAGS[field.name].value
        else:
            values[field.name] = read(field.type)
    return run(**values)


def flagfile(run) -> str:
    """Returns a flagfile that repeats a command, defaults included."""
    lines = []
    for group in groups_of(run):
        lines.append(f"# {group.heading}")
        for field in dataclasses.fields(group):
            lines.append(_line(field, getattr(group, field.name)))
    return "\n".join(filter(None, lines)) + "\n"


def deciding(run) -> str:
    """Returns those lines of `flagfile` that decide what a run computes."""
    lines = [_line(f, value) for f, value in _fields(run) if not f.metadata["free"]]
    return "\n".join(filter(None, lines))


def differences(earlier: str, run) -> list[str]:
    """Returns how settings differ from those of an earlier `flagfile`.

    Where things lie, and on what they are computed, may differ.
    """
    settings = {field.name: (field, value) for field, value in _fields(run)}
    free = {name for name, (field, _) in settings.items() if field.metadata["free"]}
    found = {
        _name(line, settings): line
        for line in earlier.splitlines()
        if line.startswith("--")
    }
    current = {
        name: _line(field, value)
        for name, (field, value) in settings.items()
        # A setting that did not exist then had its default.
        if name in found or value != field.default
    }
    return [
        f"{found.get(name, f'no --{name}')} in the run directory, "
        f"{current.get(name) or f'no --{name}'} now"
        for name in {**found, **current}
        if found.get(name) != current.get(name) and name not in free
    ]


def text_of(path: Path) -> str:
    """Returns the text of the `flags.cfg` of a run.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def values_in(path: Path) -> dict[str, str]:
    """Returns the values in the `flags.cfg` of a run; nothing if there is none."""
    if not path.is_file():
        return {}
    lines = [line for line in text_of(path).splitlines() if "=" in line]
    return dict(line.removeprefix("--").split("=", 1) for line in lines)


def _fields(run):
    """Yields the field and the value of each setting."""
    for group in groups_of(run):
        for field in dataclasses.fields(group):
            yield field, getattr(group, field.name)


def _line(field, value):
    """Returns the line of a setting; None for one that is absent."""
    if isinstance(value, bool):
        return f"--{'' if value else 'no'}{field.name}"
    if value is None:
        return None
    return f"--{field.name}={_Serializer().serialize(value)}"


def _name(line, known):
    name = line.removeprefix("--").partition("=")[0]
    return name if name in known else name.removeprefix("no")


def check_characters(argv):
    """Refuses what a line of `flags.cfg`, or of an error, cannot hold."""
    for argument in argv[1:]:
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in argument):
            raise flags.Error(
                "an argument holds a line break, another control character or bytes "
                f"that are not UTF-8. Received: {argument!r}"
            )


def expand_flagfiles(argv: list[str]) -> list[str]:
    """Replaces each `--flagfile` by the flags in it, nested ones included.

    Unlike absl's own, a relative path inside a flagfile means a neighbour of that file,
    so configs work from any working directory; and a path that does not exist is looked
    up among the configs that come with the package.

    Raises:
        flags.Error: If a file cannot be read, or includes itself.
    """
    expanded, remaining = [], iter(argv)
    for argument in remaining:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument == "--":
            return [*expanded, argument, *remaining]
        if argument.startswith("-") and name == "flagfile":
            value = value if equals else next(remaining, "")
            expanded += _read_flagfile(value, Path(), ())
        else:
            expanded.append(argument)
    return expanded


def _read_flagfile(name, folder, including):
    path = name
    try:
        path = (folder / Path(name).expanduser()).resolve()
        shipped = _CONFIGS / Path(name).name
        if not including and not path.exists() and shipped.exists():
            path = shipped
        if path in including:
            raise flags.Error(f"the flagfile {path} includes itself")
        # Editors of some systems begin a file with a mark, which "-sig" leaves out.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError, RuntimeError) as error:  # A NUL in it, or ~nobody.
        known = ", ".join(sorted(config.name for config in _CONFIGS.glob("*.cfg")))
        raise flags.Error(
            f"cannot read the flagfile {str(path)!r}: {error}. "
            f"The configs that come with pni_tf: {known}"
        ) from error
    result = []
    for line in map(str.strip, lines):
        if not line or line.startswith(("#", "//")):
            continue
        flag, _, value = line.lstrip("-").partition("=")
        if flag == "flagfile":  # Values on the next line are for absl alone.
            result += _read_flagfile(value, path.parent, (*including, path))
        else:
            result.append(line)
    return result


def number(text: str) -> float:
    """Returns the number or fraction that a text is, or NaN if float32 has none."""
    try:
        # Not of all numbers, since the fraction of 1e999999999 takes hours.
        value = float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ArithmeticError):  # 1/0
        return math.nan
    return value if abs(value) < LARGEST_NUMBER else math.nan


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
    if not text:
        return specs
    for item in re.split(r",(?![^()]*\))", text):
        match = _ITEM.fullmatch(item.strip())
        if match is None or match[1] not in known:
            raise ValueError(
                "--attacks must be a list such as fgsm,pgd(steps=40,restarts=2),cw "
                f"with names among: {', '.join(known)}. Received: {item.strip()!r}"
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
    found = number(text)
    if re.fullmatch(r"[+-]?\d+", text) and abs(found) <= LARGEST_INTEGER:
        return int(text)
    if not math.isnan(found):
        return found
    if re.fullmatch(r"(?!nan|inf)[a-z_][a-z0-9_-]*", text, re.IGNORECASE):
        return text
    raise ValueError(
        "--attacks: a value is an integer, a finite number or a fraction such as "
        f"8/255, or a word. Received: {text!r} in {item!r}"
    )
