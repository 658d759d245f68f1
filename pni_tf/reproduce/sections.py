"""Turns each part of a report into lines of Markdown, and into JSON."""

import dataclasses
import functools
import shutil
import statistics
from collections.abc import Iterable, Iterator

from matplotlib.figure import Figure

from pni_tf import plots
from pni_tf.evaluation.record import Row
from pni_tf.reproduce.cells import (
    AlphaFigure,
    Alphas,
    Cell,
    Curves,
    Listing,
    Part,
    Table,
)
from pni_tf.reproduce.comparisons import about
from pni_tf.reproduce.results import Results, Value

_NOT_RUN, _NOTHING = "not run", "Not run."


@dataclasses.dataclass(kw_only=True)
class Section:
    """A part of the report."""

    lines: list[str]  # Paragraphs of Markdown.
    content: dict  # What `report.json` says of it.
    # The attacks that gave its numbers, with all their settings.
    attacks: list[str] = dataclasses.field(default_factory=list)


@functools.singledispatch
def make(part: Part, results: Results, name: str) -> Section:
    """Returns a part as a section; figures go into the folder of the report by name."""
    raise TypeError(f"No section for {part!r}")


@make.register
def _(part: Table, results: Results, name: str) -> Section:
    read = {label: [results.value(c) for c in cells] for label, cells in part.rows}
    values = [value for row in read.values() for value in row]
    most = max(value.images for value in values)
    said = about(results, part)
    sizes = _sizes(part.columns, read.values())
    if any(0 < value.images < most for value in values):
        sizes += " n: on the first n images only, which may be easier or harder."
    rows = [[label, *(_text(v, most) for v in row)] for label, row in read.items()]
    return Section(
        lines=[
            *(_table(["", *part.columns], rows), _bullets(said["sentences"])),
            *(part.note, sizes),
        ],
        content={
            "columns": list(part.columns),
            "rows": [
                {"label": label, "cells": [_json(value) for value in row]}
                for label, row in read.items()
            ],
            **said,
        },
        attacks=[line for v in values for line in _attacks(results, v.cell)],
    )


@make.register
def _(part: Alphas, results: Results, name: str) -> Section:
    histories = {
        label: [results.alphas[training] for training in trainings]
        for label, trainings in part.trainings.items()
    }
    layers = dict.fromkeys(x for found in histories.values() for h in found for x in h)
    last = {
        layer: {
            label: [history[layer][-1] for history in found if layer in history]
            for label, found in histories.items()
        }
        for layer in layers
    }
    comparable = {*next(iter(part.paper.values()))} == {*layers}
    rows, largest = [], {}
    for layer, numbers in last.items():
        row = [layer]
        for label, alphas in numbers.items():
            text = _NOT_RUN
            if alphas:
                text = f"{statistics.mean(alphas):.3f}"
                largest[label] = max(largest.get(label, 0.0), *alphas)
            if len(alphas) > 1:
                text += f" (± {statistics.stdev(alphas):.3f})"
            if comparable:
                text += f"<br>paper {part.paper[label][layer]:.3f}"
            row.append(text)
        rows.append(row)
    known = [f"{label} {alpha:.3f}" for label, alpha in largest.items()]
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
            "rows": [{"layer": x, "alphas": numbers} for x, numbers in last.items()],
            "files": {
                label: [str(t.path / "history.csv") for t in trainings]
                for label, trainings in part.trainings.items()
            },
            "sentences": [sentence],
        },
    )


