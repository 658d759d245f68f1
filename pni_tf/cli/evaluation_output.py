"""What `bin/evaluate` writes and prints."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from pni_tf import files, plots
from pni_tf.cli.pictures import Pictures
from pni_tf.evaluation import report
from pni_tf.evaluation.certification import Certificate, round_radii
from pni_tf.evaluation.checklist import Checklist
from pni_tf.evaluation.results import Result


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

    columns: report.Columns
    curves: dict[str, dict[str, dict[float, Result]]]
    checklist: Checklist | None = None
    certificates: list[Certificate] | None = None
    pictures: Pictures | None = None
    substitutes: dict[str, dict] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    data: dict[str, str | int] = dataclasses.field(default_factory=dict)


def write(settings: SimpleNamespace, outcome: Outcome) -> None:
    """Writes every file of the results, and prints the tables."""
    output, columns, curves = settings.output, outcome.columns, outcome.curves
    checklist, certificates = outcome.checklist, outcome.certificates
    pictures = outcome.pictures
    title = f"{settings.model.name}, {settings.dataset}"
    every = [r for results in columns.values() for r in results]
    every += [
        r for lines in curves.values() for line in lines.values() for r in line.values()
    ]
    if checklist is not None:
        every += checklist.results.values()
    warnings = report.format_warnings(every)
    report.write_csv(output / "per_example.csv", columns)
    report.write_json(
        output / "evaluation.json",
        columns,
        model=str(settings.model),
        dataset=settings.dataset,
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
    figures = {
        "accuracies": plots.plot_accuracies(report.accuracies(columns), title=title)
    }
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
        report.write_certificates(output / "certificates.csv", certificates)
    if pictures is not None:
        figures["pictures"] = pictures.plot(settings.epsilons[0], outcome.class_names)
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png", dpi=120)
    parts = [report.format_table(columns), report.describe(columns)]
    costs = report.format_costs(columns)
    if costs:
        parts.append(costs)
    if checklist is not None:
        parts.append(checklist.to_markdown())
    if certificates is not None:
        parts.append(report.format_certificates(certificates))
    if warnings:
        parts.append(warnings)
    links = [f"![{name}]({name}.png)" for name in figures]
    settings_used = report.format_settings(columns)
    files.write_text(
        output / "report.md",
        "\n\n".join([f"# {title}", *parts, settings_used, *links]) + "\n",
    )
    print("\n" + "\n\n".join(parts) + f"\n\nThe results are in {output}")
