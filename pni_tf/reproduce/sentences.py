"""Says in plain words what the numbers of a table show."""

import math
from pathlib import Path

from pni_tf import files
from pni_tf.reproduce.builder import STRONG
from pni_tf.reproduce.comparisons import accuracy_on_first, compare
from pni_tf.reproduce.tables import Claim, Table
from pni_tf.reproduce.values import paper_text, read


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
