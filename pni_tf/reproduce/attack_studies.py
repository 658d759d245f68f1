"""Tables 4 to 7 of the paper: other attacks, competitors, the checklist."""

from pni_tf.evaluation.names import OF_PAPER, attack_name, row_name
from pni_tf.reproduce.builder import (
    LOCATIONS,
    NOISE_OFF,
    PAPER_RESULTS,
    STRONG,
    Builder,
    compare,
)
from pni_tf.reproduce.cells import Cell, Claim, Listing, Part, Table


def table4(build: Builder) -> list[Part]:
    paper = PAPER_RESULTS["table4_cw_l2_norm"]
    papers = {name: (name, paper[name]) for name in ("resnet20_width4", "resnet18")}
    if build.scale.name != "paper":  # Another network stands in for it.
        first, *_, last = build.scale.networks
        name = f"{last} (paper: ResNet-20 4×)"
        papers = {first: (first, {}), last: (name, paper["resnet20_width4"])}
    rows, claims = [], []
    for network, (name, numbers) in papers.items():
        of = {
            "no defence": ("vanilla", "no_defense", None),
            "fair twin": ("adversarial", "vanilla_adversarial_training", None),
            "PNI-W": ("pni_w", "pni_w", None),
            "PNI-W, without PNI": ("pni_w", None, "noise_off"),
        }
        cells = {
            label: _cw(build, defence, network, numbers.get(key), column)
            for label, (defence, key, column) in of.items()
        }
        rows += [(f"{name}, {label}", found) for label, found in cells.items()]
        claims += [
            Claim(
                text=f"{network}, {what}, PNI-W against its twin",
                ours=cells["PNI-W"][i],
                other=cells["fair twin"][i],
                judge=False,
            )
            for what, i in (
                ("norm with the paper's settings", 0),
                ("norm of the long attack", 2),
                ("upheld claims of the long attack in percent", 4),
            )
        ]
    return [
        Table(
            title="Table 4: norm of the attack of Carlini and Wagner",
            columns=(
                "L2 norm, the paper's settings",
                "accuracy under them",
                f"L2 norm, {build.scale.cw_steps} iterations, EOT on a random network",
                "accuracy under that",
                "share of its claims that fresh draws uphold",
            ),
            rows=tuple(rows),
            claims=tuple(claims),
            note="The norm is the mean over the images that the attack claims, on the "
            "draws that found them; a norm can be judged only where fresh draws uphold "
            "most of these claims. With the paper's settings (10 iterations) the "
            "attack is far from converged, so a small norm means few and easy images; "
            "and on a random network what it claims need not hold, which the last "
            "column shows. A norm of nearly 0 is of images that were wrong anyway.",
        )
    ]


def _cw(build, defence, network, paper, column):
    trainings = build.training(defence, network)
    kind, scale = "CarliniWagnerL2", build.scale
    short = attack_name(kind, 9, 10)
    long = row_name(attack_name(kind, 9, scale.cw_steps), scale.expectation)
    where = {"kind": "cw", "column": column}
    norm = {**where, "field": "l2_mean_of_claimed", "percent": False}
    return (
        build.cell(trainings, short, paper=paper, **norm),
        build.cell(trainings, short, **where),
        build.cell(trainings, long, **norm),
        build.cell(trainings, long, **where),
        build.cell(trainings, long, field="upheld", **where),
    )


def table5(build: Builder) -> list[Part]:
    results = PAPER_RESULTS["table5_black_box"]["rows"]
    network = "resnet18" if "resnet18" in build.scale.networks else None
    a = build.training("adversarial", network)
    rows = {}
    for label in ("PNI-W", "PNI-A-a", "PNI-W+A-a"):
        defence = LOCATIONS[label]
        b, paper = build.training(defence, network), results[defence]
        to_b, to_a = paper["transfer_a_to_b"], paper["transfer_b_to_a"]
        transfers = (
            build.cell(b, a, paper=to_b, kind="transfer"),
            build.cell(a, b, paper=to_a, kind="transfer"),
        )
        rows[label] = _attacked(build, b, transfers, paper["zoo_success"])
        off = "noise_off"
        transfers = (build.cell(b, a, column=off, kind="transfer"), Cell())
        rows[f"{label}, without PNI"] = _attacked(build, b, transfers, column=off)
    rows["fair twin (A)"] = _attacked(build, a, (Cell(), Cell()), "close to 80")
    ours, other = rows["PNI-W"], rows["fair twin (A)"]
    return [
        Table(
            title="Table 5: black-box attacks",
            columns=(
                "accuracy, A ⇒ B",
                "accuracy, B ⇒ A",
                "success of ZOO, as it claims (first seed)",
                "error on fresh draws (first seed)",
                "accuracy, white-box PGD-7",
                "the same, worst case",
                STRONG,
            ),
            rows=tuple(rows.items()),
            claims=(
                Claim(
                    text="Accuracy of PNI-W, examples of the fair twin against white "
                    "box (PGD-7)",
                    ours=ours[0],
                    other=ours[4],
                ),
                Claim(
                    text="Error under ZOO on fresh draws, the fair twin against PNI-W",
                    ours=other[3],
                    other=ours[3],
                    judge=False,
                ),
            ),
            note="A is the fair twin, B the network of the row. ZOO draws new noise at "
            "each query, as an attacker from outside meets it; its finite differences "
            "are then nearly all noise, so little success proves nothing. The last "
            "columns are white-box attacks on the same networks." + NOISE_OFF,
            worst_cases=(-1, -2),
        )
    ]


