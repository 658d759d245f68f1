"""From settings to a compiled trainer."""

from types import SimpleNamespace

import keras

from pni_tf.attacks import PGD
from pni_tf.data import Dataset, steps_per_epoch
from pni_tf.distribution.workers import Workers
from pni_tf.models import build_model
from pni_tf.noise.graph import noise_wrappers
from pni_tf.noise.injection import inject_pni, inject_rse
from pni_tf.noise.pixeldp import inject_pixeldp
from pni_tf.training.trainer import PNIAdversarialModel


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


def training_attack(settings: SimpleNamespace) -> PGD:
    """Returns the attack of the inner maximisation."""
    return PGD(
        epsilon=settings.epsilon,
        step_size=settings.attack_step_size,
        steps=settings.attack_steps,
        random_start=settings.attack_random_start,
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
