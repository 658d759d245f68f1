"""Compares the numbers of two cells: is one larger by more than chance?"""

import dataclasses
import functools
import math
import statistics
from pathlib import Path

import numpy as np

from pni_tf import files
from pni_tf.evaluation import significance
from pni_tf.evaluation.record import read_shares
from pni_tf.reproduce.builder import STRONG
from pni_tf.reproduce.cells import (
    Claim,
    Source,
    Table,
    entry_of,
    paper_text,
    read,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of two shares, in points of percent.

    Attributes:
        difference: The first one minus the second one.
        error: Its standard error.
        limit: What `difference / error` exceeds, either way, in about 5 % of cases if
            there is no difference.
        paired: Whether the verdicts were compared image by image.
        seeds: The training seeds that both have.
    """

    difference: float
    error: float
    limit: float
    paired: bool
    seeds: tuple[int, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the difference."""
        half = self.limit * self.error
        return self.difference - half, self.difference + half

    @property
    def verdict(self) -> str:
        """What it shows: of one training each, nothing about other trainings."""
        low, high = self.interval
        if low <= 0 <= high:
            return "no difference is shown"
        if len(self.seeds) == 1:
            return "these two differ, which one training each does not show of others"
        return "it holds" if low > 0 else "the opposite holds"


def compare(root: Path, folder: Path, claim: Claim) -> Comparison | None:
    """Compares two cells on the training seeds that both have; None if there is none.

    What differs by chance are the images, the training seeds, and the draws of the
    noise. Both networks saw the same images, so these are compared in pairs. Student's
    t takes its degrees of freedom after Welch and Satterthwaite.

    Args:
        root: Folder of the reproduction, with the verdicts on each image.
        folder: Folder of the report, with the results that count.
        claim: What to compare.
    """
    values = [read(folder, cell) for cell in (claim.ours, claim.other)]
    if None in values:
        return None
    seeds = set.intersection(*({seed.seed for seed in v.seeds} for v in values))
    if not seeds:
        return None
    ours, other = (_of_seeds(value, seeds) for value in values)
    pairs = _differences(root, folder, claim, seeds)
    if pairs is None:
        images = [significance.of_share(v.mean, v.images) for v in (ours, other)]
    else:
        images = [significance.of_pairs(pairs)]
    error, limit = significance.error_and_limit(
        [*images, *_parts_of_trainings(claim, ours, other)]
    )
    return Comparison(
        difference=100 * (ours.mean - other.mean),
        error=100 * error,
        limit=limit,
        paired=pairs is not None,
        seeds=tuple(sorted(seeds)),
    )


def accuracy_on_first(root: Path, folder: Path, source: Source, images: int):
    """Returns the accuracy on the first images only; None if it is not known."""
    shares = _shares(root, folder, source)
    return None if shares is None else float(np.mean(shares[:images]))


def _of_seeds(value, seeds):
    kept = tuple(seed for seed in value.seeds if seed.seed in seeds)
    return dataclasses.replace(value, seeds=kept)


def _parts_of_trainings(claim, ours, other) -> list[significance.Part]:
    """Returns the parts of the training seeds; of a single one, of the draws."""
    count = len(ours.seeds)
    if count == 1:
        drawn = [seed for value in (ours, other) for seed in value.seeds if seed.std]
        return [significance.of_values(seed.std**2, seed.draws) for seed in drawn]
    if _trainings(claim.ours) == _trainings(claim.other):  # one network, twice
        means = [{seed.seed: seed.mean for seed in v.seeds} for v in (ours, other)]
        differences = [means[0][seed] - means[1][seed] for seed in means[0]]
        return [significance.of_values(statistics.variance(differences), count)]
    return [significance.of_values(v.std_of_seeds**2, count) for v in (ours, other)]


def _trainings(cell):
    return [source.evaluation.training for source in cell.sources]


def _differences(root, folder, claim, seeds):
    """Returns by image how much more often the first network is right; None if unknown.

    Mean over the training seeds. Unknown are numbers on different images, and
    those whose verdicts on each image are not there.
    """
    found = []
    for cell, sign in ((claim.ours, 1), (claim.other, -1)):
        for source in cell.sources:
            if source.evaluation.training.seed in seeds:
                shares = _shares(root, folder, source)
                if shares is None or (found and shares.shape != found[0].shape):
                    return None
                found.append(sign * shares)
    return sum(found) / len(seeds)


def _shares(root, folder, source: Source) -> np.ndarray | None:
    """Returns the share of draws that are right by image; None if it is not known."""
    path = root / source.evaluation.path / "per_example.csv"
    found = entry_of(folder, source)
    if found is None or source.field != "accuracy_mean" or not path.exists():
        return None
    _, entry = found
    shares = _read(path, path.stat().st_mtime_ns).get(
        (source.column, entry["scenario"]), np.zeros(0)
    )
    mean = entry["accuracy_mean"]
    if shares.size != entry["images"] or abs(shares.mean() - mean) > 1e-6:
        return None  # of another evaluation than the number
    return shares


@functools.lru_cache(maxsize=64)  # a table compares one network with many others
def _read(path: Path, changed: int) -> dict[tuple[str, str], np.ndarray]:
    return read_shares(path)


def about(root: Path, folder: Path, table: Table) -> tuple[list[str], list[dict]]:
    """Returns sentences, and each comparison as `report.json` has it.

    Args:
        root: Folder of the reproduction, with the verdicts on each image.
        folder: Folder of the report, with the results that count, and with what it
            said before.
        table: The table; what of it was not run comes last.
    """
    said, content, missing = [], [], []
    before = _said_before(folder, table)
    for claim in table.claims:
        numbers = _numbers(root, folder, claim)
        if numbers is None:
            missing.append(claim.text)
            continue
        cells = {"ours": _place(table, claim.ours), "other": _place(table, claim.other)}
        earlier = before.get((*cells["ours"], *cells["other"]), {})
        if _stands(earlier, numbers):
            numbers = {name: earlier[name] for name in numbers}
        sentence = f"{claim.text}: {_words(folder, claim, numbers)}."
        said.append(sentence)
        content.append({"sentence": sentence, **cells, **numbers})
    said += _on_first_images(root, folder, table)
    if missing:
        said.append(f"Not run: {'; '.join(missing)}.")
    return said, content


def _numbers(root, folder, claim):
    """Returns what is known of the two cells; None if one was not run."""
    if not claim.judge:
        there = [read(folder, cell) for cell in (claim.ours, claim.other)]
        return None if None in there else {}
    found = compare(root, folder, claim)
    if found is None:
        return None
    return {
        "difference": found.difference,
        "interval": list(found.interval),
        "paired": found.paired,
        "seeds": list(found.seeds),
        "verdict": found.verdict,
    }


def _said_before(folder, table):
    """Returns the comparisons of the report as it is, by label and column of both."""
    content = files.read_json(folder / "report.json") or {}
    return {
        (*comparison["ours"], *comparison["other"]): comparison
        for part in content.get("parts", [])
        if part["title"] == table.title
        for comparison in part.get("comparisons", [])
    }


def _stands(earlier, numbers):
    """Returns whether an earlier comparison of the same numbers knew more.

    The verdicts on each image are large and not part of a report: where only that was
    kept, what they showed while they were there is still so.
    """
    return bool(
        earlier.get("paired")
        and numbers.get("paired") is False
        and earlier["seeds"] == numbers["seeds"]
        and math.isclose(earlier["difference"], numbers["difference"], abs_tol=1e-9)
    )


def _words(folder, claim, numbers):
    if not claim.judge:
        ours, other = read(folder, claim.ours), read(folder, claim.other)
        papers = [paper_text(cell) for cell in (claim.ours, claim.other)]
        known = f" (paper: {papers[0]} against {papers[1]})" if all(papers) else ""
        return f"{ours.text()} against {other.text()}{known}"
    paper = _paper_difference(claim)
    low, high = numbers["interval"]
    notes = [f"95 % interval {low:+.2f} to {high:+.2f}"]
    notes += [] if numbers["paired"] else ["images not in pairs"]
    notes += [] if paper is None else [f"paper {paper:+.2f}"]
    found = f"{numbers['difference']:+.2f} points ({'; '.join(notes)})"
    return f"{found}, so {numbers['verdict']}"


def _paper_difference(claim: Claim) -> float | None:
    numbers = []
    for cell in (claim.ours, claim.other):
        paper = cell.paper[0] if isinstance(cell.paper, tuple) else cell.paper
        if not isinstance(paper, float | int):
            return None
        numbers.append(paper)
    return numbers[0] - numbers[1]


def _place(table, cell):
    """Returns label and column of a cell."""
    for label, cells in table.rows:
        for column, found in zip(table.columns, cells, strict=True):
            if found is cell:
                return [label, column]
    raise ValueError(f"No cell of {table.title!r}: {cell}")


def _on_first_images(root, folder, table):
    """Says what the strong suite takes on its few images, beside the other attacks.

    Else it could look weaker than they, on images that are easier.
    """
    if STRONG not in table.columns:
        return []
    place, pairs = table.columns.index(STRONG), {}
    for label, cells in table.rows:
        strong, weaker = read(folder, cells[place]), read(folder, cells[place - 1])
        if strong is None or weaker is None or strong.images == weaker.images:
            continue
        source = cells[place - 1].sources[0]
        share = accuracy_on_first(root, folder, source, strong.images)
        if share is not None:
            numbers = f"{100 * strong.mean:.2f} against {100 * share:.2f}"
            pairs.setdefault(strong.images, []).append(f"{label} {numbers}")
    return [
        f"Strong suite against the worst case of the other attacks, first seed, on the "
        f"same {images:,} images: {'; '.join(found)}."
        for images, found in pairs.items()
    ]
