"""One training step against NumPy written out, on one device and on two."""

import contextlib
import dataclasses

import keras
import numpy as np
import pytest
from keras import layers as kl

from pni_tf import FGSM, PGD, Attack, PNIAdversarialModel, inject_pni
from pni_tf.attacks.base import Outcome
from pni_tf.noise.graph import noise_wrappers

RATE = 0.5
EPSILON = 0.1


@pytest.fixture
def scope(request):
    """What a test builds its model in; the parameter is the number of devices."""
    if request.param == 1:
        return contextlib.nullcontext
    return request.getfixturevalue("mirrored_strategy").scope


on_one_and_two_devices = pytest.mark.parametrize("scope", [1, 2], indirect=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorder(Attack):
    """Notes what it is given, three passes included; returns the negative image."""

    calls: list = dataclasses.field(default_factory=list)

    def run(self, logits_fn, images, labels, *, towards=None, seed=None):
        logits = [logits_fn(images).numpy() for _ in range(3)]
        self.calls.append((labels.numpy(), logits))
        return Outcome(1.0 - images, None, None, None)


def examples(classes=2):
    """Eight images, too far from 0 and 1 for any attack here to be clipped there."""
    rng = np.random.default_rng(5)
    images = rng.uniform(0.25, 0.75, (8, 2, 2, 1)).astype("float32")
    kernel = rng.normal(size=(4, classes))
    # Grey is on the decision boundary, so that the predictions are not all the same.
    return images, rng.integers(0, classes, 8), kernel - kernel.mean(0)


def linear_model(kernel, weight_decay=0.0):
    dense = kl.Dense(
        kernel.shape[1],
        use_bias=False,
        kernel_regularizer=keras.regularizers.L2(weight_decay / 2),
    )
    model = keras.Sequential([keras.Input((2, 2, 1)), kl.Flatten(), dense])
    dense.kernel.assign(kernel)
    return model


def one_step(trainer, images, labels, **kwargs):
    history = trainer.fit(
        images, labels, batch_size=len(images), shuffle=False, verbose=0, **kwargs
    )
    return {name: values[-1] for name, values in history.history.items()}


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def predictions(kernel, images):
    return (images.reshape(len(images), -1) @ kernel).argmax(-1)


def loss_and_gradient(kernel, images, labels, sample_weight=1.0):
    """The mean cross-entropy of a linear model and its gradient for the kernel."""
    pixels = images.reshape(len(images), -1).astype("float64")
    targets = np.eye(kernel.shape[1])[labels]
    probabilities = softmax(pixels @ kernel)
    losses = -sample_weight * np.log((probabilities * targets).sum(-1))
    errors = np.reshape(sample_weight, (-1, 1)) * (probabilities - targets)
    return losses.mean(), pixels.T @ errors / len(images)


def attacked_images(kernel, images, attacked, norm="linf"):
    """The images at the edge of the ball.

    One step reaches them, and with two classes any number of steps does: then the
    gradient has the same direction everywhere.
    """
    pixels = images.reshape(len(images), -1).astype("float64")
    errors = softmax(pixels @ kernel) - np.eye(kernel.shape[1])[attacked]
    gradient = errors @ kernel.T
    if norm == "linf":
        direction = np.sign(gradient)
    else:
        direction = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    return images + EPSILON * direction.reshape(images.shape)


def pgd(steps=3, random_start=False, norm="linf"):
    # With a random start the steps must cross the whole ball to reach its edge.
    length = 2 * EPSILON if random_start else EPSILON
    return PGD(
        epsilon=EPSILON,
        step_size=length / steps * 1.01,
        steps=steps,
        norm=norm,
        random_start=random_start,
    )


@pytest.mark.parametrize(
    ("scope", "attack", "classes", "attack_labels", "weights"),
    [
        (1, FGSM(epsilon=EPSILON), 3, "predicted", (0.5, 0.5)),
        (1, FGSM(epsilon=EPSILON), 2, "true", (0.3, 0.7)),
        (1, pgd(), 2, "predicted", (0.0, 1.0)),
        (1, pgd(norm="l2"), 2, "predicted", (2.0, 1.0)),
        # Here the images depend on the kernel smoothly: the update must ignore that.
        (1, pgd(steps=1, norm="l2"), 3, "true", (0.5, 0.5)),
        (2, FGSM(epsilon=EPSILON), 3, "predicted", (0.3, 0.7)),
        (2, pgd(random_start=True), 2, "true", (0.25, 0.5)),
    ],
    indirect=["scope"],
)
def test_adversarial_step_on_a_linear_model(
    scope, attack, classes, attack_labels, weights
):
    images, labels, kernel = examples(classes)
    with scope():
        trainer = PNIAdversarialModel(
            linear_model(kernel),
            attack=attack,
            attack_labels=attack_labels,
            clean_weight=weights[0],
            adversarial_weight=weights[1],
        )
        trainer.compile(keras.optimizers.SGD(RATE))
    logs = one_step(trainer, images, labels)

    predicted = predictions(kernel, images)
    assert 0 < np.mean(predicted == labels) < 1  # The two kinds of labels differ.
    attacked = {"predicted": predicted, "true": labels}[attack_labels]
    norm = getattr(attack, "norm", "linf")
    adversarial = attacked_images(kernel, images, attacked, norm)
    clean_loss, clean_gradient = loss_and_gradient(kernel, images, labels)
    adversarial_loss, gradient = loss_and_gradient(kernel, adversarial, labels)
    expected = kernel - RATE * (weights[0] * clean_gradient + weights[1] * gradient)
    np.testing.assert_allclose(trainer.get_weights()[0], expected, rtol=1e-5)
    assert logs == pytest.approx(
        {
            "loss": weights[0] * clean_loss + weights[1] * adversarial_loss,
            "clean_loss": clean_loss,
            "adversarial_loss": adversarial_loss,
            "clean_accuracy": np.mean(predicted == labels),
            "adversarial_accuracy": np.mean(predictions(kernel, adversarial) == labels),
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("scope", [1, 2], indirect=True)
@pytest.mark.parametrize("compiled_metrics", [False, True])
def test_a_clean_loss_of_no_weight_costs_no_pass(scope, compiled_metrics):
    """Only the adversarial images then move the statistics of batch normalisation."""
    images, labels, kernel = examples(classes=3)

    def network():
        dense = kl.Dense(3, use_bias=False)
        norm = kl.BatchNormalization(momentum=0.0, synchronized=True)
        model = keras.Sequential([keras.Input((2, 2, 1)), kl.Flatten(), norm, dense])
        dense.kernel.assign(kernel)
        return model

    attack = FGSM(epsilon=EPSILON)
    with scope():
        model = network()
        trainer = PNIAdversarialModel(
            model,
            attack=attack,
            attack_labels="true",
            clean_weight=0,
            adversarial_weight=2.0,
        )
        metrics = (
            [keras.metrics.SparseCategoricalAccuracy()] if compiled_metrics else []
        )
        trainer.compile(keras.optimizers.SGD(0.0), metrics=metrics)
    logs = one_step(trainer, images, labels)
    if not compiled_metrics:
        # The attack sees the first moving statistics, 0 and 1, as of a fresh network.
        adversarial = attack.perturb(network(), images, labels)
        mean = adversarial.numpy().reshape(len(images), -1).mean(0)
        moving_mean = model.layers[1].moving_mean.numpy()
        np.testing.assert_allclose(moving_mean, mean, rtol=1e-5)
    assert logs["loss"] == pytest.approx(2 * logs["adversarial_loss"])
    for name in ("clean_loss", "clean_accuracy"):
        assert np.isnan(logs[name]) == (not compiled_metrics)


@on_one_and_two_devices
def test_without_attack_equals_the_stock_trainer(scope, request):
    devices = request.node.callspec.params["scope"]
    images, labels, _ = examples(classes=3)

    def network():
        keras.utils.set_random_seed(2)
        regularizer = keras.regularizers.L2(0.01)
        return keras.Sequential(
            [
                keras.Input((2, 2, 1)),
                kl.Flatten(),
                kl.Dense(5, kernel_regularizer=regularizer, activation="relu"),
                kl.BatchNormalization(),
                kl.Dropout(0.3, seed=4),
                kl.Dense(3, activity_regularizer=keras.regularizers.L2(0.1)),
            ]
        )

    def fit(model):
        weights = np.linspace(0.5, 2, 8)
        # Two devices would be slow.
        validation = (images, labels, weights) if devices == 1 else None
        return model.fit(
            images,
            labels,
            batch_size=4,
            epochs=2,
            shuffle=False,
            sample_weight=weights,
            validation_data=validation,
            verbose=0,
        ).history

    with scope():
        stock = network()
        stock.compile(
            keras.optimizers.SGD(RATE, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="clean_accuracy")],
        )
        trainer = PNIAdversarialModel(network())
        trainer.compile(keras.optimizers.SGD(RATE, momentum=0.9))
    expected, logs = fit(stock), fit(trainer)
    for ours, theirs in zip(trainer.weights, stock.weights, strict=True):
        if "moving" not in theirs.path:
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
            continue
        # The stock trainer keeps the first replica's, ours takes their mean.
        replicas = getattr(theirs.value, "values", [theirs])
        mean = np.mean([replica.numpy() for replica in replicas], axis=0)
        np.testing.assert_allclose(ours.numpy(), mean, rtol=1e-6, atol=1e-7)
    for name, values in expected.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-6, err_msg=name)
    assert {name.removeprefix("val_") for name in logs} == {
        "loss",
        "clean_loss",
        "clean_accuracy",
    }


@pytest.mark.parametrize(
    ("scope", "attack", "weights"),
    [
        (1, None, (1.0, 0.0)),
        (1, FGSM(epsilon=EPSILON), (0.5, 0.5)),
        (2, FGSM(epsilon=EPSILON), (1.0, 2.0)),
    ],
    indirect=["scope"],
)
def test_weight_decay_and_nesterov_momentum_equal_torch(scope, attack, weights):
    """torch.optim.SGD: `g += wd * w; buf = m * buf + g; w -= lr * (g + m * buf)`."""
    decay, momentum = 0.1, 0.9
    images, labels, kernel = examples()
    with scope():
        trainer = PNIAdversarialModel(
            linear_model(kernel, decay),
            attack=attack,
            clean_weight=weights[0],
            adversarial_weight=weights[1],
        )
        trainer.compile(keras.optimizers.SGD(RATE, momentum=momentum, nesterov=True))
    trainer.fit(images, labels, batch_size=8, epochs=4, shuffle=False, verbose=0)

    buffer = np.zeros_like(kernel)
    losses = []
    for _ in range(4):
        adversarial = attacked_images(kernel, images, predictions(kernel, images))
        parts = [
            loss_and_gradient(kernel, inputs, labels)
            for inputs in (images, adversarial)
        ]
        loss = weights[0] * parts[0][0] + weights[1] * parts[1][0]
        losses.append(loss + decay / 2 * np.sum(kernel**2))
        gradient = weights[0] * parts[0][1] + weights[1] * parts[1][1]
        gradient = gradient + decay * kernel
        buffer = momentum * buffer + gradient
        kernel = kernel - RATE * (gradient + momentum * buffer)
    np.testing.assert_allclose(trainer.get_weights()[0], kernel, rtol=1e-4)
    np.testing.assert_allclose(trainer.history.history["loss"], losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("scope", "granularity"),
    [(1, "layerwise"), (1, "channelwise"), (1, "elementwise"), (2, "layerwise")],
    indirect=["scope"],
)
def test_adversarial_step_with_noise(scope, granularity):
    """Draw 1 is the clean pass, 2 the attack's, 3 the adversarial pass (eq. 7-8)."""
    alpha, decay, rate = 0.25, 0.1, 0.1
    images, labels, kernel = examples()

    def network():
        return inject_pni(
            linear_model(kernel, decay),
            granularity=granularity,
            initial_alpha=alpha,
            seed=6,
        )

    (twin,) = noise_wrappers(network())
    noisy = [twin.noisy_kernels()[0].numpy().astype("float64") for _ in range(3)]
    etas = [(draw - kernel) / alpha for draw in noisy]
    with scope():
        trainer = PNIAdversarialModel(network(), attack=FGSM(epsilon=EPSILON))
        trainer.compile(keras.optimizers.SGD(rate))
    logs = one_step(trainer, images, labels)

    attacked = predictions(noisy[0], images)
    adversarial = attacked_images(noisy[1], images, attacked)
    clean_loss, clean_gradient = loss_and_gradient(noisy[0], images, labels)
    adversarial_loss, gradient = loss_and_gradient(noisy[2], adversarial, labels)
    gradient_of_alpha = (clean_gradient * etas[0] + gradient * etas[2]) / 2
    if granularity == "layerwise":
        gradient_of_alpha = gradient_of_alpha.sum()
    elif granularity == "channelwise":
        gradient_of_alpha = gradient_of_alpha.sum(0, keepdims=True)
    new_kernel = kernel - rate * ((clean_gradient + gradient) / 2 + decay * kernel)
    # Weight decay is in the kernel's update only.
    new_alpha = alpha - rate * gradient_of_alpha
    (wrapper,) = noise_wrappers(trainer.model)
    np.testing.assert_allclose(wrapper.kernels[0].numpy(), new_kernel, rtol=1e-4)
    np.testing.assert_allclose(wrapper.alphas[0].numpy(), new_alpha, rtol=1e-4)
    assert logs["clean_loss"] == pytest.approx(clean_loss, rel=1e-4)
    assert logs["adversarial_loss"] == pytest.approx(adversarial_loss, rel=1e-4)


@on_one_and_two_devices
def test_one_hot_labels_and_sample_weights(scope):
    images, labels, kernel = examples(classes=3)
    sample_weight = np.linspace(0.0, 2.0, 8)
    with scope():
        trainer = PNIAdversarialModel(
            linear_model(kernel), attack=FGSM(epsilon=EPSILON), attack_labels="true"
        )
        trainer.compile(
            keras.optimizers.SGD(RATE),
            keras.losses.CategoricalCrossentropy(from_logits=True),
        )
    logs = one_step(trainer, images, np.eye(3)[labels], sample_weight=sample_weight)
    adversarial = attacked_images(kernel, images, labels)
    parts = [
        loss_and_gradient(kernel, inputs, labels, sample_weight)
        for inputs in (images, adversarial)
    ]
    expected = kernel - RATE * (parts[0][1] + parts[1][1]) / 2
    np.testing.assert_allclose(trainer.get_weights()[0], expected, rtol=1e-5)
    assert logs["loss"] == pytest.approx((parts[0][0] + parts[1][0]) / 2, rel=1e-5)
    accuracy = np.mean(predictions(kernel, adversarial) == labels)
    assert logs["adversarial_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
@pytest.mark.parametrize("attack_labels", ["predicted", "true"])
def test_labels_that_the_attack_moves_away_from(attack_labels, shape):
    images, _, kernel = examples(classes=3)
    network = inject_pni(linear_model(kernel), initial_alpha=2.0, seed=1)
    (twin,) = noise_wrappers(
        inject_pni(linear_model(kernel), initial_alpha=2.0, seed=1)
    )
    predicted = predictions(twin.noisy_kernels()[0].numpy(), images)
    labels = (predicted + 1) % 3  # They are all wrong.
    assert np.any(predicted != predictions(kernel, images))  # The noise matters.
    attack = Recorder()
    trainer = PNIAdversarialModel(network, attack=attack, attack_labels=attack_labels)
    trainer.compile(keras.optimizers.SGD(RATE), run_eagerly=True)
    one_step(trainer, images, labels.reshape(shape))
    expected = {"predicted": predicted, "true": labels}[attack_labels]
    np.testing.assert_array_equal(attack.calls[0][0], expected)
    others = np.arange(8) % 3
    trainer.evaluate(images, others.reshape(shape), verbose=0)
    np.testing.assert_array_equal(attack.calls[1][0], others)


def test_each_pass_of_the_attack_sees_fresh_noise():
    _, labels, kernel = examples()
    # The logits are the kernel.
    one_pixel = np.eye(4, dtype="float32").reshape(4, 2, 2, 1)
    attack = Recorder()
    network = inject_pni(linear_model(kernel), seed=3)
    (twin,) = noise_wrappers(inject_pni(linear_model(kernel), seed=3))
    draws = [twin.noisy_kernels()[0].numpy() for _ in range(4)]
    trainer = PNIAdversarialModel(network, attack=attack)
    trainer.compile(keras.optimizers.SGD(RATE), run_eagerly=True)
    one_step(trainer, one_pixel, labels[:4])
    np.testing.assert_allclose(attack.calls[0][1], draws[1:], rtol=1e-5)
    assert len({draw.tobytes() for draw in draws}) == 4


FIVE = pgd(steps=5)


@pytest.mark.parametrize(
    ("eager", "options", "training_draws", "validation_draws"),
    [
        (True, {"attack": None}, 1, 1),
        (True, {"attack": FGSM()}, 3, 3),
        (False, {"attack": FIVE}, 7, 7),
        (False, {"attack": FIVE, "validation_draws": 4}, 7, 2 + 4 * 5),
        (True, {"attack": FIVE, "noise_in_attack": False}, 2, 7),
        (True, {"attack": FIVE, "epoch_delay": 1}, 1, 7),
        (True, {"attack": FGSM(), "validation_attack": FIVE}, 3, 7),
        (True, {"attack": None, "validation_attack": FIVE}, 1, 7),
        (True, {"attack": PGD(steps=5, restarts=2)}, 2 + 2 * 6, 2 + 2 * 6),
    ],
)
def test_number_of_draws_in_a_step(eager, options, training_draws, validation_draws):
    """A draw for each forward pass: none is shared, and none is made in vain."""
    images, labels, kernel = examples()
    network = inject_pni(linear_model(kernel), seed=3)
    trainer = PNIAdversarialModel(network, **options)
    trainer.compile(keras.optimizers.SGD(RATE), run_eagerly=eager)
    (wrapper,) = noise_wrappers(network)

    def draws_so_far():
        return int(wrapper.seed_generator.state.numpy()[1])

    assert draws_so_far() == 0
    trainer.fit(images, labels, batch_size=4, verbose=0)
    assert draws_so_far() == 2 * training_draws
    trainer.evaluate(images, labels, batch_size=4, verbose=0)
    assert draws_so_far() == 2 * training_draws + 2 * validation_draws


def test_batch_statistics_are_updated_by_both_passes_and_not_by_the_attack():
    images, labels, kernel = examples()
    momentum, epsilon = 0.8, 1e-2
    norm = kl.BatchNormalization(momentum=momentum, epsilon=epsilon)
    dense = kl.Dense(2, use_bias=False)
    network = keras.Sequential([keras.Input((2, 2, 1)), kl.Flatten(), norm, dense])
    dense.kernel.assign(kernel)
    mean, variance = np.full(4, 0.3), np.full(4, 1.7)
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(variance)
    attack = Recorder()
    trainer = PNIAdversarialModel(network, attack=attack)
    trainer.compile(keras.optimizers.SGD(RATE), run_eagerly=True)
    logs = one_step(trainer, images, labels)

    def normalize(pixels, mean, variance):
        return (pixels - mean) / np.sqrt(variance + epsilon)

    clean = images.reshape(8, 4).astype("float64")
    for name, pixels in (("clean", clean), ("adversarial", 1 - clean)):
        # Each pass has the statistics of its own images, not of both together.
        own = normalize(pixels, pixels.mean(0), pixels.var(0))
        loss, _ = loss_and_gradient(kernel, own, labels)
        assert logs[f"{name}_loss"] == pytest.approx(loss, rel=1e-4)
        mean = momentum * mean + (1 - momentum) * pixels.mean(0)
        variance = momentum * variance + (1 - momentum) * pixels.var(0)
        if name == "clean":
            seen_by_attack = normalize(clean, mean, variance) @ kernel
    np.testing.assert_allclose(norm.moving_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance.numpy(), variance, rtol=1e-5)
    for logits in attack.calls[0][1]:
        np.testing.assert_allclose(logits, seen_by_attack, rtol=1e-4, atol=1e-6)
