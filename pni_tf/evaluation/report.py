"""Tables, files and figures of an evaluation."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pni_tf import files, plots
from pni_tf.evaluation import record
from pni_tf.evaluation.certification import Certificate, round_radii
from pni_tf.evaluation.checklist import Checklist
from pni_tf.evaluation.pictures import Pictures
from pni_tf.evaluation.record import Column
from pni_tf.evaluation.results import Result

# A table: the results of each network, one for each row, by the name of its column.
Table = Mapping[str, list[Result]]


@dataclasses.dataclass(kw_only=True)
class Evaluation:
    """All that an evaluation found.

    Attributes:
        model: What was evaluated.
        dataset: On which dataset.
        columns: The results of each network, one for each row.
        curves: By kind (such as `"epsilon"`) and column: a result for each value.
        checklist: The checklist, if it was asked for.
        certificates: Certified radii, if they were.
        pictures: Images with which an attack fooled the model, if they were asked for
            and there are any.
        substitutes: What the training of each substitute took, by its column.
        data: Number (`examples`) and digest (`sha256`) of the images.
        epsilon: Radius of the ball, where there is one for all rows.
        training_seed: Seed of the training that it ends.
    """

    model: str
    dataset: str
    columns: dict[Column, list[Result]]
    curves: dict[str, dict[Column, dict[float, Result]]] = dataclasses.field(
        default_factory=dict
    )
    checklist: Checklist | None = None
    certificates: list[Certificate] | None = None
    pictures: Pictures | None = None
    substitutes: dict[str, dict] = dataclasses.field(default_factory=dict)
    data: dict[str, str | int] = dataclasses.field(default_factory=dict)
    epsilon: float | None = None
    training_seed: int | None = None

    @property
    def table(self) -> Table:
        """The columns by their names."""
        return {column.name: results for column, results in self.columns.items()}

    @property
    def radii(self) -> list[float]:
        """The radii at which certificates are tabulated."""
        return round_radii(self.certificates) if self.certificates else []

    @property
    def warnings(self) -> list[str]:
        """The warnings of all results, curves and checklist included."""
        every = [r for results in self.columns.values() for r in results]
        for lines in self.curves.values():
            every += [r for line in lines.values() for r in line.values()]
        if self.checklist is not None:
            every += self.checklist.results.values()
        return format_warnings(every)


def write(
    directory: Path,
    evaluation: Evaluation,
    *,
    title: str,
    intro: str = "",
    figures: Mapping[str, Figure] | None = None,
) -> str:
    """Writes report.md with its figures, evaluation.json, and a line for each example.

    Args:
        directory: Where to; earlier files of these names are replaced.
        evaluation: What to write.
        title: Heading of the report and of the figures.
        intro: A paragraph to begin with.
        figures: Further figures by their name.

    Returns:
        The tables and sentences of the report, for the terminal.
    """
    found, table = evaluation, evaluation.table
    record.write_csv(directory / "per_example.csv", table)
    record.write_json(directory / "evaluation.json", found)
    if found.certificates is not None:
        record.write_certificates(directory / "certificates.csv", found.certificates)
    figures = {**_figures(found, title), **(figures or {})}
    for name, figure in figures.items():
        figure.savefig(directory / f"{name}.png", dpi=120)
    parts = [format_table(table), describe(table), format_costs(table)]
    if found.checklist is not None:
        parts.append(found.checklist.to_markdown())
    if found.certificates is not None:
        parts.append(format_certificates(found.certificates))
    text = "\n\n".join(filter(None, [*parts, "\n".join(found.warnings)]))
    links = [f"![{name}]({name}.png)" for name in figures]
    whole = [f"# {title}", intro, text, format_settings(table), *links]
    files.write_text(directory / "report.md", "\n\n".join(filter(None, whole)) + "\n")
    return text


def _figures(found, title):
    """Returns the figures of an evaluation by their names."""
    bars = {
        name: {r.scenario.name: (r.mean, r.std) for r in results}
        for name, results in found.table.items()
    }
    figures = {"accuracies": plots.plot_accuracies(bars, title=title)}
    for kind, lines in found.curves.items():
        figures[f"curve_{kind}"] = plots.plot_curves(
            {
                str(column): {x: (r.mean, r.std) for x, r in line.items()}
                for column, line in lines.items()
            },
            xlabel={"draws": "draws of the expectation over noise"}.get(kind, kind),
            title=f"PGD, {title}",
        )
    if found.certificates is not None:
        figures["certified_accuracy"] = plots.plot_certified_accuracy(
            {
                c.method: np.where(c.predictions == c.labels, c.radii, np.nan)
                for c in found.certificates
            },
            norm=found.certificates[0].norm,
            title=title,
        )
    if found.pictures is not None:
        figures["pictures"] = found.pictures.plot()
    return figures


def format_table(columns: Table) -> str:
    """Returns a Markdown table of accuracies in percent, aligned for the terminal.

    A random network shows mean ± standard deviation over single draws, a deterministic
    one its accuracy. Rows are scenarios, in the order of the first column.
    """
    cells = [{r.scenario.name: _cell(r) for r in c} for c in columns.values()]
    rows = dict.fromkeys(name for column in cells for name in column)
    lines = [[row, *(column.get(row, "not run") for column in cells)] for row in rows]
    return _aligned([["accuracy (%)", *columns], *lines])


# By its heading: the key of a cost, its format and its scale.
_COSTS = {
    "claimed (%)": ("claimed", ".2f", 100),
    "upheld (%)": ("upheld", ".2f", 100),
    "mean L2": ("l2_mean_of_claimed", ".4g", 1),
    "mean Linf": ("linf_mean_of_claimed", ".4g", 1),
    "queries": ("queries_mean", ",.0f", 1),
    "gradients": ("gradients_mean", ",.0f", 1),
}


def format_costs(columns: Table) -> str:
    """Returns a Markdown table of what each attack claims, achieves and costs.

    Claimed is the share of the images that the attack takes for fooled, on the draws
    that found them; upheld is the share of those claims that fresh draws confirm. The
    norms are means over the claimed images, the costs over all.
    """
    lines = []
    for network, results in columns.items():
        done = []
        for result in results:
            attack = result.scenario.attack, result.scenario.towards
            # To a deterministic network an expectation is the same attack again.
            repeats = not result.stochastic and attack in done
            done.append(attack)
            if result.claimed is not None and not repeats:
                numbers = result.summary()
                numbers["claimed"] = 1 - result.claimed_accuracy
                costs = [
                    "-" if numbers[key] is None else format(scale * numbers[key], form)
                    for key, form, scale in _COSTS.values()
                ]
                lines.append([network, result.scenario.name, *costs])
    return _aligned([["network", "attack", *_COSTS], *lines]) if lines else ""


def describe(columns: Table) -> str:
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
    if any(result.scenario.expectation > 1 for result in results):
        sentence += (
            " EOT-k: the attack averages over k draws of a random network's noise."
        )
    if any(result.ensemble > 1 for result in results):
        sentence += (
            " Mean of n: each prediction is the mean of the softmax over n draws, and "
            "attacks differentiate through it; these draws count among those of EOT-k."
        )
    if any(result.kind == "worst_case" for result in results):
        sentence += (
            " Worst case: for each image the attack that does best on other draws than "
            "those that score it."
        )
    return sentence


def format_certificates(certificates: list[Certificate]) -> str:
    """Returns a Markdown table of the accuracy that is certified at some radii."""
    first, radii = certificates[0], round_radii(certificates)
    heading = f"certified accuracy (%) at {first.norm.upper()} radius"
    lines = [[heading, *map("{:.3g}".format, radii)]]
    for certificate in certificates:
        cells = [f"{100 * certificate.accuracy(radius):.2f}" for radius in radii]
        lines.append([certificate.method, *cells])
    note = (
        f"{len(first.labels)} images, {first.draws:,} draws each; a radius is wrong "
        f"with probability {first.failure:g} at most. At 0 stands the accuracy of the "
        "prediction, certified or not. A ball in this norm is much smaller than the "
        "Linf ball of the same radius."
    )
    return f"{_aligned(lines)}\n\n{note}"


def format_settings(columns: Table) -> str:
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


def format_warnings(results: Iterable[Result]) -> list[str]:
    """Returns a line for each warning, with the rows that it is about."""
    rows = {}
    for result in results:
        for warning in result.warnings:
            rows.setdefault(warning, {})[result.scenario.name] = None
    return [f"warning: {', '.join(n)}: {text}" for text, n in rows.items()]


def _aligned(lines):
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
    )


def _cell(result):
    spread = f" ± {100 * result.std:.2f}" if result.stochastic else ""
    return f"{100 * result.mean:.2f}{spread}"
