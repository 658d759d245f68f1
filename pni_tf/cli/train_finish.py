"""What follows a training: evaluation, export, figures and the report of the run."""

import shutil
from pathlib import Path

import tensorflow as tf

from pni_tf import files, plots
from pni_tf.cli.run_directory import RunDirectory
from pni_tf.data import Dataset
from pni_tf.distribution.workers import Workers
from pni_tf.evaluation import ResultStore, report, standard_scenarios
from pni_tf.evaluation.results import Columns
from pni_tf.evaluation.robustness import evaluate_columns
from pni_tf.export import export_saved_model
from pni_tf.files import slug
from pni_tf.settings.training import FinalEvaluation, Recipe
from pni_tf.targets import Target, load_model, load_target
from pni_tf.training.assembly import training_attack
from pni_tf.training.callbacks import HistoryFile


def finish(
    recipe: Recipe,
    final: FinalEvaluation,
    directory: RunDirectory,
    undefended: RunDirectory | None,
    dataset: Dataset,
    workers: Workers,
) -> None:
    """Evaluates and exports what was trained, and prints where everything lies.

    All workers share the evaluation; the chief does the rest.
    """
    if workers.is_chief and final.export:
        export_saved_model(load_model(directory.model), directory.saved_model)
    if final.evaluate:
        targets = _targets(
            recipe, final.eval_ensemble, directory, undefended, workers.devices
        )
        columns = evaluate(recipe, final, directory, targets, dataset, workers)
    if workers.is_chief:
        figures = []
        if recipe.network.noise == "pni" and recipe.network.has_noise:
            figures.append(_save(_alphas(directory), directory.path / "alphas.png"))
        if final.evaluate:
            figures += _pictures(recipe, directory, columns, targets, dataset)
            _write(recipe, dataset.info.name, directory, columns, figures)
            shutil.rmtree(directory.batches, ignore_errors=True)
            print("\n" + report.format_table(columns))
            print("\n" + report.describe(columns))
        directory.finished.touch()
        print("\n" + _inventory(directory))
    workers.barrier()


def evaluate(
    recipe: Recipe,
    final: FinalEvaluation,
    directory: RunDirectory,
    targets: dict[str, Target],
    dataset: Dataset,
    workers: Workers,
) -> Columns:
    """Returns the standard table of some targets on the test images."""
    attack = recipe.adversarial
    scenarios = standard_scenarios(
        epsilon=attack.epsilon,
        steps=final.eval_steps,
        expectation=final.eval_expectation,
        step_size_of={attack.attack_steps: attack.attack_step_size},
    )
    count = final.eval_examples
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
        draws=final.eval_draws,
        store=lambda name: ResultStore(directory.batches / slug(name), identity),
        seed=recipe.computation.seed,
        workers=workers,
    )


def _targets(recipe, ensemble, directory, undefended, devices):
    target = load_target(directory.model, devices=devices)
    is_adversarial = recipe.adversarial.adversarial
    kind = "adversarial training" if is_adversarial else "no defence"
    noise = recipe.network.noise_name
    if target.noise_free is None:
        targets = {kind: target}
    else:
        targets = {f"with {noise}": target, f"without {noise}": target.noise_free}
    if ensemble > 1:
        name = f"with {noise}, mean of {ensemble}"
        targets[name] = target.ensemble(ensemble)
    if directory.best_model.exists():
        best = load_target(directory.best_model, devices=devices)
        name = f"with {noise}" if best.noise_free is not None else kind
        targets[f"{name}, best epoch"] = best
    if undefended is not None:
        targets["no defence"] = load_target(undefended.model, devices=devices)
    return targets


def _pictures(recipe, directory, columns, targets, dataset):
    attack, model = training_attack(recipe.adversarial), recipe.network.model
    title = f"{dataset.info.name}, {model}, $\\epsilon$ = {attack.epsilon:.3g}"
    figure = plots.plot_accuracies(report.accuracies(columns), title=title)
    figures = [_save(figure, directory.path / "accuracies.png")]
    images = dataset.test.images_float()[:8]
    labels = dataset.test.labels[:8]
    target = next(iter(targets.values()))
    seed = tf.constant([recipe.computation.seed, 0], tf.int64)
    adversarial = attack.perturb(target.logits, images, labels, seed=seed)
    figure = plots.plot_adversarial_examples(
        images,
        adversarial.numpy(),
        labels,
        target.predict(adversarial),
        epsilon=attack.epsilon,
        class_names=dataset.info.class_names,
        title=f"PGD-{attack.steps}, {title}",
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


def _write(recipe, dataset, directory, columns, figures):
    report.write_csv(directory.per_example, columns)
    report.write_json(
        directory.evaluation,
        columns,
        dataset=dataset,
        model=recipe.network.model,
        epsilon=recipe.adversarial.epsilon,
        training_seed=recipe.computation.seed,
    )
    pictures = "\n\n".join(f"![{f.stem}]({f.name})" for f in figures)
    files.write_text(
        directory.report,
        f"# {directory.path.name}\n\n"
        f"{recipe.network.model} on {dataset}, trained with `--flagfile=flags.cfg`; "
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
