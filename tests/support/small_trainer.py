"""A trainer of two images a batch that tests of callbacks and checkpoints share."""

import keras
import numpy as np
from keras import layers as kl

from pni_tf import PNIAdversarialModel, inject_pni
from pni_tf.noise.graph import noise_wrappers

EPSILON = 0.1


def examples(count=8):
    rng = np.random.default_rng(5)
    images = rng.random((count, 2, 3, 1)).astype("float32")
    return images, rng.integers(0, 2, count)


def trainer_of(seed=0, location="w", eager=True, rate=0.1, attack=None, metrics=None):
    initializer = keras.initializers.GlorotUniform(seed)
    network = keras.Sequential(
        [
            keras.Input((2, 3, 1)),
            kl.Flatten(),
            kl.BatchNormalization(name="norm", center=False, scale=False),
            kl.Dense(2, kernel_initializer=initializer, name="dense"),
        ]
    )
    network = inject_pni(network, location, granularity="channelwise", seed=seed)
    trainer = PNIAdversarialModel(network, attack=attack, seed=seed)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)
    trainer.compile(optimizer, run_eagerly=eager, metrics=metrics)
    return trainer


def fit(trainer, callbacks, **kwargs):
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return trainer.fit(*examples(), callbacks=callbacks, **kwargs).history


def everything(trainer):
    """Returns the value of all that training depends on."""
    generators = [w.seed_generator for w in noise_wrappers(trainer.model)]
    states = [g.state for g in (*generators, trainer.seed_generator)]
    found = [*trainer.weights, *trainer.optimizer.variables, *states]
    return [variable.numpy() for variable in found]


def assert_same(values, expected):
    for ours, theirs in zip(values, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def files_in(directory):
    return sorted(path.name for path in directory.iterdir())
