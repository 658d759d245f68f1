"""Makes the cells of tables from trainings and kinds of evaluation."""

import json
from pathlib import Path

from pni_tf.evaluation.names import NOISE_FREE_TWIN, attack_name, row_name
from pni_tf.reproduce.cells import Cell, Claim, Source, Table
from pni_tf.reproduce.jobs import Training
from pni_tf.reproduce.scales import Scale

PAPER_RESULTS = json.loads(
    Path(__file__).with_name("paper_results.json").read_text("utf-8")
)
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
# Columns of a table.
PGD7, EOT, WORST, STRONG_WORST = 1, 3, 5, 6


class Builder:
    """Makes cells, rows and tables of a study on a scale.

    If the number of training seeds is None, it is what the scale says.
    """

    def __init__(self, scale: Scale, seeds: int | None):
        self.scale, self.seeds = scale, seeds

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
        percent=True,
        **number,
    ) -> Cell:
        """Returns a cell of a row of `kind`'s table, on the trainings of all seeds.

        `row` may be networks, one for each seed, that examples are transferred from;
        `number` are further fields of a `Source`.
        """
        sources = []
        for i, training in enumerate(trainings):
            name, others = row, {}
            if not isinstance(row, str):
                name, others = str(row[i].path), {"transfer_from": row[i]}
            sources.append(
                Source(
                    evaluation=self.scale.evaluation(kind, training, **others),
                    column=column or ("noise_on" if training.random else "model"),
                    row=name,
                    **number,
                )
            )
        paper = tuple(paper) if isinstance(paper, list) else paper
        return Cell(sources=tuple(sources), paper=paper, percent=percent)

    def strong_cell(self, trainings, *, kind="white_box", column=None) -> Cell:
        """Returns the worst case of the strong suite, of the first seed."""
        kind = "strong_ensemble" if kind == "ensemble" else "strong"
        return self.cell(trainings[:1], "worst_case", kind=kind, column=column)

    def row(
        self, defence, paper=None, *, network=None, steps=(7, 20), **where
    ) -> tuple[Cell, ...]:
        """Returns a row of the columns of `table`."""
        trainings = self.training(defence, network)
        paper, (plain, averaged) = paper or {}, self._pgd(steps)
        random = trainings[0].random and where.get("column") != "noise_off"
        return (
            self.cell(trainings, "clean", paper=paper.get("clean"), **where),
            self.cell(trainings, plain, paper=paper.get("pgd"), **where),
            self.cell(trainings, attack_name("FGSM"), paper=paper.get("fgsm"), **where),
            self.cell(trainings, averaged, **where),
            self.cell(trainings, NOISE_FREE_TWIN, **where) if random else Cell(),
            self.cell(trainings, "worst_case", **where),
            self.strong_cell(trainings, **where),
        )

    def table(
        self, title: str, rows: dict, claims: list[Claim], note="", steps=(7, 20)
    ) -> Table:
        """Returns a table of the paper's columns and of stricter ones.

        `steps` are those of the paper's PGD, and of that in expectation over noise.
        """
        plain, averaged = self._pgd(steps)
        scale = self.scale
        strict_note = (
            "The columns after FGSM are a stricter evaluation than the paper's. "
            f"EOT-{scale.expectation}: the attack averages over {scale.expectation} "
            "draws of the noise. Noise-off-crafted: examples made without the noise, "
            "scored with it. Worst case: for each image the attack that does best, of "
            "all in this table but the strong suite. Strong suite: the per-example "
            "union of the attacks of `--suite=strong`, on a random network each in "
            f"expectation over {scale.evaluations['strong']['expectation']} draws."
        )
        return Table(
            title=title,
            columns=("clean", plain, "FGSM", averaged, CRAFTED, "worst case", STRONG),
            rows=tuple(rows.items()),
            claims=tuple(claims),
            note=strict_note + note + NOISE_OFF,
            worst_cases=(STRONG_WORST, WORST),
        )

    def _pgd(self, steps):
        plain, averaged = (attack_name("PGD", count) for count in steps)
        return plain, row_name(averaged, self.scale.expectation)


def compare(what: str, ours: tuple, other: tuple, *columns: int) -> list[Claim]:
    """Returns the claims that one row is above another, as `what` says, in columns.

    By default in that of the paper's PGD-7 and in the strictest one.
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
