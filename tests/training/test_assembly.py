"""The recipe of `bin/train`, as library users get it."""

import keras
import numpy as np
import pytest

import pni_tf
from pni_tf.data import DATASETS
from pni_tf.settings import training as settings


@pytest.mark.parametrize(
    ("model", "noise", "parameters"),
    [
        # The paper's networks, and one alpha for each of their kernels.
        ("resnet20", {}, 269_722 + 20),
        ("resnet20", {"pni": "none"}, 269_722),
        ("resnet20", {"noise": "rse"}, 269_722),
        ("resnet32", {}, 464_154 + 32),
    ],
)
def test_networks_have_the_counts_of_the_paper(model, noise, parameters):
    recipe = pni_tf.Recipe(network=pni_tf.Network(model=model, **noise))
    trainer = pni_tf.assemble_trainer(recipe, DATASETS["cifar10"], steps_per_epoch=391)
    assert sum(np.prod(v.shape) for v in trainer.trainable_variables) == parameters


def test_settings_reach_the_trainer():
    recipe = pni_tf.Recipe(
        adversarial=settings.Adversarial(
            epsilon=0.2,
            attack_steps=3,
            attack_step_size=0.1,
            attack_random_start=False,
            attack_labels="true",
            clean_weight=0.25,
            adversarial_weight=2.0,
            epoch_delay=4,
        ),
        optimisation=settings.Optimisation(
            optimizer="sgd", momentum=0.5, nesterov=False, schedule="constant"
        ),
    )
    trainer = pni_tf.assemble_trainer(recipe, DATASETS["digits"], steps_per_epoch=2)
    assert trainer.attack == pni_tf.PGD(
        epsilon=0.2, steps=3, step_size=0.1, random_start=False
    )
    assert (trainer.clean_weight, trainer.adversarial_weight) == (0.25, 2.0)
    assert (trainer.attack_labels, trainer.epoch_delay) == ("true", 4)
    optimizer = trainer.optimizer
    assert (optimizer.momentum, optimizer.nesterov) == (0.5, False)
    assert float(optimizer.learning_rate) == pytest.approx(0.1)


def test_mixed_precision_is_of_the_network_alone():
    recipe = pni_tf.Recipe(
        computation=settings.Computation(mixed_precision="bfloat16"),
        adversarial=settings.Adversarial(adversarial=False),
    )
    before = keras.config.dtype_policy().name
    trainer = pni_tf.assemble_trainer(recipe, DATASETS["digits"], steps_per_epoch=2)
    assert keras.config.dtype_policy().name == before
    convolutions = [
        layer
        for layer in trainer.model._flatten_layers()
        if isinstance(layer, keras.layers.Conv2D)
    ]
    assert {layer.compute_dtype for layer in convolutions} == {"bfloat16"}
    images = np.zeros((4, 8, 8, 1), "float32")
    trainer.fit(images, np.zeros(4, "int64"), epochs=1, verbose=0)
