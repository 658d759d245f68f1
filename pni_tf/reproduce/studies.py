"""Tables 1 to 3 and figures 1 to 3 of the paper, and the list of all studies."""

import dataclasses

from pni_tf.reproduce.attack_studies import table4, table5, table6, table7
from pni_tf.reproduce.builder import (
    EOT,
    LOCATIONS,
    PAPER_RESULTS,
    PGD7,
    STRONG_WORST,
    WORST,
    Builder,
    compare,
)
from pni_tf.reproduce.cells import (
    AlphaFigure,
    Alphas,
    Claim,
    Curves,
    Line,
    Listing,
    Part,
)
from pni_tf.reproduce.scales import Scale

_STRICT = (PGD7, WORST, STRONG_WORST)


def table1(build: Builder) -> list[Part]:
    paper = PAPER_RESULTS["table1"]
    schemes = {
        "vanilla training": ("pni_w_vanilla", "vanilla_training"),
        "PNI not in attack": (
            "pni_w_without_noise_in_attack",
            "adversarial_training_without_pni_in_attack",
        ),
        "PNI in attack": ("pni_w", "adversarial_training_with_pni_in_attack"),
    }
    twin = build.row("adversarial")
    rows = {"fair twin (no noise)": twin}
    for label, (defence, name) in schemes.items():
        rows[label] = build.row(defence, paper["accuracy"][name])
        rows[f"{label}, without PNI"] = build.row(defence, column="noise_off")
    ours, none = rows["PNI in attack"], rows["PNI not in attack"]
    noise = "Noise in the attack of the training against"
    return [
        Alphas(
            title="Table 1, top: noise coefficient of each layer after training",
            trainings={
                label: build.training(defence)
                for label, (defence, _) in schemes.items()
            },
            paper={label: paper["alpha"][name] for label, (_, name) in schemes.items()},
        ),
        build.table(
            "Table 1, bottom: accuracy of these networks",
            rows,
            [
                *compare(f"{noise} none there", ours, none, *_STRICT),
                *compare(f"{noise} the fair twin", ours, twin, *_STRICT),
            ],
        ),
    ]


def table2(build: Builder) -> list[Part]:
    paper = PAPER_RESULTS["table2"]["rows"]
    papers = paper["vanilla_adversarial_training"]
    twin = build.row("adversarial", papers["without_pni"])
    # The paper has its undefended ResNet-20 in Table 3 only.
    undefended = PAPER_RESULTS["table3"]["rows"]["resnet20"]["no_defense"]
    rows = {
        "no defence": build.row("vanilla", undefended),
        "fair twin (no noise)": twin,
    }
    claims = []
    for label, defence in LOCATIONS.items():
        papers = paper[defence]
        on = build.row(defence, papers["with_pni"], column="noise_on")
        off = build.row(defence, papers["without_pni"], column="noise_off")
        rows |= {f"{label}, with PNI": on, f"{label}, without PNI": off}
        if defence == "pni_w":
            columns = (PGD7, EOT, WORST, STRONG_WORST)
            claims += compare("PNI-W against its fair twin", on, twin, *columns)
            claims += compare("PNI-W against itself without noise", on, off, *columns)
        else:
            claims += compare(f"{label} against the fair twin", on, twin)
    return [build.table("Table 2: where the noise is", rows, claims)]


def table3(build: Builder) -> list[Part]:
    paper = PAPER_RESULTS["table3"]["rows"]
    papers = {network: (network, numbers) for network, numbers in paper.items()}
    if build.scale.name != "paper":  # Other networks stand in for these.
        names = {
            "resnet20": "ResNet-20",
            "resnet32": "ResNet-32",
            "resnet20_width2": "ResNet-20 2×",
        }
        papers = {
            network: (f"{network} (paper: {names[key]})", paper[key])
            for network, key in zip(build.scale.networks, names, strict=True)
        }
    of = {
        "no defence": ("vanilla", "no_defense", None),
        "fair twin": ("adversarial", "vanilla_adversarial_training", None),
        "PNI-W, with PNI": ("pni_w", "pni_w_with_pni", "noise_on"),
        "PNI-W, without PNI": ("pni_w", "pni_w_without_pni", "noise_off"),
    }
    rows, claims = {}, []
    for network, (name, numbers) in papers.items():
        found = {
            label: build.row(defence, numbers[key], network=network, column=column)
            for label, (defence, key, column) in of.items()
        }
        rows |= {f"{name}, {label}": cells for label, cells in found.items()}
        claims += compare(
            f"{network}, PNI-W against its fair twin",
            *(found["PNI-W, with PNI"], found["fair twin"], *_STRICT),
        )
    return [build.table("Table 3: depth and width", rows, claims)]


