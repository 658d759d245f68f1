"""Models of every shape that conversion must follow, for `inject_pni` and its kin."""

import keras
import numpy as np
import pytest
from keras import layers as kl


def images_of(shape, batch=3, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype("float32")


def network():
    """Normalisation, convolution, batch normalisation, a residual branch, a head."""
    inputs = keras.Input((6, 6, 3))
    values = kl.Rescaling(2.0, -1.0, name="norm")(inputs)
    values = kl.Conv2D(4, 3, name="conv1")(values)
    values = kl.ReLU(name="relu")(kl.BatchNormalization(name="bn")(values))
    branch = kl.Conv2D(4, 3, padding="same", name="conv2")(values)
    values = kl.Flatten()(kl.Add()([values, branch]))
    return keras.Model(inputs, kl.Dense(3, name="fc")(values), name="network")


def sequential():
    return keras.Sequential(
        [keras.Input((6, 6, 3)), kl.Conv2D(2, 3), kl.Flatten(), kl.Dense(3)]
    )


def sequential_in_functional():
    body = keras.Sequential([keras.Input((6, 6, 3)), kl.Conv2D(2, 3), kl.Flatten()])
    inputs = keras.Input((6, 6, 3))
    return keras.Model(inputs, kl.Dense(3)(body(kl.ReLU()(inputs))))


def functional_in_sequential():
    return keras.Sequential([keras.Input((6, 6, 3)), network(), kl.Dense(2)])


def layer_used_twice():
    inputs = keras.Input((6, 6, 3))
    conv = kl.Conv2D(3, 3, padding="same")
    return keras.Model(inputs, conv(kl.ReLU()(conv(inputs))))


def layer_shared_with_a_nested_model():
    conv = kl.Conv2D(3, 3, padding="same")
    inner = keras.Sequential([keras.Input((6, 6, 3)), conv, kl.ReLU()])
    inputs = keras.Input((6, 6, 3))
    return keras.Model(inputs, conv(inner(inputs)))


def nested_model_used_twice():
    body = keras.Sequential(
        [keras.Input((6, 6, 3)), kl.Conv2D(3, 3, padding="same"), kl.ReLU()]
    )
    inputs = keras.Input((6, 6, 3))
    return keras.Model(inputs, body(body(inputs)))


def plain_operations():
    inputs = keras.Input((6, 6, 3))
    values = keras.ops.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]])
    values = keras.ops.mean(kl.Conv2D(4, 3)(values), (1, 2))
    return keras.Model(inputs, kl.Dense(3)(values) * 2.0)


def recurrent():
    inputs = keras.Input((6, 6, 3))
    values = kl.Masking()(kl.TimeDistributed(kl.Flatten())(inputs))
    values = kl.Bidirectional(kl.LSTM(2, return_sequences=True))(values)
    return keras.Model(inputs, kl.GRU(3)(values))


# Model, and the number of alphas of weight noise.
MODELS = [
    (network, 3),
    (sequential, 2),
    (sequential_in_functional, 2),
    (functional_in_sequential, 4),
    (layer_used_twice, 1),
    (layer_shared_with_a_nested_model, 1),
    (nested_model_used_twice, 1),
    (plain_operations, 2),
    (recurrent, 6),
]
every_model = pytest.mark.parametrize(
    ("make", "count"), MODELS, ids=[make.__name__ for make, _ in MODELS]
)
