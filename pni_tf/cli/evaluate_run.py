"""The work of `bin/evaluate`, once its flags are parsed."""

import contextlib
import dataclasses
import time
from pathlib import Path

import numpy as np

from pni_tf import files
from pni_tf.attacks.presets import make_attack
from pni_tf.cli.evaluate_plan import Planner, Substitutes
from pni_tf.cli.flags import AttackSpec
from pni_tf.data import load_dataset
from pni_tf.distribution.workers import Workers
from pni_tf.evaluation import (
    Column,
    ResultStore,
    certify,
    evaluate_curve,
    evaluate_robustness,
    report,
    run_checklist,
    worst_cases,
)
from pni_tf.evaluation.certification import pixeldp_wrapper
from pni_tf.evaluation.pictures import turned_around
from pni_tf.evaluation.robustness import progress_bar
from pni_tf.evaluation.store import examples_digest
from pni_tf.files import slug
from pni_tf.settings.evaluation import Analyses, Attacks, EvaluationRun, Scoring
from pni_tf.targets import Target, load_target

_TWIN = Column(kind="twin")


def evaluate(
    model: Path, settings: EvaluationRun, specs: list[AttackSpec], workers: Workers
) -> None:
    """Attacks a model, writes the results and prints the tables.

    All workers share the attacks; the chief writes and prints. The settings must name
    dataset, epsilons and output folder, and `specs` are the attacks of `--attacks`.
    """
    attacks, analyses, scoring = settings.attacks, settings.analyses, settings.scoring
    output = Path(scoring.output_dir)
    targets, identities = _load(model, analyses, workers.devices)
    held_out_count = 0
    if attacks.suite == "paper" or "substitute" in {s.name for s in specs}:
        held_out_count = attacks.substitute_images
    images, labels, held_out, class_names = _data(settings.data, held_out_count)
    paths = attacks.transfer_from or ()
    sources = {path: (load_target(path), _digest(Path(path))) for path in paths}
    substitutes = Substitutes(output, scoring.seed, images, held_out, workers)
    planner = Planner(attacks, specs, sources, substitutes, len(images))
    # All are made before the first is run, so that a bad setting shows at once.
    plans = {
        column: planner.scenarios(column, targets[column], identities[column])
        for column in _chosen(analyses.columns, targets)
    }
    output.mkdir(parents=True, exist_ok=True)
    lock = contextlib.nullcontext()
    if workers.is_chief:
        lock = files.lock(output, f"--output_dir={output}")
    with lock:
        run = _Run(
            settings.data.dataset,
            attacks,
            analyses,
            scoring,
            targets,
            identities,
            images,
            labels,
            class_names,
            workers,
        )
        found = run.evaluation(str(model), plans)
        if workers.is_chief:
            found.substitutes = substitutes.facts
            text = report.write(output, found, title=f"{model.name}, {found.dataset}")
            print(f"\n{text}\n\nThe results are in {output}")
        workers.barrier()


