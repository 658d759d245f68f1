"""Table 6: other defences, and what one of them certifies."""

from pni_tf.reproduce.builder import PAPER_COLUMNS, Builder, paper_results
from pni_tf.reproduce.tables import Claim, Listing, Part, Table


def table6(build: Builder) -> list[Part]:
    paper = paper_results()["table6_competitors"]
    mean = f"mean of {build.scale.ensemble} draws"
    twin, madry = build.training("adversarial"), build.training("madry")
    other = _cells(build, twin, paper["pgd_adversarial_training"])
    cells = {
        "no defence": _cells(build, build.training("vanilla")),
        "adversarial training, fair twin (paper: ResNet-20 4×)": other,
    }
    if madry != twin:  # where the recipe is not Madry's anyway
        cells["adversarial training, Madry et al."] = _cells(build, madry)
    by_mean = {
        defence: _cells(
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
    cells[f"PixelDP, {mean} (paper: Wide ResNet 28-10)"] = by_mean["pixeldp"]
    cells[f"RSE, {mean} (paper: ResNeXt)"] = by_mean["rse"]
    cells[f"PNI-W, {mean}"] = by_mean["pni_w"]
    ours = _cells(build, build.training("pni_w"), paper["pni_w"])
    cells["PNI-W, single draws (paper: ResNet-20 4×)"] = ours
    pixeldp = build.training("pixeldp")[0]
    return [
        Table(
            title="Table 6: competitors",
            columns=(*PAPER_COLUMNS, *build.strict_columns),
            rows=tuple(cells.items()),
            claims=(
                Claim(
                    text="Under PGD-7 as in the paper, PNI-W against adversarial "
                    "training",
                    ours=ours[1],
                    other=other[1],
                ),
                Claim(text="In the worst case, the same", ours=ours[5], other=other[5]),
                Claim(
                    text="In the worst case, PNI-W against RSE",
                    ours=by_mean["pni_w"][5],
                    other=by_mean["rse"][5],
                ),
            ),
            note=build.strict_note + f" {mean.capitalize()}: each prediction is the "
            "mean of the softmax over draws, and the attacks differentiate through "
            "it. The paper compares networks of different architectures.",
        ),
        Listing(
            title="Certified accuracy of PixelDP",
            evaluation=build.scale.evaluation("certify", pixeldp),
            entry="certificates",
            lines=_certified,
            picture="certified_accuracy",
            note="L2 radii, first seed. At radius 0 stands the accuracy, certified or "
            "not. Neither bound certifies the Linf ball of the attacks above, and "
            "noise on weights certifies nothing.",
        ),
    ]


def _cells(build, trainings, paper=None, **where):
    return (
        *build.paper_cells(trainings, paper, **where),
        *build.strict_cells(trainings, **where),
    )


def _certified(certificates):
    radii = list(certificates[0]["certified_accuracy"])
    rows = [["certified accuracy (%) at radius", *radii]]
    for certificate in certificates:
        shares = certificate["certified_accuracy"].values()
        rows.append([certificate["method"], *(f"{100 * s:.2f}" for s in shares)])
    return rows
