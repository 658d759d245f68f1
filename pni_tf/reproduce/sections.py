"""Turns each part of a report into lines of Markdown, and into JSON."""

import csv
import dataclasses
import functools
import shutil
import statistics
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from pni_tf import files, plots
from pni_tf.reproduce.cells import (
    Alphas,
    Cell,
    Curves,
    Listing,
    Part,
    Table,
    Value,
    count_empty,
    paper_text,
)
from pni_tf.reproduce.cells import (
    read as read_cell,
)
from pni_tf.reproduce.comparisons import about

_NOT_RUN = "not run"
_STYLES = {"": "o-", "EOT": "s:", "without PNI": "x-."}  # of the lines of curves


@dataclasses.dataclass(kw_only=True)
class Section:
    """A part of the report.

    Attributes:
        lines: Paragraphs of Markdown.
        content: What `report.json` says of it.
        attacks: The attacks behind its numbers, with all their settings, as keys.
    """

    lines: list[str]
    content: dict
    attacks: dict[str, None] = dataclasses.field(default_factory=dict)


@functools.singledispatch
def make(part: Part, root: Path, folder: Path, name: str) -> Section:
    """Returns a part as a section.

    Args:
        part: The part.
        root: Folder of the reproduction, for figures and verdicts on single images.
        folder: Folder of the report, with the results that count; figures go there.
        name: Name of a figure, without its ending.
    """
    raise TypeError(f"No section for {part!r}")


@make.register
def _(part: Table, root: Path, folder: Path, name: str) -> Section:
    rows, content, attacks = [], [], {}
    read = {
        label: [read_cell(folder, cell) for cell in cells] for label, cells in part.rows
    }
    most = max((v.images for row in read.values() for v in row if v), default=0)
    for label, cells in part.rows:
        found = read[label]
        texts = [
            _cell_text(folder, cell, value, most)
            for cell, value in zip(cells, found, strict=True)
        ]
        rows.append([label, *texts])
        content.append({"label": label, "cells": list(map(_cell_json, cells, found))})
        for cell in cells:
            attacks |= _attacks(folder, cell)
    said, comparisons = about(root, folder, part)
    sizes = _sizes(folder, part)
    if any(" (n = " in text for row in rows for text in row):
        sizes += " n: on the first n images only, which may be easier or harder."
    return Section(
        lines=[_table(["", *part.columns], rows), _bullets(said), part.note, sizes],
        content={
            "columns": list(part.columns),
            "rows": content,
            "sentences": said,
            "comparisons": comparisons,
        },
        attacks=attacks,
    )


@make.register
def _(part: Alphas, root: Path, folder: Path, name: str) -> Section:
    histories = {
        label: [_alphas(folder / t.path / "history.csv") for t in trainings]
        for label, trainings in part.trainings.items()
    }
    if part.figure:
        return _alpha_figure(part, histories, folder, name)
    layers = list(
        dict.fromkeys(
            layer for found in histories.values() for h in found for layer in h
        )
    )
    comparable = {_layer(key) for key in next(iter(part.paper.values()))} == {*layers}
    rows, content = [], []
    for layer in layers:
        row, numbers = [layer], {}
        for label, found in histories.items():
            last = [history[layer][-1] for history in found if layer in history]
            text = _mean(last)
            if comparable:
                paper = {_layer(k): v for k, v in part.paper[label].items()}
                text += f"<br>paper {paper[layer]:.3f}"
            row.append(text)
            numbers[label] = last
        rows.append(row)
        content.append({"layer": layer, "alphas": numbers})
    largest = {
        label: max((_last_of(h) for h in found if h), default=None)
        for label, found in histories.items()
    }
    known = [f"{label} {v:.3f}" for label, v in largest.items() if v is not None]
    paper = [f"{label} {max(a.values()):.3f}" for label, a in part.paper.items()]
    sentence = (
        f"The largest alpha: {', '.join(known) or _NOT_RUN}. In the paper: "
        f"{', '.join(paper)}."
    )
    return Section(
        lines=[
            _table(["layer", *histories], rows),
            _bullets([sentence]),
            "Magnitude of alpha after the last epoch (± standard deviation over "
            "training seeds).",
        ],
        content={
            "rows": content,
            "files": {
                label: [str(t.path / "history.csv") for t in trainings]
                for label, trainings in part.trainings.items()
            },
            "sentences": [sentence],
        },
    )


