"""What a setting and a group of settings are, and how a value is checked."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import ClassVar

# What TensorFlow's integers and floats of 32 bits hold.
LARGEST_INTEGER = 2**31 - 1
LARGEST_NUMBER = 3e38

# The smallest and the largest value. Most integers count something.
_BOUNDS = {int: (1, LARGEST_INTEGER), float: (0, LARGEST_NUMBER)}
FROM_0 = (0, LARGEST_INTEGER)

# What a setting may be, by its type and whether it is a tuple.
_NOUNS = {
    (bool, False): "true or false",
    (int, False): "an integer",
    (int, True): "a list of integers, such as 7,40, each",
    (float, False): "a finite number, such as 8/255,",
    (float, True): "a list of numbers, such as 8/255,0.1, each",
    (str, False): "text without a space at either end",
    (str, True): "a list of texts, each without a space at either end",
}


def setting(default, help, *, bounds=None, free=False, may_be_empty=False):
    """Returns a field of a group of settings.

    Args:
        default: Its default; None for a setting that may be absent.
        help: What it does, as `--help` shows it.
        bounds: Smallest and largest number, of each entry if the setting is a tuple,
            where they are not those of `_BOUNDS`.
        free: Whether a run may continue with another value, because it says where
            things lie or on what they are computed, and not what is computed.
        may_be_empty: Whether the empty text is a value; else it is most likely that of
            a shell variable that is not set.
    """
    metadata = {
        "help": help,
        "bounds": bounds,
        "free": free,
        "may_be_empty": may_be_empty,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Base class of the groups: it checks each value when an instance is made.

    Raises:
        ValueError: If a value is not of its type, or out of its bounds.
    """

    heading: ClassVar[str]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check(field, getattr(self, field.name))


def check(field: dataclasses.Field, value) -> None:
    """Raises a ValueError unless a setting may have the value."""
    if value is None and field.default is None:
        return
    _, several, _ = kind_of(field)
    entries = value if several else (value,)
    fits = isinstance(entries, tuple) and entries
    if not fits or not all(_fits(entry, field) for entry in entries):
        raise ValueError(
            f"--{field.name} must be {description(field)}. "
            f"Received: --{field.name}={value!r}"
        )


def kind_of(field: dataclasses.Field) -> tuple[type, bool, tuple[str, ...]]:
    """Returns the type of a setting, whether it is a tuple, and its choices, if any."""
    kind = field.type
    if types.NoneType in typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    several = typing.get_origin(kind) is tuple
    if several:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        return str, several, typing.get_args(kind)
    return kind, several, ()


def description(field: dataclasses.Field) -> str:
    """Returns what a setting may be, to follow "must be"."""
    kind, several, choices = kind_of(field)
    if choices:
        return f"one {'or more ' if several else ''}of: {', '.join(choices)}"
    noun = _NOUNS[kind, several]
    if kind is str and not field.metadata["may_be_empty"]:
        return f"{noun} and not empty"
    if kind in (bool, str):
        return noun
    least, most = field.metadata["bounds"] or _BOUNDS[kind]
    if most == LARGEST_NUMBER:
        return f"{noun} of at least {least}"
    return f"{noun} from {least} to {most}"


def _fits(value, field):
    kind, _, choices = kind_of(field)
    if choices:
        return value in choices
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        if not isinstance(value, str) or value != value.strip():
            return False
        return bool(value) or field.metadata["may_be_empty"]
    if isinstance(value, bool) or not isinstance(value, int | kind):
        return False
    least, most = field.metadata["bounds"] or _BOUNDS[kind]
    return math.isfinite(value) and least <= value <= most


def groups_of(run) -> Iterator[Group]:
    """Yields the groups in the settings of a command, in the order of its help."""
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if isinstance(value, Group):
            yield value
        else:
            yield from groups_of(value)
