"""What may be evaluated: scenarios, sets of them, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from pni_tf import (
    APGD,
    FGSM,
    PGD,
    ZOO,
    CarliniWagnerL2,
    RandomSearch,
    Square,
    Transfer,
    evaluate_robustness,
    load_target,
    make_attack,
    strong_suite,
)
from pni_tf.attacks.draws import GradientProbe
from pni_tf.evaluation import (
    Scenario,
    paper_suite,
    scenario_of,
    standard_scenarios,
    transfer_from,
)
from pni_tf.targets import Target

SHAPE = (2, 3, 1)
CLEAN = Scenario(name="clean")


def some_images(count=4, shape=SHAPE):
    return np.random.default_rng(0).uniform(size=(count, *shape)).astype("float32")


def linear_target(classes=2, **fields):
    kernel = np.random.default_rng(0).normal(size=(6, classes)).astype("float32")
    target = load_target(lambda x: tf.reshape(x, [-1, 6]) @ kernel, image_shape=SHAPE)
    return dataclasses.replace(target, **fields)


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
        labels = np.zeros(len(images), int)
        with pytest.raises(ValueError, match=message):
            evaluate_robustness(linear_target(), images, labels, [CLEAN])

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
        with pytest.raises(ValueError, match=message):
            evaluate_robustness(
                linear_target(), some_images(), np.array(labels), [CLEAN]
            )

    @pytest.mark.parametrize("name", ["draws", "batch_size"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, True])
    def test_numbers(self, name, value):
        with pytest.raises(ValueError, match=name):
            evaluate_robustness(
                linear_target(),
                some_images(),
                np.zeros(4, int),
                [CLEAN],
                **{name: value},
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

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("expectation", 0),
            ("expectation", -1),
            ("expectation", 2.0),
            ("towards", "least likely"),
        ],
    )
    def test_scenario(self, name, value):
        with pytest.raises(ValueError, match=f"`{name}`.*{value!r}"):
            Scenario(name="row", **{name: value})


class TestScenario:
    @pytest.mark.parametrize(
        ("step_size", "steps", "warns"),
        [(0.02, 10, False), (0.0199, 10, True), (0.2, 1, False), (0.0, 10, True)],
    )
    @pytest.mark.parametrize("stochastic", [False, True])
    def test_warning_where_the_steps_cannot_cross_the_ball(
        self, step_size, steps, warns, stochastic
    ):
        attack = PGD(epsilon=0.1, step_size=step_size, steps=steps)
        row = Scenario(name="weak", attack=attack, expectation=2)
        warnings = row.warnings(stochastic)
        assert bool(warnings) is warns
        if warns:
            (warning,) = warnings
            assert "cannot cross its ball" in warning
            assert f"steps * step_size = {steps * step_size:.4g} " in warning
            assert "2 * epsilon = 0.2," in warning

    # An attack, its expectation, and words of what a random target makes of it.
    STOCHASTIC = (
        (None, 1, []),
        (FGSM(), 1, ["no expectation"]),
        (FGSM(), 2, []),
        (RandomSearch(), 1, ["no expectation"]),
        (RandomSearch(early_stop=True), 20, ["once 20 draws are fooled"]),
        (
            PGD(steps=1, step_size=0.0, early_stop=True),
            1,
            ["cannot cross", "no expectation", "once 1 draws"],
        ),
        # What is attacked is the source.
        (Transfer(attack=PGD(steps=10), source=linear_target()), 1, []),
        (
            Transfer(attack=PGD(steps=1), source=linear_target(warnings=("odd",))),
            1,
            ["cannot cross", "source: odd"],
        ),
        (CarliniWagnerL2(), 20, ["abort_early"]),
        (ZOO(abort_early=False, query_noise="none"), 20, ["query_noise='none'"]),
    )

    @pytest.mark.parametrize(("attack", "expectation", "words"), STOCHASTIC)
    def test_warnings_for_a_random_target(self, attack, expectation, words):
        row = Scenario(name="row", attack=attack, expectation=expectation)
        warnings = row.warnings(stochastic=True)
        assert len(warnings) == len(words)
        for warning, expected in zip(warnings, words, strict=True):
            assert expected in warning
        kept = [w for w in warnings if "cannot cross" in w or "source" in w]
        assert list(row.warnings(stochastic=False)) == kept

    @pytest.mark.parametrize(
        ("attack", "ball"),
        [
            (None, None),
            (FGSM(epsilon=0.1), ("linf", 0.1)),
            (PGD(epsilon=0.5, norm="l2"), ("l2", 0.5)),
            (Square(epsilon=0.2), ("linf", 0.2)),
            (CarliniWagnerL2(), None),
            (
                Transfer(attack=APGD(epsilon=0.3, norm="l2"), source=linear_target()),
                ("l2", 0.3),
            ),
            (Transfer(attack=CarliniWagnerL2(), source=linear_target()), None),
        ],
    )
    def test_ball(self, attack, ball):
        assert Scenario(name="row", attack=attack).ball == ball

    def test_gradient_based(self):
        assert Scenario(name="row", attack=FGSM()).gradient_based
        for attack in (None, Square(), Transfer(attack=FGSM(), source=linear_target())):
            assert not Scenario(name="row", attack=attack).gradient_based


class TestStandardScenarios:
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

    def test_default_steps_cross_the_ball(self):
        for row in standard_scenarios(epsilon=8 / 255, steps=(1, 2, 3, 7, 40, 100)):
            assert row.warnings(stochastic=False) == ()


def target_of(kind, classes=10):
    """A target of which nothing but its properties is asked."""

    def refuse(images):
        raise AssertionError("a set of scenarios needs no forward pass")

    fields = {
        "logits": refuse,
        "image_shape": SHAPE,
        "num_classes": classes,
        "stochastic": False,
    }
    quiet = Target(name="quiet", **fields)
    if kind == "stochastic":
        fields |= {"stochastic": True, "noise_free": quiet}
    return Target(
        name=kind,
        labels_only=kind == "labels only",
        gradient=GradientProbe(
            images=1, missing=kind in ("labels only", "no gradient")
        ),
        **fields,
    )


PGD_OF_THE_PAPER = PGD(epsilon=8 / 255, step_size=0.01, steps=7)


class TestSuites:
    @pytest.mark.parametrize("kind", ["deterministic", "stochastic"])
    def test_paper(self, kind):
        other = target_of("stochastic")
        rows = paper_suite(target_of(kind), sources={"other": other})
        zoo = f"ZOO-{rows[4].attack.iterations}"
        names = ["clean", "FGSM", "PGD-7", "C&W L2 9×10", zoo, "transfer from other"]
        assert [row.name for row in rows] == names
        assert {row.expectation for row in rows} == {1}
        _, fgsm, pgd, cw, zoo, transfer = (row.attack for row in rows)
        assert fgsm == FGSM(epsilon=8 / 255)
        assert pgd == PGD_OF_THE_PAPER
        settings = {"initial_const": 0.01, "learning_rate": 5e-4, "steps": 10}
        assert cw == CarliniWagnerL2(**settings, abort_early=kind == "deterministic")
        noise = {"deterministic": "none", "stochastic": "independent"}[kind]
        assert isinstance(zoo, ZOO) and zoo.query_noise == noise
        assert transfer.attack == pgd
        assert transfer.source is other
        assert transfer.source_draws == 20  # The source is random.

    @pytest.mark.parametrize("kind", ["deterministic", "stochastic"])
    def test_strong(self, kind):
        target, other = target_of(kind), target_of("deterministic")
        rows = strong_suite(target, epsilon=0.1, sources={"other": other})
        random = kind == "stochastic"
        attacks = {
            "clean": None,
            "APGD-CE": APGD(epsilon=0.1, early_stop=not random),
            "APGD-DLR": APGD(epsilon=0.1, loss="dlr", early_stop=not random),
            # The same effort for both kinds, so that they can be compared.
            "PGD with restarts": PGD(
                epsilon=0.1,
                steps=50,
                step_size=0.1 / 20,
                restarts=3,
                early_stop=not random,
            ),
            "Square": Square(
                epsilon=0.1,
                queries=2000 if random else 1000,  # Each square takes two.
                early_stop=not random,
                reevaluate=random,
            ),
        }
        sources = {"other": other}
        if random:
            sources = {"noise-free twin": target.noise_free, **sources}
        for row, (name, attack) in zip(rows[:5], attacks.items(), strict=True):
            assert (row.name, row.attack) == (name, attack)
        assert {row.expectation for row in rows[1:]} == {20 if random else 1}
        for row, (name, source) in zip(rows[5:], sources.items(), strict=True):
            assert row.name == f"transfer from {name}"
            assert row.attack.attack == APGD(epsilon=0.1)
            assert row.attack.source is source
            assert f"source='{name}'" in repr(row.attack)
        for row in rows:
            assert row.warnings(target.stochastic) == ()

    # The kind of the target, its classes, the norm, and the attacks that are left.
    OTHERS = (
        ("deterministic", 2, "linf", ["APGD-CE", "PGD with restarts", "Square"]),
        ("deterministic", 3, "l2", ["APGD-CE", "APGD-DLR", "PGD with restarts"]),
        ("deterministic", 2, "l2", ["APGD-CE", "PGD with restarts"]),
        ("no gradient", 3, "linf", ["random search", "Square"]),
        ("no gradient", 3, "l2", ["random search"]),
        ("labels only", 10, "linf", ["random search"]),
        ("labels only", 2, "l2", ["random search"]),
    )

    @pytest.mark.parametrize(("kind", "classes", "norm", "names"), OTHERS)
    def test_strong_for_other_targets(self, kind, classes, norm, names):
        other = target_of("deterministic")
        target = target_of(kind, classes)
        rows = strong_suite(target, norm=norm, epsilon=0.1, sources={"other": other})
        assert [row.name for row in rows] == ["clean", *names, "transfer from other"]
        assert {row.ball for row in rows[1:]} == {(norm, 0.1)}

    def test_expectation_of_the_strong_suite(self):
        rows = strong_suite(target_of("stochastic"), expectation=7)
        assert {row.expectation for row in rows[1:]} == {7}
        rows = strong_suite(target_of("deterministic"), expectation=7)
        assert {row.expectation for row in rows} == {1}

    def test_transfer_from(self):
        quiet, noisy = target_of("deterministic"), target_of("stochastic")
        row = transfer_from("plain", quiet, FGSM(epsilon=0.1), 3)
        assert (row.name, row.expectation) == ("transfer from plain", 3)
        assert row.attack.attack == FGSM(epsilon=0.1)
        assert (row.attack.source, row.attack.source_draws) == (quiet, 1)
        attack = transfer_from("noisy", noisy, FGSM()).attack
        assert (attack.source, attack.source_draws) == (noisy, 20)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "settings", "expected"),
        [
            ("fgsm", {}, "FGSM"),
            ("pgd", {"steps": 40}, "PGD-40"),
            ("pgd", {"steps": 40, "restarts": 5}, "PGD-40 ×5"),
            ("apgd-ce", {}, "APGD-CE-100"),
            ("apgd-dlr", {"restarts": 2}, "APGD-DLR-100 ×2"),
            ("apgd-t", {}, "APGD-T-100"),
            ("cw", {"steps": 30, "binary_search_steps": 4}, "C&W L2 4×30"),
            ("square", {"queries": 77}, "Square-77"),
            ("random", {"samples": 5}, "random search-5"),
            ("zoo", {"iterations": 12}, "ZOO-12"),
        ],
    )
    def test_label(self, name, settings, expected):
        attack = make_attack(name, **settings)
        row = scenario_of(attack, target_of("deterministic"), 20)
        assert (row.name, row.expectation) == (expected, 1)
        assert row.attack is attack
        row = scenario_of(attack, target_of("stochastic"), 20)
        assert (row.name, row.expectation) == (f"{expected} EOT-20", 20)

    def test_given_name_and_rule(self):
        row = scenario_of(
            FGSM(),
            target_of("stochastic"),
            5,
            name="mine",
            towards="least_likely",
        )
        assert row.name == "mine towards least likely EOT-5"
        assert row.towards == "least_likely"
