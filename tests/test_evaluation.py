import csv
import json
import math
import re
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from pni_tf.attacks import FGSM, PGD
from pni_tf.conversion import inject_pni
from pni_tf.evaluation import (
    Result,
    Scenario,
    evaluate_robustness,
    report,
    standard_scenarios,
)
from pni_tf.export import Target, load_target

SHAPE = (2, 3, 1)
CLEAN = Scenario(name="clean")


def result(labels, predictions, *, name="clean", attack=None, **fields):
    return Result(
        **{
            "scenario": Scenario(name=name, attack=attack),
            "target": "network",
            "stochastic": len(predictions) > 1,
            "labels": np.array(labels),
            "predictions": np.array(predictions),
            "seed": 3,
            **fields,
        }
    )


class TestResult:
    # Labels, predictions of each draw, then mean, std (N - 1), vote and worst.
    TABLE = (
        ([0, 1], [[0, 1]], 1, 0, 1, 1),
        ([0, 1], [[1, 1]], 0.5, 0, 0.5, 0.5),
        ([0, 1, 2, 0], [[0, 1, 2, 0], [0, 1, 1, 1]], 0.75, math.sqrt(0.125), 0.75, 0.5),
        # Three draws: the vote is right where two are, the worst where all are.
        (
            [0, 1, 2],
            [[0, 1, 0], [0, 2, 2], [1, 1, 2]],
            2 / 3,
            0,
            1,
            0,
        ),
        # A tie goes to the smallest class, right or wrong.
        ([0, 2], [[0, 2], [1, 1]], 0.5, math.sqrt(0.5), 0.5, 0),
        # A plurality of three against two and two.
        ([4], [[4], [1], [4], [1], [4], [2], [2]], 3 / 7, math.sqrt(2 / 7), 1, 0),
    )

    @pytest.mark.parametrize(
        ("labels", "predictions", "mean", "std", "vote", "worst"), TABLE
    )
    def test_statistics(self, labels, predictions, mean, std, vote, worst):
        found = result(labels, predictions)
        assert found.draws == len(predictions)
        assert found.mean == pytest.approx(mean)
        assert found.std == pytest.approx(std)
        assert found.vote == pytest.approx(vote)
        assert found.worst == pytest.approx(worst)
        for number in (found.mean, found.std, found.vote, found.worst):
            assert type(number) is float  # else it is no JSON

    def test_statistics_of_many(self):
        generator = np.random.default_rng(0)
        labels = generator.integers(0, 5, 40)
        predictions = generator.integers(0, 5, (9, 40))
        found = result(labels, predictions)
        correct = predictions == labels
        assert found.mean == pytest.approx(correct.mean())
        assert found.std == pytest.approx(correct.mean(1).std(ddof=1))
        assert found.worst == correct.all(0).mean()
        votes = [np.bincount(column).argmax() for column in predictions.T]
        assert found.vote == (votes == labels).mean()
        np.testing.assert_allclose(found.accuracies, correct.mean(1))


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
    model.set_weights([kernel, -0.5 * kernel.sum(0)])  # all classes are as likely
    return inject_pni(model, seed=1, **options)


