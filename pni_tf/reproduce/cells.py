"""What a report is made of: tables of cells, coefficients, curves and listings."""

import dataclasses
from collections.abc import Callable

from pni_tf.reproduce.jobs import Evaluation, Job, Training

Paper = float | tuple[float, float] | str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A number in the `evaluation.json` of a job.

    Args:
        evaluation: The job.
        column: The kind of the column, such as `"noise_on"`.
        row: `"clean"`, `"worst_case"` or the name of an attack; where examples were
            transferred, that of the folder or network that they were made on.
        field: The number.
        one_minus: Whether the number is one minus the field.
    """

    evaluation: Evaluation
    column: str
    row: str
    field: str = "accuracy_mean"
    one_minus: bool = False


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
    """A table of the noise coefficients, from histories of trainings.

    Args:
        title: Its heading.
        trainings: Trainings of all seeds by heading.
        paper: The paper's values by heading and layer.
    """

    title: str
    trainings: dict[str, tuple[Training, ...]]
    paper: dict[str, dict[str, float]]

    @property
    def jobs(self) -> list[Job]:
        return [t for trainings in self.trainings.values() for t in trainings]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlphaFigure:
    """A figure of the noise coefficients of one training over its epochs (Fig. 2)."""

    title: str
    training: Training

    @property
    def jobs(self) -> list[Job]:
        return [self.training]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a figure of curves.

    Args:
        evaluation: The job.
        column: The kind of the column of its curves.
        network: Number of the network, which gives the colour.
        style: How it is drawn, in the terms of Matplotlib.
    """

    evaluation: Evaluation
    column: str
    network: int
    style: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """A figure of accuracy over epsilon or steps (Fig. 3), of the first seed.

    Args:
        title: Its heading.
        kind: `"epsilon"` or `"steps"`.
        lines: The lines by name.
        compared: Two of them, of which the paper says that the first is above.
        paper: The paper's lines by name: x, and y in percent.
    """

    title: str
    kind: str
    lines: dict[str, Line]
    compared: tuple[str, str]
    paper: dict[str, tuple[list[float], list[float]]]

    @property
    def jobs(self) -> list[Job]:
        return [line.evaluation for line in self.lines.values()]


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


Part = Table | Alphas | AlphaFigure | Curves | Listing


def paper_text(cell: Cell) -> str:
    """Returns what the paper says, or nothing."""
    paper = cell.paper
    if isinstance(paper, tuple):
        return f"{paper[0]:g} ± {paper[1]:g}"
    return f"{paper:g}" if isinstance(paper, float | int) else paper or ""
