"""Reads the numbers of cells."""

import dataclasses
import math
import statistics
from pathlib import Path

from pni_tf import files
from pni_tf.reproduce.tables import Cell, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedValue:
    """The number of one training seed.

    Attributes:
        seed: The seed.
        mean: The number; of a random network the mean over single draws.
        std: Standard deviation over the draws; None where there are none.
        draws: Number of draws.
        images: Number of images.
        file: The file that it is in, below the folder of the report.
        pointer: Where in it, as a JSON pointer (RFC 6901).
        one_minus: Whether the number is one minus what is there.
    """

    seed: int
    mean: float
    std: float | None
    draws: int
    images: int
    file: str
    pointer: str
    one_minus: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """The number of a cell.

    Attributes:
        seeds: Those of each training seed, at least one.
        percent: Whether it is a share.
        wanted: Number of training seeds that were asked for.
        empty: Number of those that ran and had nothing to measure, such as the norm of
            an attack that claims no image.
    """

    seeds: tuple[SeedValue, ...]
    percent: bool
    wanted: int
    empty: int

    @property
    def mean(self) -> float:
        """Mean over the training seeds."""
        return statistics.mean(seed.mean for seed in self.seeds)

    @property
    def std_of_draws(self) -> float | None:
        """Standard deviation over draws (the root mean square of the seeds')."""
        found = [seed.std for seed in self.seeds if seed.std is not None]
        return math.sqrt(statistics.mean(s**2 for s in found)) if found else None

    @property
    def std_of_seeds(self) -> float | None:
        """Standard deviation (N - 1) over training seeds; None for one."""
        if len(self.seeds) < 2:
            return None
        return statistics.stdev(seed.mean for seed in self.seeds)

    @property
    def images(self) -> int:
        """Number of images, of the seed that had the fewest."""
        return min(seed.images for seed in self.seeds)

    def text(self) -> str:
        """Returns `mean ± std over draws (± std over seeds)`."""
        factor, form = (100, ".2f") if self.percent else (1, ".3g")
        text = format(factor * self.mean, form)
        if self.std_of_draws is not None:
            text += f" ± {format(factor * self.std_of_draws, form)}"
        if self.std_of_seeds is not None:
            text += f" (± {format(factor * self.std_of_seeds, form)})"
        if self.empty:
            text += f" [none claimed by {self.empty} of {self.wanted} seeds]"
        if len(self.seeds) + self.empty < self.wanted:
            text += f" [{len(self.seeds) + self.empty} of {self.wanted} seeds run]"
        return text


def read(folder: Path, cell: Cell) -> Value | None:
    """Returns the number of a cell from the seeds that were run; None if none was."""
    found = (_read_source(folder, source) for source in cell.sources)
    seeds = tuple(seed for seed in found if seed is not None)
    if not seeds:
        return None
    return Value(
        seeds=seeds,
        percent=cell.percent,
        wanted=len(cell.sources),
        empty=count_empty(folder, cell),
    )


def count_empty(folder: Path, cell: Cell) -> int:
    """Returns how many seeds ran and had nothing to measure."""
    count = 0
    for source in cell.sources:
        found = entry_of(folder, source)
        count += found is not None and found[1][source.field] is None
    return count


def entry_of(folder: Path, source: Source) -> tuple[str, dict] | None:
    """Returns what `Source.entry` finds in the report's copy of the results."""
    content = files.read_json(folder / source.evaluation.result)
    return source.entry(content) if content else None


def paper_text(cell: Cell) -> str:
    """Returns what the paper says, or nothing."""
    paper = cell.paper
    if isinstance(paper, tuple):
        return f"{paper[0]:g} ± {paper[1]:g}"
    return f"{paper:g}" if isinstance(paper, float | int) else paper or ""


def _read_source(folder, source):
    found = entry_of(folder, source)
    if found is None:
        return None
    pointer, entry = found
    number = entry[source.field]
    if number is None:  # which `count_empty` tells from what was not run
        return None
    has_draws = source.field == "accuracy_mean" and entry["draws"] > 1
    return SeedValue(
        seed=source.evaluation.training.seed,
        mean=1 - number if source.one_minus else number,
        std=entry["accuracy_std"] if has_draws else None,
        draws=entry["draws"],
        images=entry["images"],
        file=str(source.evaluation.result),
        pointer=f"{pointer}/{source.field}",
        one_minus=source.one_minus,
    )