class TestDraws:
    # The attack, its expectation, and the calls that it takes.
    FOUND_BY = (
        (None, 1, 0),
        (FGSM(epsilon=0.1), 1, 1),
        (FGSM(epsilon=0.1), 3, 3),
        (PGD(epsilon=0.1, steps=4), 1, 4),
        (PGD(epsilon=0.1, steps=4), 3, 12),
        # Each restart is judged on a draw of its own.
        (PGD(epsilon=0.1, steps=4, restarts=2), 1, 10),
        (PGD(epsilon=0.1, steps=4, restarts=2), 3, 30),
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
        scoring = calls + np.arange(3)
        np.testing.assert_array_equal(found.predictions, np.tile(scoring, (4, 1)).T)
        assert counter.numpy() == calls + 3

    def test_every_batch_and_scenario_has_draws_of_its_own(self):
        target, counter = counting_target()
        scenarios = [CLEAN, Scenario(name="FGSM", attack=FGSM(epsilon=0.1))]
        clean, fgsm = evaluate_robustness(
            target, some_images(5), np.zeros(5, int), scenarios, draws=2, batch_size=2
        )
        np.testing.assert_array_equal(
            clean.predictions, [[0, 0, 2, 2, 4], [1, 1, 3, 3, 5]]
        )
        # Calls 6, 9 and 12 found the images.
        np.testing.assert_array_equal(
            fgsm.predictions, [[7, 7, 10, 10, 13], [8, 8, 11, 11, 14]]
        )
        assert counter.numpy() == 15

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
        assert (pgd.predictions == 5).all()  # call 0 was clean, 1 to 4 attacked
        np.testing.assert_array_equal(expectation.predictions, pgd.predictions)
        assert expectation.scenario is scenarios[2]
        assert expectation.summary()["expectation"] == 1
        assert (fgsm.predictions == 7).all()  # one call of the attack, not 20
        assert counter.numpy() == 8

    def test_a_stochastic_target_runs_each_expectation(self):
        target, counter = counting_target()
        attack = FGSM(epsilon=0.1)
        rows = [Scenario(name=f"{k}", attack=attack, expectation=k) for k in (1, 5)]
        found = evaluate_robustness(
            target, some_images(), np.zeros(4, int), rows, draws=2
        )
        assert counter.numpy() == (1 + 2) + (5 + 2)
        assert [r.summary()["expectation"] for r in found] == [1, 5]

    def test_draws_of_a_noisy_model_differ_and_the_seed_repeats_them(self):
        scenarios = standard_scenarios(epsilon=0.1, steps=(3,), expectation=2)
        target = load_target(noisy_model(initial_alpha=1.0))
        labels = target.noise_free.predict(some_images(64))

        def predictions(seed):
            found = evaluate_robustness(
                target, some_images(64), labels, scenarios, batch_size=20, seed=seed
            )
            assert {r.seed for r in found} == {seed}
            return np.stack([r.predictions for r in found])

        first = predictions(1)
        assert first.shape == (4, 5, 64)
        for row in first:
            assert len(np.unique(row, axis=0)) == 5
        np.testing.assert_array_equal(predictions(1), first)
        assert (predictions(2) != first).any(axis=(1, 2)).all()


def linear_target(seed=0, classes=2, shape=SHAPE):
    """A linear classifier without noise, and its kernel and bias."""
    generator = np.random.default_rng(seed)
    kernel = generator.normal(size=(math.prod(shape), classes)).astype("float32")
    bias = -0.5 * kernel.sum(0)  # grey is on the boundary
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
    @pytest.mark.parametrize("epsilon", [0.0, 0.02, 0.1, 0.25])
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
            if each.scenario.name != "PGD-1":  # which may start on the wrong side
                assert each.mean == pytest.approx(robust), each.scenario.name
        assert clean >= found[-3].mean >= robust  # PGD-1
        assert [r.std for r in found] == [0] * len(found)

    def test_a_stronger_attack_never_leaves_more(self):
        target, _, _ = linear_target(classes=5)
        labels = target.predict(self.IMAGES)
        accuracies = []
        for epsilon in (0.0, 0.01, 0.03, 0.1, 0.3):
            attacks = [FGSM(epsilon=epsilon)]
            attacks += [
                PGD(epsilon=epsilon, step_size=epsilon / 4, steps=s, random_start=False)
                for s in (1, 4, 16)
            ]
            rows = [Scenario(name=repr(a), attack=a) for a in attacks]
            found = evaluate_robustness(target, self.IMAGES, labels, rows)
            accuracies.append([r.mean for r in found])
        assert (np.diff(accuracies, axis=0) <= 0).all()
        pgd = np.array(accuracies)[:, 1:]
        assert (np.diff(pgd, axis=1) <= 0).all()
        assert accuracies[0] == [1.0] * 4
        assert accuracies[-1][-1] < 0.3

    @pytest.mark.parametrize("batch_size", [1, 7, 40, 41, 1000])
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

    @pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
    def test_integer_labels_of_any_type(self, dtype):
        target, _, _ = linear_target(classes=3)
        labels = target.predict(self.IMAGES).astype(dtype)
        labels[:10] = (labels[:10] + 1) % 3
        rows = standard_scenarios(epsilon=0.05, steps=(3,))
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


class TestBadInput:
    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (some_images() + 1, r"must be in \[0, 1\]"),
            (some_images() - 1, r"must be in \[0, 1\]"),
            (255 * some_images(), "Divide them by 255"),
            ((255 * some_images()).astype("uint8"), "must be floats"),
            (np.where(some_images() > 0.9, np.nan, some_images()), "must be finite"),
            (some_images()[..., 0], r"\[N, 2, 3, 1\]"),
            (some_images(shape=(3, 2, 1)), r"\[N, 2, 3, 1\]"),
            (some_images(shape=(2, 3, 3)), r"\[N, 2, 3, 1\]"),
            (some_images()[:0], "at least one image"),
        ],
    )
    def test_images(self, images, message):
        target, _, _ = linear_target()
        labels = np.zeros(len(images), int)
        with pytest.raises(ValueError, match=message):
            evaluate_robustness(target, images, labels, [CLEAN])

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, 1, 2, 0], r"0\.\.1"),
            ([0, 1, -1, 0], r"0\.\.1"),
            ([0.0, 1.0, 0.0, 0.0], "must be integers"),
            ([[0], [1], [0], [0]], r"shape \[N\]"),
            (np.eye(2)[[0, 1, 0, 0]], r"shape \[N\]"),
            ([0, 1, 0], "4 images"),
            ([0, 1, 0, 0, 0], "4 images"),
        ],
    )
    def test_labels(self, labels, message):
        target, _, _ = linear_target()
        with pytest.raises(ValueError, match=message):
            evaluate_robustness(target, some_images(), np.array(labels), [CLEAN])

    @pytest.mark.parametrize("name", ["draws", "batch_size"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, True])
    def test_numbers(self, name, value):
        target, _, _ = linear_target()
        with pytest.raises(ValueError, match=name):
            evaluate_robustness(
                target, some_images(), np.zeros(4, int), [CLEAN], **{name: value}
            )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epsilon": -0.1}, "epsilon"),
            ({"epsilon": math.nan}, "epsilon"),
            ({"epsilon": math.inf}, "epsilon"),
            ({"epsilon": 0.1, "steps": (0,)}, "steps"),
            ({"epsilon": 0.1, "steps": (-7,)}, "steps"),
            ({"epsilon": 0.1, "steps": (1.5,)}, "steps"),
            ({"epsilon": 0.1, "step_size": -1.0}, "step_size"),
            ({"epsilon": 0.1, "norm": "l1"}, "norm"),
            ({"epsilon": 0.1, "restarts": 0}, "restarts"),
        ],
    )
    def test_standard_scenarios(self, options, message):
        with pytest.raises(ValueError, match=message):
            standard_scenarios(**options)

    @pytest.mark.parametrize("expectation", [0, -1, 2.0])
    def test_expectation(self, expectation):
        with pytest.raises(ValueError, match="expectation"):
            Scenario(name="row", expectation=expectation)


