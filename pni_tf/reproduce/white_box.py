"""Tables 1, 2 and 3: accuracy under the paper's attacks, and under stricter ones."""

from pni_tf.reproduce.builder import (
    PAPER_COLUMNS,
    STRONG,
    Builder,
    paper_results,
)
from pni_tf.reproduce.tables import Alphas, Cell, Claim, Part, Table

LOCATIONS = {
    "PNI-W": "pni_w",
    "PNI-I": "pni_i",
    "PNI-A-a": "pni_a_a",
    "PNI-A-b": "pni_a_b",
    "PNI-W+A-a": "pni_w_a_a",
    "PNI-W+A-b": "pni_w_a_b",
}
_PAPER_NAMES = {
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "resnet20_width2": "ResNet-20 2×",
}
NOISE_OFF = " The rows without PNI are the same networks with alpha = 0."
# Columns of a row, behind its label.
_PGD7, _EOT, _WORST, _STRONG = 1, 3, 5, 6


def row(build: Builder, trainings, paper=None, **where) -> tuple:
    """Returns a row of the paper's columns and of the strict ones."""
    return (
        *build.paper_cells(trainings, paper, **where),
        *build.strict_cells(trainings, **where),
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
        _PGD7: "under PGD-7 as in the paper",
        _EOT: "under PGD in expectation",
        _WORST: "in the worst case",
        _STRONG: "in the worst case of the strong suite (first seed)",
    }
    return [
        Claim(text=f"{what}, {names[i]}", ours=ours[i], other=other[i])
        for i in columns or (_PGD7, _STRONG)
    ]


def table1(build: Builder) -> list[Part]:
    paper = paper_results()["table1"]
    schemes = {
        "vanilla training": ("pni_w_vanilla", "vanilla_training"),
        "PNI not in attack": (
            "pni_w_without_noise_in_attack",
            "adversarial_training_without_pni_in_attack",
        ),
        "PNI in attack": ("pni_w", "adversarial_training_with_pni_in_attack"),
    }
    rows = {"fair twin (no noise)": row(build, build.training("adversarial"))}
    for label, (defence, name) in schemes.items():
        trainings = build.training(defence)
        rows[label] = row(build, trainings, paper["accuracy"][name])
        rows[f"{label}, without PNI"] = row(build, trainings, column="noise off")
    with_noise, without_noise = rows["PNI in attack"], rows["PNI not in attack"]
    return [
        Alphas(
            title="Table 1, top: noise coefficient of each layer after training",
            trainings={
                label: build.training(defence)
                for label, (defence, _) in schemes.items()
            },
            paper={label: paper["alpha"][name] for label, (_, name) in schemes.items()},
        ),
        Table(
            title="Table 1, bottom: accuracy of these networks",
            columns=(*PAPER_COLUMNS, *build.strict_columns),
            rows=tuple(rows.items()),
            claims=(
                *compare(
                    "Noise in the attack of the training against none there",
                    *(with_noise, without_noise, _PGD7, _WORST, _STRONG),
                ),
                *compare(
                    "Noise in the attack of the training against the fair twin",
                    *(with_noise, rows["fair twin (no noise)"], _PGD7, _WORST, _STRONG),
                ),
            ),
            note=build.strict_note + NOISE_OFF,
        ),
    ]


