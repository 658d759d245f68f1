"""Adversarial training through `fit`: delay, metrics, saving, dtypes.

`test_trainer_step.py` is about the arithmetic of one step, and
`test_trainer_errors.py` about what is refused.
"""

import contextlib
import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from pni_tf import FGSM, PGD, Attack, PNIAdversarialModel, inject_pni, strip_noise
from pni_tf.attacks.base import Outcome
from pni_tf.noise.graph import noise_wrappers

METRICS = {
    "loss",
    "clean_loss",
    "clean_accuracy",
    "adversarial_loss",
    "adversarial_accuracy",
}
ATTACK = PGD(epsilon=0.1, step_size=0.05, steps=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Negative(Attack):
    """Returns the negative image, and counts how often TensorFlow traces it."""

    traces: list = dataclasses.field(default_factory=list)

    def run(self, logits_fn, images, labels, *, towards=None, seed=None):
        self.traces.append(images.shape)
        return Outcome(1.0 - images, None, None, None)


@pytest.fixture(params=["one device", "two devices"])
def scope(request):
    """What a test builds its model in."""
    if request.param == "one device":
        return contextlib.nullcontext
    return request.getfixturevalue("mirrored_strategy").scope


@pytest.fixture
def mixed_float16():
    earlier = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(earlier)


def examples(count=12, classes=3):
    rng = np.random.default_rng(5)
    images = rng.random((count, 2, 2, 1)).astype("float32")
    return images, rng.integers(0, classes, count)


def linear_model(seed=0, classes=3, decay=0.0):
    dense = kl.Dense(
        classes,
        kernel_initializer=keras.initializers.GlorotUniform(seed),
        kernel_regularizer=keras.regularizers.L2(decay),
    )
    return keras.Sequential([keras.Input((2, 2, 1)), kl.Flatten(), dense])


def noisy_model(seed=0):
    """Noise on kernels and activations, batch statistics, and a random start."""
    initializer = keras.initializers.GlorotUniform(seed)
    network = keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            kl.Flatten(),
            kl.Dense(4, kernel_initializer=initializer),
            kl.BatchNormalization(),
            kl.Dense(3, kernel_initializer=initializer),
        ]
    )
    return inject_pni(network, "w+a-a", seed=seed)


def compiled(network, optimizer=None, metrics=None, eager=False, **options):
    trainer = PNIAdversarialModel(network, **options)
    trainer.compile(
        optimizer or keras.optimizers.SGD(0.1), metrics=metrics, run_eagerly=eager
    )
    return trainer


def fit(trainer, count=12, **kwargs):
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return trainer.fit(*examples(count), **kwargs).history


def assert_same(values, expected):
    for ours, theirs in zip(values, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def losses_and_accuracy(network, images, labels):
    logits = images.reshape(len(images), -1) @ network.layers[-1].kernel.numpy()
    logits = logits.astype("float64")
    log_sum = np.log(np.exp(logits).sum(-1))
    losses = log_sum - logits[np.arange(len(labels)), labels]
    return losses.mean(), np.mean(logits.argmax(-1) == labels)


def test_metrics_are_means_over_all_examples(scope):
    """Ten images in batches of four: the last batch is smaller, and counts less."""
    with scope():
        network = linear_model(decay=0.1)
        trainer = compiled(
            network,
            keras.optimizers.SGD(0.0),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="user")],
            attack=Negative(),
            clean_weight=0.3,
            adversarial_weight=0.9,
        )
    images, labels = examples(10)
    history = fit(trainer, 10, validation_data=(images[:6], labels[:6]))
    penalty = 0.1 * np.sum(network.layers[-1].kernel.numpy() ** 2)
    for prefix, count in (("", 10), ("val_", 6)):
        clean, clean_accuracy = losses_and_accuracy(
            network, images[:count], labels[:count]
        )
        adversarial, accuracy = losses_and_accuracy(
            network, 1 - images[:count], labels[:count]
        )
        expected = {
            "loss": 0.3 * clean + 0.9 * adversarial + penalty,
            "clean_loss": clean,
            "clean_accuracy": clean_accuracy,
            "adversarial_loss": adversarial,
            "adversarial_accuracy": accuracy,
            "user": clean_accuracy,
        }
        assert expected.keys() == {*METRICS, "user"}
        for name, value in expected.items():
            assert history[prefix + name] == [pytest.approx(value, rel=1e-5)], name
    assert len(history) == 2 * len(expected)


def test_validation_attack_moves_away_from_the_true_labels():
    """With two classes, FGSM on a linear model has a closed form."""
    epsilon = 0.2
    network = linear_model(classes=2)
    trainer = compiled(network, validation_attack=FGSM(epsilon=epsilon))
    images, labels = examples(classes=2)
    logs = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    kernel = network.layers[-1].kernel.numpy()
    direction = np.sign(kernel[:, 1 - labels] - kernel[:, labels]).T
    adversarial = images + epsilon * direction.reshape(images.shape)
    adversarial = np.clip(adversarial, 0, 1)
    loss, accuracy = losses_and_accuracy(network, adversarial, labels)
    clean_loss, clean_accuracy = losses_and_accuracy(network, images, labels)
    assert accuracy < clean_accuracy
    assert logs["adversarial_accuracy"] == pytest.approx(accuracy)
    assert logs["adversarial_loss"] == pytest.approx(loss, rel=1e-5)
    # Without an attack in training the loss to compare with is the clean one.
    assert logs["loss"] == pytest.approx(clean_loss, rel=1e-5)


