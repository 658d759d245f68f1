"""Follows every number of a report to the file that it is from."""

import collections
import csv
import json
import re

import numpy as np
import pytest


def resolve(content, pointer):
    """Returns what a JSON pointer points to."""
    for key in pointer.split("/")[1:]:
        content = content[int(key) if isinstance(content, list) else key]
    return content


def walk(folder):
    """Checks every number of a report against the files; returns how many there are."""
    content = json.loads((folder / "report.json").read_text())
    sections = re.split(r"^## ", (folder / "report.md").read_text(), flags=re.M)[1:]
    counts = collections.Counter()
    for part, text in zip(content["parts"], sections, strict=True):
        assert text.startswith(f"{part['title']}\n")
        assert all(f"- {sentence}" in text for sentence in part["sentences"])
        if "columns" in part:
            counts["cells"] += walk_table(folder, part, text)
        elif "curves" in part:
            for label, line in part["curves"].items():
                file = json.loads((folder / part["files"][label]).read_text())
                points = resolve(file, part["pointers"][label])
                for (x, y), (place, entry) in zip(
                    line.items(), points.items(), strict=True
                ):
                    assert float(x) == pytest.approx(float(place), rel=1e-4)
                    assert y == entry["accuracy_mean"]
                    assert f"{100 * y:.2f}" in text
                    counts["points"] += 1
        elif "pointer" in part:
            file = json.loads((folder / part["file"]).read_text())
            assert resolve(file, part["pointer"])
            assert all(" | ".join(row) in text for row in part["rows"])
            counts["listings"] += 1
        elif "alphas" in part:
            for layer, series in part["alphas"].items():
                assert series == alphas(folder / part["file"], layer)
                counts["series"] += 1
        else:
            for row in part["rows"]:
                for label, found in row["alphas"].items():
                    files = part["files"][label]
                    last = [alphas(folder / f, row["layer"])[-1] for f in files]
                    assert found == last
                    assert f"{sum(last) / len(last):.3f}" in text
                    counts["alphas"] += len(last)
    return counts


def alphas(path, layer):
    with path.open(newline="") as file:
        return [float(row[f"alpha/{layer}"]) for row in csv.DictReader(file)]


def walk_table(folder, part, text):
    count = 0
    for row in part["rows"]:
        (line,) = {x for x in text.splitlines() if x.startswith(f"| {row['label']} | ")}
        shown = line.removesuffix(" |").split(" | ")[1:]
        for cell, shown_cell in zip(row["cells"], shown, strict=True):
            if not cell or cell["value"] is None:
                continue
            found, spreads = [], []
            for seed in cell["seeds"]:
                numbers = json.loads((folder / seed["file"]).read_text())
                number = resolve(numbers, seed["pointer"])
                found.append(1 - number if seed["one_minus"] else number)
                assert seed["mean"] == found[-1]
                entry = resolve(numbers, seed["pointer"].rpartition("/")[0])
                assert seed["images"] == entry["images"]
                if seed["pointer"].endswith("/accuracy_mean") and entry["draws"] > 1:
                    spreads.append(entry["accuracy_std"])
            mean = sum(found) / len(found)
            assert cell["value"] == pytest.approx(mean, abs=1e-12)
            assert shown_cell.startswith((f"{100 * mean:.2f}", f"{mean:.3g}"))
            if spreads:
                squares = [spread**2 for spread in spreads]
                spread = (sum(squares) / len(squares)) ** 0.5
                assert shown_cell.startswith(f"{100 * mean:.2f} ± {100 * spread:.2f}")
            if len(found) > 1:
                spread = np.std(found, ddof=1)
                ends = (f"(± {100 * spread:.2f})", f"(± {spread:.3g})")
                assert any(end in shown_cell for end in ends)
            count += 1
    return count
