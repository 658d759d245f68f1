"""A substitute: a network trained on nothing but the labels of another one."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl

from pni_tf.attacks.draws import value_and_gradient
from pni_tf.attacks.goals import Goal
from pni_tf.checks import check_number, validate_images, validate_labels

Oracle = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Substitute:
    """What `train_substitute` returns.

    Attributes:
        model: The trained Keras model, on logits.
        queries: Number of images that the oracle labelled for it.
    """

    model: keras.Model = dataclasses.field(repr=False)
    queries: int

    def predict(self, images) -> np.ndarray:
        """Returns int64 labels `[N]`."""
        return self.model.predict(images, verbose=0).argmax(-1)

    def agreement(self, oracle: Oracle, images) -> float:
        """Returns the share of images on which substitute and oracle agree.

        These questions to the oracle are not in `queries`.

        Args:
            oracle: Callable from images to integer labels `[N]`.
            images: Floats `[N, H, W, C]` in `[0, 1]`, none of the substitute's seeds.
        """
        images = validate_images(images, image_shape=self.model.input_shape[1:])
        labels = _ask(oracle, images, self.model.output_shape[-1])
        return float(np.mean(self.predict(images) == labels))


def train_substitute(
    oracle: Oracle,
    images: np.ndarray,
    *,
    num_classes: int,
    model: keras.Model | None = None,
    rounds: int = 6,
    epochs: int = 10,
    augmentation_step: float = 0.1,
    sign_period: int = 3,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Substitute:
    """Trains a network to imitate an oracle that gives labels only.

    Each round trains on all images so far; `augment` then doubles them, and the oracle
    labels the new ones. The last round adds none, so the oracle labels
    `len(images) * 2 ** (rounds - 1)` images.

    Args:
        oracle: Callable from float32 images `[n, H, W, C]` to integer labels `[n]`,
            such as `Target.predict`. It is asked for at most `batch_size` at a time.
        images: Floats `[N, H, W, C]` in `[0, 1]`: the seeds, such as 150 images that
            the oracle has not been trained on.
        num_classes: K.
        model: A Keras model from images to logits `[N, K]`, compiled and trained in
            place. None makes one of two convolutions (32 and 64 channels) and a dense
            layer (128 units), for any size from 4x4 pixels on.
        rounds: Number of rounds.
        epochs: Epochs of each round; weights and Adam's state carry over.
        augmentation_step: Change of a pixel by the augmentation (lambda).
        sign_period: Rounds after which the augmentation reverses its direction.
        batch_size: Batch size of training, gradients and questions.
        learning_rate: Adam's.
        seed: Seed of the default model's weights and of the order of the examples.

    Raises:
        ValueError: If an argument is out of its range, the model does not return
            logits of these classes, or the oracle does not return one label for each
            image.

    Example:

    >>> substitute = train_substitute(target.predict, held_out[:150], num_classes=10)
    >>> source = load_target(substitute.model)
    >>> attack = Transfer(attack=PGD(steps=40), source=source)
    >>> outcome = attack.run(target.logits, images, labels)

    Reference: https://arxiv.org/abs/1602.02697, algorithm 1, with its periodic step.
    """
    check_number("num_classes", num_classes, minimum=2, integer=True)
    check_number("rounds", rounds, minimum=1, integer=True)
    check_number("epochs", epochs, minimum=1, integer=True)
    check_number("sign_period", sign_period, minimum=1, integer=True)
    check_number("batch_size", batch_size, minimum=1, integer=True)
    check_number("augmentation_step", augmentation_step, minimum=0)
    check_number("learning_rate", learning_rate, minimum=0)
    images = validate_images(images)
    if model is None:
        model = _default_model(images.shape[1:], num_classes, seed)
    _check_model(model, images, num_classes)
    model.compile(
        keras.optimizers.Adam(float(learning_rate)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    labels = _ask(oracle, images, num_classes, batch_size)
    generator = np.random.default_rng(seed)
    for i in range(rounds):
        for _ in range(epochs):
            # Keras would shuffle by the global seed.
            order = generator.permutation(len(images))
            model.fit(
                images[order], labels[order], batch_size, shuffle=False, verbose=0
            )
        if i < rounds - 1:
            step = augmentation_step * (-1) ** (i // sign_period)
            new = augment(model, images, labels, step, batch_size=batch_size)
            answers = _ask(oracle, new, num_classes, batch_size)
            images, labels = np.append(images, new, 0), np.append(labels, answers)
    return Substitute(model=model, queries=len(images))


def augment(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    images: np.ndarray,
    labels: np.ndarray,
    step: float,
    *,
    batch_size: int = 128,
) -> np.ndarray:
    """Returns `images + step * sign(d p_y / d image)`, clipped to `[0, 1]`.

    `p_y` is the probability that the substitute gives the oracle's label.

    Args:
        logits_fn: The substitute, from images to logits `[N, K]`.
        images: float32 `[N, H, W, C]` in `[0, 1]`.
        labels: Integers `[N]`, the oracle's.
        step: Change of a pixel; negative values turn the direction.
        batch_size: Images of which the gradient is taken at once.

    Returns:
        float32 `[N, H, W, C]`.
    """
    parts = []
    for start in range(0, len(images), batch_size):
        part = tf.constant(images[start : start + batch_size])
        # The cross-entropy is -log p_y: the opposite sign, and it does not underflow.
        loss_fn = Goal.of(labels[start : start + batch_size]).cross_entropy
        _, gradient = value_and_gradient(logits_fn, loss_fn, part)
        parts.append(tf.clip_by_value(part - step * tf.sign(gradient), 0.0, 1.0))
    return np.concatenate(parts)


def _ask(oracle, images, num_classes, batch_size=128):
    parts = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        labels = oracle(part)
        try:
            labels = validate_labels(labels, num_classes, num_examples=len(part))
        except ValueError as error:
            raise ValueError(
                f"The oracle must return one integer label for each image: {error}"
            ) from error
        parts.append(labels)
    return np.concatenate(parts)


def _default_model(image_shape, num_classes, seed):
    def settings(i, activation="relu"):
        initializer = keras.initializers.GlorotUniform(seed=seed + i)
        return {"activation": activation, "kernel_initializer": initializer}

    values = inputs = keras.Input(image_shape)
    for i, channels in enumerate((32, 64)):
        values = kl.Conv2D(channels, 3, padding="same", **settings(i))(values)
        values = kl.MaxPooling2D()(values)
    values = kl.Dense(128, **settings(2))(kl.Flatten()(values))
    outputs = kl.Dense(num_classes, **settings(3, None))(values)
    return keras.Model(inputs, outputs, name="substitute")


def _check_model(model, images, num_classes):
    outputs = np.asarray(model(images[:1], training=False))
    if outputs.shape != (1, num_classes):
        raise ValueError(
            f"`model` must return logits [N, {num_classes}]. "
            f"Received: shape {outputs.shape} for N = 1"
        )
    if (outputs >= 0).all() and np.allclose(outputs.sum(-1), 1, atol=1e-3):
        raise ValueError(
            "`model` must return logits, not probabilities: drop its last activation"
        )