def test_epoch_delay_trains_on_clean_images_first(scope):
    with scope():
        delayed = compiled(linear_model(), attack=Negative(), epoch_delay=2)
        plain = compiled(linear_model())
        after = compiled(plain.model, attack=Negative())
    weights = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(delayed.get_weights())
    )
    history = fit(delayed, epochs=3, callbacks=[record])
    assert history.keys() == METRICS
    for name in ("adversarial_loss", "adversarial_accuracy"):
        assert [math.isnan(value) for value in history[name]] == [True, True, False]
    assert np.all(np.isfinite(history["loss"]))
    fit(plain, epochs=2)
    assert_same(weights[1], plain.get_weights())
    fit(after)
    assert_same(weights[2], after.get_weights())
    assert np.any(weights[1][0] != weights[2][0])


@pytest.mark.parametrize(
    ("epochs", "delayed"),
    [
        ([(0, 1), (1, 2), (2, 3)], [True, True, False]),
        ([(0, 1), (0, 1), (0, 1)], [True, True, True]),
        ([(2, 3), (0, 1)], [False, True]),
    ],
)
def test_epoch_delay_counts_epochs_and_not_calls_of_fit(epochs, delayed):
    trainer = compiled(linear_model(), attack=Negative(), epoch_delay=2, eager=True)
    seen = []
    for initial_epoch, last in epochs:
        history = fit(trainer, 4, initial_epoch=initial_epoch, epochs=last)
        seen.append(math.isnan(history["adversarial_loss"][0]))
    assert seen == delayed


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedRecorder(Attack):
    """Notes the seed of each step."""

    seeds: list = dataclasses.field(default_factory=list)

    def run(self, logits_fn, images, labels, *, towards=None, seed=None):
        tf.numpy_function(lambda s: self.seeds.append(tuple(s.tolist())), [seed], [])
        return Outcome(images, None, None, None)


def test_each_step_and_each_device_has_a_random_start_of_its_own(scope):
    with scope():
        attack = SeedRecorder()
        trainer = compiled(linear_model(), attack=attack)
    fit(trainer, 8)
    devices = trainer.distribute_strategy.num_replicas_in_sync
    assert len(attack.seeds) == len(set(attack.seeds)) == 2 * devices


def test_random_starts_follow_the_seed():
    def seeds(seed):
        attack = SeedRecorder()
        fit(compiled(linear_model(), attack=attack, seed=seed, eager=True), 8)
        return attack.seeds

    assert seeds(1) == seeds(1)
    assert not set(seeds(1)) & set(seeds(2))


def test_evaluation_leaves_batch_statistics_alone():
    """Without the noise, whose generators may advance."""
    network = strip_noise(noisy_model())
    trainer = compiled(network, attack=ATTACK, eager=True)
    fit(trainer)
    before = network.get_weights()
    images, labels = examples()
    first = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    assert_same(network.get_weights(), before)
    # Each example is classified alone, so batches of any size give the same result.
    logs = trainer.evaluate(images, labels, 2, verbose=0, return_dict=True)
    for name in ("clean_loss", "clean_accuracy"):
        assert logs[name] == pytest.approx(first[name], rel=1e-5)


def test_graph_is_traced_once():
    attack = Negative()
    trainer = compiled(linear_model(), attack=attack, epoch_delay=1)
    fit(trainer, epochs=2, validation_data=examples(4))
    # Once in the graph of training, and once in that of validation.
    assert len(attack.traces) == 2
    fit(trainer, epochs=4, initial_epoch=2, validation_data=examples(4))
    fit(trainer, epochs=5, initial_epoch=4)
    assert len(attack.traces) == 2


def test_size_of_the_graph_does_not_depend_on_the_steps():
    def size(steps):
        trainer = compiled(linear_model(), attack=PGD(steps=steps))
        trainer.optimizer.build(trainer.trainable_variables)
        step = tf.function(trainer.train_step, autograph=False)
        graph = step.get_concrete_function(examples()).graph.as_graph_def()
        bodies = [len(function.node_def) for function in graph.library.function]
        return len(graph.node) + sum(bodies)

    assert size(2) == size(30)