@make.register
def _(part: Curves, root: Path, folder: Path, name: str) -> Section:
    lines, attacks = {}, {}
    for label, (evaluation, column) in part.evaluations.items():
        content = files.read_json(folder / evaluation.result) or {}
        curve = content.get("curves", {}).get(part.kind, {}).get(column, {})
        if curve:
            lines[label] = {float(x): entry for x, entry in curve.items()}
            attacks |= {_attack_line(entry): None for entry in curve.values()}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    networks = list(dict.fromkeys(label.split(", ")[0] for label in part.evaluations))
    for label in part.evaluations:
        network, _, how = label.partition(", ")
        colour = f"C{networks.index(network)}"
        if label in lines:
            points = lines[label]
            means = [100 * entry["accuracy_mean"] for entry in points.values()]
            style = _STYLES[how]
            axes.plot(list(points), means, style, color=colour, ms=4, label=label)
        if label in part.paper:
            x, y = part.paper[label]
            axes.plot(x, y, "--", color=colour, alpha=0.5, label=f"{label}, paper")
    axes.set(xlabel=part.kind, ylabel="accuracy (%)", xscale="log", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    places = list(dict.fromkeys(x for points in lines.values() for x in points))
    rows = [
        [label, *(_point(points.get(x)) for x in places)]
        for label, points in lines.items()
    ]
    sizes = [
        f"{label} {next(iter(points.values()))['images']:,}"
        for label, points in lines.items()
    ]
    missing = [label for label in part.evaluations if label not in lines]
    rows += [[label, *[_NOT_RUN] * max(len(places), 1)] for label in missing]
    said = _of_curves(part, lines)
    return Section(
        lines=[
            _save(figure, folder, name, part.title),
            _table([part.kind, *(f"{x:.3g}" for x in places or [0])], rows),
            _bullets(said),
            "Accuracy in percent under PGD with the step 2.5 × epsilon / steps (over "
            "epsilon 20 steps), first seed. Dashed: the paper's ResNet-18, whose step "
            f"stays 0.01 (over epsilon 7 steps). Images: {', '.join(sizes) or 'none'}.",
        ],
        content={
            "curves": {
                label: {f"{x:g}": entry["accuracy_mean"] for x, entry in points.items()}
                for label, points in lines.items()
            },
            "files": {label: str(part.evaluations[label][0].result) for label in lines},
            "pointers": {
                label: f"/curves/{part.kind}/{part.evaluations[label][1]}"
                for label in lines
            },
            "sentences": said,
        },
        attacks=attacks,
    )


def _of_curves(part, lines):
    """Says what the ends of the lines show."""
    if not all(label in lines for label in part.compared):
        return [f"{' against '.join(part.compared)}: not run."]
    ours, other = (lines[label] for label in part.compared)
    names = " against ".join(part.compared)
    above = sum(ours[x]["accuracy_mean"] > other[x]["accuracy_mean"] for x in ours)
    last = max(ours)
    ends = [f"{label} {_point(points[last])}" for label, points in lines.items()]
    return [
        f"{names}: above it at {above} of {len(ours)} points, of which none is judged "
        "by itself.",
        f"At {part.kind} {last:g}: {'; '.join(ends)}.",
    ]


@make.register
def _(part: Listing, root: Path, folder: Path, name: str) -> Section:
    content = files.read_json(folder / part.evaluation.result) or {}
    entry = content.get(part.entry)
    if not entry:
        # Such as pictures, where the attack has turned no image.
        words = "The evaluation found none." if content else _NOT_RUN.capitalize() + "."
        return Section(lines=[words, part.note], content={})
    header, *rows = part.lines(entry)
    said = part.summary(entry)
    lines = [_table(header, rows), _bullets(said), part.note]
    if part.picture is not None and (root / part.picture_path).exists():
        path = folder / "figures" / f"{name}.png"
        shutil.copyfile(root / part.picture_path, path)
        lines.insert(0, _picture(path, part.title))
    return Section(
        lines=lines,
        content={
            "rows": rows,
            "file": str(part.evaluation.result),
            "pointer": f"/{part.entry}",
            "sentences": said,
        },
    )


def _alpha_figure(part, histories, folder, name):
    history = next(iter(histories.values()))[0]
    if not history:
        return Section(lines=[_NOT_RUN.capitalize() + "."], content={})
    front = dict(list(history.items())[:5])
    late = [abs(a[-1] - a[3 * len(a) // 4 - 1]) for a in front.values()]
    sentence = (
        "After the last epoch alpha lies between "
        f"{min(a[-1] for a in front.values()):.3f} and {_last_of(front):.3f}; in the "
        f"last quarter of the epochs it moves by {max(late):.3f} at most. In the paper "
        "it settles above zero in the front layers."
    )
    return Section(
        lines=[
            _save(plots.plot_alphas(front), folder, name, part.title),
            _bullets([sentence]),
            "Magnitude of alpha in the five front layers, first seed.",
        ],
        content={
            "alphas": front,
            "sentences": [sentence],
            "file": str(next(iter(part.trainings.values()))[0].path / "history.csv"),
        },
    )


def _alphas(path: Path) -> dict[str, list[float]]:
    """Returns the magnitude of alpha after each epoch by layer."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("alpha/")] if rows else []
    return {n.removeprefix("alpha/"): [float(row[n]) for row in rows] for n in names}


def _last_of(history):
    return max(series[-1] for series in history.values())


def _layer(name: str) -> str:
    """Returns our name of a layer of the paper's Table 1."""
    return "logits" if name == "FC" else name.lower().replace(".", "_")


def _mean(numbers: list[float]) -> str:
    if not numbers:
        return _NOT_RUN
    text = f"{statistics.mean(numbers):.3f}"
    if len(numbers) > 1:
        text += f" (± {statistics.stdev(numbers):.3f})"
    return text


def _point(entry):
    return _NOT_RUN if entry is None else f"{100 * entry['accuracy_mean']:.2f}"


def _cell_text(folder: Path, cell: Cell, value: Value | None, most: int) -> str:
    if not cell.sources:
        return "–"
    if value is not None:
        text = value.text()
    else:
        all_ran = count_empty(folder, cell) == len(cell.sources)
        text = "none claimed" if all_ran else _NOT_RUN
    if value is not None and value.images < most:
        text += f" (n = {value.images:,})"  # other images, so not to be compared
    paper = paper_text(cell)
    return f"{text}<br>paper {paper}" if paper else text


def _sizes(folder: Path, part: Table) -> str:
    """Returns on how many images and draws each column was taken."""
    columns = {}
    for i, column in enumerate(part.columns):
        found = [read_cell(folder, row[i]) for _, row in part.rows]
        seeds = [seed for value in found if value is not None for seed in value.seeds]
        if seeds:
            numbers = sorted({seed.images for seed in seeds})
            size = f"{' or '.join(f'{n:,}' for n in numbers)} images"
            draws = max(seed.draws for seed in seeds)
            size += f", up to {draws} draws" if draws > 1 else ""
            columns.setdefault(size, []).append(column)
    parts = [f"{'; '.join(names)}: {size}" for size, names in columns.items()]
    return f"How many of each: {'. '.join(parts)}." if parts else ""


def _cell_json(cell, value):
    if not cell.sources:
        return None
    paper = cell.paper
    if value is None:
        return {"value": None, "paper": paper}
    return {
        "value": value.mean,
        "std_of_draws": value.std_of_draws,
        "std_of_seeds": value.std_of_seeds,
        "paper": paper,
        "seeds": [dataclasses.asdict(seed) for seed in value.seeds],
    }


def _attacks(folder: Path, cell: Cell) -> dict[str, None]:
    """Returns the attacks behind a cell with all their settings, in order."""
    found = {}
    for source in cell.sources:
        content = files.read_json(folder / source.evaluation.result)
        entry = source.entry(content) if content else None
        if entry is None:
            continue
        names = entry[1].get("components", [source.row])
        if "components" in entry[1]:
            # Their order is that in which they helped, which differs by network.
            found[f"{entry[1]['scenario']}: of {', '.join(sorted(names))}"] = None
        for other in content["columns"][source.column]:
            named = other["scenario"] in names or other is entry[1]
            if named and other["attack"] != "None":
                found[_attack_line(other)] = None
    return found


def _attack_line(entry: dict) -> str:
    draws = entry.get("expectation", 1)
    extra = f", expectation over {draws} draws" if draws > 1 else ""
    return f"{entry['scenario']}: {entry['attack']}{extra}"


def _table(header: Iterable[str], rows: list[list[str]]) -> str:
    lines = [list(header), ["---"] * len(list(header)), *rows]
    return "\n".join(
        "| " + " | ".join(t.replace("|", "\\|") for t in line) + " |" for line in lines
    )


def _bullets(sentences):
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _save(figure, folder, name, title):
    path = folder / "figures" / f"{name}.png"
    figure.savefig(path, dpi=110)
    return _picture(path, title)


def _picture(path, title):
    return f"![{title}](figures/{path.name})"
