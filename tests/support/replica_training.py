"""A training that is smooth in its inputs, for comparing numbers of replicas.

No ReLU and no sign in the attack: a rounding error stays one.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl

from pni_tf import PGD, PNIAdversarialModel, inject_pni
from pni_tf.evaluation import Scenario
from pni_tf.noise.graph import noise_wrappers

BATCH, STEPS, EPOCHS = 8, 3, 3
# What is evaluated on several devices and by several workers.
ROWS = (
    Scenario(name="clean"),
    Scenario(
        name="PGD-2 EOT-2",
        attack=PGD(epsilon=0.1, step_size=0.05, steps=2),
        expectation=2,
    ),
)


def examples(count=21):
    """Whose last batch, of five, no number of replicas divides."""
    rng = np.random.default_rng(0)
    images = rng.random((count, 4, 4, 1)).astype("float32")
    return images, rng.integers(0, 3, count)


def network(synchronized, seed=0):
    regularizer = keras.regularizers.L2(0.01)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            kl.Conv2D(
                4,
                3,
                kernel_initializer=keras.initializers.GlorotUniform(seed),
                kernel_regularizer=regularizer,
                name="conv",
            ),
            kl.BatchNormalization(synchronized=synchronized, name="norm"),
            kl.Activation("tanh"),
            kl.Flatten(),
            kl.Dense(
                3,
                kernel_initializer=keras.initializers.GlorotUniform(seed + 1),
                name="dense",
            ),
        ]
    )
    return inject_pni(model, "w", seed=seed)


def train(workers, synchronized):
    """Trains under the strategy of `workers`; returns weights, states and history."""
    images, labels = examples()
    with workers.scope():
        attack = PGD(norm="l2", epsilon=0.3, step_size=0.2, steps=2, random_start=False)
        trainer = PNIAdversarialModel(network(synchronized), attack=attack, seed=0)
        trainer.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
    history = trainer.fit(
        workers.distribute(batches.repeat()),
        epochs=EPOCHS,
        steps_per_epoch=STEPS,
        shuffle=False,
        validation_data=workers.distribute(batches.repeat()),
        validation_steps=STEPS,
        verbose=0,
    ).history
    generators = [w.seed_generator for w in noise_wrappers(trainer.model)]
    states = [g.state for g in (*generators, trainer.seed_generator)]
    variables = [*trainer.weights, *trainer.optimizer.variables, *states]
    workers.check_agreement(variables)
    return {
        "variables": [variable.numpy() for variable in variables],
        "history": {
            name: [float(np.ravel(v)[0]) for v in history[name]] for name in history
        },
    }
