"""Tables 1, 2 and 3: accuracy under the paper's attacks, and under stricter ones."""

from pni_tf.reproduce.builder import PAPER_COLUMNS, Builder, paper_results
from pni_tf.reproduce.tables import Alphas, Claim, Part, Table

LOCATIONS = {
    "PNI-W": "pni_w",
    "PNI-I": "pni_i",
    "PNI-A-a": "pni_a_a",
    "PNI-A-b": "pni_a_b",
    "PNI-W+A-a": "pni_w_a_a",
    "PNI-W+A-b": "pni_w_a_b",
}


_NOISE_OFF = " The rows without PNI are the same networks with alpha = 0."


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
    rows, cells = [], {}
    for label, (defence, name) in schemes.items():
        trainings = build.training(defence)
        cells[label] = (
            *build.paper_cells(trainings, paper["accuracy"][name]),
            *build.strict_cells(trainings),
        )
        rows.append((label, cells[label]))
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
            rows=tuple(rows),
            claims=(
                Claim(
                    text="Under PGD-7 as in the paper, noise in the attack of the "
                    "training against none there",
                    ours=cells["PNI in attack"][1],
                    other=cells["PNI not in attack"][1],
                ),
                Claim(
                    text="In the worst case, the same",
                    ours=cells["PNI in attack"][5],
                    other=cells["PNI not in attack"][5],
                ),
            ),
            note=build.strict_note,
        ),
    ]


def table2(build: Builder) -> list[Part]:
    paper = paper_results()["table2"]["rows"]
    twin = build.training("adversarial")
    twin_paper = paper["vanilla_adversarial_training"]["without_pni"]
    rows = [
        (
            "fair twin (no noise)",
            (
                *build.paper_cells(twin, twin_paper),
                *build.strict_cells(twin),
                build.strong_cell("adversarial"),
            ),
        )
    ]
    for label, defence in LOCATIONS.items():
        trainings = build.training(defence)
        for kind, column in (("with", "noise on"), ("without", "noise off")):
            where = {"column": column}
            rows.append(
                (
                    f"{label}, {kind} PNI",
                    (
                        *build.paper_cells(
                            trainings, paper[defence][f"{kind}_pni"], **where
                        ),
                        *build.strict_cells(trainings, **where),
                        build.strong_cell(defence, column=column),
                    ),
                )
            )
    cells = dict(rows)
    ours, other = cells["PNI-W, with PNI"], cells["fair twin (no noise)"]
    off = cells["PNI-W, without PNI"]
    return [
        Table(
            title="Table 2: where the noise is",
            columns=(
                *PAPER_COLUMNS,
                *build.strict_columns,
                "strong suite, worst case (first seed)",
            ),
            rows=tuple(rows),
            claims=(
                Claim(
                    text="Under PGD-7 as in the paper, PNI-W against its fair twin",
                    ours=ours[1],
                    other=other[1],
                ),
                Claim(
                    text=f"Under {build.eot}, the same", ours=ours[3], other=other[3]
                ),
                Claim(
                    text="In the worst case of the strong suite (first seed), the same",
                    ours=ours[6],
                    other=other[6],
                ),
                Claim(
                    text="Under PGD-7 as in the paper, PNI-W against the same network "
                    "with its noise off",
                    ours=ours[1],
                    other=off[1],
                ),
            ),
            note=build.strict_note + _NOISE_OFF,
        )
    ]


_PAPER_NAMES = {
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "resnet20_width2": "ResNet-20 2×",
}


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
    rows, claims = [], []
    for network, numbers in papers.items():
        pni = build.training("pni_w", network)
        twin = build.training("adversarial", network)
        cells = {
            "no defence": build.paper_cells(
                build.training("vanilla", network), numbers["no_defense"]
            ),
            "fair twin": build.paper_cells(
                twin, numbers["vanilla_adversarial_training"]
            ),
            "PNI-W, with PNI": build.paper_cells(pni, numbers["pni_w_with_pni"]),
            "PNI-W, without PNI": build.paper_cells(
                pni, numbers["pni_w_without_pni"], column="noise off"
            ),
        }
        strict = {
            "no defence": build.strict_cells(build.training("vanilla", network)),
            "fair twin": build.strict_cells(twin),
            "PNI-W, with PNI": build.strict_cells(pni),
            "PNI-W, without PNI": build.strict_cells(pni, column="noise off"),
        }
        for label in cells:
            name = network + labels[network]
            rows.append((f"{name}, {label}", (*cells[label], *strict[label])))
        claims += [
            Claim(
                text=f"{network} under PGD-7 as in the paper, PNI-W against its twin",
                ours=cells["PNI-W, with PNI"][1],
                other=cells["fair twin"][1],
            ),
            Claim(
                text=f"{network} in the worst case, the same",
                ours=strict["PNI-W, with PNI"][2],
                other=strict["fair twin"][2],
            ),
        ]
    return [
        Table(
            title="Table 3: depth and width",
            columns=(*PAPER_COLUMNS, *build.strict_columns),
            rows=tuple(rows),
            claims=tuple(claims),
            note=build.strict_note + _NOISE_OFF,
        )
    ]
