"""What was measured: every result of a report, read once."""

import csv
import dataclasses
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pni_tf import files
from pni_tf.evaluation.record import Row, read_evaluation, read_shares
from pni_tf.reproduce.cells import Cell, Line, Source
from pni_tf.reproduce.jobs import Job, Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedValue:
    """The number of one training seed."""

    seed: int
    mean: float  # Of a random network the mean over single draws.
    std: float | None  # Over the draws; None where there are none.
    draws: int
    images: int
    file: str  # That it is in, below the folder of the report.
    pointer: str  # Where in it, as a JSON pointer (RFC 6901).
    one_minus: bool  # Whether the number is one minus what is there.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """The number of a cell; false if no seed has one."""

    cell: Cell
    seeds: tuple[SeedValue, ...]  # Of those that were run and have a number.
    # How many were run and had nothing to measure, such as the norm of an attack that
    # claims no image.
    empty: int

    def __bool__(self) -> bool:
        return bool(self.seeds)

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
        means = [seed.mean for seed in self.seeds]
        return statistics.stdev(means) if len(means) > 1 else None

    @property
    def images(self) -> int:
        """Number of images, of the seed that had the fewest; 0 without any."""
        return min((seed.images for seed in self.seeds), default=0)

    def text(self) -> str:
        """Returns `mean ± std over draws (± std over seeds)`."""
        wanted, run = len(self.cell.sources), len(self.seeds) + self.empty
        if not self:
            return "none claimed" if self.empty == wanted else "not run"
        factor, form = (100, ".2f") if self.cell.percent else (1, ".3g")
        text = format(factor * self.mean, form)
        if self.std_of_draws is not None:
            text += f" ± {format(factor * self.std_of_draws, form)}"
        if self.std_of_seeds is not None:
            text += f" (± {format(factor * self.std_of_seeds, form)})"
        if self.empty:
            text += f" [none claimed by {self.empty} of {wanted} seeds]"
        if run < wanted:
            text += f" [{run} of {wanted} seeds run]"
        return text


class Results:
    """The results of a reproduction.

    Args:
        root: Its folder, with figures and with the verdicts on single images.
        folder: Folder of the report, with the results that count and with what it said
            before.
        jobs: The jobs whose results are read, as far as these are there.

    Attributes:
        evaluations: What each evaluation has found; None before it ran.
        alphas: The magnitude of alpha after each epoch by training and layer.
        before: The parts of the report before it is written again.
    """

    def __init__(self, root: Path, folder: Path, jobs: Iterable[Job]):
        self.root, self.folder = root, folder
        self.before = (files.read_json(folder / "report.json") or {}).get("parts", [])
        self.evaluations, self.alphas, self._shares = {}, {}, {}
        for job in jobs:
            if isinstance(job, Training):
                self.alphas[job] = _read_alphas(folder / job.path / "history.csv")
            else:
                self.evaluations[job] = read_evaluation(folder / job.result)

    def column(self, of: Source | Line) -> str | None:
        """Returns what the files of an evaluation call a column, None without it."""
        saved = self.evaluations[of.evaluation]
        kinds = saved.kinds if saved else {}
        return next((name for name, c in kinds.items() if c.kind == of.column), None)

    def curve(self, kind: str, line: Line) -> dict[float, Row]:
        """Returns the points of a line by epsilon or steps; none before it ran."""
        saved = self.evaluations[line.evaluation]
        return saved.curves.get(kind, {}).get(self.column(line), {}) if saved else {}

    def rows(self, source: Source) -> tuple[Row, ...]:
        """Returns the rows of the column of a number; none before it ran."""
        column = self.column(source)
        return self.evaluations[source.evaluation].columns[column] if column else ()

    def row(self, source: Source) -> Row | None:
        """Returns the row of a number, None before it ran; then it must be there."""
        found = next((row for row in self.rows(source) if _is(row, source.row)), None)
        if found is None and self.evaluations[source.evaluation]:
            raise ValueError(
                f"{self.folder / source.evaluation.result} has no row {source.row!r} "
                f"in a column of kind {source.column!r}. To evaluate again, remove "
                f"{self.root / source.evaluation.path}"
            )
        return found

    def value(self, cell: Cell) -> Value:
        """Returns the number of a cell from the seeds that were run."""
        seeds, empty = [], 0
        for source in cell.sources:
            row = self.row(source)
            if row is None:
                continue
            number = row.numbers[source.field]
            if number is None:
                empty += 1
                continue
            has_draws = source.field == "accuracy_mean" and row.draws > 1
            seeds.append(
                SeedValue(
                    seed=source.evaluation.seed,
                    mean=1 - number if source.one_minus else number,
                    std=row.numbers["accuracy_std"] if has_draws else None,
                    draws=row.draws,
                    images=row.images,
                    file=str(source.evaluation.result),
                    pointer=f"{row.pointer}/{source.field}",
                    one_minus=source.one_minus,
                )
            )
        return Value(cell=cell, seeds=tuple(seeds), empty=empty)

    def shares(self, source: Source) -> np.ndarray | None:
        """Returns the share of draws that are right by image; None if it is unknown."""
        row, job = self.row(source), source.evaluation
        if row is None or source.field != "accuracy_mean":
            return None
        if job not in self._shares:
            path = self.root / job.path / "per_example.csv"
            self._shares[job] = read_shares(path) if path.exists() else {}
        shares = self._shares[job].get((self.column(source), row.scenario), np.zeros(0))
        mean = row.numbers["accuracy_mean"]
        if shares.size != row.images or abs(shares.mean() - mean) > 1e-6:
            # The verdicts are of another evaluation than the number.
            return None
        return shares


def _is(row: Row, name: str) -> bool:
    """Returns whether a row is what a `Source` calls so."""
    if row.source is not None:  # Its run directory may have lain in another folder.
        return Path(row.source).match(name)
    return name == (row.scenario if row.kind == "attack" else row.kind)


def _read_alphas(path):
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("alpha/")] if rows else []
    return {n.removeprefix("alpha/"): [float(row[n]) for row in rows] for n in names}
