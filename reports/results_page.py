"""Writes docs/results.md: what the kept reports say of the paper, table by table."""

import json
import textwrap
from pathlib import Path

# Columns of a report by the headings of the page.
_ATTACKS = {
    "clean": "clean",
    "PGD-7, as in the paper": "PGD-7",
    "PGD-20, expectation over 10 draws": "PGD-20 EOT-10",
    "worst case": "worst case",
}
_STRONG = {"strong suite": "strong suite, worst case (first seed)"}
_MNIST = {
    "clean": "clean",
    "PGD-40": "PGD-40",
    "PGD-100, expectation over 10 draws": "PGD-100 EOT-10",
    "worst case": "worst case",
}
_PAPER = "the paper's PGD-7 on CIFAR-10"


def _found(entries, what):
    """Returns entries that must be there: else the page is about older words."""
    if not entries:
        raise LookupError(f"the report has no {what}")
    return entries


class Kept:
    """A report in reports/, as its `report.json` has it."""

    def __init__(self, folder: Path):
        content = json.loads((folder / "report.json").read_text("utf-8"))
        self.note = (folder / "note.txt").read_text("utf-8").strip()
        self._parts = content["parts"]
        self.done = [job for job in content["jobs"] if job["done"]]
        self.hours = sum(job["seconds"] for job in self.done) / 3600
        self.machines = " and ".join(sorted({job["machine"] for job in self.done}))

    def part(self, title: str) -> dict:
        parts = [part for part in self._parts if part["title"] == title]
        return _found(parts, f"part {title!r}")[0]

    def cell(self, title: str, label: str, column: str) -> dict:
        part = self.part(title)
        rows = [row["cells"] for row in part["rows"] if row["label"] == label]
        (cells,) = _found(rows, f"row {label!r} in {title!r}")
        pairs = zip(part["columns"], cells, strict=True)
        found = [cell for heading, cell in pairs if heading == column]
        return _found(found, f"column {column!r} in {title!r}")[0]

    def percent(self, title: str, label: str, column: str) -> str:
        """Returns a number with its deviations, and the images if there are few."""
        cell = self.cell(title, label, column)
        text = f"{100 * cell['value']:.2f}"
        if cell["std_of_draws"] is not None:
            text += f" ± {100 * cell['std_of_draws']:.2f}"
        if cell["std_of_seeds"] is not None:
            text += f" (± {100 * cell['std_of_seeds']:.2f})"
        return text

    def table(self, title: str, columns: dict, labels: dict, *, paper=False) -> str:
        """Returns some rows and columns of a table, by the names that they get."""
        header = ["accuracy (%)", *columns, *([_PAPER] if paper else [])]
        lines = [header, ["---"] * len(header)]
        for name, label in labels.items():
            line = [name, *(self.percent(title, label, c) for c in columns.values())]
            if paper:
                numbers = self.cell(title, label, "PGD-7")["paper"]
                numbers = numbers if isinstance(numbers, list) else [numbers]
                line.append(" ± ".join(f"{number:g}" for number in numbers))
            lines.append(line)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def sentences(self, title: str, rows: tuple[str, ...] | None = None) -> str:
        """Returns what the report says below a table, of two rows or of all."""
        if rows is None:
            found = _found(self.part(title).get("sentences"), f"sentences on {title!r}")
        else:
            found = [found["sentence"] for found in self.compared(title, rows)]
        return "\n".join(f"- {sentence}" for sentence in found)

    def compared(self, title: str, rows: tuple[str | None, str]) -> list[dict]:
        """Returns the comparisons of two rows; None is any."""
        found = [
            comparison
            for comparison in self.part(title)["comparisons"]
            if rows[0] in (comparison["ours"][0], None)
            and rows[1] == comparison["other"][0]
        ]
        return _found(found, f"comparison of {rows} in {title!r}")

    def no_gain(self, title: str, other: str) -> str:
        """Says whether any row of a table is above another one."""
        found = self.compared(title, (None, other))
        shown = {c["ours"][0] for c in found if c["interval"][0] > 0}
        count = len({c["ours"][0] for c in found})
        if not shown:
            return (
                f"None of the {count} places for the noise beats adversarial training "
                "without noise by more than chance, under any of the attacks compared."
            )
        return f"More than chance above adversarial training: {', '.join(shown)}."

    def where_differ(self, title: str, label: str, other: str) -> str:
        """Says under which attacks two networks differ by more than chance."""
        found = {True: [], False: []}
        for comparison in self.compared(title, (label, other)):
            low, high = comparison["interval"]
            found[not low <= 0 <= high].append(comparison["ours"][1])
        return (
            f"So they differ under {', '.join(found[True]) or 'none of these'}, and "
            f"nothing is shown under {', '.join(found[False]) or 'the others'}. PGD-7 "
            "takes one draw a step, as the paper attacks: noise can weaken it without "
            "any robustness, which an attack that averages over draws takes away."
        )

    def same_images(self, title: str, label: str) -> dict:
        entries = self.part(title)["on_the_same_images"]
        found = [entry for entry in entries if entry["label"] == label]
        return _found(found, f"row {label!r} on the same images in {title!r}")[0]


