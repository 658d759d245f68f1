"""Tables 1 to 3 and figures 1 to 3 of the paper, and the list of all studies."""

from pni_tf.reproduce.attack_studies import table4, table5, table6, table7
from pni_tf.reproduce.builder import (
    EOT,
    LOCATIONS,
    NOISE_OFF,
    PAPER_COLUMNS,
    PGD7,
    STRONG,
    STRONG_WORST,
    WORST,
    Builder,
    compare,
    paper_results,
    row,
)
from pni_tf.reproduce.cells import Alphas, Cell, Claim, Curves, Listing, Part, Table
from pni_tf.reproduce.scales import Scale

_PAPER_NAMES = {
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "resnet20_width2": "ResNet-20 2×",
}


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
                    *(with_noise, without_noise, PGD7, WORST, STRONG_WORST),
                ),
                *compare(
                    "Noise in the attack of the training against the fair twin",
                    *(
                        with_noise,
                        rows["fair twin (no noise)"],
                        PGD7,
                        WORST,
                        STRONG_WORST,
                    ),
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
            columns = (PGD7, EOT, WORST, STRONG_WORST)
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
            *(found["PNI-W, with PNI"], found["fair twin"], PGD7, WORST, STRONG_WORST),
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


def figure1(build: Builder) -> list[Part]:
    vanilla = build.training("vanilla")[0]

    return [
        Listing(
            title="Figure 1: an adversarial example",
            evaluation=build.scale.evaluation("pictures", vanilla),
            entry="pictures",
            lines=_predictions,
            summary=_turned,
            picture="pictures",
            note="The first test image that the network without defence classifies "
            "correctly, and wrongly under PGD-7.",
        )
    ]


def figure2(build: Builder) -> list[Part]:
    return [
        Alphas(
            title="Figure 2: noise coefficients during training",
            trainings={"PNI-W": build.training("pni_w")[:1]},
            figure=True,
        )
    ]


def figure3(build: Builder) -> list[Part]:
    paper = paper_results()["fig3_resnet18_pgd_accuracy"]
    network = "resnet18" if "resnet18" in build.scale.networks else None
    twin = build.training("adversarial", network)[0]
    lines = {"fair twin": (build.scale.evaluation("curves", twin), "model")}
    for label in ("PNI-W", "PNI-A-a", "PNI-W+A-a"):
        training = build.training(LOCATIONS[label], network)[0]
        curves = build.scale.evaluation("curves", training)
        strict = build.scale.evaluation("curves_in_expectation", training)
        lines[label] = (curves, "noise on")
        lines[f"{label}, EOT"] = (strict, "noise on")
        lines[f"{label}, without PNI"] = (curves, "noise off")
    names = {"fair twin": "vanilla_adversarial_training", **LOCATIONS}
    parts = []
    for kind, axis in (("epsilon", "by_epsilon"), ("steps", "by_steps")):
        parts.append(
            Curves(
                title=f"Figure 3: PGD over {kind}",
                kind=kind,
                evaluations=lines,
                compared=("PNI-W, EOT", "fair twin"),
                paper={
                    label: (paper[kind], paper[axis][names[label]])
                    for label in lines
                    if names.get(label) in paper[axis]
                },
            )
        )
    return parts


def _predictions(pictures):
    rows = [["image", "label and confidence", "adversarial image is seen as"]]
    for each in pictures:
        rows.append(
            [
                str(each["image"]),
                f"{each['label']}, {100 * each['confidence']:.2f} %",
                f"{each['adversarial_label']}, "
                f"{100 * each['adversarial_confidence']:.2f} %",
            ]
        )
    return rows


def _turned(pictures):
    each = pictures[0]
    before, after = each["confidence"], each["adversarial_confidence"]
    return [
        "In the paper a cat becomes a hen with higher confidence. Here the confidence "
        f"goes from {100 * before:.2f} % in {each['label']} to {100 * after:.2f} % in "
        f"{each['adversarial_label']}."
    ]


_STUDIES = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table6": table6,
    "table7": table7,
    "mnist": mnist,
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
}
STUDIES = tuple(_STUDIES)


def parts_of(study: str, scale: Scale, seeds: int | None = None) -> list[Part]:
    """Returns the parts of a study's report.

    Args:
        study: One of `STUDIES`.
        scale: What to run it on.
        seeds: Number of training seeds, from 0 on; by default what the scale says.
    """
    return _STUDIES[study](Builder(scale, seeds))
