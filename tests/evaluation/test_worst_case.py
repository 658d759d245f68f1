"""The worst case over attacks; transfers and targeted attacks in an evaluation."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from pni_tf import (
    FGSM,
    PGD,
    CarliniWagnerL2,
    RandomSearch,
    Transfer,
    evaluate_robustness,
    load_target,
)
from pni_tf.evaluation import Result, Scenario, transfer_from, union, worst_cases

SHAPE = (2, 3, 1)
IMAGES = np.random.default_rng(0).uniform(size=(60, *SHAPE)).astype("float32")


def result(labels, predictions, selection, *, name="attack", attack=None, **fields):
    return Result(
        **{
            "scenario": Scenario(name=name, attack=attack),
            "target": "network",
            "stochastic": len(predictions) > 1,
            "labels": np.array(labels),
            "predictions": np.array(predictions),
            "selection": np.array(selection),
            "seed": 3,
            **fields,
        }
    )


def bernoulli_results(count, images, draws, chance, seed=0):
    """Attacks that change nothing: each draw is right with the same chance."""
    generator = np.random.default_rng(seed)
    return [
        result(
            np.zeros(images, int),
            generator.random((draws, images)) >= chance,
            generator.random((5 * draws, images)) >= chance,
            name=f"attack {i}",
        )
        for i in range(count)
    ]


class TestUnion:
    def test_against_a_loop(self):
        generator = np.random.default_rng(1)
        labels = generator.integers(0, 3, 50)
        # Few draws, so that there are ties.
        results = [
            result(
                labels,
                generator.integers(0, 3, (2, 50)),
                generator.integers(0, 3, (4, 50)),
            )
            for _ in range(4)
        ]
        found = union(results, name="all of them")
        totals = [np.mean(r.selection == labels) for r in results]
        ties = 0
        for i, label in enumerate(labels):
            right = [sum(draw[i] == label for draw in r.selection) for r in results]
            fewest = [k for k in range(4) if right[k] == min(right)]
            ties += len(fewest) > 1
            worst = results[min(fewest, key=lambda k: totals[k])]
            assert found.predictions[:, i].tolist() == worst.predictions[:, i].tolist()
            assert found.selection[:, i].tolist() == worst.selection[:, i].tolist()
        assert 0 < ties < 50
        assert (found.scenario, found.target) == (
            Scenario(name="all of them"),
            "network",
        )
        assert (found.seed, found.stochastic, found.draws) == (3, True, 2)
        np.testing.assert_array_equal(found.labels, labels)
        for name in ("claimed", "l2", "linf", "queries", "gradients", "images"):
            assert getattr(found, name) is None

    def test_of_a_deterministic_target_is_the_minimum(self):
        generator = np.random.default_rng(2)
        labels = generator.integers(0, 2, 40)
        tables = generator.integers(0, 2, (3, 1, 40))
        found = union([result(labels, table, table) for table in tables])
        survives = (tables[:, 0] == labels).all(axis=0)
        assert 0 < survives.mean() < 0.5
        np.testing.assert_array_equal(found.predictions[0] == labels, survives)

    def test_picks_by_selection_and_scores_by_predictions(self):
        lucky = result([0, 0], [[1, 1]] * 2, [[0, 0]] * 4)
        chosen = result([0, 0], [[0, 1], [0, 0]], [[1, 1]] * 4)
        for results in ([lucky, chosen], [chosen, lucky]):
            found = union(results)
            np.testing.assert_array_equal(found.predictions, [[0, 1], [0, 0]])
            assert found.mean == 0.75  # The minimum over the predictions would be 0.

    def test_of_equals_the_one_that_does_best_on_all_images(self):
        weak = result([0, 0], [[2, 2]], [[1, 0]])
        strong = result([0, 0], [[3, 3]], [[1, 1]])
        for results in ([weak, strong], [strong, weak]):
            np.testing.assert_array_equal(union(results).predictions, [[3, 3]])

    def test_of_one(self):
        (only,) = bernoulli_results(1, 20, 3, 0.5)
        np.testing.assert_array_equal(union([only]).predictions, only.predictions)

    def test_luck_is_not_counted(self):
        """Ten attacks without effect leave what one leaves.

        The mean of 400 * 5 draws has a standard deviation of 0.011, so that one run in
        200,000 is outside of the tolerance (4.5 of them).
        """
        results = bernoulli_results(10, images=400, draws=5, chance=0.6)
        assert union(results).mean == pytest.approx(0.6, abs=0.05)
        naive = np.min([r.correct_share for r in results], axis=0).mean()
        assert naive < 0.3

    def test_luck_is_not_counted_in_an_evaluation(self):
        """As above; 1,000 draws and 5 standard deviations, or one run in a million."""
        generator = tf.random.Generator.from_seed(0)

        def logits(images):  # The images do not matter.
            return generator.uniform([tf.shape(images)[0], 2]) + 0 * images[:, 0, :2, 0]

        target = load_target(logits, image_shape=SHAPE)
        assert target.stochastic
        images = np.repeat(IMAGES[:50], 4, axis=0)
        rows = [
            Scenario(name=f"{size}", attack=RandomSearch(epsilon=size, samples=1))
            for size in (0.1, 0.2, 0.3, 0.4)
        ]
        results = evaluate_robustness(target, images, np.zeros(200, int), rows, draws=5)
        assert union(results).mean == pytest.approx(0.5, abs=0.08)
        naive = np.min([r.correct_share for r in results], axis=0).mean()
        assert naive < 0.35

    @pytest.mark.parametrize(
        "fields",
        [{"target": "other"}, {"labels": np.array([0, 1])}, {"labels": np.array([0])}],
        ids=["target", "labels", "fewer"],
    )
    def test_of_different_networks_or_images(self, fields):
        rows = [
            result([0, 0], [[0, 0]], [[0, 0]], name="one"),
            dataclasses.replace(
                result([0, 0], [[0, 0]], [[0, 0]], name="two"), **fields
            ),
        ]
        with pytest.raises(ValueError, match="one target and the same.*'one'.*'two'"):
            union(rows)


class TestWorstCases:
    @staticmethod
    def of(attack, prediction):
        return result([0, 0, 0], [prediction], [prediction], attack=attack)

    def test_one_ball(self):
        results = [
            self.of(None, [0, 1, 0]),
            self.of(FGSM(epsilon=0.1), [1, 0, 0]),
            self.of(CarliniWagnerL2(), [1, 1, 1]),  # It has no ball.
        ]
        assert worst_cases(results) == []
        transfer = Transfer(attack=PGD(epsilon=0.1), source=lambda images: images)
        results.append(self.of(transfer, [0, 0, 0]))
        (found,) = worst_cases(results)
        assert found.scenario == Scenario(name="worst case")
        # This includes the clean ones.
        np.testing.assert_array_equal(found.predictions, [[1, 1, 0]])

    def test_several_balls(self):
        results = [
            self.of(FGSM(epsilon=0.1), [0, 0, 1]),
            self.of(PGD(epsilon=0.1, steps=3), [0, 0, 0]),
            self.of(PGD(epsilon=0.1, norm="l2"), [1, 1, 1]),
            self.of(PGD(epsilon=1 / 3), [0, 1, 1]),
            self.of(FGSM(epsilon=1 / 3), [1, 0, 0]),
        ]
        found = {r.scenario.name: r.predictions[0] for r in worst_cases(results)}
        assert list(found) == ["worst case linf ε=0.1", "worst case linf ε=0.3333"]
        np.testing.assert_array_equal(list(found.values()), [[0, 0, 1], [1, 1, 1]])


KERNELS = {
    name: np.random.default_rng(seed).normal(size=(6, 2)).astype("float32")
    for name, seed in (("A", 1), ("B", 2))
}


def linear(name):
    kernel = KERNELS[name]
    return load_target(
        lambda x: (tf.reshape(x, [-1, 6]) - 0.5) @ kernel, image_shape=SHAPE
    )


@pytest.mark.parametrize(("source", "target"), ["AB", "BA"], ids="-".join)
def test_transfer_both_ways(source, target):
    attack = PGD(epsilon=0.2, step_size=0.1, steps=6)
    goal = linear(target)
    labels = goal.predict(IMAGES)
    rows = [
        transfer_from(source, linear(source), attack),
        Scenario(name="white-box", attack=attack),
    ]
    found = evaluate_robustness(goal, IMAGES, labels, rows, batch_size=25)
    for each, network in zip(found, (source, target), strict=True):
        # The worst corner of the ball for the network that was attacked.
        wrong = (KERNELS[network][:, 1 - labels] - KERNELS[network][:, labels]).T
        worst = np.clip(IMAGES + 0.2 * np.sign(wrong.reshape(IMAGES.shape)), 0, 1)
        predictions = goal.predict(worst)
        np.testing.assert_array_equal(each.predictions, [predictions])
        np.testing.assert_allclose(each.images, worst, atol=1e-6)
        np.testing.assert_array_equal(each.claimed, predictions != labels)
        assert set(each.queries) == {1}
        assert set(each.gradients) == {6}
    transfer, white_box = found
    assert white_box.mean < transfer.mean - 0.1  # The corners are not the same.
    assert transfer.scenario.name == f"transfer from {source}"
    (worst,) = worst_cases(found)
    np.testing.assert_array_equal(worst.predictions, white_box.predictions)


class TestTargeted:
    KERNEL = np.random.default_rng(3).normal(size=(6, 4)).astype("float32")
    LABELS = np.arange(60) % 4

    def logits(self, images):
        return (tf.reshape(images, [-1, 6]) - 0.5) @ self.KERNEL

    def evaluate(self, rule, images=IMAGES, labels=LABELS, **options):
        target = load_target(self.logits, image_shape=SHAPE)
        attack = PGD(epsilon=0.4, step_size=0.1, steps=12)
        row = Scenario(name="row", attack=attack, towards=rule)
        (found,) = evaluate_robustness(target, images, labels, [row], **options)
        assert (found.towards != labels).all()
        assert found.summary()["target_rule"] == rule
        return found

    @pytest.mark.parametrize("rule", ["next", "least_likely"])
    def test_classes_aimed_at(self, rule):
        found = self.evaluate(rule)
        expected = (self.LABELS + 1) % 4
        if rule == "least_likely":
            logits = self.logits(IMAGES).numpy()
            # The label itself may be the least likely: it is not aimed at.
            assert (logits.argmin(-1) == self.LABELS).sum() > 5
            logits[np.arange(60), self.LABELS] = np.inf
            expected = logits.argmin(-1)
        np.testing.assert_array_equal(found.towards, expected)
        # Claimed is what reaches its aim; any wrong label counts as not accurate.
        reached = found.predictions[0] == found.towards
        np.testing.assert_array_equal(found.claimed, reached)
        assert 0.2 < reached.mean() < 1
        assert found.upheld == 1
        assert found.mean <= 1 - reached.mean()

    def test_random_classes(self):
        """Each other class is as likely.

        Of 600 images 200 are expected for each shift, with a standard deviation of
        11.5: one run in two million is outside of the tolerance (60).
        """
        images, labels = np.repeat(IMAGES, 10, axis=0), np.repeat(self.LABELS, 10)
        found = self.evaluate("random", images, labels, batch_size=200)
        shifts = (found.towards - labels) % 4
        np.testing.assert_allclose(np.bincount(shifts, minlength=4)[1:], 200, atol=60)
        first, second, _ = np.split(shifts, 3)
        assert (first != second).any()  # Each batch has numbers of its own.
        again = self.evaluate("random", images, labels, batch_size=200)
        np.testing.assert_array_equal(again.towards, found.towards)
        other = self.evaluate("random", images, labels, batch_size=200, seed=1)
        assert (other.towards != found.towards).any()

    @pytest.mark.parametrize("rule", ["next", "random", "least_likely"])
    def test_two_classes_leave_one_to_aim_at(self, rule):
        labels = np.arange(60) % 2
        row = Scenario(name="row", attack=FGSM(epsilon=0.1), towards=rule)
        (found,) = evaluate_robustness(linear("A"), IMAGES, labels, [row])
        np.testing.assert_array_equal(found.towards, 1 - labels)

    def test_untargeted_attacks_aim_at_none(self):
        row = Scenario(name="row", attack=FGSM(epsilon=0.1))
        (found,) = evaluate_robustness(linear("A"), IMAGES, np.zeros(60, int), [row])
        assert found.towards is None

    def test_rules_that_need_no_logits_ask_for_none(self):
        asked = []

        def oracle(images):
            asked.append(len(images))
            return np.zeros(len(images), int)

        target = load_target(oracle, image_shape=SHAPE, num_classes=3, labels_only=True)
        asked.clear()
        attack = RandomSearch(epsilon=0.1, samples=4)
        row = Scenario(name="row", attack=attack, towards="next")
        evaluate_robustness(target, IMAGES, self.LABELS % 3, [row])
        assert asked == [60] * (4 + 1)