def text(reports: Path) -> str:
    """Returns the page from the folder of the reports."""
    digits, cpu = Kept(reports / "digits"), Kept(reports / "cpu")
    parts = [_HEAD, *_digits(digits), *_cifar(cpu), *_mnist(cpu)]
    paragraphs = "\n\n".join(parts).split("\n\n")
    return "\n\n".join(map(_wrapped, paragraphs)) + "\n"


def _wrapped(paragraph):
    """Returns a paragraph in short lines; tables, lists and code stay as they are."""
    if paragraph.startswith(("|", "-", "#", "```")):
        return paragraph
    return textwrap.fill(paragraph, 88, break_long_words=False, break_on_hyphens=False)


_HEAD = """\
# The paper, table by table

This page is written by `python reports/keep.py` from the reports of `bin/reproduce` in
[reports/](../reports); do not edit it. Change the words in `reports/results_page.py`.

```sh
bin/reproduce --dry_run                    # what it would run on digits
bin/reproduce --study=table2,figure2       # stop it when you like; rerun to continue
bin/reproduce --study=table6 --scale=cpu   # CIFAR-10 with a short recipe
bin/reproduce --scale=paper --dry_run      # the full recipes, for GPUs
```

The command trains and evaluates what the tables and figures need, reuses what is
there, and writes `reproduction/SCALE/report/`: our numbers beside the paper's, what
stricter attacks leave of them, and for each the settings, the cost and the commands.
A run that fails is reported and the rest goes on; the same command goes on after an
interruption.

How to read a number: mean ± standard deviation over single draws of the noise (±
standard deviation over training seeds). The worst case takes for each image the
attack that does best. A comparison is made image by image, with its 95 % confidence
interval. Of the `paper` scale nothing was run yet, so the paper's numbers stand here
as the paper's. Trainings differ by about 2 points between machines."""


def _digits(kept):
    table2, twin = "Table 2: where the noise is", "fair twin (no noise)"
    places = ("PNI-I", "PNI-A-a", "PNI-A-b", "PNI-W+A-a", "PNI-W+A-b")
    own = [twin, "PNI-W, with PNI", "PNI-W, without PNI"]
    labels = {label: label for label in [*own, *(f"{p}, with PNI" for p in places)]}
    table6 = "Table 6: competitors"
    competitors = {
        "no defence": "no defence",
        "adversarial training, fair twin": "adversarial training, fair twin (paper: "
        "ResNet-20 4×)",
        "adversarial training, Madry et al.": "adversarial training, Madry et al.",
        "PixelDP, mean of 5 draws": "PixelDP, mean of 5 draws (paper: Wide ResNet "
        "28-10)",
        "RSE, mean of 5 draws": "RSE, mean of 5 draws (paper: ResNeXt)",
        "PNI-W, mean of 5 draws": "PNI-W, mean of 5 draws",
        "PNI-W, single draws": "PNI-W, single draws (paper: ResNet-20 4×)",
    }
    same = kept.same_images(table6, competitors["adversarial training, fair twin"])
    yield f"""\
## Digits

[The report on digits](../reports/digits/report.md) has all of it: seven tables and
three figures, all six places for the noise, two training seeds (one of deeper and
wider networks). It took {len(kept.done)} trainings and evaluations, {kept.hours:.1f}
hours together, by {kept.machines} (`bin/reproduce --scale=digits`). {kept.note}

The data are handwritten digits of 8×8 pixels (scikit-learn): 1,437 images for
training and 360 for the test, epsilon 0.15 (Linf), resnet8. From Table 2, the paper's
own attack and what is left of the gain under others:"""
    yield kept.table(table2, _ATTACKS, labels, paper=True)
    yield f"""\
{kept.no_gain(table2, twin)}
Digits are easy, so this says nothing of CIFAR-10."""
    yield kept.sentences(table2, ("PNI-W, with PNI", twin))
    yield kept.sentences(table2, ("PNI-W, with PNI", "PNI-W, without PNI"))
    yield f"""\
From Table 6, the competitors. Random ones predict by the mean of 5 draws and are
attacked through it. The last column is of one training and its first {same["images"]}
images, which are easier: on these the fair twin keeps {100 * same["others"]:.2f} in
the worst case of the other attacks."""
    yield kept.table(table6, _ATTACKS | _STRONG, competitors)
    yield """\
What only noise can give is a certificate, and for that it must be on the images or
the first features; noise on weights certifies nothing. Of PixelDP (L2 radii):"""
    yield kept.sentences("Certified accuracy of PixelDP")