@pytest.mark.parametrize("kind", ["dataset", "positional", "split", "two at once"])
def test_ways_to_call_fit(kind):
    images, labels = examples()
    train, validation = (images[:8], labels[:8]), (images[8:], labels[8:])
    expected = compiled(linear_model(), attack=ATTACK, seed=1, eager=True)
    history = expected.fit(
        *train, batch_size=4, shuffle=False, verbose=0, validation_data=validation
    )
    trainer = compiled(linear_model(), attack=ATTACK, seed=1, eager=True)
    epochs = []
    callback = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: epochs.append(epoch)
    )
    if kind == "dataset":
        trainer.fit(
            tf.data.Dataset.from_tensor_slices(train).batch(4),
            validation_data=tf.data.Dataset.from_tensor_slices(validation).batch(4),
            shuffle=False,
            verbose=0,
            callbacks=callback,
        )
    elif kind == "positional":
        trainer.fit(*train, 4, 1, 0, [callback], 0.0, validation, False)
    elif kind == "split":
        trainer.fit(
            images,
            labels,
            batch_size=4,
            validation_split=1 / 3,
            shuffle=False,
            verbose=0,
            callbacks=(callback,),
        )
    else:
        trainer.steps_per_execution = 2
        trainer.fit(
            *train,
            batch_size=4,
            shuffle=False,
            verbose=0,
            callbacks=callback,
            validation_data=validation,
        )
    assert_same(trainer.get_weights(), expected.get_weights())
    assert trainer.history.history == history.history
    assert epochs == [0]


def test_resumed_training_equals_uninterrupted(tmp_path):
    """Batch statistics, momentum, the states of the noise and of the random start."""

    def fresh(seed):
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
        network = noisy_model(seed)
        return compiled(network, optimizer, attack=ATTACK, seed=seed, eager=True)

    whole = fresh(seed=1)
    fit(whole, epochs=3)
    first = fresh(seed=1)
    fit(first, epochs=2)
    first.save_weights(tmp_path / "epoch-2.weights.h5")
    resumed = fresh(seed=2)
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(tmp_path / "epoch-2.weights.h5")
    fit(resumed, epochs=3, initial_epoch=2)
    assert_same(everything(resumed), everything(whole))


def everything(trainer):
    """Returns the value of all that training depends on."""
    generators = [w.seed_generator for w in noise_wrappers(trainer.model)]
    states = [g.state for g in (*generators, trainer.seed_generator)]
    found = [*trainer.weights, *trainer.optimizer.variables, *states]
    return [variable.numpy() for variable in found]


def test_save_writes_the_plain_model(tmp_path):
    images, labels = examples()
    trainer = compiled(noisy_model(), attack=ATTACK, eager=True)
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras",
        monitor="val_adversarial_loss",
        mode="min",
        save_best_only=True,
    )
    fit(trainer, callbacks=best, validation_data=(images, labels))
    trainer.save(tmp_path / "last.keras")
    expected = trainer.model(images).numpy()
    for name in ("best.keras", "last.keras"):
        loaded = keras.saving.load_model(tmp_path / name)
        assert type(loaded) is keras.Sequential
        assert_same(loaded.get_weights(), trainer.model.get_weights())
        # The next draw of its noise too.
        np.testing.assert_array_equal(loaded(images).numpy(), expected)


@pytest.mark.parametrize("policy_of_trainer", ["mixed_float16", "float32"])
def test_mixed_precision_learns_like_float32(mixed_float16, policy_of_trainer):
    def update(policies):
        keras.config.set_dtype_policy(policies[0])
        network = inject_pni(linear_model(), seed=1)
        before = network.get_weights()
        keras.config.set_dtype_policy(policies[1])
        trainer = compiled(network, attack=Negative())
        fit(trainer, 4)
        after = network.get_weights()
        return trainer, [a - b for a, b in zip(after, before, strict=True)]

    _, expected = update(("float32", "float32"))
    trainer, updates = update(("mixed_float16", policy_of_trainer))
    for ours, exact in zip(updates, expected, strict=True):
        assert np.all(exact != 0)
        # float16 has 11 bits, an error of 0.05 % at each rounding.
        np.testing.assert_allclose(ours, exact, rtol=0.02, atol=1e-4)
    assert trainer.model(examples()[0]).dtype == "float16"
    assert {v.dtype for v in trainer.model.trainable_variables} == {"float32"}
    scaled = isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled and trainer.optimizer.scale_loss(1.0) > 1


def test_keras_application_learns():
    network = keras.applications.MobileNetV2(
        weights=None,
        alpha=0.35,
        input_shape=(32, 32, 3),
        classes=10,
        classifier_activation=None,
    )
    # Eager, because TensorFlow takes half a minute to trace its 53 convolutions.
    trainer = compiled(inject_pni(network), attack=FGSM(), eager=True)
    before = [variable.numpy() for variable in trainer.trainable_variables]
    images = np.random.default_rng(0).random((4, 32, 32, 3), dtype="float32")
    history = trainer.fit(images, np.arange(4), verbose=0).history
    assert np.all(np.isfinite(list(history.values())))
    unchanged = [
        variable.path
        for variable, old in zip(trainer.trainable_variables, before, strict=True)
        if np.array_equal(variable.numpy(), old)
    ]
    assert unchanged == []
