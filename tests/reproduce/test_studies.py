"""What stands where in the tables: the paper's numbers, and the networks compared."""

import pytest
from reproductions import DIGITS

from pni_tf.reproduce.builder import PAPER_RESULTS, STRONG
from pni_tf.reproduce.cells import Alphas, Curves, Table
from pni_tf.reproduce.scales import SCALES
from pni_tf.reproduce.studies import parts_of

# Typed from the paper: rows by study, with the columns that it has.
PAPER = {
    "table1": {
        "vanilla training": (92.11, (0, 0), 14.08),
        "PNI not in attack": (71.00, 18.11, 26.34),
        "PNI in attack": ((84.89, 0.11), (45.94, 0.11), (54.48, 0.44)),
    },
    "table2": {
        "no defence": (92.1, (0, 0), 14.1),
        "fair twin (no noise)": (83.84, (39.14, 0.05), 46.55),
        "PNI-W, with PNI": ((84.89, 0.11), (45.94, 0.11), (54.48, 0.44)),
        "PNI-W, without PNI": (85.48, (31.45, 0.07), 42.55),
        "PNI-I, with PNI": ((85.10, 0.08), (43.25, 0.16), (50.78, 0.16)),
        "PNI-I, without PNI": (84.82, (34.87, 0.05), 44.07),
        "PNI-A-a, with PNI": ((85.22, 0.18), (43.83, 0.10), (51.41, 0.08)),
        "PNI-A-a, without PNI": (85.20, (33.93, 0.05), 44.32),
        "PNI-A-b, with PNI": ((84.66, 0.16), (43.63, 0.20), (51.26, 0.09)),
        "PNI-A-b, without PNI": (83.97, (33.53, 0.05), 43.37),
        "PNI-W+A-a, with PNI": ((85.12, 0.10), (43.57, 0.12), (51.15, 0.21)),
        "PNI-W+A-a, without PNI": (84.88, (33.23, 0.05), 43.59),
        "PNI-W+A-b, with PNI": ((84.33, 0.11), (43.80, 0.19), (51.14, 0.07)),
        "PNI-W+A-b, without PNI": (84.42, (33.30, 0.05), 43.43),
    },
    "table3": {
        "resnet32, no defence": (92.8, (0, 0), 17.8),
        "resnet44, fair twin": (85.9, (40.8, 0.1), 48.2),
        "resnet56, PNI-W, with PNI": ((86.8, 0.2), (46.3, 0.3), (53.9, 0.1)),
        "resnet56, PNI-W, without PNI": (87.3, (41.6, 0.1), 51.1),
        "resnet20_width1.5, fair twin": (85.8, (42.0, 0), 49.6),
        "resnet20_width4, PNI-W, with PNI": ((87.7, 0.1), (49.1, 0.3), (57.0, 0.2)),
    },
    "table4": {
        "resnet20_width4, no defence": (0.12,),
        "resnet20_width4, fair twin": (1.97,),
        "resnet20_width4, PNI-W": (1.97,),
        "resnet18, no defence": (0.12,),
        "resnet18, fair twin": (2.39,),
        "resnet18, PNI-W": (2.63,),
    },
    "table5": {
        "PNI-W": ((75.13, 0.17), (75.23, 0.18), 57.72),
        "PNI-A-a": ((74.67, 0.11), (75.86, 0.13), 69.61),
        "PNI-W+A-a": ((75.14, 0.10), (74.92, 0.13), 50.0),
        "fair twin (A)": (None, None, "close to 80"),
    },
    "table6": {
        "adversarial training, fair twin (resnet20_width4)": (87, 46.1),
        "PixelDP, mean of 10 draws (paper: Wide ResNet 28-10)": (87.0, 25),
        "RSE, mean of 10 draws (paper: ResNeXt)": (87.5, 40),
        "PNI-W, single draws (resnet20_width4)": (87.7, 49.1),
    },
}
COLUMNS = {
    "table4": ("L2 norm, the paper's settings",),
    "table5": (
        "accuracy, A ⇒ B",
        "accuracy, B ⇒ A",
        "success of ZOO, as it claims (first seed)",
    ),
}