def mnist(build: Builder) -> list[Part]:
    """The main comparison on MNIST, of which the paper has no numbers."""
    where = {"kind": "mnist", "network": "mnist", "steps": (40, 100)}
    of = {
        "no defence": ("vanilla", None),
        "fair twin (no noise)": ("adversarial", None),
        "PNI-W, with PNI": ("pni_w", "noise_on"),
        "PNI-W, without PNI": ("pni_w", "noise_off"),
    }
    rows = {
        label: build.row(defence, column=column, **where)
        for label, (defence, column) in of.items()
    }
    table = build.table("MNIST: the same networks", rows, [], steps=where["steps"])
    claims = [
        Claim(
            text=f"PNI-W against its fair twin, {table.columns[i]}",
            ours=rows["PNI-W, with PNI"][i],
            other=rows["fair twin (no noise)"][i],
        )
        for i in (PGD7, EOT, STRONG_WORST)
    ]
    attack = "Epsilon 0.3, steps of 0.01 for PGD-40, as Madry et al. did. "
    return [dataclasses.replace(table, claims=tuple(claims), note=attack + table.note)]


def figure1(build: Builder) -> list[Part]:
    return [
        Listing(
            title="Figure 1: an adversarial example",
            evaluation=build.scale.evaluation("pictures", build.training("vanilla")[0]),
            entry="pictures",
            read=_pictures,
            picture="pictures",
            note="The first test image that the network without defence classifies "
            "correctly, and wrongly under PGD-7.",
        )
    ]


def figure2(build: Builder) -> list[Part]:
    return [
        AlphaFigure(
            title="Figure 2: noise coefficients during training",
            training=build.training("pni_w")[0],
        )
    ]


def figure3(build: Builder) -> list[Part]:
    paper = PAPER_RESULTS["fig3_resnet18_pgd_accuracy"]
    network = "resnet18" if "resnet18" in build.scale.networks else None
    names = {"fair twin": "vanilla_adversarial_training"}
    names |= {label: LOCATIONS[label] for label in ("PNI-W", "PNI-A-a", "PNI-W+A-a")}
    lines = {}
    for number, label in enumerate(names):
        training = build.training(LOCATIONS.get(label, "adversarial"), network)[0]
        columns = {"": ("curves", "model", "o-")}
        if training.random:
            columns = {
                "": ("curves", "noise_on", "o-"),
                ", EOT": ("curves_in_expectation", "noise_on", "s:"),
                ", without PNI": ("curves", "noise_off", "x-."),
            }
        for how, (kind, column, style) in columns.items():
            evaluation = build.scale.evaluation(kind, training)
            lines[label + how] = Line(
                evaluation=evaluation, column=column, network=number, style=style
            )
    return [
        Curves(
            title=f"Figure 3: PGD over {kind}",
            kind=kind,
            lines=lines,
            compared=("PNI-W, EOT", "fair twin"),
            paper={
                label: (paper[kind], paper[f"by_{kind}"][name])
                for label, name in names.items()
                if name in paper[f"by_{kind}"]
            },
        )
        for kind in ("epsilon", "steps")
    ]


def _pictures(pictures):
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
    first = pictures[0]
    before, after = first["confidence"], first["adversarial_confidence"]
    sentence = (
        "In the paper a cat becomes a hen with higher confidence. Here the confidence "
        f"goes from {100 * before:.2f} % in {first['label']} to {100 * after:.2f} % in "
        f"{first['adversarial_label']}."
    )
    return rows, [sentence]


_STUDIES = {
    study.__name__: study
    for study in (
        *(table1, table2, table3, table4, table5, table6, table7, mnist),
        *(figure1, figure2, figure3),
    )
}
STUDIES = tuple(_STUDIES)


def parts_of(study: str, scale: Scale, seeds: int | None = None) -> list[Part]:
    """Returns the parts of the report of one of `STUDIES`.

    The training seeds count from 0; by default there are as many as the scale says.
    """
    return _STUDIES[study](Builder(scale, seeds))
