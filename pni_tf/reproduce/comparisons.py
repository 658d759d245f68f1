"""Compares the numbers of two cells: is one larger by more than chance?"""

import csv
import dataclasses
import functools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import scipy.stats

from pni_tf import files
from pni_tf.reproduce.tables import Claim, Source
from pni_tf.reproduce.values import Value, paper_text, read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of two shares, in points of percent.

    Attributes:
        difference: The first one minus the second one.
        error: Its standard error.
        limit: What `difference / error` exceeds, either way, in about 5 % of cases if
            there is no difference.
        paired: Whether the verdicts were compared image by image.
        seeds: Number of training seeds.
    """

    difference: float
    error: float
    limit: float
    paired: bool
    seeds: int

    @property
    def verdict(self) -> str:
        if self.difference > self.limit * self.error:
            return "it holds"
        if self.difference < -self.limit * self.error:
            return "the opposite holds"
        return "no difference is shown"


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
        images = [_variance_of_share(value) for value in (ours, other)]
    else:
        images = [_variance_of_pairs(pairs)]
    parts = [*images, *_variance_of_chance(ours), *_variance_of_chance(other)]
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / df for variance, df in parts)
    return Comparison(
        difference=100 * (ours.mean - other.mean),
        error=100 * math.sqrt(total),
        limit=float(scipy.stats.t.ppf(0.975, freedom)),
        paired=pairs is not None,
        seeds=len(seeds),
    )


def sentences(root: Path, folder: Path, claims: Iterable[Claim]) -> list[str]:
    """Says which claims of the paper hold here, and last which ones are open."""
    found = {claim.text: _sentence(root, folder, claim) for claim in claims}
    missing = [text for text, sentence in found.items() if sentence is None]
    said = [f"{text}: {sentence}" for text, sentence in found.items() if sentence]
    return said + ([f"Not run: {'; '.join(missing)}."] if missing else [])


def _sentence(root, folder, claim):
    if not claim.judge:
        return _side_by_side(folder, claim)
    found = compare(root, folder, claim)
    if found is None:
        return None
    paper = _paper_difference(claim)
    notes = [f"standard error {found.error:.2f}"]
    notes += [] if found.paired else ["images not in pairs"]
    notes += [] if paper is None else [f"paper {paper:+.2f}"]
    trainings = " (one training each)" if found.seeds == 1 else ""
    return (
        f"{found.difference:+.2f} points ({'; '.join(notes)}), so "
        f"{found.verdict}{trainings}."
    )


def _side_by_side(folder, claim):
    ours, other = read(folder, claim.ours), read(folder, claim.other)
    if ours is None or other is None:
        return None
    papers = [paper_text(cell) for cell in (claim.ours, claim.other)]
    known = f" (paper: {papers[0]} against {papers[1]})" if all(papers) else ""
    return f"{ours.text()} against {other.text()}{known}."


def _paper_difference(claim):
    numbers = []
    for cell in (claim.ours, claim.other):
        paper = cell.paper[0] if isinstance(cell.paper, tuple) else cell.paper
        if not isinstance(paper, float | int):
            return None
        numbers.append(paper)
    return numbers[0] - numbers[1]


def _of_seeds(value, seeds):
    kept = tuple(seed for seed in value.seeds if seed.seed in seeds)
    return dataclasses.replace(value, seeds=kept)


def _variance_of_share(value: Value) -> tuple[float, int]:
    """Returns variance and degrees of freedom of a share of images.

    The seeds have the images in common, so more of them do not make it smaller. As if
    one more image were right and one wrong (Agresti and Caffo, 2000).
    """
    count = value.images + 2
    share = (value.images * value.mean + 1) / count
    return share * (1 - share) / count, count - 1


def _variance_of_pairs(differences: np.ndarray) -> tuple[float, int]:
    """Returns variance and degrees of freedom of the mean of differences by image.

    As if one more image had gone either way: where few images differ, their own spread
    says too little of how many might have (Agresti and Min, 2005, add a half to each
    cell of the table of pairs).
    """
    count = differences.size
    squares = np.sum((differences - differences.mean()) ** 2) + 1
    return float(squares) / count**2, count - 1


def _variance_of_chance(value: Value) -> list[tuple[float, int]]:
    """Returns the same of the training seeds; of a single one, of the draws."""
    count = len(value.seeds)
    if count > 1:
        return [(value.std_of_seeds**2 / count, count - 1)]
    (seed,) = value.seeds
    return [] if seed.std is None else [(seed.std**2 / seed.draws, seed.draws - 1)]


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
    """Returns the share of draws that are right by image."""
    path = root / source.evaluation.path / "per_example.csv"
    _, entry = source.entry(files.read_json(folder / source.evaluation.result))
    if source.field != "accuracy_mean" or not path.exists():
        return None
    shares = _read(path, path.stat().st_mtime_ns).get(
        (source.column, entry["scenario"]), np.zeros(0)
    )
    mean = entry["accuracy_mean"]
    if shares.size != entry["images"] or abs(shares.mean() - mean) > 1e-6:
        return None  # of another evaluation than the number
    return shares


@functools.lru_cache(maxsize=64)  # a table compares one network with many others
def _read(path: Path, changed: int) -> dict[tuple[str, str], np.ndarray]:
    """Returns the share of right draws on each image by network and scenario."""
    shares = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            share = int(row["correct_draws"]) / int(row["draws"])
            shares.setdefault((row["network"], row["scenario"]), []).append(share)
    return {key: np.asarray(found) for key, found in shares.items()}
