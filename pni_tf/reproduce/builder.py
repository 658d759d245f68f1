"""Makes the cells of tables from trainings and kinds of evaluation."""

import importlib.resources
import json

from pni_tf.reproduce.cells import Cell, Claim, Source, Table
from pni_tf.reproduce.jobs import Training
from pni_tf.reproduce.scales import Scale

PAPER_COLUMNS = ("clean", "PGD-7", "FGSM")
CRAFTED = "noise-off-crafted"
STRONG = "strong suite, worst case (first seed)"
LOCATIONS = {
    "PNI-W": "pni_w",
    "PNI-I": "pni_i",
    "PNI-A-a": "pni_a_a",
    "PNI-A-b": "pni_a_b",
    "PNI-W+A-a": "pni_w_a_a",
    "PNI-W+A-b": "pni_w_a_b",
}
NOISE_OFF = " The rows without PNI are the same networks with alpha = 0."
# Columns of a row, after its label.
PGD7, EOT, WORST, STRONG_WORST = 1, 3, 5, 6


_STRICT_NOTE = (
    "The columns after FGSM are a stricter evaluation than the paper's. EOT-{k}: the "
    "attack averages over {k} draws of the noise. Noise-off-crafted: examples made "
    "without the noise, scored with it. Worst case: for each image the attack that "
    "does best, of all in this table but the strong suite. Strong suite: the "
    "per-example union of the attacks of `--suite=strong`, on a random network each in "
    "expectation over {strong} draws."
)


def paper_results() -> dict:
    """Returns the paper's numbers."""
    file = importlib.resources.files("pni_tf.reproduce") / "paper_results.json"
    return json.loads(file.read_text(encoding="utf-8"))


class Builder:
    """Makes cells, rows and tables of a study.

    Args:
        scale: What to run it on.
        seeds: Number of training seeds; None for what the scale says.
    """

    def __init__(self, scale: Scale, seeds: int | None):
        self.scale, self.seeds, self.paper = scale, seeds, paper_results()
        self.eot = f"PGD-20 EOT-{scale.expectation}"

    def training(self, defence, network=None) -> tuple[Training, ...]:
        """Returns the trainings of all seeds."""
        count = self.seeds or self.scale.seeds_of(network)
        return tuple(self.scale.training(defence, s, network) for s in range(count))

    def cell(
        self,
        trainings,
        row,
        *,
        kind="white_box",
        column=None,
        paper=None,
        field="accuracy_mean",
        one_minus=False,
        percent=True,
        first=False,
        **others,
    ) -> Cell:
        """Returns a cell of a row of `kind`'s table, on the trainings of all seeds.

        `row` may be networks, one for each seed, that examples were transferred from;
        `others` are trainings of all seeds by flag; `first` takes the first seed only.
        """
        rows = [row] * len(trainings) if isinstance(row, str) else row
        sources = []
        for i, training in enumerate(trainings[:1] if first else trainings):
            needed = {flag: of_seeds[i] for flag, of_seeds in others.items()}
            sources.append(
                Source(
                    evaluation=self.scale.evaluation(kind, training, **needed),
                    column=column or ("noise on" if training.random else "model"),
                    row=rows[i],
                    field=field,
                    one_minus=one_minus,
                )
            )
        if isinstance(paper, list):
            paper = tuple(paper)
        return Cell(sources=tuple(sources), paper=paper, percent=percent)

    def paper_cells(self, trainings, paper, **where) -> tuple[Cell, ...]:
        """Returns clean, PGD-7 and FGSM accuracy, as the paper evaluates them."""
        paper = paper or {}
        rows = {"clean": "clean", "PGD-7": "pgd", "FGSM": "fgsm"}
        return tuple(
            self.cell(trainings, row, paper=paper.get(name), **where)
            for row, name in rows.items()
        )

    def strict_cells(self, trainings, **where) -> tuple[Cell, ...]:
        """Returns PGD-20 in expectation, noise-off-crafted and the worst cases."""
        random = trainings[0].random and where.get("column") != "noise off"
        return (
            self.cell(trainings, self.eot, **where),
            self.crafted_cell(trainings, **where) if random else Cell(),
            self.cell(trainings, "worst case", **where),
            self.strong_cell(trainings, **where),
        )

    def crafted_cell(self, trainings, **where) -> Cell:
        """Returns the accuracy on examples that were made without the noise."""
        return self.cell(trainings, "transfer from noise-free twin", **where)

    def strong_cell(self, trainings, *, kind="white_box", column=None) -> Cell:
        """Returns the worst case of the strong suite, of the first seed."""
        kind = "strong_ensemble" if kind == "ensemble" else "strong"
        return self.cell(trainings, "worst case", kind=kind, column=column, first=True)

    def row(self, trainings, paper=None, **where) -> tuple[Cell, ...]:
        """Returns a row of the paper's columns and of the strict ones."""
        return (
            *self.paper_cells(trainings, paper, **where),
            *self.strict_cells(trainings, **where),
        )

    def table(self, title: str, rows: dict, claims: list[Claim], note="") -> Table:
        """Returns a table of such rows."""
        return Table(
            title=title,
            columns=(*PAPER_COLUMNS, self.eot, CRAFTED, "worst case", STRONG),
            rows=tuple(rows.items()),
            claims=tuple(claims),
            note=self.strict_note + note + NOISE_OFF,
        )

    @property
    def strict_note(self) -> str:
        """What the strict columns are."""
        return _STRICT_NOTE.format(
            k=self.scale.expectation,
            strong=self.scale.evaluations["strong"]["expectation"],
        )


def compare(what: str, ours: tuple, other: tuple, *columns: int) -> list[Claim]:
    """Returns claims that one row is above another.

    Args:
        what: Says so, such as `"PNI-W against its fair twin"`.
        ours: The row that should be above.
        other: The other one.
        *columns: Where; by default as the paper does and as strictly as can be.
    """
    names = {
        PGD7: "under PGD-7 as in the paper",
        EOT: "under PGD in expectation",
        WORST: "in the worst case",
        STRONG_WORST: "in the worst case of the strong suite (first seed)",
    }
    return [
        Claim(text=f"{what}, {names[i]}", ours=ours[i], other=other[i])
        for i in columns or (PGD7, STRONG_WORST)
    ]