class TestScenarios:
    def test_rows(self):
        rows = standard_scenarios(epsilon=0.1, steps=(7, 40), expectation=20)
        assert [(r.name, r.expectation) for r in rows] == [
            ("clean", 1),
            ("FGSM", 1),
            ("PGD-7", 1),
            ("PGD-40", 1),
            ("PGD-40 EOT-20", 20),
        ]
        assert rows[0].attack is None
        assert rows[1].attack == FGSM(epsilon=0.1)
        assert rows[4].attack == rows[3].attack

    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ({"expectation": 1}, ["clean", "FGSM", "PGD-7", "PGD-40"]),
            ({"norm": "l2", "expectation": 1}, ["clean", "PGD-7", "PGD-40"]),
            ({"steps": ()}, ["clean", "FGSM"]),
            ({"steps": (), "norm": "l2"}, ["clean"]),
        ],
    )
    def test_rows_that_are_left_out(self, options, names):
        rows = standard_scenarios(epsilon=0.1, **options)
        assert [row.name for row in rows] == names

    # Options, then the step size of PGD-7 and of PGD-40.
    @pytest.mark.parametrize(
        ("options", "sizes"),
        [
            ({}, (2.5 * 0.1 / 7, 2.5 * 0.1 / 40)),
            ({"step_size": 0.05}, (0.05, 0.05)),
            ({"step_size_of": {7: 0.03}}, (0.03, 2.5 * 0.1 / 40)),
            ({"step_size": 0.05, "step_size_of": {7: 0.03}}, (0.05, 0.05)),
        ],
    )
    def test_step_sizes(self, options, sizes):
        rows = standard_scenarios(epsilon=0.1, expectation=1, **options)
        assert [row.attack.step_size for row in rows[2:]] == pytest.approx(sizes)
        assert {row.attack.epsilon for row in rows[2:]} == {0.1}

    @pytest.mark.parametrize(
        ("step_size", "steps", "warns"),
        [(0.02, 10, False), (0.0199, 10, True), (0.2, 1, False), (0.0, 10, True)],
    )
    def test_warning_where_the_steps_cannot_cross_the_ball(
        self, step_size, steps, warns
    ):
        row = Scenario(
            name="weak", attack=PGD(epsilon=0.1, step_size=step_size, steps=steps)
        )
        assert bool(row.warnings) is warns
        if warns:
            (warning,) = row.warnings
            assert warning.startswith("weak: ")
            assert f"{steps * step_size:.4g}" in warning
        summary = result([0], [[0]], scenario=row).summary()
        assert summary["warnings"] == list(row.warnings)

    def test_default_steps_cross_the_ball(self):
        for row in standard_scenarios(epsilon=8 / 255, steps=(1, 2, 3, 7, 40, 100)):
            assert row.warnings == ()


