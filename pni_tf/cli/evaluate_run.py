"""The work of `bin/evaluate`, once its flags are parsed."""

import contextlib
import time
from types import SimpleNamespace

from pni_tf import files
from pni_tf.attacks import make_attack
from pni_tf.cli.evaluate_plan import Planner
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
from pni_tf.targets import load_target


def evaluate(settings: SimpleNamespace, workers: Workers) -> None:
    """Attacks what `settings` names, writes the results and prints the tables.

    All workers share the attacks; the chief writes and prints.
    """
    targets, identities = _load(settings, workers.devices)
    images, labels, held_out, class_names = _data(settings)
    sources = {str(path): load_target(path) for path in settings.transfer_from}
    digests = {str(path): _digest(path) for path in settings.transfer_from}
    # All are made before the first is run, so that a bad setting shows at once.
    planner = Planner(settings, sources, digests, images, held_out, workers)
    plans = {
        column: planner.scenarios(column, targets[column], identities[column])
        for column in _chosen(settings, targets)
    }
    settings.output.mkdir(parents=True, exist_ok=True)
    lock = contextlib.nullcontext()
    if workers.is_chief:
        lock = files.lock(settings.output, f"--output_dir={settings.output}")
    with lock:
        run = _Runner(settings, targets, identities, images, labels, workers)
        outcome = _outcome(settings, run, plans, class_names)
        if workers.is_chief:
            outcome.substitutes = planner.substitutes
            digest = examples_digest(images, labels)
            outcome.data = {"examples": len(images), "sha256": digest}
            title = f"{settings.model.name}, {settings.dataset}"
            text = report.write(settings.output, outcome, title=title)
            print(f"\n{text}\n\nThe results are in {settings.output}")
        workers.barrier()


def _outcome(settings, run, plans, class_names):
    """Does all that is planned."""
    columns = {column: run.scenarios(column, plan) for column, plan in plans.items()}
    outcome = report.Evaluation(
        model=str(settings.model),
        dataset=settings.dataset,
        columns={c: results + worst_cases(results) for c, results in columns.items()},
        curves={
            kind: {column: run.curve(column, kind) for column in plans}
            for kind in settings.curves
        },
    )
    if settings.checklist:
        outcome.checklist = run.checklist(next(iter(run.targets)))
    if run.workers.is_chief:
        if settings.certify:
            outcome.certificates = run.certificates(next(iter(run.targets)))
        if settings.pictures:
            first = next(iter(outcome.columns.items()))
            outcome.pictures = run.pictures(*first, class_names)
    return outcome


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

    def __init__(self, settings, targets, identities, images, labels, workers):
        self.workers = workers
        self.settings, self.targets = settings, targets
        self.identities, self.images, self.labels = identities, images, labels

    def scenarios(self, column, plan):
        target = self.targets[column]
        return evaluate_robustness(
            target, self.images, self.labels, plan, **self._options(column)
        )

    def curve(self, column, kind):
        return evaluate_curve(
            kind,
            self.targets[column],
            self.images,
            self.labels,
            attack=make_attack(
                "pgd",
                epsilon=self.settings.epsilons[0],
                norm=self.settings.norm,
            ),
            expectation=max(self.settings.expectations),
            **self._options(column, "curves"),
        )

    def checklist(self, column):
        return run_checklist(
            self.targets[column],
            self.images,
            self.labels,
            epsilon=self.settings.epsilons[0],
            expectation=max(self.settings.expectations),
            twin=self.targets.get(_TWIN),
            **self._options(column, "checklist"),
        )

    def certificates(self, column):
        store = self._options(column, "certificates")["store"]
        return certify(
            self.targets[column].source,
            self.images,
            self.labels,
            draws=self.settings.certify_draws,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            store=store,
            progress=_logged(progress_bar(column.name), column),
        )

    def pictures(self, column, results, class_names):
        store = self._options(column)["store"]
        return turned_around(
            self.targets[column],
            self.images,
            results,
            store,
            count=self.settings.pictures,
            draws=self.settings.draws,
            epsilon=self.settings.epsilons[0],
            class_names=class_names,
        )

    def _options(self, column, part="examples"):
        identity = self.identities[column]
        if part == "checklist":
            identity = list(self.identities.values())  # it attacks the twin too
        return {
            "draws": self.settings.draws,
            "batch_size": self.settings.batch_size,
            "seed": self.settings.seed,
            "store": ResultStore(
                self.settings.output / part / slug(column.name), identity
            ),
            "progress": _logged(progress_bar(column.name), column),
            "workers": self.workers,
        }


_TWIN = Column(kind="twin")


def _load(settings, devices):
    """Returns the targets by their column, and what identifies each."""
    target = load_target(settings.model, devices=devices)
    targets = {Column(kind="model"): target}
    if target.noise_free is not None:
        targets = {
            Column(kind="noise_on"): target,
            Column(kind="noise_off"): target.noise_free,
        }
    if settings.ensemble > 1:
        column = Column(kind="mean", draws=settings.ensemble)
        targets[column] = target.ensemble(settings.ensemble)
    identities = dict.fromkeys(targets, _digest(settings.model))
    if settings.certify:
        pixeldp_wrapper(target.source)  # which it lacks, it should say so at once
    if settings.twin is not None:
        targets[_TWIN] = load_target(settings.twin, devices=devices)
        identities[_TWIN] = _digest(settings.twin)
        if targets[_TWIN].stochastic:
            raise ValueError(
                f"--twin={settings.twin} is random: the twin is the deterministic "
                "network, trained without noise"
            )
    return targets, identities


def _chosen(settings, targets):
    """Returns the columns that `--columns` asks for."""
    if settings.columns is None:
        return list(targets)
    kinds = [column.kind for column in targets]
    for kind in settings.columns:
        if kind not in kinds:
            raise ValueError(
                f"--columns={','.join(settings.columns)}: there is no {kind}; this "
                f"evaluation has {', '.join(kinds)}"
            )
    return [column for column in targets if column.kind in settings.columns]


def _digest(path):
    model = path / "model.keras"  # of a run directory, in which other files change
    return files.file_digest(model if model.exists() else path)


def _data(settings):
    """Returns images to attack, their labels, held-out images and names of classes."""
    kept = 0
    attacks = [spec.name for spec in settings.attacks]
    if "substitute" in attacks or settings.suite == "paper":
        kept = settings.substitute_images
    dataset = load_dataset(
        settings.dataset,
        data_dir=settings.data_dir,
        download=settings.download,
        test_examples=settings.examples and settings.examples + kept,
    )
    images, labels = dataset.test.images_float(), dataset.test.labels
    if kept >= len(images):
        raise ValueError(
            f"--substitute_images={kept} leaves none of the {len(images)} test images "
            "to attack"
        )
    last = len(images) - kept
    return images[:last], labels[:last], images[last:], dataset.info.class_names
