"""What the surfaces of `fuzz.py` have in common."""

import random
from collections.abc import Callable
from typing import NamedTuple

COLUMNS = ("refused", "accepted", "traceback", "silent")


class Offence(Exception):
    """Raised by a case; `kind` is one of the last two of `COLUMNS`."""

    def __init__(self, kind: str, what: str):
        super().__init__(what)
        self.kind = kind


class Case(NamedTuple):
    """A case: what it does, in words that repeat it, and what runs it.

    `run` returns one of the first two of `COLUMNS`, or raises an `Offence`.
    """

    what: str
    run: Callable[[], str]


def generator_of(seed: int, surface: str, case: int) -> random.Random:
    """Returns the source of all choices of a case."""
    return random.Random(f"{seed} {surface} {case}")


def damaged(content: bytes, generator: random.Random) -> tuple[str, bytes]:
    """Returns a file's content after an accident, and what happened."""
    if not content:
        return "grown", b"\x00"
    place = generator.randrange(len(content))
    kind = generator.choice(("flip", "flip", "flip", "cut", "hole", "noise", "twice"))
    if kind == "flip":
        bit = 1 << generator.randrange(8)
        changed = bytes([content[place] ^ bit])
        return f"bit {bit} of byte {place} flipped", content[:place] + changed + (
            content[place + 1 :]
        )
    if kind == "cut":
        return f"cut at byte {place}", content[:place]
    if kind == "hole":
        end = min(len(content), place + 512)
        return f"zeros from byte {place}", content[:place] + bytes(end - place) + (
            content[end:]
        )
    if kind == "noise":
        end = min(len(content), place + generator.randrange(1, 64))
        noise = generator.randbytes(end - place)
        return f"noise from byte {place}", content[:place] + noise + content[end:]
    return f"bytes from {place} on twice", content + content[place:]
