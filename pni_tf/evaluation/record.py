"""The files of an evaluation, evaluation.json and per_example.csv: written, and read.

Their keys are known here, except those inside the entries of the checklist, the
pictures and the certificates. Whoever only reads them needs no TensorFlow.
"""

import csv
import dataclasses
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np

from pni_tf import files

# What the code calls `towards` has older names on disk, and keeps them: stores of
# version 0.1 are read, and the seeds of a batch, which follow from its stamp, stay.
RULE, CLASSES, CLASS, REACHED = "target_rule", "aims", "aim", "reached_aim_mean"

_NAMES = {
    "model": "model",
    "noise_on": "noise on",
    "noise_off": "noise off",
    "mean": "mean of {draws} draws",
    "twin": "twin",
    "best_epoch": "best epoch",
    "undefended": "no defence",
}
_CSV_COLUMNS = (
    *("network", "scenario", "image", "label", "correct_draws", "draws"),
    *("predictions", "claimed", "l2", "linf", "queries", "gradients", CLASS),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A network of the table, and its role among the others.

    Args:
        kind: `"model"` (without noise to turn off), `"noise_on"`, `"noise_off"`,
            `"mean"` (over draws), `"twin"`, `"best_epoch"`, `"undefended"`, or
            `"other"`.
        draws: Draws of the noise in a prediction, of a mean.
        label: What tables call it, if not by its kind.
    """

    kind: str
    draws: int = 1
    label: str | None = None

    @property
    def name(self) -> str:
        """What tables and files call it."""
        return self.label or _NAMES[self.kind].format(draws=self.draws)

    def __str__(self):
        return self.name

    @classmethod
    def named(cls, name: str) -> "Column":
        """Returns the column of a file of version 0.1, which has its name only."""
        mean = re.fullmatch(r"mean of (\d+) draws", name)
        if mean is not None:
            return cls(kind="mean", draws=int(mean[1]))
        kinds = {known: kind for kind, known in _NAMES.items()}
        return cls(kind=kinds.get(name, "other"), label=name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What a file says of one scenario on one network.

    Attributes:
        pointer: Where in the file, as a JSON pointer (RFC 6901).
        scenario: Name of the scenario.
        kind: `"clean"`, `"attack"` or `"worst_case"`.
        attack: The attack with all its settings; None if there is none.
        source: Name of the other network that the examples are made on, or None.
        expectation: Draws of the expectation over noise.
        images: Number of images.
        draws: Number of draws that score each.
        components: Of a worst case, the names of its rows.
        numbers: The numbers by key, such as `"accuracy_mean"`; None for what could not
            be measured.
    """

    pointer: str
    scenario: str
    kind: str
    attack: str | None
    source: str | None
    expectation: int
    images: int
    draws: int
    components: tuple[str, ...]
    numbers: dict[str, float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedEvaluation:
    """What is in an evaluation.json.

    Attributes:
        model: What was evaluated.
        dataset: On which dataset.
        data: Number (`examples`) and digest (`sha256`) of the images; empty if unknown.
        columns: The rows of each column by its name.
        kinds: What each column is, by its name.
        curves: The points of each curve by its kind, column and value.
        checklist: Items, headline and results; None if it was not asked for.
        certificates: An entry for each method.
        pictures: An entry for each image with which an attack fooled the model.
    """

    model: str
    dataset: str
    data: dict
    columns: dict[str, tuple[Row, ...]]
    kinds: dict[str, Column]
    curves: dict[str, dict[str, dict[float, Row]]]
    checklist: dict | None
    certificates: list[dict]
    pictures: list[dict]


def write_json(path: str | os.PathLike, found) -> None:
    """Writes a `report.Evaluation` as evaluation.json, whole or not at all."""
    content = {
        "model": found.model,
        "dataset": found.dataset,
        "epsilon": found.epsilon,
        "training_seed": found.training_seed,
        "data": found.data,
        "warnings": found.warnings,
        "substitutes": found.substitutes,
        "curves": {
            kind: {
                str(column): {str(x): row_of(r) for x, r in line.items()}
                for column, line in lines.items()
            }
            for kind, lines in found.curves.items()
        },
        "checklist": found.checklist and found.checklist.to_json(),
        "certificates": [c.to_json(found.radii) for c in found.certificates or ()],
        "pictures": found.pictures and found.pictures.to_json(),
        "kinds": {
            column.name: {"kind": column.kind, "draws": column.draws}
            for column in found.columns
        },
        "columns": {
            column.name: [row_of(result) for result in results]
            for column, results in found.columns.items()
        },
    }
    files.write_text(path, json.dumps(content, indent=2) + "\n")


def row_of(result) -> dict:
    """Returns the numbers of a `Result` with all that is needed to read them."""
    numbers = {
        "scenario": result.scenario.name,
        "kind": result.kind,
        "target": result.target,
        "attack": repr(result.scenario.attack),
        RULE: result.scenario.towards,
        "source": result.scenario.source,
        "expectation": int(result.scenario.expectation) if result.stochastic else 1,
        "stochastic": result.stochastic,
        "images": len(result.labels),
        "draws": result.draws,
        "seed": result.seed,
        "accuracy_mean": result.mean,
        "accuracy_std": result.std,
        "accuracy_vote": result.vote,
        "accuracy_worst": result.worst,
        "warnings": list(result.warnings),
    }
    if result.components:
        numbers["components"] = list(result.components)
    if result.towards is not None:
        numbers[REACHED] = float(np.mean(result.predictions == result.towards))
    if result.claimed is not None:
        numbers |= {
            "claimed_accuracy": result.claimed_accuracy,
            "upheld": result.upheld,
            "l2_mean_of_claimed": _mean(result.l2[result.claimed]),
            "linf_mean_of_claimed": _mean(result.linf[result.claimed]),
            "queries_mean": _mean(result.queries),
            "gradients_mean": _mean(result.gradients),
        }
    return numbers


def _mean(values) -> float | None:
    return float(np.mean(values)) if len(values) else None


def read_evaluation(path: str | os.PathLike) -> SavedEvaluation | None:
    """Reads an evaluation.json, of version 0.1 too.

    Returns:
        What is in it; None if there is no such file, or it is damaged.
    """
    content = files.read_json(path)
    try:
        return None if content is None else _read(content)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _read(content):
    kinds = {
        name: Column(**known, label=name)
        for name, known in content.get("kinds", {}).items()
    }
    columns = content["columns"]
    return SavedEvaluation(
        model=content.get("model", ""),
        dataset=content.get("dataset", ""),
        data=content.get("data") or {},
        columns={
            name: tuple(
                _read_row(entry, f"/columns/{name}/{i}")
                for i, entry in enumerate(entries)
            )
            for name, entries in columns.items()
        },
        kinds={name: kinds.get(name) or Column.named(name) for name in columns},
        curves={
            kind: {
                name: {
                    float(x): _read_row(entry, f"/curves/{kind}/{name}/{x}")
                    for x, entry in line.items()
                }
                for name, line in lines.items()
            }
            for kind, lines in content.get("curves", {}).items()
        },
        checklist=content.get("checklist"),
        certificates=content.get("certificates") or [],
        pictures=content.get("pictures") or [],
    )


def _read_row(entry, pointer):
    name, attack = entry.get("scenario", ""), entry.get("attack", "None")
    attack = None if attack == "None" else attack
    components = tuple(entry.get("components", ()))
    kind, source = entry.get("kind"), entry.get("source")
    if kind is None:  # Version 0.1 wrote neither.
        kind = "worst_case" if components else "attack" if attack else "clean"
        before = "transfer from "
        source = name.removeprefix(before) if name.startswith(before) else None
    return Row(
        pointer=pointer,
        scenario=name,
        kind=kind,
        attack=attack,
        source=source,
        expectation=entry.get("expectation", 1),
        images=entry["images"],
        draws=entry["draws"],
        components=components,
        numbers={
            key: value
            for key, value in entry.items()
            if value is None or isinstance(value, int | float)
        },
    )


def write_csv(path: str | os.PathLike, columns: dict[str, list]) -> None:
    """Writes a per_example.csv: one line for each image, network and scenario.

    The columns are network, scenario, image (its index), label, correct_draws, draws,
    predictions (the label of each draw, separated by spaces), and for an attack its
    claim (1 or 0), the norms of the perturbation, queries, gradient evaluations and the
    class that a targeted attack aimed at. The file is replaced in one step.
    """
    rows = (_per_example(name, r) for name, found in columns.items() for r in found)
    _write_rows(path, _CSV_COLUMNS, itertools.chain.from_iterable(rows))


def write_certificates(path: str | os.PathLike, certificates: list) -> None:
    """Writes one line for each method and image: label, prediction and radius."""
    rows = (
        (c.method, c.norm, i, c.labels[i], c.predictions[i], f"{radius:.6g}")
        for c in certificates
        for i, radius in enumerate(c.radii)
    )
    header = ("method", "norm", "image", "label", "prediction", "radius")
    _write_rows(path, header, rows)


def _write_rows(path, header, rows):
    with files.replacing(path) as scratch, scratch.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _per_example(network, result):
    correct = np.sum(result.predictions == result.labels, axis=0)
    for i, label in enumerate(result.labels):
        cells = [network, result.scenario.name, i, label, correct[i], result.draws]
        cells.append(" ".join(map(str, result.predictions[:, i])))
        attacked = [""] * 6
        if result.claimed is not None:
            attacked = [
                int(result.claimed[i]),
                f"{result.l2[i]:.6g}",
                f"{result.linf[i]:.6g}",
                result.queries[i],
                result.gradients[i],
                "" if result.towards is None else result.towards[i],
            ]
        yield cells + attacked


def read_shares(path: str | os.PathLike) -> dict[tuple[str, str], np.ndarray]:
    """Returns the share of right draws on each image by network and scenario."""
    shares = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            share = int(row["correct_draws"]) / int(row["draws"])
            shares.setdefault((row["network"], row["scenario"]), []).append(share)
    return {key: np.asarray(found) for key, found in shares.items()}
