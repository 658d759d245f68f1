"""Table 6: other defences, and what one of them certifies."""

from pni_tf.reproduce.builder import PAPER_COLUMNS, Builder, paper_results
from pni_tf.reproduce.tables import Listing, Part, Table
from pni_tf.reproduce.white_box import NOISE_OFF, compare, row


def table6(build: Builder) -> list[Part]:
    paper = paper_results()["table6_competitors"]
    mean = f"mean of {build.scale.ensemble} draws"
    # The paper has its widest network here.
    wide = "resnet20_width4" if "resnet20_width4" in build.scale.networks else None
    name = f" ({wide})" if wide else " (paper: ResNet-20 4×)"
    twin, madry = build.training("adversarial", wide), build.training("madry")
    other = row(build, twin, paper["pgd_adversarial_training"])
    cells = {
        "no defence": row(build, build.training("vanilla")),
        f"adversarial training, fair twin{name}": other,
    }
    if madry != twin:  # where the recipe is not Madry's anyway
        cells["adversarial training, Madry et al."] = row(build, madry)
    by = {
        defence: row(
            build,
            build.training(defence),
            numbers,
            kind="ensemble",
            column=mean,
        )
        for defence, numbers in (
            ("pixeldp", paper["dp_pixeldp"]),
            ("rse", paper["rse"]),
            ("pni_w", {}),
        )
    }
    cells[f"PixelDP, {mean} (paper: Wide ResNet 28-10)"] = by["pixeldp"]
    cells[f"RSE, {mean} (paper: ResNeXt)"] = by["rse"]
    cells[f"PNI-W, {mean}"] = by["pni_w"]
    trainings = build.training("pni_w", wide)
    ours = row(build, trainings, paper["pni_w"])
    cells[f"PNI-W, single draws{name}"] = ours
    cells["PNI-W, without PNI" + (name if wide else "")] = row(
        build, trainings, column="noise off"
    )
    pixeldp = build.training("pixeldp")[0]
    return [
        Table(
            title="Table 6: competitors",
            columns=(*PAPER_COLUMNS, *build.strict_columns),
            rows=tuple(cells.items()),
            claims=(
                *compare("PNI-W against adversarial training", ours, other),
                *compare("PNI-W against RSE, both by mean", by["pni_w"], by["rse"]),
                *compare(
                    "PNI-W against PixelDP, both by mean", by["pni_w"], by["pixeldp"]
                ),
            ),
            note=build.strict_note + f" {mean.capitalize()}: each prediction is the "
            "mean of the softmax over draws, and the attacks differentiate through "
            "it. The paper compares networks of different architectures." + NOISE_OFF,
        ),
        Listing(
            title="Certified accuracy of PixelDP",
            evaluation=build.scale.evaluation("certify", pixeldp),
            entry="certificates",
            lines=_certified,
            summary=guarantees,
            picture="certified_accuracy",
            note="L2 radii, first seed. At radius 0 stands the accuracy, certified or "
            "not. No bound certifies the Linf ball of the attacks above, and "
            "noise on weights certifies nothing.",
        ),
    ]


def _certified(certificates):
    radii = list(certificates[0]["certified_accuracy"])
    rows = [["certified accuracy (%) at radius", *radii]]
    for certificate in certificates:
        shares = certificate["certified_accuracy"].values()
        rows.append([certificate["method"], *(f"{100 * s:.2f}" for s in shares)])
    return rows


def guarantees(certificates: list[dict]) -> list[str]:
    """Returns sentences about the certificates in an `evaluation.json`."""
    first, sentences = certificates[0], []
    for each in certificates:
        shares = {float(r): s for r, s in each["certified_accuracy"].items()}
        half = [r for r, share in shares.items() if r and share >= shares[0.0] / 2 > 0]
        where = "none of the radii"
        if half:
            where = f"radius {max(half):g} and at none of the larger ones"
        sentences.append(
            f"{each['method']}: half of the accuracy of {100 * shares[0.0]:.2f} % is "
            f"certified at {where} here."
        )
    return [
        *sentences,
        f"{first['images']:,} images, {first['draws']:,} draws each; a radius is wrong "
        f"with probability {first['failure']:g} at most.",
    ]
