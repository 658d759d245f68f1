"""Tables, files and figures of an evaluation."""

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pni_tf.evaluation.robustness import Result

# A table: from the name of a column (a network) to its results, one for each row.
Columns = dict[str, list[Result]]

_CSV_COLUMNS = (
    "network",
    "scenario",
    "image",
    "label",
    "correct_draws",
    "draws",
    "predictions",
)


def format_table(columns: Columns) -> str:
    """Returns a Markdown table of accuracies in percent, aligned for the terminal.

    A random network shows mean ± standard deviation over single draws, a deterministic
    one its accuracy. Rows are scenarios, in the order of the first column.
    """
    rows = list(dict.fromkeys(r.scenario.name for c in columns.values() for r in c))
    lines = [["accuracy (%)", *columns]]
    for row in rows:
        found = [
            next((r for r in results if r.scenario.name == row), None)
            for results in columns.values()
        ]
        lines.append([row, *map(_cell, found)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
    )


def describe(columns: Columns) -> str:
    """Returns a few sentences that say how the numbers of a table came about."""
    results = [result for column in columns.values() for result in column]
    sentence = f"{len(results[0].labels)} images, seed {results[0].seed}."
    if not any(result.stochastic for result in results):
        return f"{sentence} The networks are deterministic, so one pass scores each."
    draws = max(result.draws for result in results)
    return (
        f"{sentence} Each adversarial image is found once and scored on fresh draws of "
        f"the noise: mean ± standard deviation of {draws} single draws; a "
        "deterministic network has one. EOT-k: the attack averages over k draws of a "
        "random network."
    )


def write_json(path: str | os.PathLike, columns: Columns, **details) -> None:
    """Writes the summaries of all results, with details such as the dataset, as JSON.

    Args:
        path: The file; it is replaced in one step.
        columns: The table.
        **details: Further entries of the file's top level.
    """
    content = {
        **details,
        "columns": {
            name: [result.summary() for result in results]
            for name, results in columns.items()
        },
    }
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: str | os.PathLike, columns: Columns) -> None:
    """Writes one line for each image, network and scenario.

    The columns are network, scenario, image (its index), label, correct_draws, draws
    and predictions (the label of each draw, separated by spaces).
    """
    scratch = Path(path).with_suffix(".unfinished")
    with scratch.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_CSV_COLUMNS)
        for network, results in columns.items():
            for result in results:
                writer.writerows(_per_example(network, result))
    os.replace(scratch, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in one step, so that no reader finds half of it."""
    scratch = Path(path).with_suffix(".unfinished")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def accuracies(columns: Columns) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns what `pni_tf.plots.plot_accuracies` draws."""
    return {
        name: {r.scenario.name: (r.mean, r.std) for r in results}
        for name, results in columns.items()
    }


def _per_example(network: str, result: Result) -> Iterable[list]:
    correct = np.sum(result.predictions == result.labels, axis=0)
    for i, label in enumerate(result.labels):
        yield [
            network,
            result.scenario.name,
            i,
            label,
            correct[i],
            result.draws,
            " ".join(map(str, result.predictions[:, i])),
        ]


def _cell(result):
    if result is None:
        return "not run"
    if not result.stochastic:
        return f"{100 * result.mean:.2f}"
    return f"{100 * result.mean:.2f} ± {100 * result.std:.2f}"
