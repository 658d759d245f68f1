"""From the flags of `bin/train` to a trained network in its run directory."""

import shutil
import signal
import sys
from types import SimpleNamespace

import keras
import tensorflow as tf

from pni_tf import files, plots
from pni_tf.cli.run_directory import RunDirectory
from pni_tf.data import (
    Dataset,
    evaluation_batches,
    load_dataset,
    steps_per_epoch,
    training_batches,
)
from pni_tf.distribution.workers import Workers
from pni_tf.evaluation import Column, Result, ResultStore, report, standard_scenarios
from pni_tf.evaluation.robustness import evaluate_columns
from pni_tf.export import export_saved_model
from pni_tf.files import slug
from pni_tf.noise.graph import noise_wrappers
from pni_tf.targets import Target, load_model, load_target
from pni_tf.training.assembly import compiled_trainer, learning_rate, training_attack
from pni_tf.training.callbacks import (
    AdversarialImages,
    AlphaLogger,
    EpochTensorBoard,
    HistoryFile,
)
from pni_tf.training.checkpoints import Checkpoint


def load(settings: SimpleNamespace) -> Dataset:
    """Loads the dataset that the flags ask for."""
    return load_dataset(
        settings.dataset,
        data_dir=settings.data_dir,
        download=settings.download,
        train_examples=settings.train_examples,
        test_examples=settings.test_examples,
        validation_split=settings.validation_split,
        seed=settings.seed,
    )


def train(
    settings: SimpleNamespace,
    directory: RunDirectory,
    dataset: Dataset,
    workers: Workers,
) -> None:
    """Trains a network, from its last checkpoint where there is one.

    All workers take part, and the chief writes. Leaves `model.keras` (the last epoch)
    and, with a validation split, `best.keras`.

    Raises:
        RuntimeError: If the loss is not finite.
        ValueError: If a file of the run is damaged.
        WorkerLost: If another worker died.
    """
    history = HistoryFile(directory.history)
    # As the chief sees it: shared folders show new files to some workers later.
    if workers.gather([directory.model.exists()])[0, 0]:
        if workers.is_chief:
            history.check(settings.epochs)
        return
    with workers.scope():
        trainer = compiled_trainer(settings, dataset, workers)
    checkpoint = Checkpoint(
        directory.checkpoints,
        steps=settings.checkpoint_steps,
        minutes=settings.checkpoint_minutes or None,
        keep=settings.keep_checkpoints,
        history=history,
        workers=workers,
    )
    start = checkpoint.restore(trainer)
    if workers.is_chief:
        history.check(start.epoch)
    print(_headline(settings, directory, dataset, trainer.model, workers, start))
    if start.epoch < settings.epochs:
        _fit(settings, directory, dataset, workers, trainer, checkpoint, start)
    workers.check_agreement(_states(trainer))
    if workers.is_chief:
        trainer.save(directory.model)
    workers.barrier()  # the others will look for the file


def _fit(settings, directory, dataset, workers, trainer, checkpoint, start):
    def batches(position):
        return workers.distribute(
            training_batches(
                dataset.train,
                batch_size=settings.batch_size,
                seed=settings.seed,
                first_epoch=position.epoch,
                first_step=position.step,
                augment=dataset.info.augment,
            )
        )

    validation = {}
    if dataset.validation is not None:
        held_out = evaluation_batches(
            dataset.validation, batch_size=settings.batch_size
        ).repeat()
        validation = {
            "validation_data": workers.distribute(held_out),
            "validation_steps": steps_per_epoch(
                dataset.validation, settings.batch_size
            ),
        }
    callbacks = _callbacks(
        settings, directory, dataset, workers, checkpoint.history, start
    )
    try:
        with (
            checkpoint.stopping_on(signal.SIGTERM, signal.SIGINT),
            workers.losing_workers(),
        ):
            checkpoint.resume_fit(
                trainer,
                batches,
                epochs=settings.epochs,
                steps_per_epoch=steps_per_epoch(dataset.train, settings.batch_size),
                **validation,
                callbacks=callbacks,
                verbose=1 if sys.stdout.isatty() else 2,
            )
    except RuntimeError as error:
        if "NaN or Inf loss" not in str(error):
            raise
        raise _diverged(str(error), directory) from error
    (epoch, _), *_ = workers.gather([*checkpoint.position()])  # the chief's
    if epoch < settings.epochs:  # it saves finite weights only
        raise _diverged("NaN or Inf weights after the last step.", directory)


def check_batches(settings: SimpleNamespace, dataset: Dataset, replicas: int) -> None:
    """Raises a ValueError if a batch holds fewer images than there are replicas."""
    sizes = {"--batch_size": settings.batch_size}
    for name, split in (
        ("training", dataset.train),
        ("validation", dataset.validation),
    ):
        if split is not None:
            last = len(split) % settings.batch_size or settings.batch_size
            sizes[f"the last batch of the {len(split)} {name} images"] = last
    for name, size in sizes.items():
        if size < replicas:
            raise ValueError(
                f"each of the {replicas} replicas needs an image of every batch, and "
                f"{name} is {size}: choose another --batch_size, --train_examples or "
                "--validation_split"
            )


# What tables call the noise.
NOISE_NAMES = {"pni": "PNI", "rse": "RSE", "pixeldp": "PixelDP"}


def _diverged(reason, directory):
    kept = "No epoch was finished."
    if directory.checkpoints.exists():
        kept = f"The last good checkpoint is in {directory.checkpoints}."
    return RuntimeError(
        f"{reason} {kept} Try a smaller --learning_rate, in a new --run_dir"
    )


