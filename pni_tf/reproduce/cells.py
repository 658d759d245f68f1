"""What a report is made of: tables of cells, coefficients, curves and listings."""

import dataclasses
from collections.abc import Callable

from pni_tf.reproduce.jobs import Evaluation, Job, Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A number in the `evaluation.json` of a job."""

    evaluation: Evaluation
    column: str  # Its kind, such as `"noise_on"`.
    # `"clean"`, `"worst_case"` or the name of an attack; where examples were
    # transferred, the run directory or the name of the network they were made on.
    row: str
    field: str = "accuracy_mean"
    one_minus: bool = False  # Whether the number is one minus the field.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A number of a table, and what the paper says."""

    # One for each training seed; none for what is not ours, or not there.
    sources: tuple[Source, ...] = ()
    # A number, with its standard deviation if it has one, or words.
    paper: float | tuple[float, float] | str | None = None
    percent: bool = True  # Whether it is a share, to be shown in percent.

    @property
    def paper_text(self) -> str:
        """What the paper says, or nothing."""
        if isinstance(self.paper, tuple):
            return f"{self.paper[0]:g} ± {self.paper[1]:g}"
        is_number = isinstance(self.paper, float | int)
        return f"{self.paper:g}" if is_number else self.paper or ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says of two numbers: that the first one is larger.

    If that would not show what the paper says, there is nothing to `judge`: the two
    numbers are put side by side.
    """

    text: str  # What is compared, such as `"under PGD-7, PNI-W against its fair twin"`.
    ours: Cell
    other: Cell
    judge: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table, or what belongs to one."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]  # Label and cells of each.
    claims: tuple[Claim, ...] = ()  # What the sentences below the table are about.
    note: str = ""  # What a reader needs to know of it.
    worst_cases: tuple[int, int] | None = None  # Columns: strong suite's, others'.

    @property
    def jobs(self) -> list[Job]:
        """What must have been run."""
        cells = [cell for _, row in self.rows for cell in row]
        return [source.evaluation for cell in cells for source in cell.sources]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alphas:
    """A table of the noise coefficients, from histories of trainings."""

    title: str
    trainings: dict[str, tuple[Training, ...]]  # Those of all seeds by heading.
    paper: dict[str, dict[str, float]]  # By heading and layer.

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
    """A line of a figure of curves."""

    evaluation: Evaluation
    column: str  # The kind of the column of its curves.
    network: int  # Its number, which gives the colour.
    style: str  # In the terms of Matplotlib.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """A figure of accuracy over epsilon or steps (Fig. 3), of the first seed."""

    title: str
    kind: str  # `"epsilon"` or `"steps"`.
    lines: dict[str, Line]
    compared: tuple[str, str]  # Of which the paper says that the first is above.
    paper: dict[str, tuple[list[float], list[float]]]  # Lines: x, and y in percent.

    @property
    def jobs(self) -> list[Job]:
        return [line.evaluation for line in self.lines.values()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """A part that one evaluation makes whole: checklist, certificates or pictures."""

    title: str
    evaluation: Evaluation
    entry: str  # Which of these.
    # Returns a header and rows of texts from it, and sentences that say what it shows.
    read: Callable[[object], tuple[list[list[str]], list[str]]]
    picture: str | None = None  # A figure of the evaluation, without its ending.
    note: str = ""  # What a reader needs to know of it.

    @property
    def jobs(self) -> list[Job]:
        return [self.evaluation]


Part = Table | Alphas | AlphaFigure | Curves | Listing
