"""Tables, files and figures of an evaluation."""

import csv
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pni_tf import files, plots
from pni_tf.evaluation.certification import Certificate, round_radii
from pni_tf.evaluation.checklist import Checklist
from pni_tf.evaluation.pictures import Pictures
from pni_tf.evaluation.results import Columns, Result

_CSV_COLUMNS = (
    "network",
    "scenario",
    "image",
    "label",
    "correct_draws",
    "draws",
    "predictions",
    "claimed",
    "l2",
    "linf",
    "queries",
    "gradients",
    "aim",
)


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """All that an evaluation found.

    Attributes:
        columns: The table.
        curves: By kind (such as `"epsilon"`) and column: a result for each value.
        checklist: The checklist, if it was asked for.
        certificates: Certified radii, if they were.
        pictures: Images that an attack turned around, if they were, and it did.
        substitutes: What the training of each substitute took, by its column.
        class_names: One name a class, or None.
        data: Number and digest of the images.
    """

    columns: Columns
    curves: dict[str, dict[str, dict[float, Result]]]
    checklist: Checklist | None = None
    certificates: list[Certificate] | None = None
    pictures: Pictures | None = None
    substitutes: dict[str, dict] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    data: dict[str, str | int] = dataclasses.field(default_factory=dict)


def write(
    output: Path, outcome: Outcome, *, model: Path, dataset: str, epsilon: float
) -> None:
    """Writes every file of the results, and prints the tables."""
    columns, curves = outcome.columns, outcome.curves
    checklist, certificates = outcome.checklist, outcome.certificates
    pictures = outcome.pictures
    title = f"{model.name}, {dataset}"
    every = [r for results in columns.values() for r in results]
    every += [
        r for lines in curves.values() for line in lines.values() for r in line.values()
    ]
    if checklist is not None:
        every += checklist.results.values()
    warnings = format_warnings(every)
    write_csv(output / "per_example.csv", columns)
    write_json(
        output / "evaluation.json",
        columns,
        model=str(model),
        dataset=dataset,
        data=outcome.data,
        warnings=warnings.splitlines(),
        substitutes=outcome.substitutes,
        curves={
            kind: {
                name: {str(value): r.summary() for value, r in line.items()}
                for name, line in lines.items()
            }
            for kind, lines in curves.items()
        },
        checklist=checklist and checklist.to_json(),
        certificates=[c.to_json(round_radii(certificates)) for c in certificates or ()],
        pictures=pictures and pictures.to_json(outcome.class_names),
    )
    figures = {"accuracies": plots.plot_accuracies(accuracies(columns), title=title)}
    for kind, lines in curves.items():
        figures[f"curve_{kind}"] = plots.plot_curves(
            {
                name: {v: (r.mean, r.std) for v, r in line.items()}
                for name, line in lines.items()
            },
            xlabel={"draws": "draws of the expectation over noise"}.get(kind, kind),
            title=f"PGD, {title}",
        )
    if certificates is not None:
        figures["certified_accuracy"] = plots.plot_certified_accuracy(
            {
                c.method: np.where(c.predictions == c.labels, c.radii, np.nan)
                for c in certificates
            },
            norm=certificates[0].norm,
            title=title,
        )
        write_certificates(output / "certificates.csv", certificates)
    if pictures is not None:
        figures["pictures"] = pictures.plot(epsilon, outcome.class_names)
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png", dpi=120)
    parts = [format_table(columns), describe(columns)]
    costs = format_costs(columns)
    if costs:
        parts.append(costs)
    if checklist is not None:
        parts.append(checklist.to_markdown())
    if certificates is not None:
        parts.append(format_certificates(certificates))
    if warnings:
        parts.append(warnings)
    links = [f"![{name}]({name}.png)" for name in figures]
    settings_used = format_settings(columns)
    files.write_text(
        output / "report.md",
        "\n\n".join([f"# {title}", *parts, settings_used, *links]) + "\n",
    )
    print("\n" + "\n\n".join(parts) + f"\n\nThe results are in {output}")


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
    return _aligned(lines)


def format_costs(columns: Columns) -> str:
    """Returns a Markdown table of what each attack claims, achieves and costs.

    Claimed is the share of the images that the attack takes for fooled, on the draws
    that found them; upheld is the share of those claims that fresh draws confirm. The
    norms are means over the claimed images, the costs over all.
    """
    lines = [
        [
            *("network", "attack", "claimed (%)", "upheld (%)", "mean L2", "mean Linf"),
            *("queries", "gradients"),
        ]
    ]
    for network, results in columns.items():
        done = []
        for result in results:
            attack = result.scenario.attack, result.scenario.target_rule
            # To a deterministic network an expectation is the same attack again.
            repeats = not result.stochastic and attack in done
            done.append(attack)
            if result.claimed is not None and not repeats:
                lines.append([network, result.scenario.name, *_costs(result.summary())])
    return _aligned(lines) if len(lines) > 1 else ""


