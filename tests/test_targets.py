"""Targets that give labels only, and targets of which one draw is frozen."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from pni_tf import (
    FGSM,
    PGD,
    RandomSearch,
    Transfer,
    evaluate_robustness,
    export_saved_model,
    inject_pni,
    load_target,
    strong_suite,
)
from pni_tf.evaluation import Scenario

SHAPE = (3, 4, 1)
KERNEL = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
IMAGES = np.random.default_rng(1).uniform(size=(40, *SHAPE)).astype("float32")


def oracle(images):
    """A classifier without TensorFlow."""
    assert type(images) is np.ndarray and images.dtype == np.float32
    return ((images.reshape(-1, 12) - 0.5) @ KERNEL).argmax(-1)


def linear(images):
    return (tf.reshape(images, [-1, 12]) - 0.5) @ KERNEL


def labels_only(function=oracle, **options):
    options = {"image_shape": SHAPE, "num_classes": 3, **options}
    return load_target(function, labels_only=True, **options)


class TestLabelsOnly:
    def test_target(self):
        target = labels_only()
        assert target.labels_only
        assert (target.name, target.image_shape) == ("oracle", SHAPE)
        assert (target.num_classes, target.stochastic) == (3, False)
        assert (target.noise_free, target.reseed) == (None, None)
        (warning,) = target.warnings
        assert "only the labels are known" in warning
        assert not load_target(linear, image_shape=SHAPE).labels_only

    def test_logits_are_one_hot(self):
        expected = np.eye(3, dtype="float32")[oracle(IMAGES)]
        assert (expected.sum(0) > 0).all()
        target = labels_only()
        for logits in (target.logits, tf.function(target.logits)):
            found = logits(tf.constant(IMAGES))
            assert found.shape == (40, 3) and found.dtype == tf.float32
            np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64", "list"])
    def test_labels_of_any_integer_type(self, kind):
        def function(images):
            labels = oracle(images)
            return labels.tolist() if kind == "list" else labels.astype(kind)

        found = labels_only(function).predict(IMAGES)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, oracle(IMAGES))

    def test_an_oracle_that_is_random(self):
        generator = np.random.default_rng(0)
        target = labels_only(lambda images: generator.integers(0, 3, len(images)))
        assert target.stochastic
        assert (target.predict(IMAGES) != target.predict(IMAGES)).any()

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda n: np.zeros((n, 3), int), r"shape \[N\].*\(8, 3\)"),
            (lambda n: np.zeros((n, 1), int), r"shape \[N\].*\(8, 1\)"),
            (lambda n: 0, r"shape \[N\].*\(\)"),
            (lambda n: np.zeros(n), "must be integers.*float64"),
            (lambda n: np.zeros(n, bool), "must be integers.*bool"),
            (lambda n: ["cat"] * n, "must be integers"),
            (lambda n: np.zeros(n - 1, int), "the 8 images.*=7"),
            (lambda n: np.full(n, 3), r"in 0\.\.2.*from 3 to 3"),
            (lambda n: np.full(n, -1), r"in 0\.\.2.*from -1 to -1"),
        ],
    )
    def test_answers_that_are_no_labels(self, answer, message):
        message = f"The oracle must return one integer label an image: .*{message}"
        with pytest.raises(ValueError, match=message):
            labels_only(lambda images: answer(len(images)))

    @pytest.mark.parametrize(
        ("source", "options", "message"),
        [
            (oracle, {"num_classes": None}, "give `num_classes`"),
            (oracle, {"image_shape": None}, "give `image_shape"),
            (oracle, {"image_shape": (12,)}, "give `image_shape"),
            ("model.keras", {}, "a callable from images to integer labels.*'model"),
        ],
    )
    def test_what_is_needed(self, source, options, message):
        with pytest.raises(ValueError, match=message):
            labels_only(source, **options)

    def test_random_search_and_transfer(self):
        source = load_target(linear, image_shape=SHAPE)
        search = RandomSearch(epsilon=0.3, samples=30)
        ascent = PGD(epsilon=0.3, step_size=0.1, steps=8)
        rows = [
            Scenario(name="clean"),
            Scenario(name="random", attack=search),
            Scenario(name="transfer", attack=Transfer(attack=ascent, source=source)),
        ]
        target, labels = labels_only(), oracle(IMAGES)
        found = evaluate_robustness(target, IMAGES, labels, rows, batch_size=15)
        clean, random, transfer = found
        assert (clean.mean, clean.warnings) == (1, target.warnings)
        for each in (random, transfer):
            predictions = oracle(each.images)
            np.testing.assert_array_equal(each.predictions, [predictions])
            np.testing.assert_array_equal(each.claimed, predictions != labels)
            assert each.linf.max() <= 0.3 + 1e-6
        assert transfer.mean < random.mean < 1
        assert set(random.queries) == {30} and set(transfer.queries) == {1}
        # The source is the oracle's own network, so it is a white-box attack.
        (white_box,) = evaluate_robustness(
            source, IMAGES, labels, [Scenario(name="PGD", attack=ascent)]
        )
        assert transfer.mean == white_box.mean

    def test_strong_suite_runs(self):
        source = load_target(linear, image_shape=SHAPE)
        target, labels = labels_only(), oracle(IMAGES)
        rows = strong_suite(target, epsilon=0.2, sources={"copy": source})
        assert [row.name for row in rows[1:]] == ["random search", "transfer from copy"]
        for row in rows:
            if isinstance(row.attack, RandomSearch):
                attack = dataclasses.replace(row.attack, samples=5)
                row = dataclasses.replace(row, attack=attack)
            (found,) = evaluate_robustness(target, IMAGES, labels, [row])
            assert (found.mean < 1) is (row.name != "clean")

    def test_attacks_by_gradient_say_that_there_is_none(self):
        row = Scenario(name="FGSM", attack=FGSM())
        with pytest.raises(ValueError, match="no gradient with respect to the images"):
            evaluate_robustness(labels_only(), IMAGES, oracle(IMAGES), [row])


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(3, 2, activation="relu"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    return inject_pni(network, "w+a-a", initial_alpha=0.5, seed=1)


@pytest.fixture(scope="module", params=["Keras", "SavedModel"])
def target(request, model, tmp_path_factory):
    if request.param == "Keras":
        return load_target(model)
    path = tmp_path_factory.mktemp("export") / "saved_model"
    export_saved_model(model, path)
    return load_target(path)


def difference(one, other):
    return np.abs(np.subtract(one, other)).max()


class TestEnsemble:
    def test_is_the_mean_of_its_draws(self, target):
        target.reseed(5)
        found = target.predict_mean(IMAGES, 4)
        target.reseed(5)
        draws = [tf.nn.softmax(target.logits(tf.constant(IMAGES))) for _ in range(4)]
        assert difference(draws[0], draws[1]) > 1e-3
        np.testing.assert_allclose(found, np.mean(draws, 0), rtol=1e-4, atol=1e-6)

    def test_images_are_checked(self, target):
        with pytest.raises(ValueError, match="255"):
            target.predict_mean(255 * IMAGES, 4)

    def test_gradient_is_that_of_the_mean(self, target):
        """Of the log of the mean softmax, by the gradients of the single draws."""
        images = tf.constant(IMAGES)
        target.reseed(5)
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(target.ensemble(3).logits(images)[:, 0])
        found = tape.gradient(total, images)
        target.reseed(5)
        scores, gradients = [], []
        for _ in range(3):
            with tf.GradientTape() as tape:
                tape.watch(images)
                score = tf.nn.softmax(target.logits(images))[:, 0]
            gradients.append(tape.gradient(score, images))
            scores.append(score)
        mean = np.mean(scores, 0).reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(found, np.mean(gradients, 0) / mean, atol=1e-4)

    def test_properties(self, target):
        ensemble = target.ensemble(3)
        assert ensemble.name == f"{target.name} (mean of 3 draws)"
        assert (ensemble.draws, ensemble.ensemble(2).draws) == (3, 6)
        assert ensemble.stochastic
        for one in (target.noise_free, target.frozen()):
            with pytest.raises(ValueError, match="needs a random network"):
                one.ensemble()
        with pytest.raises(ValueError, match="`draws`"):
            target.ensemble(0)

    def test_its_draws_count_as_those_of_an_expectation(self, target):
        """Expectation over 4 draws is two calls of two, each with one gradient."""
        labels = target.noise_free.predict(IMAGES)
        attack = PGD(epsilon=0.2, step_size=0.1, steps=5)
        rows = [Scenario(name="PGD", attack=attack, expectation=4)]
        for draws, gradients in ((2, 10), (4, 5)):
            (found,) = evaluate_robustness(
                target.ensemble(draws), IMAGES, labels, rows, draws=2
            )
            assert set(found.gradients) == {gradients}


class TestFrozen:
    def test_one_draw_is_repeated(self, target):
        images = tf.constant(IMAGES)
        frozen = target.frozen(7)
        target.reseed(7)
        expected, second = target.logits(images), target.logits(images)
        assert difference(expected, second) > 1e-2
        for _ in range(2):
            assert difference(frozen.logits(images), expected) < 1e-5
            target.logits(images)  # Other draws in between do not matter.
        assert difference(target.frozen(8).logits(images), expected) > 1e-2
        np.testing.assert_array_equal(frozen.predict(IMAGES), frozen.predict(IMAGES))

    def test_properties(self, target):
        frozen = target.frozen(7)
        assert frozen.name == f"{target.name} (draw 7)"
        assert not frozen.stochastic
        assert (frozen.noise_free, frozen.reseed) == (None, None)
        assert (frozen.image_shape, frozen.num_classes) == (SHAPE, 3)
        assert target.frozen().name == f"{target.name} (draw 0)"

    def test_every_pass_of_a_graph_sees_the_draw(self, target):
        frozen, images = target.frozen(7), tf.constant(IMAGES)

        @tf.function
        def passes(images):
            first = frozen.logits(images)
            _, others = tf.while_loop(
                lambda i, _: i < 3,
                lambda i, found: (i + 1, found.write(i, frozen.logits(images))),
                [tf.constant(0), tf.TensorArray(tf.float32, 3)],
                parallel_iterations=1,
            )
            return tf.concat([first[None], others.stack()], 0)

        found = passes(images)
        assert difference(found, frozen.logits(images)) < 1e-5

    def test_gradient_is_that_of_the_draw(self, target):
        def gradient(logits_fn):
            images = tf.constant(IMAGES)
            with tf.GradientTape() as tape:
                tape.watch(images)
                total = tf.reduce_sum(logits_fn(images)[:, 0])
            return tape.gradient(total, images)

        found = gradient(target.frozen(7).logits)
        target.reseed(7)
        expected, second = gradient(target.logits), gradient(target.logits)
        assert difference(found, expected) < 1e-4
        assert difference(found, second) > 1e-2

    def test_an_evaluation_is_deterministic(self, target):
        frozen = target.frozen(7)
        labels = frozen.predict(IMAGES)
        attack = PGD(epsilon=0.2, step_size=0.1, steps=5)
        rows = [
            Scenario(name="clean"),
            Scenario(name="PGD", attack=attack, expectation=20),
        ]
        clean, attacked = evaluate_robustness(frozen, IMAGES, labels, rows, draws=5)
        assert clean.mean == 1
        assert (attacked.draws, attacked.std) == (1, 0)
        assert set(attacked.gradients) == {5}  # There is no expectation.
        np.testing.assert_array_equal(
            attacked.claimed, attacked.predictions[0] != labels
        )
        target.reseed(7)
        predictions = target.predict(attacked.images)
        np.testing.assert_array_equal(attacked.predictions, [predictions])
        assert attacked.mean < 0.8

    def test_a_frozen_one_cannot_be_frozen_again(self, target):
        with pytest.raises(ValueError, match=r"can be reseeded.*\(draw 7\)"):
            target.frozen(7).frozen(8)


def test_a_callable_cannot_be_frozen():
    with pytest.raises(ValueError, match="can be reseeded.*'linear'"):
        load_target(linear, image_shape=SHAPE).frozen()