def table2(build: Builder) -> list[Part]:
    paper = paper_results()["table2"]["rows"]
    twin_paper = paper["vanilla_adversarial_training"]["without_pni"]
    twin = row(build, build.training("adversarial"), twin_paper)
    # The paper has its undefended ResNet-20 in Table 3 only.
    undefended = paper_results()["table3"]["rows"]["resnet20"]["no_defense"]
    rows = {
        "no defence": row(build, build.training("vanilla"), undefended),
        "fair twin (no noise)": twin,
    }
    claims = []
    for label, defence in LOCATIONS.items():
        trainings = build.training(defence)
        on = row(build, trainings, paper[defence]["with_pni"], column="noise on")
        off = row(build, trainings, paper[defence]["without_pni"], column="noise off")
        rows[f"{label}, with PNI"], rows[f"{label}, without PNI"] = on, off
        if defence == "pni_w":
            columns = (_PGD7, _EOT, _WORST, _STRONG)
            claims += compare("PNI-W against its fair twin", on, twin, *columns)
            claims += compare("PNI-W against itself without noise", on, off, *columns)
        else:
            claims += compare(f"{label} against the fair twin", on, twin)
    return [
        Table(
            title="Table 2: where the noise is",
            columns=(*PAPER_COLUMNS, *build.strict_columns),
            rows=tuple(rows.items()),
            claims=tuple(claims),
            note=build.strict_note + NOISE_OFF,
        )
    ]


def table3(build: Builder) -> list[Part]:
    paper = paper_results()["table3"]["rows"]
    papers, labels = dict(paper), dict.fromkeys(paper, "")
    if build.scale.name != "paper":  # other networks stand for the paper's
        order = ("resnet20", "resnet32", "resnet20_width2")
        papers = dict(
            zip(build.scale.networks, (paper[name] for name in order), strict=False)
        )
        labels = {
            network: f" (paper: {_PAPER_NAMES[name]})"
            for network, name in zip(papers, order, strict=False)
        }
    rows, claims = {}, []
    for network, numbers in papers.items():
        name = network + labels[network]
        of = {
            "no defence": ("vanilla", "no_defense", None),
            "fair twin": ("adversarial", "vanilla_adversarial_training", None),
            "PNI-W, with PNI": ("pni_w", "pni_w_with_pni", "noise on"),
            "PNI-W, without PNI": ("pni_w", "pni_w_without_pni", "noise off"),
        }
        found = {
            label: row(
                build, build.training(defence, network), numbers[key], column=column
            )
            for label, (defence, key, column) in of.items()
        }
        rows |= {f"{name}, {label}": cells for label, cells in found.items()}
        claims += compare(
            f"{network}, PNI-W against its fair twin",
            *(found["PNI-W, with PNI"], found["fair twin"], _PGD7, _WORST, _STRONG),
        )
    return [
        Table(
            title="Table 3: depth and width",
            columns=(*PAPER_COLUMNS, *build.strict_columns),
            rows=tuple(rows.items()),
            claims=tuple(claims),
            note=build.strict_note + NOISE_OFF,
        )
    ]


def mnist(build: Builder) -> list[Part]:
    """The main comparison on MNIST, of which the paper has no numbers."""
    eot, crafted = f"PGD-100 EOT-{build.scale.expectation}", "noise-off-crafted"
    columns = ("clean", "PGD-40", "FGSM", eot, crafted, "worst case")
    rows = {}
    for label, defence, column in (
        ("no defence", "vanilla", None),
        ("fair twin (no noise)", "adversarial", None),
        ("PNI-W, with PNI", "pni_w", "noise on"),
        ("PNI-W, without PNI", "pni_w", "noise off"),
    ):
        where = {"kind": "mnist", "column": column}
        trainings = build.training(defence, "mnist")
        cells = {name: build.cell(trainings, name, **where) for name in columns}
        cells[crafted] = Cell()
        if column == "noise on":
            cells[crafted] = build.crafted_cell(trainings, **where)
        strong = build.strong_cell(trainings, column=column)
        rows[label] = (*cells.values(), strong)
    return [
        Table(
            title="MNIST: the same networks",
            columns=(*columns, STRONG),
            rows=tuple(rows.items()),
            claims=tuple(
                Claim(
                    text=f"PNI-W against its fair twin, {name}",
                    ours=rows["PNI-W, with PNI"][i],
                    other=rows["fair twin (no noise)"][i],
                )
                for name, i in (("PGD-40", 1), (eot, 3), (STRONG, 6))
            ),
            note="Epsilon 0.3, steps of 0.01 for PGD-40, as Madry et al. did. "
            + build.strict_note
            + NOISE_OFF,
        )
    ]
