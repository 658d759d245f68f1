"""Figures 1, 2 and 3."""

from pni_tf.reproduce.builder import Builder, paper_results
from pni_tf.reproduce.tables import Alphas, Curves, Listing, Part
from pni_tf.reproduce.white_box import LOCATIONS


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