@pytest.fixture
def columns():
    """Two networks, one of them random and with a row more."""
    attack = PGD(epsilon=float(Fraction(8, 255)), steps=7)
    noisy = [
        result([0, 1, 2], [[0, 1, 2], [0, 1, 1], [0, 1, 0]]),
        result(
            [0, 1, 2], [[1, 1, 2], [0, 0, 1], [2, 1, 0]], name="PGD-7", attack=attack
        ),
        result([0, 1, 2], [[1, 1, 2]] * 3, name="PGD | odd", attack=attack),
    ]
    plain = [
        result([0, 1, 2], [[0, 1, 0]]),
        result([0, 1, 2], [[1, 0, 0]], name="PGD-7", attack=attack),
    ]
    return {"with PNI": noisy, "without PNI": plain}


class TestReport:
    def test_table_cells_are_the_numbers(self, columns):
        del columns["with PNI"][2]
        header, rule, *rows = report.format_table(columns).splitlines()
        cells = [[c.strip() for c in row.strip("|").split("|")] for row in rows]
        assert [c.strip() for c in header.strip("|").split("|")] == [
            "accuracy (%)",
            *columns,
        ]
        assert set(rule) <= set("|- ")
        assert len({len(line) for line in (header, rule, *rows)}) == 1
        assert [row[0] for row in cells] == ["clean", "PGD-7"]
        for row, noisy, plain in zip(cells, *columns.values(), strict=True):
            mean, std = map(float, row[1].split("±"))
            assert mean == pytest.approx(100 * noisy.mean, abs=0.005)
            assert std == pytest.approx(100 * noisy.std, abs=0.005)
            assert float(row[2]) == pytest.approx(100 * plain.mean, abs=0.005)

    def test_table_marks_what_was_not_run(self, columns):
        *_, last = report.format_table(columns).splitlines()
        assert re.search(r"33\.33|66\.67", last)
        assert "not run" in last

    def test_description(self, columns):
        sentence = report.describe(columns)
        assert "3 images, seed 3" in sentence
        assert "3 single draws" in sentence
        (plain,) = (c for c in columns.values() if not c[0].stochastic)
        assert "draws" not in report.describe({"plain": plain})

    def test_json_round_trip(self, columns, tmp_path):
        report.write_json(tmp_path / "a.json", columns, dataset="digits", epsilon=0.1)
        content = json.loads((tmp_path / "a.json").read_text())
        assert (content["dataset"], content["epsilon"]) == ("digits", 0.1)
        assert content["columns"] == {
            name: [r.summary() for r in results] for name, results in columns.items()
        }
        for name, results in columns.items():
            for found, expected in zip(content["columns"][name], results, strict=True):
                for key in ("mean", "std", "vote", "worst"):
                    assert found[f"accuracy_{key}"] == getattr(expected, key)
                assert found["scenario"] == expected.scenario.name
                assert found["attack"] == repr(expected.scenario.attack)
                assert (found["images"], found["draws"]) == (3, expected.draws)
                assert (found["seed"], found["target"]) == (3, "network")
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

    def test_csv_gives_the_results_back(self, columns, tmp_path):
        report.write_csv(tmp_path / "a.csv", columns)
        with (tmp_path / "a.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 3 * 5
        for network, results in columns.items():
            for each in results:
                own = [
                    row
                    for row in rows
                    if (row["network"], row["scenario"])
                    == (network, each.scenario.name)
                ]
                assert [int(row["image"]) for row in own] == [0, 1, 2]
                labels = [int(row["label"]) for row in own]
                predictions = [list(map(int, r["predictions"].split())) for r in own]
                read = result(labels, np.transpose(predictions))
                for key in ("draws", "mean", "std", "vote", "worst"):
                    assert getattr(read, key) == getattr(each, key)
                assert [int(row["correct_draws"]) for row in own] == [
                    sum(p == label for p in row)
                    for row, label in zip(predictions, labels, strict=True)
                ]
                assert {int(row["draws"]) for row in own} == {each.draws}
        assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]

    def test_accuracies_for_the_figure(self, columns):
        found = report.accuracies(columns)
        assert list(found) == list(columns)
        for network, results in columns.items():
            assert found[network] == {r.scenario.name: (r.mean, r.std) for r in results}

    @pytest.mark.parametrize("name", ["report.md", "no_extension"])
    def test_text_is_replaced_in_one_step(self, name, tmp_path):
        path = tmp_path / name
        path.write_text("old and longer")
        report.write_text(path, "new ε ±\n")
        assert path.read_text() == "new ε ±\n"
        assert os_names(tmp_path) == [name]


def os_names(folder):
    return sorted(path.name for path in folder.iterdir())