def table_of(study, scale):
    parts = parts_of(study, scale, 1)
    (table,) = (part for part in parts if isinstance(part, Table))
    return table


class TestPaper:
    @pytest.mark.parametrize("study", PAPER)
    def test_its_numbers_are_where_they_belong(self, study):
        table = table_of(study, SCALES["paper"])
        columns = COLUMNS.get(study, ("clean", "PGD-7", "FGSM"))
        assert table.columns[: len(columns)] == columns
        rows = dict(table.rows)
        for label, numbers in PAPER[study].items():
            cells = rows[label][: len(numbers)]
            assert tuple(cell.paper for cell in cells) == numbers, label

    def test_each_of_its_numbers_is_in_a_table(self):
        scale = SCALES["paper"]
        shown = []
        for study in scale.studies:
            for part in parts_of(study, scale, 1):
                if isinstance(part, Table):
                    shown += [cell.paper for _, row in part.rows for cell in row]
                elif isinstance(part, Alphas):
                    shown += [
                        a for column in part.paper.values() for a in column.values()
                    ]
                elif isinstance(part, Curves):
                    shown += [y for _, ys in part.paper.values() for y in ys]
        shown = {number for value in shown for number in numbers_in(value)}
        ignored = ("parameters", "epsilon", "steps")
        for number in numbers_in(PAPER_RESULTS, ignored):
            assert number in shown

    def test_a_scale_of_other_networks_shows_them_too(self):
        rows = dict(table_of("table3", DIGITS).rows)
        assert rows["resnet8 (paper: ResNet-20), fair twin"][1].paper == (39.1, 0.1)
        assert rows["resnet20 (paper: ResNet-32), fair twin"][1].paper == (42.1, 0)


def numbers_in(value, ignored=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ignored:
                yield from numbers_in(inner, ignored)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from numbers_in(inner, ignored)
    elif isinstance(value, int | float):
        yield value


# What is said of a row, and how its label begins.
ROWS = {
    "Noise in the attack of the training": "PNI in attack",
    "none there": "PNI not in attack",
    "the fair twin": "fair twin",
    "its fair twin": "fair twin",
    "itself without noise": "PNI-W, without PNI",
    "adversarial training": "adversarial training, fair twin",
    "RSE": "RSE, mean",
    "PixelDP": "PixelDP, mean",
}
WHERE = {  # The column, by the end of a claim.
    "under PGD-7 as in the paper": "PGD-7",
    "under PGD in expectation": "PGD-20 EOT-",
    "in the worst case": "worst case",
    "in the worst case of the strong suite (first seed)": STRONG,
    "PGD-40": "PGD-40",
    "PGD-100 EOT-10": "PGD-100 EOT-10",
    STRONG: STRONG,
}


@pytest.mark.parametrize(
    ("study", "scale"),
    [
        *((study, DIGITS) for study in ("table1", "table2", "table3", "table6")),
        *((study, SCALES["cpu"]) for study in ("table2", "table6", "mnist")),
        *((study, SCALES["paper"]) for study in ("table3", "table6")),
    ],
)
def test_claims_compare_what_they_say(study, scale):
    table = table_of(study, scale)
    for claim in table.claims:
        what, _, end = claim.text.partition(" against ")
        other, _, where = end.partition(", ")
        network, _, ours = what.rpartition(", ")
        where, by_mean = where.removeprefix("both by mean, "), "both by mean" in where
        for name, cell in ((ours, claim.ours), (other, claim.other)):
            ((label, column),) = (
                (label, column)
                for label, cells in table.rows
                for column, found in zip(table.columns, cells, strict=True)
                if found is cell
            )
            assert column.startswith(WHERE[where]), claim.text
            assert label.startswith(network), claim.text
            rest = label.removeprefix(network)
            rest = rest[rest.find("), ") + 3 :] if "), " in rest else rest
            rest = rest.removeprefix(", ")
            assert rest.startswith(ROWS.get(name, name)), claim.text
            if name not in ROWS:
                assert "without" not in label
                assert ("mean of" in label) == by_mean
