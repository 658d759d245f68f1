"""The work of `bin/evaluate`, once its flags are parsed."""

import contextlib
import time
from pathlib import Path

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
from pni_tf.settings.evaluation import EvaluationRun
from pni_tf.targets import load_target


def evaluate(
    model: Path, settings: EvaluationRun, specs: list[AttackSpec], workers: Workers
) -> None:
    """Attacks a model, writes the results and prints the tables.

    All workers share the attacks; the chief writes and prints.

    Args:
        model: A run directory, a `.keras` file or a SavedModel.
        settings: All settings, with dataset, epsilons and output folder.
        specs: The attacks of `--attacks`.
        workers: Processes that share the work.
    """
    analyses, output = settings.analyses, Path(settings.scoring.output_dir)
    targets, identities = _load(model, analyses, workers.devices)
    held_out_count = 0
    if settings.attacks.suite == "paper" or "substitute" in {s.name for s in specs}:
        held_out_count = settings.attacks.substitute_images
    images, labels, held_out, class_names = _data(settings.data, held_out_count)
    sources = {path: load_target(path) for path in settings.attacks.transfer_from or ()}
    digests = {path: _digest(Path(path)) for path in sources}
    # All are made before the first is run, so that a bad setting shows at once.
    planner = Planner(
        settings.attacks,
        specs,
        sources,
        digests,
        Substitutes(output, settings.scoring.seed, images, held_out, workers),
        len(images),
    )
    plans = {
        column: planner.scenarios(column, targets[column], identities[column])
        for column in _chosen(analyses.columns, targets)
    }
    output.mkdir(parents=True, exist_ok=True)
    lock = contextlib.nullcontext()
    if workers.is_chief:
        lock = files.lock(output, f"--output_dir={output}")
    with lock:
        run = _Runner(
            targets, identities, images, labels, settings.scoring, output, workers
        )
        found = _evaluation(str(model), settings, run, plans, class_names)
        if workers.is_chief:
            found.substitutes = planner.substitutes.facts
            digest = examples_digest(images, labels)
            found.data = {"examples": len(images), "sha256": digest}
            text = report.write(output, found, title=f"{model.name}, {found.dataset}")
            print(f"\n{text}\n\nThe results are in {output}")
        workers.barrier()


def _evaluation(model, settings, run, plans, class_names):
    """Does all that is planned."""
    attacks, analyses = settings.attacks, settings.analyses
    columns = {column: run.scenarios(column, plan) for column, plan in plans.items()}
    pgd = make_attack("pgd", epsilon=attacks.epsilons[0], norm=attacks.norm)
    expectation = max(attacks.expectation)
    found = report.Evaluation(
        model=model,
        dataset=settings.data.dataset,
        columns={c: results + worst_cases(results) for c, results in columns.items()},
        curves={
            kind: {
                column: run.curve(column, kind, pgd, expectation) for column in plans
            }
            for kind in analyses.curves or ()
        },
    )
    first = next(iter(run.targets))
    if analyses.checklist:
        found.checklist = run.checklist(first, pgd.epsilon, expectation)
    if run.workers.is_chief:
        if analyses.certify:
            found.certificates = run.certificates(first, analyses.certify_draws)
        if analyses.pictures:
            column, results = next(iter(found.columns.items()))
            found.pictures = run.pictures(
                column, results, analyses.pictures, pgd.epsilon, class_names
            )
    return found


def _logged(progress, column):
    """Adds a line for each finished row to a progress bar, for logs."""

    def run(batches, row):
        start = time.monotonic()
        yield from progress(batches, row)
        seconds = time.monotonic() - start
        print(f"{column}: {row} ({seconds:.1f} s)", flush=True)

    return run


class _Runner:
    """Runs evaluations of the same images that share their options."""

    def __init__(self, targets, identities, images, labels, scoring, output, workers):
        self.targets, self.identities = targets, identities
        self.images, self.labels = images, labels
        self.scoring, self.output, self.workers = scoring, output, workers

    def scenarios(self, column, plan):
        target = self.targets[column]
        return evaluate_robustness(
            target, self.images, self.labels, plan, **self._options(column)
        )

    def curve(self, column, kind, attack, expectation):
        return evaluate_curve(
            kind,
            self.targets[column],
            self.images,
            self.labels,
            attack=attack,
            expectation=expectation,
            **self._options(column, "curves"),
        )

    def checklist(self, column, epsilon, expectation):
        return run_checklist(
            self.targets[column],
            self.images,
            self.labels,
            epsilon=epsilon,
            expectation=expectation,
            twin=self.targets.get(_TWIN),
            **self._options(column, "checklist"),
        )

    def certificates(self, column, draws):
        store = self._options(column, "certificates")["store"]
        return certify(
            self.targets[column].source,
            self.images,
            self.labels,
            draws=draws,
            batch_size=self.scoring.batch_size,
            seed=self.scoring.seed,
            store=store,
            progress=_logged(progress_bar(column.name), column),
        )

    def pictures(self, column, results, count, epsilon, class_names):
        store = self._options(column)["store"]
        return turned_around(
            self.targets[column],
            self.images,
            results,
            store,
            count=count,
            draws=self.scoring.draws,
            epsilon=epsilon,
            class_names=class_names,
        )

    def _options(self, column, part="examples"):
        identity = self.identities[column]
        if part == "checklist":  # It attacks the twin, too.
            identity = list(self.identities.values())
        return {
            "draws": self.scoring.draws,
            "batch_size": self.scoring.batch_size,
            "seed": self.scoring.seed,
            "store": ResultStore(self.output / part / slug(column.name), identity),
            "progress": _logged(progress_bar(column.name), column),
            "workers": self.workers,
        }


_TWIN = Column(kind="twin")


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
        pixeldp_wrapper(target.source)  # Which says at once if there is none.
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