def describe(columns: Columns) -> str:
    """Returns a few sentences that say how the numbers of a table came about."""
    results = [result for column in columns.values() for result in column]
    sentence = f"{len(results[0].labels)} images, seed {results[0].seed}."
    if not any(result.stochastic for result in results):
        return f"{sentence} The networks are deterministic, so one pass scores each."
    draws = max(result.draws for result in results)
    sentence += (
        " Each adversarial image is found once and scored on fresh draws of the noise: "
        f"mean ± standard deviation of {draws} single draws; a deterministic network "
        "has one."
    )
    names = [result.scenario.name for result in results]
    if any("EOT-" in name for name in names):
        sentence += (
            " EOT-k: the attack averages over k draws of a random network's noise."
        )
    if any("mean of" in name for name in columns):
        sentence += (
            " Mean of n: each prediction is the mean of the softmax over n draws, and "
            "attacks differentiate through it; these draws count among those of EOT-k."
        )
    if any("worst case" in name for name in names):
        sentence += (
            " Worst case: for each image the attack that does best on other draws than "
            "those that score it."
        )
    return sentence


def format_certificates(certificates: list[Certificate]) -> str:
    """Returns a Markdown table of the accuracy that is certified at some radii."""
    radii = round_radii(certificates)
    norm = certificates[0].norm.upper()
    lines = [[f"certified accuracy (%) at {norm} radius", *map("{:.3g}".format, radii)]]
    for certificate in certificates:
        cells = [f"{100 * certificate.accuracy(radius):.2f}" for radius in radii]
        lines.append([certificate.method, *cells])
    first = certificates[0]
    note = (
        f"{len(first.labels)} images, {first.draws:,} draws each; a radius is wrong "
        f"with probability {first.failure:g} at most. At 0 stands the accuracy of the "
        "prediction, certified or not. A ball in this norm is much smaller than the "
        "Linf ball of the same radius."
    )
    return f"{_aligned(lines)}\n\n{note}"


def write_certificates(
    path: str | os.PathLike, certificates: list[Certificate]
) -> None:
    """Writes one line for each method and image: label, prediction and radius."""
    with files.replacing(path) as scratch, scratch.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "norm", "image", "label", "prediction", "radius"])
        for each in certificates:
            rows = zip(each.labels, each.predictions, each.radii, strict=True)
            for i, (label, prediction, radius) in enumerate(rows):
                writer.writerow(
                    [each.method, each.norm, i, label, prediction, f"{radius:.6g}"]
                )


def format_settings(columns: Columns) -> str:
    """Returns a Markdown list of the attacks with all their settings."""
    lines = {}
    for network, results in columns.items():
        for result in results:
            scenario = result.scenario
            if scenario.attack is not None:
                draws = scenario.expectation if result.stochastic else 1
                extra = f", expectation over {draws} draws" if draws > 1 else ""
                line = f"{scenario.name}: `{scenario.attack}`{extra}"
                lines.setdefault(line, []).append(network)
    return "\n".join(f"- {', '.join(n)}: {line}" for line, n in lines.items())


def format_warnings(results: Iterable[Result]) -> str:
    """Returns a line for each warning, with the rows that it is about."""
    rows = {}
    for result in results:
        for warning in result.warnings:
            rows.setdefault(warning, {})[result.scenario.name] = None
    return "\n".join(f"warning: {', '.join(n)}: {text}" for text, n in rows.items())


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
    files.write_text(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: str | os.PathLike, columns: Columns) -> None:
    """Writes one line for each image, network and scenario.

    The columns are network, scenario, image (its index), label, correct_draws, draws,
    predictions (the label of each draw, separated by spaces), and for an attack its
    claim (1 or 0), the norms of the perturbation, queries, gradient evaluations and the
    class that a targeted attack aimed at.
    """
    with files.replacing(path) as scratch, scratch.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_CSV_COLUMNS)
        for network, results in columns.items():
            for result in results:
                writer.writerows(_per_example(network, result))


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
            *_attack_cells(result, i),
        ]


def _attack_cells(result, i):
    if result.claimed is None:
        return [""] * 6
    return [
        int(result.claimed[i]),
        f"{result.l2[i]:.6g}",
        f"{result.linf[i]:.6g}",
        result.queries[i],
        result.gradients[i],
        "" if result.aims is None else result.aims[i],
    ]


def _costs(summary):
    def cell(name, form, scale=1):
        value = summary[name]
        return "-" if value is None else format(scale * value, form)

    return [
        f"{100 * (1 - summary['claimed_accuracy']):.2f}",
        cell("upheld", ".2f", 100),
        cell("l2_mean_of_claimed", ".4g"),
        cell("linf_mean_of_claimed", ".4g"),
        cell("queries_mean", ",.0f"),
        cell("gradients_mean", ",.0f"),
    ]


def _aligned(lines):
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
    )


def _cell(result):
    if result is None:
        return "not run"
    if not result.stochastic:
        return f"{100 * result.mean:.2f}"
    return f"{100 * result.mean:.2f} ± {100 * result.std:.2f}"
