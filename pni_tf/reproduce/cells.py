"""Cells of tables: what they are made of, and how their numbers are read."""

import dataclasses
import math
import statistics
from collections.abc import Callable
from pathlib import Path

from pni_tf import files
from pni_tf.reproduce.jobs import Evaluation, Job, Training

Paper = float | tuple[float, float] | str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A number in the `evaluation.json` of a job.

    Args:
        evaluation: The job.
        column: The column of its table, such as `"noise on"`.
        row: The scenario, or what the scenario's name ends with after a slash.
        field: The number.
        one_minus: Whether the number is one minus the field.
    """

    evaluation: Evaluation
    column: str
    row: str
    field: str = "accuracy_mean"
    one_minus: bool = False

    def entry(self, content: dict) -> tuple[str, dict] | None:
        """Returns the JSON pointer of the scenario and its numbers, None without it."""
        for i, entry in enumerate(content.get("columns", {}).get(self.column, ())):
            name = entry["scenario"]
            if name == self.row or name.endswith(f"/{self.row}"):
                return f"/columns/{self.column}/{i}", entry
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A number of a table.

    Args:
        sources: Where it comes from, for each training seed; empty for what is not
            ours, or not there.
        paper: What the paper says: a number, with its standard deviation if it has one.
        percent: Whether it is a share, to be shown in percent.
    """

    sources: tuple[Source, ...] = ()
    paper: Paper = None
    percent: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says of two numbers: that the first one is larger.

    Args:
        text: What is compared, such as `"under PGD-7, PNI-W against its fair twin"`.
        ours: The cell that should be larger.
        other: The one that should be smaller.
        judge: Whether the first being larger would show what the paper says; if not,
            the two numbers are put side by side.
    """

    text: str
    ours: Cell
    other: Cell
    judge: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table, or what belongs to one.

    Args:
        title: Its heading.
        columns: Headings of the columns.
        rows: Label and cells of each row.
        claims: What the sentence below the table is about.
        note: What a reader needs to know of it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    claims: tuple[Claim, ...] = ()
    note: str = ""

    @property
    def jobs(self) -> list[Job]:
        """What must have been run."""
        cells = [cell for _, row in self.rows for cell in row]
        return [source.evaluation for cell in cells for source in cell.sources]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alphas:
    """A table or a figure of the noise coefficients, from histories of trainings.

    Args:
        title: Its heading.
        trainings: Trainings of all seeds by heading.
        paper: The paper's values by heading and layer.
        figure: Whether to draw them over the epochs, instead of the last ones.
    """

    title: str
    trainings: dict[str, tuple[Training, ...]]
    paper: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    figure: bool = False

    @property
    def jobs(self) -> list[Job]:
        return [t for trainings in self.trainings.values() for t in trainings]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """A figure of accuracy over epsilon or steps (Fig. 3), of the first seed.

    Args:
        title: Its heading.
        kind: `"epsilon"` or `"steps"`.
        evaluations: By the name of a line, the job and the column.
        compared: Two lines, of which the paper says that the first is above.
        paper: The paper's lines: x and y in percent.
    """

    title: str
    kind: str
    evaluations: dict[str, tuple[Evaluation, str]]
    compared: tuple[str, str]
    paper: dict[str, tuple[list[float], list[float]]]

    @property
    def jobs(self) -> list[Job]:
        return [evaluation for evaluation, _ in self.evaluations.values()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """A part that one evaluation has made whole: checklist, certificates or pictures.

    Args:
        title: Its heading.
        evaluation: The job.
        entry: The entry of its `evaluation.json`.
        lines: Returns a header and rows of texts from that entry.
        summary: Returns sentences that say what they show.
        picture: A figure of the evaluation, without its ending.
        note: What a reader needs to know of it.
    """

    title: str
    evaluation: Evaluation
    entry: str
    lines: Callable[[object], list[list[str]]]
    summary: Callable[[object], list[str]]
    picture: str | None = None
    note: str = ""

    @property
    def jobs(self) -> list[Job]:
        return [self.evaluation]

    @property
    def picture_path(self) -> Path | None:
        """Where the figure lies, below the folder of the reproduction."""
        return self.picture and self.evaluation.path / f"{self.picture}.png"


Part = Table | Alphas | Curves | Listing


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
