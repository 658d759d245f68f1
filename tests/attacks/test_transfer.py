"""Transfer between networks, and substitutes trained on labels."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from pni_tf import (
    FGSM,
    PGD,
    ExpectationOverNoise,
    RandomSearch,
    Transfer,
    load_dataset,
    load_target,
    train_substitute,
)
from pni_tf.attacks.substitute import augment

SEED = (3, 4)
GENERATOR = np.random.default_rng(1)
IMAGES = GENERATOR.uniform(size=(7, 3, 3, 1)).astype("float32")
LABELS = np.array([0, 1, 1, 0, 0, 1, 0])
WEIGHTS = {name: GENERATOR.normal(size=(9, 2)).astype("float32") for name in "AB"}


def network(name):
    def logits(images):
        return tf.reshape(images, (-1, 9)) @ WEIGHTS[name]

    logits.__name__ = name
    return logits


def optimum(name, epsilon, labels=LABELS):
    """The worst images of the Linf ball for one of the two linear networks."""
    wrong = (WEIGHTS[name][:, 1 - labels] - WEIGHTS[name][:, labels]).T
    return np.clip(IMAGES + epsilon * np.sign(wrong.reshape(IMAGES.shape)), 0, 1)


def refuse(images):
    raise AssertionError("this network must not be called")


# --- Transfer -----------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), ["AB", "BA"], ids="-".join)
@pytest.mark.parametrize("targeted", [False, True])
def test_transfer_between_linear_networks(source, target, targeted):
    inner = PGD(epsilon=0.3, step_size=0.1, steps=6)
    attack = Transfer(attack=inner, source=network(source))
    towards = 1 - LABELS if targeted else None
    outcome = attack.run(network(target), IMAGES, LABELS, towards=towards, seed=SEED)
    expected = optimum(source, 0.3)
    np.testing.assert_allclose(outcome.images, expected, atol=1e-6)
    predictions = np.argmax(expected.reshape(-1, 9) @ WEIGHTS[target], -1)
    np.testing.assert_array_equal(outcome.found, predictions != LABELS)
    # The verdict is the target's: the source has another.
    of_source = np.argmax(expected.reshape(-1, 9) @ WEIGHTS[source], -1) != LABELS
    assert np.any(of_source != outcome.found)
    np.testing.assert_array_equal(outcome.queries, [1] * 7)
    np.testing.assert_array_equal(outcome.gradients, [6] * 7)
    images = attack.perturb(network(target), IMAGES, LABELS, towards=towards, seed=SEED)
    np.testing.assert_array_equal(images, outcome.images)


def test_perturb_does_not_call_the_target():
    attack = Transfer(attack=FGSM(epsilon=0.1), source=network("A"))
    images = attack.perturb(refuse, IMAGES, LABELS)
    np.testing.assert_allclose(images, optimum("A", 0.1), atol=1e-6)


def test_only_the_source_needs_gradients():
    def without_gradient(images):
        return tf.stop_gradient(network("B")(images))

    attack = Transfer(attack=FGSM(epsilon=0.3), source=network("A"))
    outcome = attack.run(without_gradient, IMAGES, LABELS)
    np.testing.assert_allclose(outcome.images, optimum("A", 0.3), atol=1e-6)


class Turning:
    """A random network: `B`, but every third call gives the opposite answer."""

    def __init__(self):
        self.calls = tf.Variable(0)

    def __call__(self, images):
        sign = tf.where(self.calls.assign_add(1) % 3 == 0, -1.0, 1.0)
        return sign * network("B")(images)


def test_expectations_of_source_and_target_are_counted_apart():
    source = ExpectationOverNoise(network("A"), draws=5)
    attack = Transfer(attack=FGSM(epsilon=0.3), source=source, source_name="A")
    turning = Turning()
    target = ExpectationOverNoise(turning, draws=3)
    outcome = attack.run(target, IMAGES, LABELS)
    assert turning.calls == 3
    np.testing.assert_array_equal(outcome.queries, [3] * 7)
    np.testing.assert_array_equal(outcome.gradients, [5] * 7)
    predictions = np.argmax(network("B")(optimum("A", 0.3)), -1)
    np.testing.assert_array_equal(outcome.found, predictions != LABELS)  # 2 of 3 votes


def small_model(units=2, **settings):
    model = keras.Sequential(
        [keras.Input((3, 3, 1)), kl.Flatten(), kl.Dense(units, **settings)]
    )
    return model


def test_sources_of_every_kind():
    model = small_model(use_bias=False)
    model.set_weights([WEIGHTS["A"]])
    target = load_target(model)
    for source, name in [
        (network("A"), "A"),
        (model, model.name),
        (target, model.name),
    ]:
        attack = Transfer(attack=FGSM(epsilon=0.2), source=source)
        images = attack(network("B"), IMAGES, LABELS)
        np.testing.assert_allclose(images, optimum("A", 0.2), atol=1e-6)
        assert (
            repr(attack) == f"Transfer(attack={FGSM(epsilon=0.2)!r}, source={name!r}, "
            "source_draws=1)"
        )
        other = dataclasses.replace(attack, source=network("B"))
        assert repr(other).endswith("source='B', source_draws=1)")
        assert other != attack
    named = Transfer(attack=FGSM(), source=model, source_name="plain")
    assert repr(named).endswith("source='plain', source_draws=1)")
    with pytest.raises(dataclasses.FrozenInstanceError):
        named.source = None


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
@pytest.mark.parametrize("inner", [FGSM(), RandomSearch(samples=3)], ids=repr)
def test_traced_with_an_unknown_batch_size(inner, dtype):
    attack = Transfer(attack=inner, source=network("A"))

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 3, 3, 1)),
            tf.TensorSpec((None,), dtype),
        ]
    )
    def traced(images, labels):
        return attack.run(network("B"), images, labels, seed=SEED)

    for count in (1, 7):
        images, labels = IMAGES[:count], LABELS[:count]
        expected = attack.run(network("B"), images, labels, seed=SEED)
        outcome = traced(images, labels.astype(dtype))
        for found, wanted in zip(outcome, expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert traced.experimental_get_tracing_count() == 1


def test_transfer_of_what_is_no_attack_or_no_network():
    with pytest.raises(ValueError, match="`attack` must be.*attack=None"):
        Transfer(attack=None, source=network("A"))
    with pytest.raises(ValueError, match="`source` must be.*source='A'"):
        Transfer(attack=FGSM(), source="A")


# --- Substitute ---------------------------------------------------------------------


class Oracle:
    """Gives nothing but Python integers, and keeps what it was asked."""

    def __init__(self, logits):
        self.logits, self.asked = logits, []

    def __call__(self, images):
        assert images.dtype == np.float32
        self.asked.append(np.array(images))
        return [int(label) for label in np.argmax(self.logits(images), -1)]


def softmax(logits):
    values = np.exp(logits - logits.max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


@pytest.mark.parametrize("step", [0.1, -0.3])
def test_augmentation_against_the_gradient_of_a_linear_model(step):
    weights = np.random.default_rng(5).normal(size=(9, 3)).astype("float32")
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    probabilities = softmax(IMAGES.reshape(-1, 9) @ weights)
    own = np.eye(3)[labels]
    # d p_y / d logits = p_y (1_y - p)
    slope = (own * probabilities).sum(-1, keepdims=True) * (own - probabilities)
    gradient = (slope @ weights.T).reshape(IMAGES.shape)
    expected = np.clip(IMAGES + step * np.sign(gradient), 0, 1)
    for batch_size in (3, 128):
        new = augment(
            lambda images: tf.reshape(images, (-1, 9)) @ weights,
            IMAGES,
            labels,
            step,
            batch_size=batch_size,
        )
        np.testing.assert_allclose(new, expected, atol=1e-6)


def test_augmentation_survives_saturated_probabilities():
    new = augment(lambda images: 1e4 * network("A")(images), IMAGES, LABELS, 0.1)
    expected = optimum("A", -0.1)  # It leads away from the wrong class.
    wrong = np.argmax(network("A")(IMAGES), -1) != LABELS
    assert wrong.any() and not wrong.all()
    np.testing.assert_allclose(new[wrong], expected[wrong], atol=1e-6)


def test_rounds_double_the_images_and_turn_the_sign():
    """A learning rate of zero leaves the model as it is, so each step is known."""
    model = small_model(use_bias=False)
    model.set_weights([WEIGHTS["A"]])
    oracle = Oracle(network("B"))
    substitute = train_substitute(
        oracle,
        IMAGES,
        num_classes=2,
        model=model,
        rounds=6,
        epochs=1,
        sign_period=2,
        augmentation_step=0.05,
        batch_size=1000,
        learning_rate=0,
    )
    assert substitute.model is model and substitute.queries == 7 * 2**5
    assert [len(asked) for asked in oracle.asked] == [7, 7, 14, 28, 56, 112]
    known = oracle.asked[0]
    np.testing.assert_array_equal(known, IMAGES)
    for i, asked in enumerate(oracle.asked[1:]):
        step = [0.05, 0.05, -0.05, -0.05, 0.05][i]
        labels = np.argmax(network("B")(known), -1)
        direction = (WEIGHTS["A"][:, labels] - WEIGHTS["A"][:, 1 - labels]).T
        expected = known + step * np.sign(direction.reshape(known.shape))
        np.testing.assert_allclose(asked, np.clip(expected, 0, 1), atol=1e-6)
        known = np.concatenate([known, asked])


@pytest.fixture(scope="module")
def digits():
    """A network trained for seconds, and images that it has not seen."""
    data = load_dataset("digits")
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), kl.Flatten(), kl.Dense(64, "relu"), kl.Dense(10)]
    )
    model.compile(
        keras.optimizers.Adam(5e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(data.train.images_float(), data.train.labels, 128, epochs=10, verbose=0)
    return load_target(model), data.test.images_float(), data.test.labels


def test_substitute_of_digits_and_transfer_from_it(digits):
    target, images, labels = digits
    seeds, unseen, labels = images[:150], images[150:], labels[150:]
    oracle = Oracle(target.logits)
    substitute = train_substitute(oracle, seeds, num_classes=10, epochs=3)
    asked = np.concatenate(oracle.asked)
    assert substitute.queries == len(asked) == 150 * 2**5
    assert max(len(batch) for batch in oracle.asked) == 128
    assert asked.min() >= 0 and asked.max() <= 1
    agreement = substitute.agreement(oracle, unseen)
    assert agreement >= 0.8
    same = substitute.predict(unseen) == target.predict(unseen)
    assert agreement == pytest.approx(np.mean(same))
    assert "4800" in repr(substitute)

    attack = PGD(epsilon=0.2, step_size=0.05, steps=10)
    source = load_target(substitute.model)
    outcome = Transfer(attack=attack, source=source).run(target.logits, unseen, labels)
    clean = np.mean(target.predict(unseen) == labels)
    random = RandomSearch(epsilon=0.2, samples=1).perturb(refuse_not, unseen, labels)
    by_chance = np.mean(target.predict(random) == labels)
    transferred = np.mean(target.predict(outcome.images) == labels)
    assert transferred < 0.5 < 0.8 < by_chance <= clean + 0.02
    assert np.mean(outcome.found) == pytest.approx(1 - transferred)


def refuse_not(images):
    return tf.zeros((tf.shape(images)[0], 10))


@pytest.mark.parametrize("shape", [(8, 8, 1), (4, 5, 2), (32, 32, 3)], ids=str)
def test_default_model_fits_images_of_many_sizes(shape):
    images = np.random.default_rng(1).uniform(size=(5, *shape))

    def train(seed):
        substitute = train_substitute(
            lambda images: np.arange(len(images)) % 3,
            images,
            num_classes=3,
            rounds=2,
            epochs=1,
            batch_size=5,
            seed=seed,
        )
        assert substitute.queries == 10
        return substitute.model

    model = train(1)
    assert model.output_shape == (None, 3)
    if shape == (8, 8, 1):  # The seed determines all, whatever the global one is.
        keras.utils.set_random_seed(7)
        again, other = train(1), train(2)
        for weights, same in zip(model.weights, again.weights, strict=True):
            np.testing.assert_allclose(weights, same, atol=1e-6)
        difference = model.weights[0] - other.weights[0]
        assert np.abs(difference).max() > 0.01


def test_the_seed_sets_the_order_of_the_examples():
    def train(seed):
        model = small_model(use_bias=False)
        model.set_weights([WEIGHTS["A"]])
        train_substitute(
            Oracle(network("B")),
            IMAGES,
            num_classes=2,
            model=model,
            rounds=1,
            epochs=3,
            batch_size=1,
            learning_rate=1,  # It is an integer.
            seed=seed,
        )
        return model.get_weights()[0]

    found = train(1)
    np.testing.assert_allclose(train(1), found, atol=1e-6)
    assert np.abs(train(2) - found).max() > 0.01


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: np.zeros((n, 2)), "The oracle must return one.*\\(3, 2\\)"),
        (lambda n: np.zeros((n, 1), int), "The oracle must.*\\(3, 1\\)"),
        (lambda n: np.zeros(n), "The oracle must.*integers.*float64"),
        (lambda n: np.zeros(n + 1, int), "The oracle must.*the 3 images.*=4"),
        (lambda n: np.full(n, 2), "The oracle must.*0..1.*2 to 2"),
        (lambda n: np.full(n, -1), "The oracle must.*-1 to -1"),
        (lambda n: 0, "The oracle must.*shape"),
    ],
)
def test_oracles_that_give_no_labels(answer, message):
    with pytest.raises(ValueError, match=message):
        train_substitute(
            lambda images: answer(len(images)),
            IMAGES[:3],
            num_classes=2,
            model=small_model(),
        )


def test_an_error_of_the_oracle_itself_is_not_renamed():
    def oracle(images):
        raise ValueError("out of order")

    with pytest.raises(ValueError, match="^out of order"):
        train_substitute(oracle, IMAGES, num_classes=2, model=small_model())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "`rounds` must be an integer of at least 1.*=0"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"sign_period": 0}, "sign_period=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_classes": 1}, "`num_classes` must be.*=1"),
        ({"augmentation_step": -1}, "augmentation_step=-1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"images": IMAGES * 255}, "`images` must be in \\[0, 1\\]"),
        ({"images": IMAGES[0]}, "`images` must have the shape"),
        ({"model": small_model(3)}, "must return logits \\[N, 2\\].*\\(1, 3\\)"),
        ({"model": small_model(activation="softmax")}, "logits, not probabilities"),
    ],
)
def test_settings_out_of_range(settings, message):
    settings = {"images": IMAGES, "num_classes": 2, **settings}
    with pytest.raises(ValueError, match=message):
        train_substitute(refuse, **settings)
