"""From the settings of `bin/train` to a trained network in its run directory."""

import signal
import sys

import keras
import tensorflow as tf

from pni_tf.cli.run_directory import RunDirectory
from pni_tf.data import (
    Dataset,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from pni_tf.distribution.workers import Workers
from pni_tf.noise.graph import noise_wrappers
from pni_tf.settings.training import Recipe, Storage
from pni_tf.training.assembly import assemble_trainer, training_attack
from pni_tf.training.callbacks import (
    AdversarialImages,
    AlphaLogger,
    Diverged,
    EpochTensorBoard,
    HistoryFile,
    StopDivergence,
)
from pni_tf.training.checkpoints import Checkpoint


def train(
    recipe: Recipe,
    storage: Storage,
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
    history, epochs = HistoryFile(directory.history), recipe.optimisation.epochs
    # As the chief sees it: shared folders show new files to some workers later.
    if workers.gather([directory.model.exists()])[0, 0]:
        if workers.is_chief:
            history.check(epochs)
        return
    steps = steps_per_epoch(dataset.train, recipe.optimisation.batch_size)
    with workers.scope():
        trainer = assemble_trainer(
            recipe, dataset.info, steps_per_epoch=steps, replicas=workers.replicas
        )
    checkpoint = Checkpoint(
        directory.checkpoints,
        steps=storage.checkpoint_steps,
        minutes=storage.checkpoint_minutes or None,
        keep=storage.keep_checkpoints,
        history=history,
        workers=workers,
    )
    start = checkpoint.restore(trainer)
    if workers.is_chief:
        history.check(start.epoch)
    print(f"\n{directory.path}: {_headline(recipe, dataset, trainer, workers, start)}")
    if start.epoch < epochs:
        callbacks = [
            # First, to keep the entries of AlphaLogger off the screen.
            keras.callbacks.ProgbarLogger(),
            StopDivergence(),
            AlphaLogger(),
        ]
        if workers.is_chief:
            tensorboard = storage.tensorboard
            callbacks += _writers(
                recipe.adversarial, tensorboard, directory, dataset, history, start
            )
        _fit(
            recipe.optimisation,
            recipe.computation.seed,
            dataset,
            workers,
            trainer,
            checkpoint,
            callbacks,
        )
    workers.check_agreement(_states(trainer))
    if workers.is_chief:
        trainer.save(directory.model)
    workers.barrier()  # The others will look for the file.


def _fit(chosen, seed, dataset, workers, trainer, checkpoint, callbacks):
    """Trains from the checkpoint on; raises a RuntimeError if that diverges."""
    epochs, batch_size = chosen.epochs, chosen.batch_size

    def batches(position):
        return workers.distribute(
            training_batches(
                dataset.train,
                batch_size=batch_size,
                seed=seed,
                first_epoch=position.epoch,
                first_step=position.step,
                augment=dataset.info.augment,
            )
        )

    validation = {}
    if dataset.validation is not None:
        held_out = evaluation_batches(dataset.validation, batch_size=batch_size)
        validation = {
            "validation_data": workers.distribute(held_out.repeat()),
            "validation_steps": steps_per_epoch(dataset.validation, batch_size),
        }
    try:
        with (
            checkpoint.stopping_on(signal.SIGTERM, signal.SIGINT),
            workers.losing_workers(),
        ):
            checkpoint.resume_fit(
                trainer,
                batches,
                epochs=epochs,
                steps_per_epoch=steps_per_epoch(dataset.train, batch_size),
                **validation,
                callbacks=callbacks,
                verbose=1 if sys.stdout.isatty() else 2,
            )
        (epoch, _), *_ = workers.gather([*checkpoint.position()])  # The chief's.
        if epoch < epochs:  # It saves finite weights only.
            raise Diverged("NaN or Inf weights after the last step.")
    except Diverged as error:
        kept = "No epoch was finished."
        if checkpoint.directory.exists():
            kept = f"The last good checkpoint is in {checkpoint.directory}."
        raise RuntimeError(
            f"{error} {kept} Try a smaller --learning_rate, in a new --run_dir"
        ) from error


def check_batches(batch_size: int, dataset: Dataset, replicas: int) -> None:
    """Raises a ValueError if a batch holds fewer images than there are replicas."""
    sizes = {"--batch_size": batch_size}
    splits = {"training": dataset.train, "validation": dataset.validation}
    for name, split in splits.items():
        if split is not None:
            last = len(split) % batch_size or batch_size
            sizes[f"the last batch of the {len(split)} {name} images"] = last
    for name, size in sizes.items():
        if size < replicas:
            raise ValueError(
                f"each of the {replicas} replicas needs an image of every batch, and "
                f"{name} is {size}: choose another --batch_size, --train_examples or "
                "--validation_split"
            )


def _states(trainer):
    """Returns all variables that the workers must agree on."""
    generators = [w.seed_generator for w in noise_wrappers(trainer.model)]
    states = [g.state for g in (*generators, trainer.seed_generator)]
    return [*trainer.weights, *trainer.optimizer.variables, *states]


def _writers(adversarial, tensorboard, directory, dataset, history, start):
    """Returns the callbacks that write files, which are for the chief."""
    found = []
    if tensorboard:
        found.append(EpochTensorBoard(directory.tensorboard, write_graph=False))
    if tensorboard and adversarial.adversarial:
        images = AdversarialImages(
            dataset.test.images_float()[:8],
            dataset.test.labels[:8],
            training_attack(adversarial),
            directory.tensorboard / "images",
        )
        found.append(images)
    if dataset.validation is not None:
        kind = "adversarial" if adversarial.adversarial else "clean"
        monitor = f"val_{kind}_accuracy"
        # Rows of epochs that will be trained again do not count.
        rows = [row for row in history.read() if int(row["epoch"]) <= start.epoch]
        earlier = [float(row[monitor]) for row in rows]
        best = keras.callbacks.ModelCheckpoint(
            directory.best_model,
            monitor=monitor,
            mode="max",
            save_best_only=True,
            initial_value_threshold=max(earlier, default=None),
        )
        found.append(best)
    return [*found, history]


def _headline(recipe, dataset, trainer, workers, start):
    """Returns what is trained, on what, and from where on."""
    network, chosen = recipe.network, recipe.optimisation
    kind = "adversarial" if recipe.adversarial.adversarial else "plain"
    noise = network.noise_name
    if network.noise == "pni":
        noise = f"PNI-{network.pni.upper()}" if network.has_noise else "no noise"
    trainable = sum(int(tf.size(v)) for v in trainer.model.trainable_variables)
    text = (
        f"{kind} training of {network.model} ({trainable:,} trainable parameters, "
        f"{noise}) on {len(dataset.train):,} images of {dataset.info.name}, "
        f"{chosen.epochs} epochs"
    )
    if workers.replicas > 1:
        text += f", {workers.replicas} replicas on {workers.count} worker(s)"
    if chosen.base_batch_size is not None:
        text += f", learning rate {chosen.initial_rate:.6g}"
    if not any(start):
        return f"{text}, from the start"
    text += f", from epoch {start.epoch + 1}"
    return text + (f", step {start.step + 1}" if start.step else "")