def _cifar(kept):
    table1 = "Table 1, top: noise coefficient of each layer after training"
    table2, table6 = "Table 2: where the noise is", "Table 6: competitors"
    twin, ours = "fair twin (no noise)", "PNI-W, with PNI"
    labels = {x: x for x in ("no defence", twin, ours, "PNI-W, without PNI")}
    same = kept.same_images(table2, twin)
    crafted = kept.percent(table2, ours, "noise-off-crafted")
    mean = kept.cell(table6, "PNI-W, mean of 5 draws", "worst case")
    by_mean = kept.percent(table6, "PNI-W, mean of 5 draws", "worst case")
    yield f"""\
## CIFAR-10

[The report on CIFAR-10](../reports/cpu/report.md) is of a recipe that 2 CPU cores can
bear: 20 epochs of FGSM from a random start. {kept.note}

It has ResNet-20 without defence, the fair twin and PNI-W, one training each (seed 0),
on all 10,000 test images, with the strong suite on the first {same["images"]} of
them, by {kept.machines}:

```sh
bin/reproduce --scale=cpu --study=table2 --networks=vanilla,adversarial,pni_w
```

From its Table 2:"""
    yield kept.table(table2, _ATTACKS | _STRONG, labels, paper=True)
    yield kept.sentences(table2, (ours, twin))
    yield kept.sentences(table2, (ours, "PNI-W, without PNI"))
    yield f"""\
{kept.where_differ(table2, ours, twin)}
One training each does not show what others would do. On the images of the strong
suite the twin keeps {100 * same["others"]:.2f} in the worst case of the other
attacks. Examples made without the noise leave {crafted} with it. By the mean of 5
draws, as the competitors predict, PNI-W keeps {by_mean} of the first
{mean["seeds"][0]["images"]:,} images in the worst case.

How large the noise is (Table 1): with adversarial training alpha stays large in the
front layers, as in the paper."""
    yield kept.sentences(table1)
    yield """\
Not run on this scale: other places for the noise, competitors, PNI without noise in
the attack. The networks are kept with the report, for anyone to attack:

```sh
bin/evaluate reports/cpu/trainings/pni_w_seed0/model.keras \\
  --dataset=cifar10 --epsilons=8/255
```"""


def _mnist(kept):
    title, ours, twin = (
        *("MNIST: the same networks", "PNI-W, with PNI"),
        "fair twin (no noise)",
    )
    labels = {label: label for label in ("no defence", twin, ours)}
    images = kept.cell(title, ours, "clean")["seeds"][0]["images"]
    strong = kept.same_images(title, ours)["images"]
    yield f"""\
## MNIST

`bin/reproduce --scale=cpu --study=mnist`: ResNet-8, epsilon 0.3, 6 epochs of PGD,
{images:,} test images, the strong suite on {strong}, seed 0."""
    yield kept.table(title, _MNIST | _STRONG, labels)
    yield kept.sentences(title, None)
    yield """\
A single step in training, as on CIFAR-10, fails on MNIST:

```sh
bin/train --flagfile=configs/cpu.cfg --pni=w --flagfile=configs/cpu_mnist.cfg \\
  --attack_steps=1 --attack_step_size=0.375 --epochs=8 --seed=0
```

On 2 CPU cores, in its 6th epoch PNI-W learned to tell such images from all others,
and ended with 11.30 % on clean ones. Its fair twin (`--pni=none`) only hid its
gradients: 87.70 % under PGD-100, 64.50 % under the strong suite. (Measured by hand;
no report holds it.)"""
