"""What follows a training: evaluation, export, figures and the report of the run."""

import shutil

import tensorflow as tf

from pni_tf import files, plots
from pni_tf.cli.run_directory import RunDirectory
from pni_tf.data import Dataset
from pni_tf.distribution.workers import Workers
from pni_tf.evaluation import Column, ResultStore, report, standard_scenarios
from pni_tf.evaluation.robustness import evaluate_robustness, progress_bar
from pni_tf.export import export_saved_model
from pni_tf.files import slug
from pni_tf.settings.training import FinalEvaluation, Recipe
from pni_tf.targets import load_model, load_target
from pni_tf.training.assembly import training_attack
from pni_tf.training.callbacks import HistoryFile


def finish(
    recipe: Recipe,
    final: FinalEvaluation,
    directory: RunDirectory,
    dataset: Dataset,
    workers: Workers,
) -> None:
    """Evaluates and exports what was trained, and prints where everything lies.

    All workers share the evaluation; the chief does the rest.
    """
    if workers.is_chief and final.export:
        export_saved_model(load_model(directory.model), directory.saved_model)
    if final.evaluate:
        noise, adversarial = recipe.network.noise_name, recipe.adversarial
        targets = _targets(
            noise, adversarial.adversarial, final, directory, workers.devices
        )
        seed, split = recipe.computation.seed, dataset.test
        columns = _evaluate(
            adversarial, seed, final, directory, targets, split, workers
        )
    if workers.is_chief:
        figures = {}
        if recipe.network.noise == "pni" and recipe.network.has_noise:
            figures["alphas"] = _alphas(directory.history)
            figures["alphas"].savefig(directory.path / "alphas.png", dpi=120)
        if final.evaluate:
            target, epsilon = next(iter(targets.values())), adversarial.epsilon
            title = f"{dataset.info.name}, {recipe.network.model}, ε = {epsilon:.3g}"
            examples = _examples(adversarial, seed, target, dataset, title)
            figures["adversarial_examples"] = examples
            name, folder = dataset.info.name, directory.path
            _write(recipe, name, folder, columns, figures, title)
            shutil.rmtree(directory.batches, ignore_errors=True)
        directory.finished.touch()
        print("\n" + _inventory(directory))
    workers.barrier()


def _evaluate(attack, seed, final, directory, targets, test, workers):
    """Returns the standard table of some targets on the test images."""
    scenarios = standard_scenarios(
        epsilon=attack.epsilon,
        steps=final.eval_steps,
        expectation=final.eval_expectation,
        step_size_of={attack.attack_steps: attack.attack_step_size},
    )
    models = [
        directory.model,
        directory.best_model,
        directory.undefended / "model.keras",
    ]
    identity = [files.file_digest(path) for path in models if path.exists()]
    images, labels = test.images_float(), test.labels
    return {
        column: evaluate_robustness(
            target,
            images[: final.eval_examples],
            labels[: final.eval_examples],
            scenarios,
            draws=final.eval_draws,
            seed=seed,
            store=ResultStore(directory.batches / slug(column.name), identity),
            progress=progress_bar(column.name),
            workers=workers,
        )
        for column, target in targets.items()
    }


def _targets(noise, adversarial, final, directory, devices):
    target = load_target(directory.model, devices=devices)
    targets = {}
    if target.noise_free is None:
        name = "adversarial training" if adversarial else "no defence"
        targets[Column(kind="model", label=name)] = target
    else:
        name = f"with {noise}"
        targets[Column(kind="noise_on", label=name)] = target
        targets[Column(kind="noise_off", label=f"without {noise}")] = target.noise_free
    if (draws := final.eval_ensemble) > 1:
        mean = Column(kind="mean", draws=draws, label=f"{name}, mean of {draws}")
        targets[mean] = target.ensemble(draws)
    if directory.best_model.exists():
        best = load_target(directory.best_model, devices=devices)
        targets[Column(kind="best_epoch", label=f"{name}, best epoch")] = best
    if final.compare_undefended:
        plain = load_target(directory.undefended, devices=devices)
        targets[Column(kind="undefended")] = plain
    return targets


def _examples(adversarial, seed, target, dataset, title):
    attack = training_attack(adversarial)
    images = dataset.test.images_float()[:8]
    labels = dataset.test.labels[:8]
    seed = tf.constant([seed, 0], tf.int64)
    found = attack.perturb(target.logits, images, labels, seed=seed)
    return plots.plot_adversarial_examples(
        images,
        found.numpy(),
        labels,
        target.predict(found),
        epsilon=attack.epsilon,
        class_names=dataset.info.class_names,
        title=f"PGD-{attack.steps}, {title}",
    )


def _alphas(history):
    rows = HistoryFile(history).read()
    values = {
        name.removeprefix("alpha/"): [float(row[name]) for row in rows]
        for name in rows[0]
        if name.startswith("alpha/")
    }
    return plots.plot_alphas(values, title="Noise coefficient of each layer")


def _write(recipe, dataset, folder, columns, figures, title):
    """Writes the report of the run, and prints its table."""
    model = recipe.network.model
    evaluation = report.Evaluation(
        model=model,
        dataset=dataset,
        columns=columns,
        epsilon=recipe.adversarial.epsilon,
        training_seed=recipe.computation.seed,
    )
    report.write(
        folder,
        evaluation,
        title=title,
        intro=f"{model} on {dataset}, trained with `--flagfile=flags.cfg`; see "
        "[flags.cfg](flags.cfg).",
        figures=figures,
    )
    print("\n" + report.format_table(evaluation.table))
    print("\n" + report.describe(evaluation.table))


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
