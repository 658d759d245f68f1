"""From the flags of `bin/train` to a trained network in its run directory."""

import signal
import sys
from types import SimpleNamespace

import keras
import tensorflow as tf

from pni_tf.attacks import PGD
from pni_tf.batches import evaluation_batches, steps_per_epoch, training_batches
from pni_tf.callbacks import (
    AdversarialImages,
    AlphaLogger,
    EpochTensorBoard,
    HistoryFile,
)
from pni_tf.checkpoints import Checkpoint
from pni_tf.cli.run_directory import RunDirectory
from pni_tf.conversion import inject_pni, noise_wrappers
from pni_tf.data import Dataset, load_dataset
from pni_tf.distribution import Workers
from pni_tf.fixed_noise import inject_rse
from pni_tf.models import build_model
from pni_tf.pixeldp import inject_pixeldp
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
            checkpoint.fit(
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


def compiled_trainer(
    settings: SimpleNamespace, dataset: Dataset, workers: Workers
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
        synchronized=settings.sync_batch_norm and workers.replicas > 1,
        seed=settings.seed,
    )
    network = _inject_noise(settings, network)
    trainer = PNIAdversarialModel(
        network,
        attack=training_attack(settings) if settings.adversarial else None,
        clean_weight=settings.clean_weight,
        adversarial_weight=settings.adversarial_weight,
        attack_labels=settings.attack_labels,
        noise_in_attack=settings.noise_in_attack,
        epoch_delay=settings.epoch_delay if settings.adversarial else 0,
        validation_draws=settings.validation_draws if noise_wrappers(network) else 1,
        seed=settings.seed,
    )
    trainer.compile(
        optimizer=make_optimizer(
            settings, steps_per_epoch(dataset.train, settings.batch_size)
        ),
        jit_compile={"auto": "auto", "on": True, "off": False}[settings.jit],
    )
    return trainer


def _inject_noise(settings, network):
    if settings.noise == "rse":
        return inject_rse(
            network,
            first=settings.rse_first,
            others=settings.rse_others,
            seed=settings.seed,
        )
    if settings.noise == "pixeldp":
        return inject_pixeldp(
            network,
            bound=settings.pixeldp_bound,
            distribution=settings.pixeldp_distribution,
            seed=settings.seed,
        )
    return inject_pni(
        network,
        settings.pni,
        granularity=settings.pni_granularity,
        initial_alpha=settings.pni_alpha,
        sigma_over=settings.pni_sigma,
        seed=settings.seed,
    )


# What tables call the noise.
NOISE_NAMES = {"pni": "PNI", "rse": "RSE", "pixeldp": "PixelDP"}


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


def learning_rate(settings: SimpleNamespace) -> float:
    """Returns the initial learning rate, scaled if the flags ask for it."""
    if settings.base_batch_size is None:
        return settings.learning_rate
    return settings.learning_rate * settings.batch_size / settings.base_batch_size


def make_optimizer(settings: SimpleNamespace, steps: int) -> keras.Optimizer:
    """Returns the optimizer with its schedule, for epochs of so many steps."""
    initial = rate = learning_rate(settings)
    schedules = keras.optimizers.schedules
    if settings.schedule == "piecewise":
        boundaries = [epoch * steps for epoch in settings.drop_epochs]
        factors = [settings.drop_factor**i for i in range(len(boundaries) + 1)]
        rate = schedules.PiecewiseConstantDecay(
            # The rate holds up to and including the step of the boundary.
            [boundary - 1 for boundary in boundaries],
            [initial * factor for factor in factors],
        )
    elif settings.schedule == "cosine":
        rising = settings.warmup_epochs * steps
        rate = schedules.CosineDecay(
            0.0 if rising else initial,
            settings.epochs * steps - rising,
            warmup_target=initial if rising else None,
            warmup_steps=rising,
        )
    if settings.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.SGD(
        rate, momentum=settings.momentum, nesterov=settings.nesterov
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
