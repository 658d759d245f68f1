"""From the flags of `bin/train` to a trained network in its run directory."""

import contextlib
import sys
from types import SimpleNamespace

import keras
import tensorflow as tf

from pni_tf.attacks import PGD
from pni_tf.batches import evaluation_batches, steps_per_epoch, training_batches
from pni_tf.callbacks import AdversarialImages, AlphaLogger, Checkpoint, HistoryFile
from pni_tf.cli.run_directory import RunDirectory
from pni_tf.conversion import inject_pni
from pni_tf.data import Dataset, load_dataset
from pni_tf.models import build_model
from pni_tf.training import PNIAdversarialModel


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


def strategy(settings: SimpleNamespace) -> tf.distribute.Strategy | None:
    """Returns the distribution strategy; a process must make it only once.

    Raises:
        ValueError: If the batches cannot be shared out evenly.
    """
    if settings.strategy == "none":
        return None
    devices = tf.config.list_logical_devices("GPU")
    devices = devices or tf.config.list_logical_devices("CPU")
    if settings.batch_size % len(devices):  # Keras fails on an uneven first batch
        raise ValueError(
            f"--batch_size must be a multiple of the {len(devices)} devices of "
            f"--strategy=mirrored. Received: --batch_size={settings.batch_size}"
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def train(
    settings: SimpleNamespace,
    directory: RunDirectory,
    dataset: Dataset,
    strategy: tf.distribute.Strategy | None,
) -> None:
    """Trains a network, from its last checkpoint where there is one.

    Leaves `model.keras` (the last epoch) and, with a validation split, `best.keras`.

    Raises:
        RuntimeError: If the loss is not finite.
    """
    if directory.model.exists():
        return
    with strategy.scope() if strategy else contextlib.nullcontext():
        trainer = compiled_trainer(settings, dataset)
    checkpoint = Checkpoint(directory.checkpoints)
    first_epoch = checkpoint.restore(trainer)
    print(_headline(settings, directory, dataset, trainer.model, first_epoch))
    if first_epoch < settings.epochs:
        batches = training_batches(
            dataset.train,
            batch_size=settings.batch_size,
            seed=settings.seed,
            first_epoch=first_epoch,
            augment=dataset.info.augment,
        )
        validation = None
        if dataset.validation is not None:
            validation = evaluation_batches(
                dataset.validation, batch_size=settings.batch_size
            )
        try:
            trainer.fit(
                batches,
                epochs=settings.epochs,
                initial_epoch=first_epoch,
                steps_per_epoch=steps_per_epoch(dataset.train, settings.batch_size),
                shuffle=False,  # the stream is shuffled already
                validation_data=validation,
                callbacks=_callbacks(settings, directory, dataset, checkpoint),
                verbose=1 if sys.stdout.isatty() else 2,
            )
        except RuntimeError as error:
            if "NaN or Inf loss" not in str(error):
                raise
            raise _diverged(str(error), directory) from error
        if checkpoint.epochs() < settings.epochs:  # which saves finite weights only
            raise _diverged("NaN or Inf weights after the last step.", directory)
    scratch = directory.path / "unfinished.keras"
    trainer.save(scratch)
    scratch.replace(directory.model)


def compiled_trainer(
    settings: SimpleNamespace, dataset: Dataset
) -> PNIAdversarialModel:
    """Builds the network, its noise, its attack and its optimizer."""
    if settings.mixed_precision != "none":
        keras.mixed_precision.set_global_policy(f"mixed_{settings.mixed_precision}")
    info = dataset.info
    network = build_model(
        settings.model,
        width=settings.width,
        input_shape=info.image_shape,
        num_classes=info.num_classes,
        mean=info.mean,
        std=info.std,
        weight_decay=settings.weight_decay,
        # Else each replica would normalise by its own share of the batch.
        synchronized=settings.strategy != "none",
        seed=settings.seed,
    )
    network = inject_pni(
        network,
        settings.pni,
        granularity=settings.pni_granularity,
        initial_alpha=settings.pni_alpha,
        sigma_over=settings.pni_sigma,
        seed=settings.seed,
    )
    trainer = PNIAdversarialModel(
        network,
        attack=training_attack(settings) if settings.adversarial else None,
        clean_weight=settings.clean_weight,
        adversarial_weight=settings.adversarial_weight,
        attack_labels=settings.attack_labels,
        noise_in_attack=settings.noise_in_attack,
        epoch_delay=settings.epoch_delay if settings.adversarial else 0,
        validation_draws=settings.validation_draws if settings.pni != "none" else 1,
        seed=settings.seed,
    )
    trainer.compile(
        optimizer=_optimizer(
            settings, steps_per_epoch(dataset.train, settings.batch_size)
        ),
        jit_compile={"auto": "auto", "on": True, "off": False}[settings.jit],
    )
    return trainer


def training_attack(settings: SimpleNamespace) -> PGD:
    """Returns the attack of the inner maximisation."""
    return PGD(
        epsilon=settings.epsilon,
        step_size=settings.attack_step_size,
        steps=settings.attack_steps,
        random_start=settings.attack_random_start,
    )


def _diverged(reason, directory):
    kept = "No epoch was finished."
    if directory.checkpoints.exists():
        kept = f"The last good checkpoint is in {directory.checkpoints}."
    return RuntimeError(
        f"{reason} {kept} Try a smaller --learning_rate, in a new --run_dir"
    )


def _optimizer(settings, steps):
    rate = settings.learning_rate
    schedules = keras.optimizers.schedules
    if settings.schedule == "piecewise":
        boundaries = [epoch * steps for epoch in settings.drop_epochs]
        factors = [settings.drop_factor**i for i in range(len(boundaries) + 1)]
        rate = schedules.PiecewiseConstantDecay(
            # The rate holds up to and including the step of the boundary.
            [boundary - 1 for boundary in boundaries],
            [settings.learning_rate * factor for factor in factors],
        )
    elif settings.schedule == "cosine":
        rate = schedules.CosineDecay(rate, settings.epochs * steps)
    if settings.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.SGD(
        rate, momentum=settings.momentum, nesterov=settings.nesterov
    )


def _callbacks(settings, directory, dataset, checkpoint):
    history = HistoryFile(directory.history)
    found = [
        # First, to keep the entries of AlphaLogger off the screen.
        keras.callbacks.ProgbarLogger(),
        keras.callbacks.TerminateOnNaN(raise_error=True),
        AlphaLogger(),
    ]
    if settings.tensorboard:
        found.append(
            keras.callbacks.TensorBoard(directory.tensorboard, write_graph=False)
        )
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
        finished = checkpoint.epochs()
        earlier = [
            float(row[monitor])
            for row in history.read()
            if int(row["epoch"]) <= finished
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
    return [*found, history, checkpoint]


def _headline(settings, directory, dataset, network, first_epoch):
    trainable = sum(int(tf.size(v)) for v in network.trainable_variables)
    kind = "adversarial" if settings.adversarial else "plain"
    noise = "no noise" if settings.pni == "none" else f"PNI-{settings.pni.upper()}"
    start = f"from epoch {first_epoch + 1}" if first_epoch else "from the start"
    return (
        f"\n{directory.path}: {kind} training of {settings.model} ({trainable:,} "
        f"trainable parameters, {noise}) on {len(dataset.train):,} images of "
        f"{settings.dataset}, {settings.epochs} epochs, {start}"
    )
