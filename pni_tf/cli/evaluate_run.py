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
        name: planner.scenarios(name, targets[name], identities[name])
        for name in _chosen(settings, targets)
    }
    settings.output.mkdir(parents=True, exist_ok=True)
    lock = contextlib.nullcontext()
    if workers.is_chief:
        lock = files.lock(settings.output, f"--output_dir={settings.output}")
    with lock:
        run = _Runner(settings, targets, identities, images, labels, workers)
        outcome = _outcome(settings, run, plans)
        if workers.is_chief:
            outcome.substitutes = planner.substitutes
            outcome.class_names = class_names
            digest = examples_digest(images, labels)
            outcome.data = {"examples": len(images), "sha256": digest}
            report.write(settings, outcome)
        workers.barrier()


def _outcome(settings, run, plans):
    """Does all that is planned."""
    columns = {name: run.scenarios(name, plan) for name, plan in plans.items()}
    columns = {
        name: results + worst_cases(results) for name, results in columns.items()
    }
    curves = {
        kind: {name: run.curve(name, kind) for name in plans}
        for kind in settings.curves
    }
    outcome = report.Outcome(columns=columns, curves=curves)
    if settings.checklist:
        outcome.checklist = run.checklist(next(iter(run.targets)))
    if run.workers.is_chief:
        if settings.certify:
            outcome.certificates = run.certificates(next(iter(run.targets)))
        if settings.pictures:
            outcome.pictures = run.pictures(*next(iter(columns.items())))
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

    def scenarios(self, name, plan):
        target = self.targets[name]
        return evaluate_robustness(
            target, self.images, self.labels, plan, **self._options(name)
        )

    def curve(self, name, kind):
        return evaluate_curve(
            kind,
            self.targets[name],
            self.images,
            self.labels,
            attack=make_attack(
                "pgd",
                epsilon=self.settings.epsilons[0],
                norm=self.settings.norm,
            ),
            expectation=max(self.settings.expectations),
            **self._options(name, "curves"),
        )

    def checklist(self, name):
        return run_checklist(
            self.targets[name],
            self.images,
            self.labels,
            epsilon=self.settings.epsilons[0],
            expectation=max(self.settings.expectations),
            twin=self.targets.get("twin"),
            **self._options(name, "checklist"),
        )

    def certificates(self, name):
        store = self._options(name, "certificates")["store"]
        return certify(
            self.targets[name].source,
            self.images,
            self.labels,
            draws=self.settings.certify_draws,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            store=store,
            progress=_logged(progress_bar(name), name),
        )

    def pictures(self, name, results):
        store = self._options(name)["store"]
        return turned_around(
            self.targets[name],
            self.images,
            results,
            store,
            count=self.settings.pictures,
            draws=self.settings.draws,
        )

    def _options(self, name, part="examples"):
        identity = self.identities[name]
        if part == "checklist":
            identity = list(self.identities.values())  # it attacks the twin too
        return {
            "draws": self.settings.draws,
            "batch_size": self.settings.batch_size,
            "seed": self.settings.seed,
            "store": ResultStore(self.settings.output / part / slug(name), identity),
            "progress": _logged(progress_bar(name), name),
            "workers": self.workers,
        }


def _load(settings, devices):
    """Returns the targets by the name of their column, and what identifies each."""
    target = load_target(settings.model, devices=devices)
    targets = {"model" if target.noise_free is None else "noise on": target}
    if target.noise_free is not None:
        targets["noise off"] = target.noise_free
    if settings.ensemble > 1:
        name = f"mean of {settings.ensemble} draws"
        targets[name] = target.ensemble(settings.ensemble)
    identities = dict.fromkeys(targets, _digest(settings.model))
    if settings.certify:
        pixeldp_wrapper(target.source)  # which it lacks, it should say so at once
    if settings.twin is not None:
        targets["twin"] = load_target(settings.twin, devices=devices)
        identities["twin"] = _digest(settings.twin)
        if targets["twin"].stochastic:
            raise ValueError(
                f"--twin={settings.twin} is random: the twin is the deterministic "
                "network, trained without noise"
            )
    return targets, identities


def _chosen(settings, targets):
    """Returns the names of the targets that `--columns` asks for."""
    if settings.columns is None:
        return list(targets)
    names = {name.split(" of ")[0].replace(" ", "_"): name for name in targets}
    for column in settings.columns:
        if column not in names:
            raise ValueError(
                f"--columns={','.join(settings.columns)}: there is no {column}; this "
                f"evaluation has {', '.join(names)}"
            )
    return [name for short, name in names.items() if short in settings.columns]


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
