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


def setting(
    default,
    help,
    *,
    least=None,
    most=None,
    choices=None,
    free=False,
    may_be_empty=False,
):
    """Returns a field of a group of settings.

    Args:
        default: Its default; None for a setting that may be absent.
        help: What it does, as `--help` shows it.
        least: Smallest number, of each entry if the setting is a tuple.
        most: Largest number.
        choices: The words that it, or each of its entries, may be.
        free: Whether a run may go on with another value, because it says where things
            lie or on what they are computed, and not what is computed.
        may_be_empty: Whether the empty text is a value; else it is most likely that of
            a shell variable that is not set.
    """
    metadata = {
        "help": help,
        "least": least,
        "most": most,
        "choices": choices,
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
    kind, several = kind_of(field)
    if value is None and field.default is None:
        return
    fits = isinstance(value, tuple) and value if several else True
    entries = value if several and fits else (value,)
    if not fits or not all(_fits(entry, kind, field.metadata) for entry in entries):
        raise ValueError(
            f"--{field.name} must be {description(field)}. "
            f"Received: --{field.name}={value!r}"
        )


def kind_of(field: dataclasses.Field) -> tuple[type, bool]:
    """Returns `bool`, `int`, `float` or `str`, and whether the setting is a tuple."""
    kind = field.type
    if isinstance(kind, types.UnionType):  # Of it and None.
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0], True
    return kind, False


def description(field: dataclasses.Field) -> str:
    """Returns what a setting may be, to follow "must be"."""
    (kind, several), bounds = kind_of(field), field.metadata
    least, most = bounds["least"], bounds["most"]
    if bounds["choices"]:
        return f"from: {', '.join(bounds['choices'])}"
    if kind is bool:
        return "true or false"
    if kind is str:
        noun = "a list of texts, each" if several else "a text,"
        return f"{noun} not empty and without a space at either end"
    noun = "an integer" if kind is int else "a finite number, such as 8/255,"
    if several:
        example = "7,40" if kind is int else "8/255,0.1"
        plural = "integers" if kind is int else "numbers"
        noun = f"a list of {plural}, such as {example}, each"
    if most is None and kind is float:
        return f"{noun} of at least {least}"
    return f"{noun} from {least} to {LARGEST_INTEGER if most is None else most}"


def _fits(value, kind, bounds):
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        if not isinstance(value, str) or value != value.strip():
            return False
        return value in (bounds["choices"] or (value,)) and (
            bool(value) or bounds["may_be_empty"]
        )
    if isinstance(value, bool) or not isinstance(value, int | kind):
        return False
    least, most = bounds["least"], bounds["most"]
    if most is None:
        most = LARGEST_INTEGER if kind is int else LARGEST_NUMBER
    return math.isfinite(value) and least <= value <= most


def group_types(run: type) -> Iterator[type[Group]]:
    """Yields the groups of the settings of a command, in the order of its help."""
    for field in dataclasses.fields(run):
        if issubclass(field.type, Group):
            yield field.type
        else:
            yield from group_types(field.type)


def groups_of(run) -> Iterator[Group]:
    """Yields the groups in the settings of a command, in the order of its help."""
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if isinstance(value, Group):
            yield value
        else:
            yield from groups_of(value)
