"""Images are found on some draws, and scored on others."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from pni_tf import FGSM, PGD, RandomSearch, evaluate_robustness, inject_pni, load_target
from pni_tf.evaluation import Scenario, standard_scenarios
from pni_tf.targets import Target

SHAPE = (2, 3, 1)
CLEAN = Scenario(name="clean")


def counting_target(**fields):
    """A target whose n-th call answers class n: it shows which call was scored."""
    calls = tf.Variable(0, dtype=tf.int64)

    def logits(images):
        now = tf.identity(calls)
        with (
            tf.control_dependencies([now]),
            tf.control_dependencies([calls.assign_add(1)]),
        ):
            flat = tf.reshape(images, [-1, 6])
            # The sum over the image is not 0, so that there is a gradient.
            return tf.one_hot(now, 100)[None] + 1e-3 * tf.pad(flat, [[0, 0], [0, 94]])

    target = Target(
        **{
            "name": "counting",
            "logits": logits,
            "image_shape": SHAPE,
            "num_classes": 100,
            "stochastic": True,
            **fields,
        }
    )
    return target, calls


def some_images(count=4, shape=SHAPE):
    return np.random.default_rng(0).uniform(size=(count, *shape)).astype("float32")


def noisy_model(**options):
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(4)])
    kernel = np.random.default_rng(1).normal(size=(6, 4))
    model.set_weights([kernel, -0.5 * kernel.sum(0)])  # All classes are equally likely.
    return inject_pni(model, seed=1, **options)


class TestDraws:
    # The attack, its expectation, and the calls until the images are found: one for
    # the check of the gradient, then those of the attack and of its verdict.
    FOUND_BY = (
        (None, 1, 0),
        (RandomSearch(epsilon=0.1, samples=2), 1, 2),
        (FGSM(epsilon=0.1), 1, 1 + 2),
        (FGSM(epsilon=0.1), 3, 1 + 6),
        (PGD(epsilon=0.1, steps=4), 1, 1 + 5),
        (PGD(epsilon=0.1, steps=4), 3, 1 + 15),
        # Each restart is judged on a draw of its own.
        (PGD(epsilon=0.1, steps=4, restarts=2), 1, 1 + 10),
        (PGD(epsilon=0.1, steps=4, restarts=2), 3, 1 + 30),
    )

    @pytest.mark.parametrize(("attack", "expectation", "calls"), FOUND_BY)
    def test_scored_on_other_draws_than_those_that_found_it(
        self, attack, expectation, calls
    ):
        target, counter = counting_target()
        scenario = Scenario(name="row", attack=attack, expectation=expectation)
        (found,) = evaluate_robustness(
            target, some_images(), np.zeros(4, int), [scenario], draws=3
        )
        scoring, selecting = calls + np.arange(3), calls + 3 + np.arange(15)
        np.testing.assert_array_equal(found.predictions, np.tile(scoring, (4, 1)).T)
        np.testing.assert_array_equal(found.selection, np.tile(selecting, (4, 1)).T)
        assert counter.numpy() == calls + 18

    def test_every_batch_and_scenario_has_draws_of_its_own(self):
        target, counter = counting_target()
        scenarios = [CLEAN, Scenario(name="FGSM", attack=FGSM(epsilon=0.1))]
        clean, fgsm = evaluate_robustness(
            target, some_images(5), np.zeros(5, int), scenarios, draws=2, batch_size=2
        )
        # Call 0 checked the gradient. A batch takes 2 calls to score and 10 to select.
        np.testing.assert_array_equal(
            clean.predictions, [[1, 1, 13, 13, 25], [2, 2, 14, 14, 26]]
        )
        firsts = np.array([3, 3, 15, 15, 27])
        np.testing.assert_array_equal(clean.selection, firsts + np.arange(10)[:, None])
        # Calls 37 and 38, 51 and 52, 65 and 66 found the images.
        np.testing.assert_array_equal(
            fgsm.predictions, [[39, 39, 53, 53, 67], [40, 40, 54, 54, 68]]
        )
        assert counter.numpy() == 79

    def test_a_deterministic_target_is_scored_once(self):
        target, counter = counting_target(stochastic=False)
        attack = PGD(epsilon=0.1, steps=4)
        scenarios = [
            CLEAN,
            Scenario(name="PGD", attack=attack),
            Scenario(name="PGD EOT", attack=attack, expectation=20),
            Scenario(name="FGSM EOT", attack=FGSM(epsilon=0.1), expectation=20),
        ]
        clean, pgd, expectation, fgsm = evaluate_robustness(
            target, some_images(), np.zeros(4, int), scenarios, draws=7
        )
        assert [r.draws for r in (clean, pgd, expectation, fgsm)] == [1] * 4
        # Call 0 checked the gradient, 1 was clean, 2 to 6 attacked and judged.
        assert (clean.predictions == 1).all()
        assert (pgd.predictions == 7).all()
        np.testing.assert_array_equal(pgd.selection, pgd.predictions)
        np.testing.assert_array_equal(expectation.predictions, pgd.predictions)
        assert expectation.scenario is scenarios[2]
        assert expectation.summary()["expectation"] == 1
        # There were two calls of the attack, not 40.
        assert (fgsm.predictions == 10).all()
        assert counter.numpy() == 11

    def test_a_stochastic_target_runs_each_expectation(self):
        target, counter = counting_target()
        attack = FGSM(epsilon=0.1)
        rows = [Scenario(name=f"{k}", attack=attack, expectation=k) for k in (1, 5)]
        found = evaluate_robustness(
            target, some_images(), np.zeros(4, int), rows, draws=2
        )
        assert counter.numpy() == 1 + (2 + 2 + 10) + (10 + 2 + 10)
        assert [r.summary()["expectation"] for r in found] == [1, 5]

    def test_draws_of_a_noisy_model_differ_and_the_seed_repeats_them(self):
        scenarios = standard_scenarios(epsilon=0.1, steps=(3,), expectation=2)
        target = load_target(noisy_model(initial_alpha=1.0))
        labels = target.noise_free.predict(some_images(64))

        def evaluate(seed, rows=scenarios):
            found = evaluate_robustness(
                target, some_images(64), labels, rows, batch_size=20, seed=seed
            )
            assert {r.seed for r in found} == {seed}
            return np.stack([np.append(r.predictions, r.selection, 0) for r in found])

        first = evaluate(1)
        assert first.shape == (4, 10 + 50, 64)
        for row in first:
            assert len(np.unique(row, axis=0)) == 60
        np.testing.assert_array_equal(evaluate(1), first)
        assert (evaluate(2) != first).any(axis=(1, 2)).all()
        # A row does not depend on the others.
        np.testing.assert_array_equal(evaluate(1, scenarios[:1:-1]), first[:1:-1])


def linear_target(seed=0, classes=2, shape=SHAPE):
    """A linear classifier without noise, and its kernel and bias."""
    generator = np.random.default_rng(seed)
    kernel = generator.normal(size=(math.prod(shape), classes)).astype("float32")
    bias = -0.5 * kernel.sum(0)  # Grey is on the boundary.
    target = load_target(
        lambda x: tf.reshape(x, [-1, math.prod(shape)]) @ kernel + bias,
        image_shape=shape,
    )
    return target, kernel, bias


class TestDeterministic:
    # Far enough from 0 and 1 for the ball to be whole.
    IMAGES = np.float32(0.3) + np.float32(0.4) * some_images(41)

    def margins(self, kernel, bias, labels):
        logits = self.IMAGES.reshape(-1, 6) @ kernel + bias
        return np.where(labels == 1, 1, -1) * (logits[:, 1] - logits[:, 0])

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.25])
    def test_closed_form_of_a_linear_model(self, norm, epsilon):
        target, kernel, bias = linear_target()
        labels = np.arange(len(self.IMAGES)) % 2
        found = evaluate_robustness(
            target,
            self.IMAGES,
            labels,
            standard_scenarios(epsilon=epsilon, steps=(1, 10), norm=norm),
            batch_size=16,
        )
        margins = self.margins(kernel, bias, labels)
        difference = kernel[:, 1] - kernel[:, 0]
        dual = {"linf": np.abs(difference).sum(), "l2": np.linalg.norm(difference)}
        clean, robust = (np.mean(margins > r) for r in (0, epsilon * dual[norm]))
        names = ["clean", *["FGSM"] * (norm == "linf"), "PGD-1", "PGD-10"]
        assert [r.scenario.name for r in found] == [*names, "PGD-10 EOT-20"]
        assert found[0].mean == pytest.approx(clean)
        for each in found[1:]:
            if each.scenario.name != "PGD-1":  # This one may start on the wrong side.
                assert each.mean == pytest.approx(robust), each.scenario.name
        assert clean >= found[-3].mean >= robust  # PGD-1
        assert [r.std for r in found] == [0] * len(found)
        for each in found[1:]:  # Without noise, what is claimed is so.
            np.testing.assert_array_equal(each.claimed, each.predictions[0] != labels)
            assert each.claimed_accuracy == pytest.approx(each.mean)

    def test_cost_and_size_of_the_perturbation(self):
        target, kernel, _ = linear_target()
        labels = target.predict(self.IMAGES)
        rows = [
            CLEAN,
            Scenario(name="FGSM", attack=FGSM(epsilon=0.1)),
            Scenario(name="PGD", attack=PGD(epsilon=0.1, steps=6, step_size=0.05)),
            Scenario(name="random", attack=RandomSearch(epsilon=0.1, samples=9)),
        ]
        clean, *attacked = evaluate_robustness(
            target, self.IMAGES, labels, rows, batch_size=16
        )
        for name in ("claimed", "l2", "linf", "queries", "gradients", "images"):
            assert getattr(clean, name) is None
        costs = ((1, 1), (1, 6), (9, 0))
        for each, (queries, gradients) in zip(attacked, costs, strict=True):
            change = each.images - self.IMAGES
            flat = change.reshape(41, -1)
            np.testing.assert_allclose(each.linf, np.abs(flat).max(1), rtol=1e-5)
            np.testing.assert_allclose(each.l2, np.linalg.norm(flat, axis=1), rtol=1e-5)
            np.testing.assert_array_equal(each.queries, [queries] * 41)
            np.testing.assert_array_equal(each.gradients, [gradients] * 41)
            np.testing.assert_array_equal(
                each.predictions, [target.predict(each.images)]
            )
        sign = np.sign(kernel[:, 1] - kernel[:, 0]).reshape(SHAPE)
        towards = np.where(labels == 0, 1, -1)[:, None, None, None]
        for each in attacked[:2]:  # Both reach the corner.
            np.testing.assert_allclose(
                each.images, self.IMAGES + 0.1 * sign * towards, atol=1e-6
            )

    def test_a_stronger_attack_never_leaves_more(self):
        target, _, _ = linear_target(classes=5)
        labels = target.predict(self.IMAGES)
        accuracies = []
        for epsilon in (0.0, 0.03, 0.3):
            attacks = [FGSM(epsilon=epsilon)]
            attacks += [
                PGD(epsilon=epsilon, step_size=epsilon / 4, steps=s, random_start=False)
                for s in (1, 16)
            ]
            rows = [Scenario(name=repr(a), attack=a) for a in attacks]
            found = evaluate_robustness(target, self.IMAGES, labels, rows)
            accuracies.append([r.mean for r in found])
        assert (np.diff(accuracies, axis=0) <= 0).all()
        pgd = np.array(accuracies)[:, 1:]
        assert (np.diff(pgd, axis=1) <= 0).all()
        assert accuracies[0] == [1.0] * 3
        assert accuracies[-1][-1] < 0.3

    @pytest.mark.parametrize("batch_size", [1, 40, 41, 1000])
    def test_batch_size_changes_nothing(self, batch_size):
        target, _, _ = linear_target(classes=5)
        labels = np.arange(41) % 5
        attack = PGD(epsilon=0.1, step_size=0.02, steps=5, random_start=False)
        rows = [CLEAN, Scenario(name="PGD", attack=attack)]
        expected = [
            target.predict(self.IMAGES),
            target.predict(
                attack.perturb(target.logits, tf.constant(self.IMAGES), labels)
            ),
        ]
        found = evaluate_robustness(
            target, self.IMAGES, labels, rows, batch_size=batch_size
        )
        for each, predictions in zip(found, expected, strict=True):
            assert each.predictions.dtype == np.int64
            np.testing.assert_array_equal(each.predictions, [predictions])

    @pytest.mark.parametrize("dtype", ["int8", "uint8", "int64"])
    def test_integer_labels_of_any_type(self, dtype):
        target, _, _ = linear_target(classes=3)
        labels = target.predict(self.IMAGES).astype(dtype)
        labels[:10] = (labels[:10] + 1) % 3
        rows = standard_scenarios(epsilon=0.05, steps=())
        clean, *attacked = evaluate_robustness(target, self.IMAGES, labels, rows)
        assert clean.mean == pytest.approx(31 / 41)
        assert clean.labels.dtype == np.int64
        assert all(r.mean < clean.mean for r in attacked)

    def test_progress_sees_every_batch(self):
        target, _, _ = linear_target()
        seen = []

        def progress(batches, name):
            for batch in batches:
                seen.append(name)
                yield batch

        rows = [CLEAN, Scenario(name="FGSM", attack=FGSM(epsilon=0.1))]
        evaluate_robustness(
            target,
            self.IMAGES,
            np.zeros(41, int),
            rows,
            batch_size=20,
            progress=progress,
        )
        assert seen == ["clean"] * 3 + ["FGSM"] * 3


class TestWarnings:
    """What a result warns of."""

    def test_each_row_has_those_that_concern_it(self):
        target = load_target(
            lambda x: 1e4 * tf.reshape(x, [-1, 6])[:, :3], image_shape=SHAPE
        )
        (saturated,) = target.warnings
        assert "vanishes" in saturated
        rows = [
            CLEAN,
            Scenario(name="weak", attack=PGD(epsilon=0.1, steps=2, step_size=0.01)),
            Scenario(name="random", attack=RandomSearch(samples=1)),
        ]
        images = some_images()
        images[:2] = 0.5  # No class leads there, so there is a gradient.
        labels = np.append([0, 0], target.predict(images[2:]))
        clean, weak, random = evaluate_robustness(target, images, labels, rows)
        assert clean.warnings == random.warnings == (saturated,)
        reach, vanishing = weak.warnings
        assert "cannot cross its ball" in reach
        # Of the images under attack, in place of those of the probe.
        assert "vanishes on 2 of 4 images" in vanishing
        assert "vanishes on 8 of 8 images" in saturated

    def test_a_warning_is_given_once(self):
        target = load_target(
            lambda x: 1e4 * tf.reshape(x, [-1, 6])[:, :3], image_shape=SHAPE
        )
        images = some_images()
        rows = [Scenario(name="FGSM", attack=FGSM(epsilon=0.1))]
        (found,) = evaluate_robustness(target, images, target.predict(images), rows)
        (warning,) = found.warnings
        assert "vanishes on 4 of 4 images" in warning

    def test_a_random_target_attacked_without_expectation(self):
        target, _ = counting_target()
        attack = FGSM(epsilon=0.1)
        rows = [Scenario(name=f"{k}", attack=attack, expectation=k) for k in (1, 2)]
        once, twice = evaluate_robustness(
            target, some_images(), np.zeros(4, int), rows, draws=1
        )
        assert [("no expectation" in w) for w in once.warnings] == [True]
        assert twice.warnings == ()
