"""The checklist tells a sound evaluation from one that masked gradients fool."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from pni_tf import load_dataset, load_target, run_checklist
from pni_tf.evaluation import Result, Scenario, union
from pni_tf.evaluation.checklist_items import Checklist


def at(accuracy, *, images=100, draws=1):
    """A result in which the first images are right, in all draws."""
    row = np.arange(images) >= round(accuracy * images)
    return Result(
        scenario=Scenario(name="row"),
        target="network",
        stochastic=True,
        labels=np.zeros(images, int),
        predictions=np.tile(row.astype(int), (draws, 1)),
        seed=0,
    )


# Accuracies for which every item passes.
SOUND = {
    "clean": 0.9,
    "pgd": 0.4,
    "fgsm": 0.6,
    "long": 0.4,
    "restarts": 0.4,
    "apgd-ce": 0.4,
    "apgd-dlr": 0.4,
    "square": 0.6,
    "random": 0.8,
    "transfer": 0.5,
    "frozen": 0.3,
    "noise off": 0.2,
    "twin": 0.3,
    "epsilon 0.1": 0.7,
    "epsilon 0.2": 0.4,
    "epsilon 1": 0.0,
    "draws 1": 0.6,
    "draws 20": 0.4,
    "draws 50": 0.4,
}
TABLE_7 = (
    "one-step attacks do no better than iterative ones",
    "black-box attacks do no better than white-box ones",
    "unbounded attacks reach 100 % success",
    "random sampling finds no more than gradients do",
    "a larger bound raises success",
)
LATER = (
    "expectation over noise saturates",
    "many more steps find no more",
    "restarts find no more",
    "APGD finds no more than PGD",
    "averaged Square finds no more than PGD",
    "the attack succeeds on one frozen draw",
    "examples of the noise-free twin are no worse than white-box ones",
    "scored on at least 10 fresh draws",
    "noise beats the same network with its noise off",
    "noise beats the deterministic twin",
)
ONE_STEP, BLACK_BOX, UNBOUNDED, RANDOM, BOUND = TABLE_7
EOT, LONG, RESTARTS, APGD, SQUARE, FROZEN, QUIET, DRAWS, OFF, TWIN = LATER


def judged(changes=None, *, missing=(), headline=0.4, stochastic=True, draws=10):
    results, curves = {}, {"epsilon": {}, "draws": {}}
    for key, accuracy in {**SOUND, **(changes or {})}.items():
        kind, _, value = key.partition(" ")
        if key in missing:
            continue
        if kind in curves:
            curves[kind][float(value)] = at(accuracy)
        else:
            results[key] = at(accuracy)
    headline = dataclasses.replace(at(headline), stochastic=stochastic)
    found = Checklist(attacks=results, curves=curves, headline=headline, draws=draws)
    return {item.name: item for item in found.items}


def named(items, status):
    return {name for name, item in items.items() if item.status == status}


class TestJudge:
    def test_all_pass(self):
        items = judged()
        assert tuple(items) == TABLE_7 + LATER
        assert named(items, "PASS") == set(items)
        assert [item.source for item in items.values()] == (
            ["Table 7"] * 5 + ["later"] * 10
        )
        assert all(item.meaning for item in items.values())

    # What changes, the items that fail by it, and words of the meaning of the first.
    FAILURES = (
        ({"fgsm": 0.3}, [ONE_STEP], "FGSM left fewer images than PGD"),
        ({"square": 0.3}, [BLACK_BOX, SQUARE], "Square left fewer images than white"),
        ({"transfer": 0.3}, [QUIET], "noise off while attacking left fewer"),
        (
            {"square": 0.3, "random": 0.2},
            [BLACK_BOX, SQUARE, RANDOM],
            "Square and random search left fewer",
        ),
        ({"epsilon 1": 0.02}, [UNBOUNDED], "at most 1 % may survive"),
        ({"random": 0.3}, [RANDOM, BLACK_BOX], "random search left fewer"),
        ({"epsilon 0.2": 0.9}, [BOUND], "rises at epsilon 0.2: masked"),
        ({"epsilon 0.1": 0.3}, [BOUND], "rises at epsilon 0.2: masked"),
        (
            {"epsilon 0.1": 0.4, "epsilon 1": 0.4},
            [BOUND, UNBOUNDED],
            "does not fall with epsilon",
        ),
        ({"draws 50": 0.3}, [EOT], "still falls with more draws"),
        ({"long": 0.3}, [LONG], "PGD, many steps left fewer"),
        ({"restarts": 0.3}, [RESTARTS], "restarts left fewer"),
        ({"apgd-ce": 0.3}, [APGD], "APGD-CE left fewer images than PGD"),
        ({"apgd-dlr": 0.3}, [APGD], "APGD-DLR left fewer images than PGD"),
        ({"frozen": 0.5}, [FROZEN], "masked by something else"),
        ({"noise off": 0.4}, [OFF], "do not credit"),
        ({"noise off": 0.5}, [OFF], "no gain over 'noise off'"),
        ({"twin": 0.4}, [TWIN], "no gain over 'twin'"),
        # The strongest of the white-box attacks is the one to beat.
        ({"pgd": 0.7, "square": 0.5}, [SQUARE, ONE_STEP, LONG, RESTARTS, APGD], ""),
    )

    @pytest.mark.parametrize(
        ("changes", "names", "words"), FAILURES, ids=lambda value: str(value)[:40]
    )
    def test_failures(self, changes, names, words):
        items = judged(changes)
        assert named(items, "FAIL") == set(names)
        assert named(items, "PASS") == set(items) - set(names)
        assert words in items[names[0]].meaning

    def test_a_network_without_robustness_masks_nothing(self):
        items = judged({"epsilon 0.1": 0.0, "epsilon 0.2": 0.0})
        assert items[BOUND].status == "PASS"

    def test_too_few_draws(self):
        items = judged(draws=9)
        assert named(items, "FAIL") == {DRAWS}
        assert "9 draws" in items[DRAWS].meaning

    # What was not run, and the items that cannot be judged without it.
    MISSING = (
        (("fgsm",), [ONE_STEP]),
        (("square",), [SQUARE]),
        (("transfer",), [QUIET]),
        (("square", "random"), [BLACK_BOX, SQUARE, RANDOM]),
        (("epsilon 1",), [UNBOUNDED]),
        (("epsilon 0.1", "epsilon 0.2"), [BOUND]),
        (("random",), [RANDOM]),
        (("draws 1", "draws 20"), [EOT]),
        (("long",), [LONG]),
        (("restarts",), [RESTARTS]),
        (("apgd-ce", "apgd-dlr"), [APGD]),
        (("apgd-dlr",), []),  # There are two classes.
        (("frozen",), [FROZEN]),
        (("noise off",), [OFF]),
        (("twin",), [TWIN]),
        (("pgd",), [ONE_STEP, RANDOM, LONG, RESTARTS, APGD, SQUARE, FROZEN]),
    )

    @pytest.mark.parametrize(("missing", "names"), MISSING, ids=str)
    def test_not_run(self, missing, names):
        items = judged(missing=missing)
        assert named(items, "NOT RUN") == set(names)
        assert named(items, "PASS") == set(items) - set(names)
        for name in names:
            assert items[name].numbers == {}
            assert items[name].source == ("Table 7" if name in TABLE_7 else "later")

    def test_a_deterministic_target(self):
        items = judged(missing=("noise off",), stochastic=False)
        assert named(items, "NOT RUN") == {EOT, FROZEN, DRAWS, OFF}
        assert items[OFF].meaning == "there is no noise to turn off"
        assert named(items, "FAIL") == set()

    # An item, and the numbers that it shows.
    NUMBERS = (
        (ONE_STEP, {"PGD": "pgd", "FGSM": "fgsm"}),
        (
            BLACK_BOX,
            {"white-box": "apgd-dlr", "Square": "square", "random search": "random"},
        ),
        (UNBOUNDED, {"accuracy at epsilon 1": "epsilon 1"}),
        (RANDOM, {"PGD": "pgd", "random search": "random"}),
        (BOUND, {k: k for k in ("epsilon 0.1", "epsilon 0.2", "epsilon 1")}),
        (EOT, {f"{k} draws": f"draws {k}" for k in (1, 20, 50)}),
        (APGD, {"PGD": "pgd", "APGD-CE": "apgd-ce", "APGD-DLR": "apgd-dlr"}),
        (FROZEN, {"frozen draw": "frozen", "fresh draws": "pgd"}),
        (QUIET, {"white-box": "apgd-dlr", "noise off while attacking": "transfer"}),
    )

    @pytest.mark.parametrize(("name", "keys"), NUMBERS, ids=lambda v: str(v)[:30])
    def test_numbers(self, name, keys):
        changes = {"pgd": 0.44, "apgd-ce": 0.43, "apgd-dlr": 0.41, "frozen": 0.12}
        item = judged(changes)[name]
        assert list(item.numbers) == list(keys)
        accuracies = {**SOUND, **changes}
        expected = [accuracies[key] for key in keys.values()]
        assert list(item.numbers.values()) == pytest.approx(expected)

    def test_numbers_of_the_twins(self):
        items = judged(headline=0.35)
        assert items[OFF].numbers == {"worst case": 0.35, "noise off": 0.2}
        assert items[TWIN].numbers == {"worst case": 0.35, "twin": 0.3}

    def test_points_of_a_curve_are_sorted_by_number(self):
        changes = {"draws 1": 0.6, "draws 5": 0.5, "draws 100": 0.39}
        numbers = judged(changes)[EOT].numbers
        assert list(numbers) == [f"{k} draws" for k in (1, 5, 20, 50, 100)]


def digits(count):
    data = load_dataset("digits")
    return data, data.test.images_float()[:count], data.test.labels[:count]


@pytest.fixture(scope="module")
def smooth():
    """Random features with a least-squares layer on top: a curved network."""
    data, _, _ = digits(1)
    generator = np.random.default_rng(0)
    kernel = (generator.normal(size=(64, 256)) / 4).astype("float32")
    bias = generator.uniform(-1, 1, 256).astype("float32")
    flat = data.train.images_float().reshape(-1, 64)
    features = np.maximum((flat - 0.5) @ kernel + bias, 0)
    features = np.c_[features, np.ones(len(flat))]
    top = np.linalg.solve(
        features.T @ features + 10 * np.eye(257),
        features.T @ (10 * np.eye(10)[data.train.labels]),
    ).astype("float32")

    def network(images):
        flat = tf.reshape(images, [-1, 64])
        return tf.nn.relu((flat - 0.5) @ kernel + bias) @ top[:-1] + top[-1]

    return network


SETTINGS = {"steps": 10, "many_steps": 20, "queries": 100}


class TestRun:
    def test_a_sound_network(self, smooth):
        _, images, labels = digits(80)
        target = load_target(smooth, image_shape=(8, 8, 1))
        # A useless twin that has the same name.
        twin = dataclasses.replace(target, logits=lambda images: -smooth(images))
        found = run_checklist(
            target, images, labels, epsilon=0.08, twin=twin, **SETTINGS
        )
        items = {item.name: item for item in found.items}
        assert named({name: items[name] for name in TABLE_7}, "PASS") == set(TABLE_7)
        assert named(items, "NOT RUN") == {EOT, FROZEN, QUIET, DRAWS, OFF}
        assert items[TWIN].status == "PASS"
        results = found.results
        assert results["clean"].mean > 0.9
        assert results["twin"].mean == 0
        curve = {f"epsilon {k * 0.08:.6g}" for k in (0.25, 0.5, 1, 2, 4)}
        attacks = {"clean", "pgd", "fgsm", "long", "restarts", "apgd-ce", "apgd-dlr"}
        attacks |= {"square", "random"}
        assert set(results) == attacks | curve | {"epsilon 1", "twin"}
        # An image counts only if every attack within the ball leaves it.
        within = attacks | {f"epsilon {k * 0.08:.6g}" for k in (0.25, 0.5, 1)}
        survives = [results[k].predictions[0] == labels for k in within]
        assert found.headline.mean == np.all(survives, axis=0).mean() > 0

    def test_a_network_that_masks_its_gradient(self, smooth):
        _, images, labels = digits(80)
        # Ripples turn the sign of the slope, and hardly change the picture.
        masked = load_target(
            lambda images: smooth(images + 0.05 * tf.sin(100 * images)),
            image_shape=(8, 8, 1),
        )
        quiet = load_target(smooth, image_shape=(8, 8, 1))
        masked = dataclasses.replace(masked, noise_free=quiet)
        found = run_checklist(masked, images, labels, epsilon=0.15, **SETTINGS)
        assert found.results["clean"].mean > 0.9
        assert found.results["pgd"].mean > 0.8
        assert found.results["transfer"].mean < 0.2
        assert found.headline.mean < 0.1
        items = {item.name: item for item in found.items}
        assert named(items, "FAIL") >= {ONE_STEP, BLACK_BOX, SQUARE, QUIET, OFF}
        assert named(items, "NOT RUN") == {EOT, FROZEN, DRAWS, TWIN}
        self.check_reports(found)

    @staticmethod
    def check_reports(found):
        content = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert content["headline"]["accuracy_mean"] == found.headline.mean
        assert set(content["results"]) == set(found.results)
        for name, summary in content["results"].items():
            assert summary == found.results[name].summary()
        for item, written in zip(found.items, content["items"], strict=True):
            assert written == dataclasses.asdict(item)
        header, rule, *lines = found.to_markdown().splitlines()
        assert header.count("|") == rule.count("|") == 5
        for item, line in zip(found.items, lines, strict=True):
            assert line.startswith(f"| {item.name} ({item.source}) | {item.status} | ")
            assert line.endswith(f" | {item.meaning} |")
            for name, value in item.numbers.items():
                assert f"{name} {100 * value:.2f}" in line

    def test_a_random_network(self):
        kernel = np.random.default_rng(1).normal(size=(6, 3)).astype("float32")
        generator = tf.random.Generator.from_seed(1)

        def network(images, noise=0.0):
            return (tf.reshape(images, [-1, 6]) - 0.5) @ (kernel + noise)

        target = load_target(
            lambda images: network(images, 0.3 * generator.normal([6, 3])),
            image_shape=(2, 3, 1),
        )
        target = dataclasses.replace(
            target,
            noise_free=load_target(network, image_shape=(2, 3, 1)),
            reseed=generator.reset_from_seed,
        )
        images = np.random.default_rng(0).uniform(size=(30, 2, 3, 1)).astype("float32")
        seen = []

        def progress(batches, name):
            seen.append(name)
            return batches

        found = run_checklist(
            target,
            images,
            target.noise_free.predict(images),
            epsilon=0.1,
            expectation=4,
            steps=3,
            many_steps=4,
            queries=6,
            draws=3,
            progress=progress,
            seed=2,
        )
        items = {item.name: item for item in found.items}
        assert named(items, "NOT RUN") == {TWIN}
        assert items[DRAWS].status == "FAIL"
        results = found.results
        assert {key for key in results if key.startswith("draws")} == {
            f"draws {k}" for k in (1, 2, 4, 10)
        }
        expectations = {
            key: result.summary()["expectation"]
            for key, result in results.items()
            if result.scenario.attack is not None
        }
        draws = {key: int(key.split()[1]) for key in results if "draws" in key}
        assert expectations == dict.fromkeys(expectations, 4) | draws | {"frozen": 1}
        assert results["frozen"].target == f"{target.name} (draw 2)"
        assert results["transfer"].scenario.attack.source is target.noise_free
        quiet = {"frozen", "noise off"}
        assert {r.draws for key, r in results.items() if key not in quiet} == {3}
        assert {results[key].draws for key in quiet} == {1}
        assert {r.seed for r in results.values()} == {2}
        # PGD reaches the same with the same settings, wherever it is run.
        for key in ("epsilon 0.1", "draws 4"):
            np.testing.assert_array_equal(
                results[key].predictions, results["pgd"].predictions
            )
        outside = {"epsilon 0.2", "epsilon 0.4", "epsilon 1", *quiet}
        within = [r for key, r in results.items() if key not in outside]
        np.testing.assert_array_equal(
            found.headline.predictions, union(within).predictions
        )
        assert len(set(seen)) == len(seen)  # Each row has a file of its own.
        self.check_reports(found)


@pytest.mark.parametrize("labels_only", [False, True])
def test_what_a_target_does_not_allow_is_not_run(labels_only):
    """A network without gradient, or one that gives labels only."""
    kernel = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")

    def logits(images):
        return tf.stop_gradient(tf.reshape(images, [-1, 12]) @ kernel)

    def labels_of(images):
        return np.argmax(images.reshape(-1, 12) @ kernel, -1)

    shape = (3, 4, 1)
    target = load_target(
        labels_of if labels_only else logits,
        image_shape=shape,
        num_classes=3,
        labels_only=labels_only,
    )
    images = np.random.default_rng(1).uniform(size=(20, *shape)).astype("float32")
    checklist = run_checklist(
        target, images, labels_of(images), epsilon=0.2, queries=20, draws=10
    )
    run = {"clean", "random"} | (set() if labels_only else {"square"})
    assert set(checklist.results) == run
    assert {item.status for item in checklist.items} == {"NOT RUN"}
    # The number to quote is still the worst of what could be run.
    assert checklist.headline.mean < checklist.results["clean"].mean == 1
