"""Compares the numbers of two cells: is one larger by more than chance?"""

import dataclasses
import math
import statistics

import numpy as np

from pni_tf.evaluation import significance
from pni_tf.reproduce.cells import Claim, Table
from pni_tf.reproduce.results import Results, Value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of two shares, in points of percent."""

    difference: float  # The first one minus the second one.
    error: float  # Its standard error.
    # What `difference / error` exceeds, either way, in about 5 % of cases if there is
    # no difference.
    limit: float
    paired: bool  # Whether the verdicts were compared image by image.
    seeds: list[int]  # The training seeds that both have.

    @property
    def interval(self) -> list[float]:
        """The two ends of the 95 % confidence interval of the difference."""
        half = self.limit * self.error
        return [self.difference - half, self.difference + half]

    @property
    def verdict(self) -> str:
        """What it shows: of one training each, nothing about other trainings."""
        low, high = self.interval
        if low <= 0 <= high:
            return "no difference is shown"
        if len(self.seeds) == 1:
            return "these two differ, which one training each does not show of others"
        return "it holds" if low > 0 else "the opposite holds"


def compare(results: Results, claim: Claim) -> Comparison | None:
    """Compares two cells on the training seeds that both have; None if there is none.

    What differs by chance are the images, the training seeds, and the draws of the
    noise. Both networks saw the same images, so these are compared in pairs. Student's
    t takes its degrees of freedom after Welch and Satterthwaite.
    """
    values = [results.value(cell) for cell in (claim.ours, claim.other)]
    seeds = set.intersection(*({seed.seed for seed in v.seeds} for v in values))
    if not seeds:
        return None
    ours, other = (
        dataclasses.replace(v, seeds=tuple(s for s in v.seeds if s.seed in seeds))
        for v in values
    )
    pairs = _differences(results, claim, seeds)
    if pairs is None:
        parts = [significance.of_share(v.mean, v.images) for v in (ours, other)]
    else:
        parts = [significance.of_pairs(pairs)]
    parts += _parts_of_trainings(ours, other)
    error, limit = significance.error_and_limit(parts)
    return Comparison(
        difference=100 * (ours.mean - other.mean),
        error=100 * error,
        limit=limit,
        paired=pairs is not None,
        seeds=sorted(seeds),
    )


def _parts_of_trainings(ours: Value, other: Value) -> list[significance.Part]:
    """Returns the parts of the training seeds; of a single one, of the draws."""
    count = len(ours.seeds)
    if count == 1:
        drawn = [seed for value in (ours, other) for seed in value.seeds if seed.std]
        return [significance.of_values(seed.std**2, seed.draws) for seed in drawn]
    trainings = [
        [source.evaluation.training for source in value.cell.sources]
        for value in (ours, other)
    ]
    if trainings[0] == trainings[1]:  # It is one network, twice.
        pairs = zip(ours.seeds, other.seeds, strict=True)
        variance = statistics.variance(a.mean - b.mean for a, b in pairs)
        return [significance.of_values(variance, count)]
    return [significance.of_values(v.std_of_seeds**2, count) for v in (ours, other)]


def _differences(results, claim, seeds):
    """Returns by image how much more often the first network is right; None if unknown.

    Mean over the training seeds. Unknown are numbers on different images, and
    those whose verdicts on each image are not there.
    """
    sources = [*claim.ours.sources, *claim.other.sources]
    shares = [results.shares(s) for s in sources if s.evaluation.seed in seeds]
    if any(found is None for found in shares) or len({*map(len, shares)}) > 1:
        return None
    ours, other = np.split(np.stack(shares), 2)
    return ours.mean(axis=0) - other.mean(axis=0)


def about(results: Results, table: Table) -> dict[str, list]:
    """Returns what there is to say of a table, as `report.json` has it.

    These are `"sentences"` (what was not run comes last), the numbers of each
    `"comparisons"`, and what the other attacks leave `"on_the_same_images"` as a
    strong suite that saw fewer.
    """
    said, content, missing = [], [], []
    compared, shared = _before(results)
    for claim in table.claims:
        numbers = _numbers(results, claim)
        if numbers is None:
            missing.append(claim.text)
            continue
        cells = {"ours": _place(table, claim.ours), "other": _place(table, claim.other)}
        if numbers.get("paired") is False:
            values = (results.value(cell) for cell in (claim.ours, claim.other))
            both = [vars(seed) for value in values for seed in value.seeds]
            earlier = compared.get(_places(both, numbers), numbers)
            if math.isclose(earlier["difference"], numbers["difference"], abs_tol=1e-9):
                numbers = {name: earlier[name] for name in numbers}
        sentence = f"{claim.text}: {_words(results, claim, numbers)}."
        said.append(sentence)
        content.append({"sentence": sentence, **cells, **numbers})
    fewer = _on_the_same_images(results, table, shared)
    for images in dict.fromkeys(found["images"] for found in fewer):
        pairs = [
            f"{found['label']} {100 * found['strong']:.2f} against "
            f"{100 * found['others']:.2f}"
            for found in fewer
            if found["images"] == images
        ]
        said.append(
            "Strong suite against the worst case of the other attacks, first seed, on "
            f"the same {images:,} images: {'; '.join(pairs)}."
        )
    if missing:
        said.append(f"Not run: {'; '.join(missing)}.")
    return {"sentences": said, "comparisons": content, "on_the_same_images": fewer}


def _before(results):
    """Returns what the report said in pairs, and on the same images.

    By where the numbers are in the files, since titles and labels change. Verdicts on
    each image are large and no part of a report: what they showed there is still so.
    """
    compared, shared = {}, {}
    for part in (part for part in results.before if "comparisons" in part):
        cells = {
            row["label"]: dict(zip(part["columns"], row["cells"], strict=True))
            for row in part["rows"]
        }
        for found in part["comparisons"]:
            (ours, one), (other, two) = found["ours"], found["other"]
            both = cells[ours][one]["seeds"] + cells[other][two]["seeds"]
            compared |= {_places(both, found): found} if found.get("paired") else {}
        for found in part.get("on_the_same_images", ()):
            of_row = filter(None, cells[found["label"]].values())
            shared |= {_places(cell.get("seeds", [])): found for cell in of_row}
    return compared, shared


def _places(seeds, numbers=None):
    """Returns where in the files the numbers of training seeds are that count."""
    chosen = (numbers or {}).get("seeds", [seed["seed"] for seed in seeds])
    return tuple((s["file"], s["pointer"]) for s in seeds if s["seed"] in chosen)


def _numbers(results, claim):
    """Returns what is known of the two cells; None if one was not run."""
    if not claim.judge:
        there = [results.value(cell) for cell in (claim.ours, claim.other)]
        return {} if all(there) else None
    found = compare(results, claim)
    names = ("difference", "interval", "paired", "seeds", "verdict")
    return found and {name: getattr(found, name) for name in names}


def _words(results, claim, numbers):
    cells = (claim.ours, claim.other)
    if not claim.judge:
        ours, other = (results.value(cell).text() for cell in cells)
        papers = [cell.paper_text for cell in cells]
        known = f" (paper: {papers[0]} against {papers[1]})" if all(papers) else ""
        return f"{ours} against {other}{known}"
    means = [c.paper[0] if isinstance(c.paper, tuple) else c.paper for c in cells]
    low, high = numbers["interval"]
    notes = [f"95 % interval {low:+.2f} to {high:+.2f}"]
    notes += [] if numbers["paired"] else ["images not in pairs"]
    if all(isinstance(mean, float | int) for mean in means):
        notes.append(f"paper {means[0] - means[1]:+.2f}")
    found = f"{numbers['difference']:+.2f} points ({'; '.join(notes)})"
    return f"{found}, so {numbers['verdict']}"


def _place(table, cell):
    """Returns label and column of a cell."""
    return next(
        [label, column]
        for label, cells in table.rows
        for column, found in zip(table.columns, cells, strict=True)
        if found is cell
    )


def _on_the_same_images(results, table, before):
    """Returns the strong suite's accuracy on few images, beside the other attacks'.

    Else it could look weaker than they, on images that are easier.
    """
    found = []
    for label, cells in table.rows if table.worst_cases else ():
        strong, weaker = (results.value(cells[i]) for i in table.worst_cases)
        if not strong or not weaker or strong.images == weaker.images:
            continue
        shares = results.shares(weaker.cell.sources[0])
        numbers = {"images": strong.images, "strong": strong.mean}
        earlier = before.get(_places([*map(vars, strong.seeds)]), {})
        if shares is not None:
            numbers["others"] = float(np.mean(shares[: strong.images]))
        elif earlier.items() >= numbers.items():
            numbers["others"] = earlier["others"]
        if "others" in numbers:
            found.append({"label": label, **numbers})
    return found