@dataclasses.dataclass(frozen=True)
class _Run:
    """Evaluations of the same images that share their options."""

    dataset: str
    attacks: Attacks
    analyses: Analyses
    scoring: Scoring
    targets: dict[Column, Target]
    identities: dict[Column, str]
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    workers: Workers

    def evaluation(self, model, plans):
        """Does all that is planned."""
        attacks, analyses = self.attacks, self.analyses
        columns = {}
        for column, plan in plans.items():
            results = evaluate_robustness(scenarios=plan, **self.arguments(column))
            columns[column] = results + worst_cases(results)
        pgd = make_attack("pgd", epsilon=attacks.epsilons[0], norm=attacks.norm)
        expectation, first = max(attacks.expectation), next(iter(self.targets))
        found = report.Evaluation(
            model=model,
            dataset=self.dataset,
            data={
                "examples": len(self.images),
                "sha256": examples_digest(self.images, self.labels),
            },
            columns=columns,
            curves={
                kind: {
                    column: evaluate_curve(
                        kind,
                        attack=pgd,
                        expectation=expectation,
                        **self.arguments(column, "curves"),
                    )
                    for column in plans
                }
                for kind in analyses.curves or ()
            },
        )
        if analyses.checklist:
            found.checklist = run_checklist(
                epsilon=pgd.epsilon,
                expectation=expectation,
                twin=self.targets.get(_TWIN),
                **self.arguments(first, "checklist"),
            )
        if self.workers.is_chief and analyses.certify:
            given = self.arguments(first, "certificates")
            del given["workers"]
            given["draws"] = analyses.certify_draws
            found.certificates = certify(given.pop("target").source, **given)
        if self.workers.is_chief and analyses.pictures:
            column, results = next(iter(columns.items()))
            found.pictures = turned_around(
                self.targets[column],
                self.images,
                results,
                self.arguments(column)["store"],
                count=analyses.pictures,
                draws=self.scoring.draws,
                epsilon=pgd.epsilon,
                class_names=self.class_names,
            )
        return found

    def arguments(self, column, part="examples"):
        """Returns what the attacks on a column take, with a store for each part."""
        identity, scoring = self.identities[column], self.scoring
        if part == "checklist":  # It attacks the twin, too.
            identity = list(self.identities.values())
        folder = Path(scoring.output_dir, part, slug(column.name))
        return {
            "target": self.targets[column],
            "images": self.images,
            "labels": self.labels,
            "draws": scoring.draws,
            "batch_size": scoring.batch_size,
            "seed": scoring.seed,
            "store": ResultStore(folder, identity),
            "progress": _logged(column),
            "workers": self.workers,
        }


def _logged(column):
    """Returns a progress bar that leaves a line for each finished row, for logs."""

    def run(batches, row):
        start = time.monotonic()
        yield from progress_bar(column.name)(batches, row)
        seconds = time.monotonic() - start
        print(f"{column}: {row} ({seconds:.1f} s)", flush=True)

    return run


def _load(model, analyses, devices):
    """Returns the targets by their column, and what identifies each."""
    target = load_target(model, devices=devices)
    targets = {Column(kind="model"): target}
    if target.noise_free is not None:
        targets = {
            Column(kind="noise_on"): target,
            Column(kind="noise_off"): target.noise_free,
        }
    if analyses.ensemble > 1:
        column = Column(kind="mean", draws=analyses.ensemble)
        targets[column] = target.ensemble(analyses.ensemble)
    identities = dict.fromkeys(targets, _digest(model))
    if analyses.certify:
        pixeldp_wrapper(target.source)  # It says at once if there is none.
    if analyses.twin is not None:
        targets[_TWIN] = load_target(analyses.twin, devices=devices)
        identities[_TWIN] = _digest(Path(analyses.twin))
        if targets[_TWIN].stochastic:
            raise ValueError(
                f"--twin={analyses.twin} is random: the twin is the deterministic "
                "network, trained without noise"
            )
    return targets, identities


def _chosen(wanted, targets):
    """Returns the columns that `--columns` asks for."""
    if wanted is None:
        return list(targets)
    kinds = [column.kind for column in targets]
    for kind in wanted:
        if kind not in kinds:
            raise ValueError(
                f"--columns={','.join(wanted)}: there is no {kind}; this evaluation "
                f"has {', '.join(kinds)}"
            )
    return [column for column in targets if column.kind in wanted]


def _digest(path):
    model = path / "model.keras"  # Of a run directory, in which other files change.
    return files.file_digest(model if model.exists() else path)


def _data(chosen, held_out_count):
    """Returns images to attack, their labels, held-out images and names of classes."""
    dataset = load_dataset(
        chosen.dataset,
        data_dir=chosen.data_dir,
        download=chosen.download,
        test_examples=chosen.examples and chosen.examples + held_out_count,
    )
    images, labels = dataset.test.images_float(), dataset.test.labels
    last = len(images) - held_out_count
    if last <= 0:
        raise ValueError(
            f"--substitute_images={held_out_count} leaves none of the {len(images)} "
            "test images to attack"
        )
    return images[:last], labels[:last], images[last:], dataset.info.class_names
