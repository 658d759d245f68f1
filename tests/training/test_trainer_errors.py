"""What adversarial training refuses, and with which words."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from pni_tf import PGD, PNIAdversarialModel, inject_pni


def head(*layers):
    return keras.Sequential([keras.Input((4,)), kl.Dense(3), *layers])


def functional(function):
    inputs = keras.Input((4,))
    return keras.Model(inputs, function(kl.Dense(3)(inputs)))


@pytest.mark.parametrize(
    "network",
    [
        lambda: head(kl.Dense(3, activation="softmax")),
        lambda: head(kl.Dense(1, activation="sigmoid")),
        lambda: head(kl.Activation("softmax")),
        lambda: head(kl.Activation(tf.nn.softmax)),
        lambda: head(kl.Softmax()),
        lambda: head(kl.Softmax(), kl.Activation("linear", dtype="float32")),
        lambda: head(keras.Sequential([keras.Input((3,)), kl.Softmax()])),
        lambda: functional(keras.ops.softmax),
        lambda: functional(keras.activations.softmax),
        lambda: inject_pni(head(kl.Dense(3, activation="softmax"))),
        lambda: inject_pni(head(kl.Dense(3, activation="softmax")), "w+a-b"),
    ],
)
def test_probabilities_are_refused(network):
    with pytest.raises(ValueError, match="must return logits.*(softmax|sigmoid)"):
        PNIAdversarialModel(network())


@pytest.mark.parametrize(
    "network",
    [
        lambda: head(),
        lambda: head(kl.Activation("linear", dtype="float32")),
        lambda: functional(keras.ops.log_softmax),  # Every loss takes them for logits.
        lambda: head(kl.Softmax(), kl.Dense(3)),
        lambda: inject_pni(head(), "w+a-a"),
    ],
)
def test_logits_are_accepted(network):
    assert PNIAdversarialModel(network()).model.output_shape == (None, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "pgd"}, "`attack` must be .* attack='pgd'"),
        ({"attack": PGD}, "`attack` must be .* attack=<class"),
        ({"validation_attack": 7}, "`validation_attack` must be .*=7"),
        ({"clean_weight": -0.1}, "`clean_weight` .* at least 0.* clean_weight=-0.1"),
        ({"adversarial_weight": float("nan")}, "adversarial_weight=nan"),
        ({"clean_weight": 0, "adversarial_weight": 0.0}, "must not both be zero"),
        ({"attack_labels": "least"}, "'predicted', 'true'.*attack_labels='least'"),
        ({"epoch_delay": -1}, "`epoch_delay` must be an integer .*epoch_delay=-1"),
        ({"epoch_delay": 1.5}, "`epoch_delay` must be an integer .*epoch_delay=1.5"),
        ({"validation_draws": 0}, "`validation_draws` .* validation_draws=0"),
        ({"model": lambda images: images}, "`model` must be a Keras model"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PNIAdversarialModel(**{"model": head(), **options})


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.CategoricalCrossentropy(from_logits=False),
        [keras.losses.SparseCategoricalCrossentropy(from_logits=True)],
    ],
)
def test_loss_must_be_on_logits(loss):
    with pytest.raises(ValueError, match="`loss` must be .* on logits.*Received"):
        PNIAdversarialModel(head()).compile(loss=loss)


@pytest.mark.parametrize("option", [{"steps_per_execution": 2}, {"jit_compile": True}])
def test_what_keras_cannot_do_with_two_replicas(mirrored_strategy, option):
    with mirrored_strategy.scope():
        trainer = PNIAdversarialModel(head())
        with pytest.raises(ValueError, match="with 2 replicas.*Received: jit_compile"):
            trainer.compile(**option)
        trainer.compile()


def test_callback_list_is_refused():
    trainer = PNIAdversarialModel(head())
    trainer.compile()
    with pytest.raises(ValueError, match="must be a list of callbacks"):
        trainer.fit(tf.zeros((2, 4)), callbacks=keras.callbacks.CallbackList([]))


GOOD = np.full((2, 2, 2, 1), 0.5, "float32"), np.array([0, 2])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD[0] * 255, GOOD[1], "in \\[0, 1\\].*127.5.*Divide them by 255"),
        (GOOD[0] * np.nan, GOOD[1], "must be finite"),
        (np.zeros((2, 2, 2, 1), np.uint8), GOOD[1], "must be floats.*uint8"),
        (GOOD[0][0], GOOD[1], "must have the shape"),
        (GOOD[0][:0], GOOD[1][:0], "at least one image"),
        (GOOD[0], np.array([0, 3]), "must be in 0..2.*from 0 to 3"),
        (GOOD[0], np.array([0.0, 1.0]), "must be integers"),
    ],
)
def test_arrays_that_are_no_images_or_labels(images, labels, message):
    network = keras.Sequential([keras.Input((2, 2, 1)), kl.Flatten(), kl.Dense(3)])
    trainer = PNIAdversarialModel(network)
    trainer.compile()
    with pytest.raises(ValueError, match=message):
        trainer.fit(images, labels)
    with pytest.raises(ValueError, match=message):
        trainer.fit(*GOOD, validation_data=(images, labels))
