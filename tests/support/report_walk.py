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
        if "sentences" not in part:  # Nothing was found.
            assert re.search(r"^(Not run|The evaluation found none)\.$", text, re.M)
            continue
        assert all(f"- {sentence}" in text for sentence in part["sentences"])
        if "columns" in part:
            counts["cells"] += walk_table(folder, part, text)
            counts["comparisons"] += walk_comparisons(part)
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
                    if place == list(points)[-1]:
                        assert f"{label} {100 * y:.2f}" in part["sentences"][-1]
        elif "pointer" in part:
            file = json.loads((folder / part["file"]).read_text())
            entry = resolve(file, part["pointer"])
            assert all(" | ".join(row) in text for row in part["rows"])
            LISTINGS[part["pointer"]](entry, part)
            counts["listings"] += 1
        elif "alphas" in part:
            for layer, series in part["alphas"].items():
                assert series == alphas(folder / part["file"], layer)
                counts["series"] += 1
        else:
            for row in part["rows"]:
                for label, found in row["alphas"].items():
                    files = part["files"][label]
                    ran = [folder / f for f in files if (folder / f).exists()]
                    last = [alphas(path, row["layer"])[-1] for path in ran]
                    assert found == last
                    if not ran:
                        continue
                    assert f"{sum(last) / len(last):.3f}" in text
                    counts["alphas"] += len(last)
            largest = collections.defaultdict(float)
            for row in part["rows"]:
                for label, found in row["alphas"].items():
                    for alpha in found:
                        largest[label] = max(largest[label], alpha)
            (sentence,) = part["sentences"]
            words = [f"{label} {alpha:.3f}" for label, alpha in largest.items()]
            assert sentence.startswith(f"The largest alpha: {', '.join(words)}. In")
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
            if cell and cell["paper"] is not None:
                paper = cell["paper"]
                parts = paper if isinstance(paper, list) else [paper]
                texts = [x if isinstance(x, str) else f"{x:g}" for x in parts]
                assert shown_cell.endswith(f"<br>paper {' ± '.join(texts)}")
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


def walk_comparisons(part):
    """Checks differences against the cells, and verdicts against the intervals."""
    cells = {
        (row["label"], column): cell
        for row in part["rows"]
        for column, cell in zip(part["columns"], row["cells"], strict=True)
    }
    for found in part["comparisons"]:
        sentence = found["sentence"]
        assert sentence in part["sentences"]
        means = []
        for name in ("ours", "other"):
            seeds = cells[tuple(found[name])]["seeds"]
            shared = found.get("seeds", [seed["seed"] for seed in seeds])
            kept = [seed["mean"] for seed in seeds if seed["seed"] in shared]
            means.append(sum(kept) / len(kept))
        if "interval" not in found:  # They are shown side by side.
            shown = [(f"{100 * mean:.2f}", f"{mean:.3g}") for mean in means]
            ours, other = sentence.rpartition(": ")[2].split(" against ")[:2]
            if " (paper: " in sentence:
                ours = sentence.split(": ")[1].split(" against ")[0]
                other = sentence.split(" against ")[2]
            assert ours.startswith(shown[0])
            assert other.startswith(shown[1])
            continue
        difference, (low, high) = 100 * (means[0] - means[1]), found["interval"]
        assert found["difference"] == pytest.approx(difference, abs=1e-9)
        assert (low + high) / 2 == pytest.approx(difference, abs=1e-9)
        assert (
            f": {difference:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}"
        ) in sentence
        if low <= 0 <= high:
            words = "so no difference is shown."
        elif len(found["seeds"]) == 1:
            words = "so these two differ, which one training each does not show of "
            words += "others."
        else:
            words = "so it holds." if low > 0 else "so the opposite holds."
        assert sentence.endswith(words)
    return len(part["comparisons"])


def checklist(entry, part):
    for item, row in zip(entry["items"], part["rows"], strict=True):
        assert (row[0], row[2]) == (item["name"], item["status"])
        assert row[3] == ", ".join(
            f"{name} {100 * value:.2f}" for name, value in item["numbers"].items()
        )
    for sentence, is_papers in zip(part["sentences"], (True, False), strict=True):
        items = [i for i in entry["items"] if (i["source"] == "Table 7") == is_papers]
        passed = sum(item["status"] == "PASS" for item in items)
        assert sentence.startswith(f"PNI-W passes {passed} of the {len(items)} checks")


def certificates(entry, part):
    for found, row, sentence in zip(
        entry, part["rows"], part["sentences"], strict=False
    ):
        shares = [
            f"{100 * share:.2f}" for share in found["certified_accuracy"].values()
        ]
        assert row == [found["method"], *shares]
        assert sentence.startswith(f"{found['method']}: half of the accuracy of ")
        assert f" {shares[0]} % is certified at radius " in sentence


def pictures(entry, part):
    for found, row in zip(entry, part["rows"], strict=True):
        assert row == [
            str(found["image"]),
            f"{found['label']}, {100 * found['confidence']:.2f} %",
            f"{found['adversarial_label']}, "
            f"{100 * found['adversarial_confidence']:.2f} %",
        ]


LISTINGS = {
    "/checklist": checklist,
    "/certificates": certificates,
    "/pictures": pictures,
}