def _attacked(build, trainings, transfers, success=None, column=None):
    """Returns a row of Table 5, of which the first two cells are there."""
    first, name = trainings[:1], attack_name("ZOO", build.scale.zoo_iterations)
    zoo = {"kind": "zoo", "one_minus": True, "column": column}
    return (
        *transfers,
        build.cell(first, name, field="claimed_accuracy", paper=success, **zoo),
        build.cell(first, name, **zoo),
        build.cell(trainings, attack_name("PGD", 7), column=column),
        build.cell(trainings, "worst_case", column=column),
        build.strong_cell(trainings, column=column),
    )


def table7(build: Builder) -> list[Part]:
    pni, twin = build.training("pni_w")[0], build.training("adversarial")[0]
    return [
        Listing(
            title="Table 7: is the robustness of PNI-W real?",
            evaluation=build.scale.evaluation("checklist", pni, twin=twin),
            entry="checklist",
            read=_checklist,
            note="The paper's five items are symptoms of masked gradients; passing "
            "them is not a proof. What came later is below them. First seed.",
        )
    ]


def _checklist(checklist):
    rows = [["check", "paper", "ours", "numbers (%)", "meaning"]]
    for item in checklist["items"]:
        numbers = ", ".join(
            f"{name} {100 * value:.2f}" for name, value in item["numbers"].items()
        )
        paper = "PASS" if item["source"] == OF_PAPER else "-"
        rows.append([item["name"], paper, item["status"], numbers, item["meaning"]])
    sentences = []
    for name, is_papers in (("the paper", True), ("later work", False)):
        items = [
            i for i in checklist["items"] if (i["source"] == OF_PAPER) is is_papers
        ]
        missed = [
            f"{i['name']} ({i['status']})" for i in items if i["status"] != "PASS"
        ]
        passed = len(items) - len(missed)
        text = f"PNI-W passes {passed} of the {len(items)} checks of {name}"
        sentences.append(f"{text}; not: {', '.join(missed)}." if missed else f"{text}.")
    return rows, sentences


def table6(build: Builder) -> list[Part]:
    paper = PAPER_RESULTS["table6_competitors"]
    mean = f"mean of {build.scale.ensemble} draws"
    # The paper has its widest network here.
    wide = "resnet20_width4" if "resnet20_width4" in build.scale.networks else None
    name = f" ({wide})" if wide else " (paper: ResNet-20 4×)"
    other = build.row("adversarial", paper["pgd_adversarial_training"], network=wide)
    rows = {
        "no defence": build.row("vanilla"),
        f"adversarial training, fair twin{name}": other,
    }
    # On the CPU scale the fair twin is Madry's training anyway.
    if build.training("madry") != build.training("adversarial", wide):
        rows["adversarial training, Madry et al."] = build.row("madry")
    by_mean = {"kind": "ensemble", "column": "mean"}
    pixeldp = build.row("pixeldp", paper["dp_pixeldp"], **by_mean)
    rse = build.row("rse", paper["rse"], **by_mean)
    ours = build.row("pni_w", **by_mean)
    single = build.row("pni_w", paper["pni_w"], network=wide)
    off = build.row("pni_w", network=wide, column="noise_off")
    rows |= {
        f"PixelDP, {mean} (paper: Wide ResNet 28-10)": pixeldp,
        f"RSE, {mean} (paper: ResNeXt)": rse,
        f"PNI-W, {mean}": ours,
        f"PNI-W, single draws{name}": single,
        f"PNI-W, without PNI{name if wide else ''}": off,
    }
    certify = build.scale.evaluation("certify", build.training("pixeldp")[0])
    return [
        build.table(
            "Table 6: competitors",
            rows,
            [
                *compare("PNI-W against adversarial training", single, other),
                *compare("PNI-W against RSE, both by mean", ours, rse),
                *compare("PNI-W against PixelDP, both by mean", ours, pixeldp),
            ],
            f" {mean.capitalize()}: each prediction is the mean of the softmax over "
            "draws, and the attacks differentiate through it. The paper compares "
            "networks of different architectures.",
        ),
        Listing(
            title="Certified accuracy of PixelDP",
            evaluation=certify,
            entry="certificates",
            read=_certified,
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
    return rows, guarantees(certificates)


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