def _states(trainer):
    """Returns all variables that the workers must agree on."""
    generators = [w.seed_generator for w in noise_wrappers(trainer.model)]
    states = [g.state for g in (*generators, trainer.seed_generator)]
    return [*trainer.weights, *trainer.optimizer.variables, *states]


def _callbacks(settings, directory, dataset, workers, history, start):
    found = [
        # First, to keep the entries of AlphaLogger off the screen.
        keras.callbacks.ProgbarLogger(),
        keras.callbacks.TerminateOnNaN(raise_error=True),
        AlphaLogger(),
    ]
    if not workers.is_chief:
        return found
    if settings.tensorboard:
        found.append(EpochTensorBoard(directory.tensorboard, write_graph=False))
        if settings.adversarial:
            found.append(
                AdversarialImages(
                    dataset.test.images_float()[:8],
                    dataset.test.labels[:8],
                    training_attack(settings),
                    directory.tensorboard / "images",
                )
            )
    if dataset.validation is not None:
        kind = "adversarial" if settings.adversarial else "clean"
        monitor = f"val_{kind}_accuracy"
        # Rows of epochs that will be trained again do not count.
        earlier = [
            float(row[monitor])
            for row in history.read()
            if int(row["epoch"]) <= start.epoch
        ]
        found.append(
            keras.callbacks.ModelCheckpoint(
                directory.best_model,
                monitor=monitor,
                mode="max",
                save_best_only=True,
                initial_value_threshold=max(earlier, default=None),
            )
        )
    return [*found, history]


def _headline(settings, directory, dataset, network, workers, position):
    trainable = sum(int(tf.size(v)) for v in network.trainable_variables)
    kind = "adversarial" if settings.adversarial else "plain"
    noise = NOISE_NAMES[settings.noise]
    if settings.noise == "pni":
        noise = "no noise" if settings.pni == "none" else f"PNI-{settings.pni.upper()}"
    start = "from the start"
    if any(position):
        start = f"from epoch {position.epoch + 1}"
        start += f", step {position.step + 1}" if position.step else ""
    where = ""
    if workers.replicas > 1:
        where = f", {workers.replicas} replicas on {workers.count} worker(s)"
    if settings.base_batch_size is not None:
        where += f", learning rate {learning_rate(settings):.6g}"
    return (
        f"\n{directory.path}: {kind} training of {settings.model} ({trainable:,} "
        f"trainable parameters, {noise}) on {len(dataset.train):,} images of "
        f"{settings.dataset}, {settings.epochs} epochs{where}, {start}"
    )


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
        figures = {}
        if settings.noise == "pni" and settings.pni != "none":
            figures["alphas"] = _alphas(directory)
            figures["alphas"].savefig(directory.path / "alphas.png", dpi=120)
        if settings.evaluate:
            target = next(iter(targets.values()))
            figures["adversarial_examples"] = _pictures(settings, target, dataset)
            table = _write(settings, directory, columns, figures)
            shutil.rmtree(directory.batches, ignore_errors=True)
            print("\n" + report.format_table(table))
            print("\n" + report.describe(table))
        directory.finished.touch()
        print("\n" + _inventory(directory))
    workers.barrier()


def evaluate(
    settings: SimpleNamespace,
    directory: RunDirectory,
    targets: dict[Column, Target],
    dataset: Dataset,
    workers: Workers,
) -> dict[Column, list[Result]]:
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
    named = f"with {noise}"
    if target.noise_free is None:
        targets = {Column(kind="model", label=kind): target}
    else:
        quiet = Column(kind="noise_off", label=f"without {noise}")
        targets = {
            Column(kind="noise_on", label=named): target,
            quiet: target.noise_free,
        }
    if settings.eval_ensemble > 1:
        draws = settings.eval_ensemble
        mean = Column(kind="mean", draws=draws, label=f"{named}, mean of {draws}")
        targets[mean] = target.ensemble(draws)
    if directory.best_model.exists():
        best = load_target(directory.best_model, devices=devices)
        name = named if best.noise_free is not None else kind
        targets[Column(kind="best_epoch", label=f"{name}, best epoch")] = best
    if undefended is not None:
        plain = load_target(undefended.model, devices=devices)
        targets[Column(kind="undefended")] = plain
    return targets


def _title(settings):
    return f"{settings.dataset}, {settings.model}, ε = {settings.epsilon:.3g}"


def _pictures(settings, target, dataset):
    images = dataset.test.images_float()[:8]
    labels = dataset.test.labels[:8]
    adversarial = training_attack(settings).perturb(
        target.logits, images, labels, seed=tf.constant([settings.seed, 0], tf.int64)
    )
    return plots.plot_adversarial_examples(
        images,
        adversarial.numpy(),
        labels,
        target.predict(adversarial),
        epsilon=settings.epsilon,
        class_names=dataset.info.class_names,
        title=f"PGD-{settings.attack_steps}, {_title(settings)}",
    )


def _alphas(directory):
    rows = HistoryFile(directory.history).read()
    names = [name for name in rows[0] if name.startswith("alpha/")]
    values = {
        name.removeprefix("alpha/"): [float(row[name]) for row in rows]
        for name in names
    }
    return plots.plot_alphas(values, title="Noise coefficient of each layer")


def _write(settings, directory, columns, figures):
    evaluation = report.Evaluation(
        model=settings.model,
        dataset=settings.dataset,
        columns=columns,
        epsilon=settings.epsilon,
        training_seed=settings.seed,
    )
    report.write(
        directory.path,
        evaluation,
        title=_title(settings),
        intro=f"{settings.model} on {settings.dataset}, trained with "
        "`--flagfile=flags.cfg`; see [flags.cfg](flags.cfg).",
        figures=figures,
    )
    return evaluation.table


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
