"""From settings to a compiled trainer: the recipe of `bin/train`, for library users."""

import contextlib

import keras

from pni_tf.attacks.pgd import PGD
from pni_tf.data import DatasetInfo
from pni_tf.models import build_model
from pni_tf.noise.graph import noise_wrappers
from pni_tf.noise.injection import inject_pni, inject_rse
from pni_tf.noise.pixeldp import inject_pixeldp
from pni_tf.settings.training import Adversarial, Network, Optimisation, Recipe
from pni_tf.training.trainer import PNIAdversarialModel


def assemble_trainer(
    recipe: Recipe, info: DatasetInfo, *, steps_per_epoch: int, replicas: int = 1
) -> PNIAdversarialModel:
    """Returns a compiled trainer with the network, noise and attack of `bin/train`.

    Args:
        recipe: The settings. Those of a flagfile are `Recipe()` with changes.
        info: Shape, classes and statistics of the images: `load_dataset(...).info`.
        steps_per_epoch: Steps of an epoch, in which schedules count.
        replicas: Number of replicas that train together. Call this function in the
            scope of their strategy.

    Raises:
        ValueError: If the network is unknown or does not fit the images.

    Example:

    >>> digits = pni_tf.load_dataset("digits")
    >>> recipe = pni_tf.Recipe(optimisation=pni_tf.Optimisation(epochs=20))
    >>> trainer = pni_tf.assemble_trainer(recipe, digits.info, steps_per_epoch=12)
    """
    adversarial, computation = recipe.adversarial, recipe.computation
    with contextlib.ExitStack() as stack:
        # Other layers than these stay as they were.
        stack.callback(keras.config.set_dtype_policy, keras.config.dtype_policy())
        if computation.mixed_precision != "none":
            keras.config.set_dtype_policy(f"mixed_{computation.mixed_precision}")
        network = build_model(
            recipe.network.model,
            width=recipe.network.width,
            input_shape=info.image_shape,
            num_classes=info.num_classes,
            mean=info.mean,
            std=info.std,
            weight_decay=recipe.optimisation.weight_decay,
            synchronized=computation.sync_batch_norm and replicas > 1,
            seed=computation.seed,
        )
        network = _inject_noise(recipe.network, network, computation.seed)
        trainer = PNIAdversarialModel(
            network,
            attack=training_attack(adversarial) if adversarial.adversarial else None,
            clean_weight=adversarial.clean_weight,
            adversarial_weight=adversarial.adversarial_weight,
            attack_labels=adversarial.attack_labels,
            noise_in_attack=adversarial.noise_in_attack,
            epoch_delay=adversarial.epoch_delay,
            validation_draws=(
                adversarial.validation_draws if noise_wrappers(network) else 1
            ),
            seed=computation.seed,
        )
        trainer.compile(
            optimizer=make_optimizer(recipe.optimisation, steps_per_epoch),
            jit_compile={"auto": "auto", "on": True, "off": False}[computation.jit],
        )
    return trainer


def training_attack(chosen: Adversarial) -> PGD:
    """Returns the attack of the inner maximisation."""
    return PGD(
        epsilon=chosen.epsilon,
        step_size=chosen.attack_step_size,
        steps=chosen.attack_steps,
        random_start=chosen.attack_random_start,
    )


def make_optimizer(chosen: Optimisation, steps_per_epoch: int) -> keras.Optimizer:
    """Returns the optimizer with its schedule."""
    initial = rate = chosen.initial_rate
    schedules = keras.optimizers.schedules
    if chosen.schedule == "piecewise":
        # The rate holds up to and including the step of the boundary.
        boundaries = [epoch * steps_per_epoch - 1 for epoch in chosen.drop_epochs]
        rates = [initial * chosen.drop_factor**i for i in range(len(boundaries) + 1)]
        rate = schedules.PiecewiseConstantDecay(boundaries, rates)
    elif chosen.schedule == "cosine":
        rising = chosen.warmup_epochs * steps_per_epoch
        rate = schedules.CosineDecay(
            0.0 if rising else initial,
            chosen.epochs * steps_per_epoch - rising,
            warmup_target=initial if rising else None,
            warmup_steps=rising,
        )
    if chosen.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.SGD(
        rate, momentum=chosen.momentum, nesterov=chosen.nesterov
    )


def _inject_noise(chosen: Network, network: keras.Model, seed: int) -> keras.Model:
    if chosen.noise == "rse":
        return inject_rse(
            network, first=chosen.rse_first, others=chosen.rse_others, seed=seed
        )
    if chosen.noise == "pixeldp":
        return inject_pixeldp(
            network,
            bound=chosen.pixeldp_bound,
            distribution=chosen.pixeldp_distribution,
            seed=seed,
        )
    return inject_pni(
        network,
        chosen.pni,
        granularity=chosen.pni_granularity,
        initial_alpha=chosen.pni_alpha,
        sigma_over=chosen.pni_sigma,
        seed=seed,
    )
