"""The end of `bin/train`: evaluation, figures, report and export."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import tensorflow as tf

from pni_tf import files, plots
from pni_tf.callbacks import HistoryFile
from pni_tf.cli.evaluation import evaluate_columns
from pni_tf.cli.run_directory import RunDirectory
from pni_tf.cli.training import NOISE_NAMES, training_attack
from pni_tf.data import Dataset
from pni_tf.distribution import Workers
from pni_tf.evaluation import ResultStore, report, standard_scenarios
from pni_tf.evaluation.store import slug
from pni_tf.export import Target, export_saved_model, load_model, load_target


def finish(
    settings: SimpleNamespace,
    directory: RunDirectory,
    undefended: RunDirectory | None,
    dataset: Dataset,
    workers: Workers,
) -> None:
    """Evaluates and exports what was trained, and prints where everything lies.

    All workers share the evaluation; the chief does the rest.
    """
    if workers.is_chief and settings.export:
        export_saved_model(load_model(directory.model), directory.saved_model)
    if settings.evaluate:
        targets = _targets(settings, directory, undefended, workers.devices)
        columns = evaluate(settings, directory, targets, dataset, workers)
    if workers.is_chief:
        figures = []
        if settings.noise == "pni" and settings.pni != "none":
            figures.append(_save(_alphas(directory), directory.path / "alphas.png"))
        if settings.evaluate:
            figures += _pictures(settings, directory, columns, targets, dataset)
            _write(settings, directory, columns, figures)
            shutil.rmtree(directory.batches, ignore_errors=True)
            print("\n" + report.format_table(columns))
            print("\n" + report.describe(columns))
        directory.finished.touch()
        print("\n" + _inventory(directory))
    workers.barrier()


def evaluate(
    settings: SimpleNamespace,
    directory: RunDirectory,
    targets: dict[str, Target],
    dataset: Dataset,
    workers: Workers,
) -> report.Columns:
    """Returns the standard table of some targets on the test images."""
    scenarios = standard_scenarios(
        epsilon=settings.epsilon,
        steps=tuple(settings.eval_steps),
        expectation=settings.eval_expectation,
        step_size_of={settings.attack_steps: settings.attack_step_size},
    )
    count = settings.eval_examples
    models = [
        directory.model,
        directory.best_model,
        directory.undefended / "model.keras",
    ]
    identity = [files.file_digest(path) for path in models if path.exists()]
    return evaluate_columns(
        targets,
        dataset.test.images_float()[:count],
        dataset.test.labels[:count],
        scenarios,
        draws=settings.eval_draws,
        store=lambda name: ResultStore(directory.batches / slug(name), identity),
        seed=settings.seed,
        workers=workers,
    )


def _targets(settings, directory, undefended, devices):
    target = load_target(directory.model, devices=devices)
    kind = "adversarial training" if settings.adversarial else "no defence"
    noise = NOISE_NAMES[settings.noise]
    if target.noise_free is None:
        targets = {kind: target}
    else:
        targets = {f"with {noise}": target, f"without {noise}": target.noise_free}
    if settings.eval_ensemble > 1:
        name = f"with {noise}, mean of {settings.eval_ensemble}"
        targets[name] = target.ensemble(settings.eval_ensemble)
    if directory.best_model.exists():
        best = load_target(directory.best_model, devices=devices)
        name = f"with {noise}" if best.noise_free is not None else kind
        targets[f"{name}, best epoch"] = best
    if undefended is not None:
        targets["no defence"] = load_target(undefended.model, devices=devices)
    return targets


def _pictures(settings, directory, columns, targets, dataset):
    title = (
        f"{settings.dataset}, {settings.model}, $\\epsilon$ = {settings.epsilon:.3g}"
    )
    figure = plots.plot_accuracies(report.accuracies(columns), title=title)
    figures = [_save(figure, directory.path / "accuracies.png")]
    images = dataset.test.images_float()[:8]
    labels = dataset.test.labels[:8]
    target = next(iter(targets.values()))
    adversarial = training_attack(settings).perturb(
        target.logits, images, labels, seed=tf.constant([settings.seed, 0], tf.int64)
    )
    figure = plots.plot_adversarial_examples(
        images,
        adversarial.numpy(),
        labels,
        target.predict(adversarial),
        epsilon=settings.epsilon,
        class_names=dataset.info.class_names,
        title=f"PGD-{settings.attack_steps}, {title}",
    )
    return [*figures, _save(figure, directory.path / "adversarial_examples.png")]


def _alphas(directory):
    rows = HistoryFile(directory.history).read()
    names = [name for name in rows[0] if name.startswith("alpha/")]
    values = {
        name.removeprefix("alpha/"): [float(row[name]) for row in rows]
        for name in names
    }
    return plots.plot_alphas(values, title="Noise coefficient of each layer")


def _write(settings, directory, columns, figures):
    report.write_csv(directory.per_example, columns)
    report.write_json(
        directory.evaluation,
        columns,
        dataset=settings.dataset,
        model=settings.model,
        epsilon=settings.epsilon,
        training_seed=settings.seed,
    )
    pictures = "\n\n".join(f"![{f.stem}]({f.name})" for f in figures)
    files.write_text(
        directory.report,
        f"# {directory.path.name}\n\n"
        f"{settings.model} on {settings.dataset}, trained with `--flagfile=flags.cfg`; "
        "see [flags.cfg](flags.cfg).\n\n"
        f"{report.format_table(columns)}\n\n{report.describe(columns)}\n\n"
        f"{report.format_settings(columns)}\n\n{pictures}\n",
    )


def _save(figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path


def _inventory(directory):
    what = {
        directory.report: "table and figures",
        directory.evaluation: "the numbers",
        directory.per_example: "the prediction of each draw for each image",
        directory.history: "losses, accuracies and alphas of each epoch",
        directory.model: "the network, for Keras",
        directory.best_model: "the network after its best epoch on held-out images",
        directory.saved_model: "the network, for TensorFlow and attack scripts",
        directory.tensorboard: "for `tensorboard --logdir`",
        directory.flags: "the flags, to repeat this run",
    }
    found = {path: text for path, text in what.items() if path.exists()}
    width = max(len(str(path)) for path in found)
    return "\n".join(f"{path!s:{width}}  {text}" for path, text in found.items())