@make.register
def _(part: AlphaFigure, results: Results, name: str) -> Section:
    front = dict(list(results.alphas[part.training].items())[:5])
    if not front:
        return Section(lines=[_NOTHING], content={})
    last = [series[-1] for series in front.values()]
    late = [abs(a[-1] - a[3 * len(a) // 4 - 1]) for a in front.values()]
    sentence = (
        f"After the last epoch alpha lies between {min(last):.3f} and {max(last):.3f}; "
        f"in the last quarter of the epochs it moves by {max(late):.3f} at most. In "
        "the paper it settles above zero in the front layers."
    )
    return Section(
        lines=[
            _save(plots.plot_alphas(front), results.folder, name, part.title),
            _bullets([sentence]),
            "Magnitude of alpha in the five front layers, first seed.",
        ],
        content={
            "alphas": front,
            "sentences": [sentence],
            "file": str(part.training.path / "history.csv"),
        },
    )


@make.register
def _(part: Curves, results: Results, name: str) -> Section:
    found, attacks = {}, []
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, line in part.lines.items():
        colour = f"C{line.network}"
        if points := results.curve(part.kind, line):
            found[label] = points
            attacks += [_attack_line(row) for row in points.values()]
            means = [100 * _accuracy(row) for row in points.values()]
            axes.plot(list(points), means, line.style, color=colour, ms=4, label=label)
        if label in part.paper:
            x, y = part.paper[label]
            axes.plot(x, y, "--", color=colour, alpha=0.5, label=f"{label}, paper")
    axes.set(xlabel=part.kind, ylabel="accuracy (%)", xscale="log", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    places = list(dict.fromkeys(x for line in found.values() for x in line)) or [0]
    rows = [
        [label, *(_point(found.get(label, {}).get(x)) for x in places)]
        for label in {**found, **part.lines}  # Lines that were not run come last.
    ]
    sizes = [
        f"{label} {next(iter(points.values())).images:,}"
        for label, points in found.items()
    ]
    said = _of_curves(part, found)
    return Section(
        lines=[
            _save(figure, results.folder, name, part.title),
            _table([part.kind, *(f"{x:.3g}" for x in places)], rows),
            _bullets(said),
            "Accuracy in percent under PGD with the step 2.5 × epsilon / steps (over "
            "epsilon 20 steps), first seed. Dashed: the paper's ResNet-18, whose step "
            f"stays 0.01 (over epsilon 7 steps). Images: {', '.join(sizes) or 'none'}.",
        ],
        content={
            "curves": {
                label: {f"{x:g}": _accuracy(row) for x, row in points.items()}
                for label, points in found.items()
            },
            "files": {x: str(part.lines[x].evaluation.result) for x in found},
            "pointers": {
                x: f"/curves/{part.kind}/{results.column(part.lines[x])}" for x in found
            },
            "sentences": said,
        },
        attacks=attacks,
    )


def _of_curves(part, found):
    """Says what the ends of the lines show."""
    names = " against ".join(part.compared)
    if not all(label in found for label in part.compared):
        return [f"{names}: not run."]
    ours, other = (found[label] for label in part.compared)
    above = sum(_accuracy(ours[x]) > _accuracy(other[x]) for x in ours)
    last = max(ours)
    ends = [f"{label} {_point(points[last])}" for label, points in found.items()]
    return [
        f"{names}: above it at {above} of {len(ours)} points, of which none is judged "
        "by itself.",
        f"At {part.kind} {last:g}: {'; '.join(ends)}.",
    ]


@make.register
def _(part: Listing, results: Results, name: str) -> Section:
    saved = results.evaluations[part.evaluation]
    entry = saved and getattr(saved, part.entry)
    if not entry:
        # Such as pictures, where the attack has turned no image.
        words = "The evaluation found none." if saved else _NOTHING
        return Section(lines=[words, part.note], content={})
    (header, *rows), said = part.read(entry)
    lines = [_table(header, rows), _bullets(said), part.note]
    if part.picture:
        path = results.folder / "figures" / f"{name}.png"
        source = results.root / part.evaluation.path / f"{part.picture}.png"
        if source.exists():
            shutil.copyfile(source, path)
        if path.exists():
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


def _accuracy(row: Row) -> float:
    return row.numbers["accuracy_mean"]


def _point(row: Row | None) -> str:
    return _NOT_RUN if row is None else f"{100 * _accuracy(row):.2f}"


def _text(value: Value, most: int) -> str:
    if not value.cell.sources:
        return "–"
    text, paper = value.text(), value.cell.paper_text
    if 0 < value.images < most:
        # These are other images, which must not be compared with the rest.
        text += f" (n = {value.images:,})"
    return f"{text}<br>paper {paper}" if paper else text


def _sizes(columns: tuple[str, ...], rows: Iterable[list[Value]]) -> str:
    """Returns on how many images and draws each column was taken."""
    by_size = {}
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        seeds = [seed for value in values for seed in value.seeds]
        if seeds:
            numbers = sorted({seed.images for seed in seeds})
            size = f"{' or '.join(f'{n:,}' for n in numbers)} images"
            draws = max(seed.draws for seed in seeds)
            size += f", up to {draws} draws" if draws > 1 else ""
            by_size.setdefault(size, []).append(column)
    parts = [f"{'; '.join(names)}: {size}" for size, names in by_size.items()]
    return f"How many of each: {'. '.join(parts)}." if parts else ""


def _json(value: Value) -> dict | None:
    if not value:
        found = {"value": None, "paper": value.cell.paper}
        return found if value.cell.sources else None
    return {
        "value": value.mean,
        "std_of_draws": value.std_of_draws,
        "std_of_seeds": value.std_of_seeds,
        "paper": value.cell.paper,
        "seeds": [dataclasses.asdict(seed) for seed in value.seeds],
    }


def _attacks(results: Results, cell: Cell) -> Iterator[str]:
    """Yields the attacks that gave a cell with all their settings, in order."""
    for source in cell.sources:
        if (row := results.row(source)) is None:
            continue
        if row.components:
            # Their order is that in which they helped, which differs by network.
            yield f"{row.scenario}: of {', '.join(sorted(row.components))}"
        for other in results.rows(source):
            named = other.scenario in row.components or other is row
            if named and other.attack is not None:
                yield _attack_line(other)


def _attack_line(row: Row) -> str:
    draws = row.expectation
    extra = f", expectation over {draws} draws" if draws > 1 else ""
    return f"{row.scenario}: {row.attack}{extra}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
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
