"""Named attacks, gradient warnings, and what PGD and FGSM report and spend."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from pni_tf import (
    APGD,
    FGSM,
    PGD,
    ZOO,
    CarliniWagnerL2,
    ExpectationOverNoise,
    RandomSearch,
    Square,
    make_attack,
)
from pni_tf.attacks.draws import probe_gradient
from pni_tf.attacks.presets import ATTACKS, PRESETS

SEED = tf.constant([3, 4], "int64")
COUNT = 20


def random(*shape, low=0.0, high=1.0, seed=1):
    return np.random.default_rng(seed).uniform(low, high, shape).astype("float32")


IMAGES = random(COUNT, 4, 4, 1, seed=5)
WEIGHTS = random(16, 3, low=-1, seed=2)
HIDDEN, OUTPUT = random(16, 8, low=-1), random(8, 5, low=-2, high=2, seed=3)
ZEROS = np.zeros(COUNT, int)


def linear(images):
    return tf.reshape(images, (-1, 16)) @ WEIGHTS


def curved(images):
    """A deterministic network of five classes that favours the first."""
    inner = 6.0 * tf.reshape(images, (-1, 16)) @ HIDDEN
    return tf.sin(inner) @ OUTPUT + 7 * tf.one_hot(0, 5)


class Counting:
    """A network that counts its calls and the images of them, in graphs too."""

    def __init__(self, network=curved):
        self.network = network
        self.calls, self.images = tf.Variable(0), tf.Variable(0)

    def __call__(self, images):
        self.calls.assign_add(1)
        self.images.assign_add(tf.shape(images)[0])
        return self.network(images)


def traced(attack, network=curved, images=IMAGES, labels=ZEROS, **arguments):
    arguments = {"seed": SEED, **arguments}
    run = tf.function(attack.run, autograph=False)  # Autograph would only be slower.
    return run(network, images, labels, **arguments)


# --- Presets ------------------------------------------------------------------------

EPSILON = 8 / 255
STRONG_PGD = PGD(epsilon=EPSILON, step_size=EPSILON / 20, steps=50, restarts=3)


def apgd(loss, **settings):
    return APGD(
        **{"epsilon": EPSILON, "steps": 100, "target_classes": 9, **settings},
        **{"loss": loss, "restarts": 1, "rho": 0.75},
    )


def cw(steps, **settings):
    settings = {"initial_const": 1e-3, "learning_rate": 1e-2, **settings}
    return CarliniWagnerL2(
        confidence=0, binary_search_steps=9, agreement=0.9, steps=steps, **settings
    )


def short_cw(**settings):
    return cw(10, initial_const=0.01, learning_rate=5e-4, **settings)


def square(queries, **settings):
    return Square(epsilon=EPSILON, queries=queries, initial_fraction=0.8, **settings)


def zoo(**settings):
    settings = {"iterations": 1000, "space": "tanh", **settings}
    return ZOO(coordinates=128, learning_rate=1e-2, **settings)


# Name, preset, then the attack for a deterministic and for a random network.
TABLE = [
    *(("fgsm", preset, FGSM(epsilon=EPSILON), None) for preset in PRESETS),
    ("pgd", "paper", PGD(epsilon=EPSILON, step_size=0.01, steps=7), None),
    ("pgd", "reference", PGD(epsilon=EPSILON, step_size=2 / 255, steps=20), None),
    (
        *("pgd", "strong", dataclasses.replace(STRONG_PGD, early_stop=True)),
        STRONG_PGD,
    ),
    *(
        row
        for name, loss in (
            ("apgd-ce", "ce"),
            ("apgd-dlr", "dlr"),
            ("apgd-t", "dlr-targeted"),
        )
        for row in (
            (name, "paper", apgd(loss), None),
            (name, "reference", apgd(loss), None),
            (name, "strong", apgd(loss, early_stop=True), apgd(loss)),
        )
    ),
    ("cw", "paper", short_cw(abort_early=True), short_cw(abort_early=False)),
    *(
        ("cw", preset, cw(10_000, abort_early=True), cw(1000, abort_early=False))
        for preset in ("reference", "strong")
    ),
    *(
        (
            *("square", preset),
            square(squares, early_stop=True),
            square(queries, reevaluate=True),
        )
        for preset, squares, queries in (
            ("paper", 5000, 10_000),
            ("reference", 5000, 10_000),
            ("strong", 1000, 2000),
        )
    ),
    *(
        (
            *("zoo", preset),
            zoo(query_noise="none", abort_early=True),
            zoo(query_noise="independent", abort_early=False),
        )
        for preset in PRESETS
    ),
    *(
        (
            *("random", preset),
            RandomSearch(epsilon=EPSILON, samples=1000, early_stop=True),
            RandomSearch(epsilon=EPSILON, samples=1000),
        )
        for preset in PRESETS
    ),
]


def assert_same(attack, expected):
    assert type(attack) is type(expected)
    settings = dataclasses.asdict(expected)
    for name, value in dataclasses.asdict(attack).items():
        if isinstance(value, float):
            assert value == pytest.approx(settings[name]), name
        else:
            assert value == settings[name], name


@pytest.mark.parametrize(
    ("name", "preset", "deterministic", "stochastic"),
    TABLE,
    ids=[f"{row[0]}-{row[1]}" for row in TABLE],
)
def test_presets(name, preset, deterministic, stochastic):
    """None: the same for a random network."""
    assert_same(make_attack(name, preset), deterministic)
    attack = make_attack(name, preset, stochastic=True)
    assert_same(attack, stochastic or deterministic)
    if isinstance(attack, PGD):
        assert attack.reaches_boundary


def test_the_table_is_complete():
    assert sorted(row[:2] for row in TABLE) == sorted(
        (name, preset) for name in ATTACKS for preset in PRESETS
    )


def test_reference_is_the_default_preset():
    for name in ATTACKS:
        assert make_attack(name) == make_attack(name, "reference")


@pytest.mark.parametrize("preset", PRESETS)
def test_grey_images(preset):
    """Only ZOO needs to know: of one channel, it works in the box, and for longer."""
    attack = make_attack("zoo", preset, channels=1)
    grey = {"space": "box", "iterations": 3000}
    assert_same(attack, zoo(query_noise="none", abort_early=True, **grey))
    attack = make_attack("zoo", preset, channels=1, stochastic=True)
    assert_same(attack, zoo(query_noise="independent", abort_early=False, **grey))
    attack = make_attack("zoo", preset, channels=1, space="tanh", iterations=7)
    assert (attack.space, attack.iterations) == ("tanh", 7)
    for name in set(ATTACKS) - {"zoo"}:
        assert make_attack(name, preset, channels=1) == make_attack(name, preset)


@pytest.mark.parametrize("given", [200, (200,)])
def test_one_upscaling_may_be_a_number(given):
    attack = make_attack("zoo", attack_size=8, upscale_at=given)
    assert attack.upscale_at == (200,)


def test_epsilon_norm_and_settings():
    assert make_attack("fgsm", epsilon=0.1) == FGSM(epsilon=0.1)
    attack = make_attack("pgd", "paper", epsilon=0.3, norm="l2", random_start=False)
    expected = PGD(epsilon=0.3, norm="l2", step_size=0.3 * 0.01 / (8 / 255))
    assert_same(attack, dataclasses.replace(expected, random_start=False))
    assert make_attack("apgd-dlr", norm="l2", steps=7).steps == 7
    assert make_attack("apgd-dlr", norm="l2").norm == "l2"
    assert make_attack("random", norm="l2").norm == "l2"
    assert make_attack("apgd-t", "strong", restarts=2).restarts == 2
    # C&W has no epsilon.
    assert make_attack("cw", "paper", epsilon=9, steps=3).steps == 3
    assert make_attack("zoo", epsilon=9, query_noise="independent") == ZOO()
    assert not make_attack("square", early_stop=False).early_stop


def test_steps_of_pgd_adapt_the_step_size():
    for preset in PRESETS:
        attack = make_attack("pgd", preset, epsilon=0.1, steps=50)
        assert attack.step_size == pytest.approx(2.5 * 0.1 / 50)
        attack = make_attack("pgd", preset, epsilon=0.1, steps=50, step_size=0.03)
        assert attack.step_size == 0.03
    assert make_attack("pgd", steps=0).steps == 0


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("pdg",), {}, "`name` must be one of .*'pgd'.*name='pdg'"),
        (("pgd", "best"), {}, "`preset` must be one of .*'strong'.*preset='best'"),
        (("pgd",), {"step": 3}, "'pgd' has no setting step. It has: .*step_size"),
        (("cw",), {"restarts": 3, "a": 1}, "'cw' has no setting a, restarts"),
        (("fgsm",), {"norm": "l2"}, "'fgsm' is for norm 'linf'.*'l2'"),
        (("square",), {"norm": "l2"}, "'square' is for norm 'linf'.*'l2'"),
        (("pgd",), {"norm": "l1"}, "`norm` must be one of"),
        (("pgd",), {"epsilon": -1}, "`epsilon` must be"),
        (("square",), {"stochastic": True, "early_stop": True}, "choose one"),
    ],
)
def test_unknown_names_and_settings(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        make_attack(*arguments, **settings)


# --- Warnings -----------------------------------------------------------------------


def with_gradient(change):
    """`linear` with the gradient of some images changed."""

    @tf.custom_gradient
    def spoil(images):
        return images, change

    return lambda images: linear(spoil(images))


def first(count, value):
    """Sets one pixel of the gradient of the first images."""
    index = [[i, 1, 2, 0] for i in range(count)]
    return lambda slope: tf.tensor_scatter_nd_update(slope, index, [value] * count)


SAVED = tf.reshape(tf.cast(tf.range(COUNT) >= 5, tf.float32), (-1, 1, 1, 1))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (linear, []),
        (curved, []),
        (lambda x: tf.stop_gradient(linear(x)), ["no gradient with respect"]),
        (with_gradient(first(7, np.nan)), ["the gradient is not finite on 7 of 20"]),
        (with_gradient(first(1, np.inf)), ["the gradient is not finite on 1 of 20"]),
        (with_gradient(lambda s: s * SAVED), ["the gradient vanishes on 5 of 20"]),
        (
            with_gradient(lambda s: first(2, np.nan)(s * SAVED)),
            ["not finite on 2 of 20", "the gradient vanishes on 3 of 20"],
        ),
        # This network is saturated.
        (lambda x: 1e6 * linear(x), ["the gradient vanishes on 20 of 20"]),
    ],
)
def test_gradient_probe(network, expected):
    found = probe_gradient(network, IMAGES).warnings
    assert len(found) == len(expected)
    for sentence, part in zip(found, expected, strict=True):
        assert part in sentence


def test_warnings_of_given_labels():
    """The slope of a wrong label's loss survives saturated logits."""
    sharp, labels = (lambda x: 1e4 * linear(x)), np.argmax(linear(IMAGES), -1)
    assert probe_gradient(sharp, IMAGES, labels).vanishing > COUNT / 2
    assert probe_gradient(sharp, IMAGES, (labels + 1) % 3).warnings == ()


def test_no_warning_where_the_scale_of_the_attacks_saves_float16():
    def half(images):
        score = tf.cast(tf.reduce_sum(images, (1, 2, 3)), "float16") * 0.01
        return tf.stack([tf.ones_like(score) * 14, score], 1)

    assert probe_gradient(half, IMAGES).warnings == ()


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(epsilon=0.1),
        PGD(epsilon=0.1, steps=3),
        PGD(epsilon=0.1, steps=3, norm="l2", early_stop=True),
        APGD(epsilon=0.1, steps=3),
        CarliniWagnerL2(steps=3, binary_search_steps=1),
    ],
    ids=repr,
)
def test_entries_that_are_not_finite_count_as_zero(attack):
    labels = np.argmax(linear(IMAGES), -1)
    zero, *spoiled = (
        traced(attack, with_gradient(first(7, value)), labels=labels).images
        for value in (0.0, np.nan, -np.inf)
    )
    for images in spoiled:
        np.testing.assert_allclose(images, zero, atol=1e-6)
    assert np.all(np.isfinite(zero))


# --- FGSM and PGD: goals, verdicts and costs ----------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(epsilon=0.2),
        PGD(epsilon=0.2, step_size=0.05, steps=12),
        PGD(epsilon=0.2, step_size=0.05, steps=12, restarts=2),
    ],
    ids=repr,
)
def test_targeted_optimum_of_a_linear_model(attack):
    """Of two classes: the sign of the target's weights minus the other's."""
    labels = np.arange(COUNT) % 2
    toward = (WEIGHTS[:, labels] - WEIGHTS[:, 1 - labels]).T.reshape(IMAGES.shape)
    expected = np.clip(IMAGES + 0.2 * np.sign(toward), 0, 1)

    def network(images):
        return linear(images)[:, :2]

    found = traced(attack, network, labels=1 - labels, towards=labels)
    np.testing.assert_allclose(found.images, expected, atol=1e-6)
    reached = np.argmax(network(found.images), -1) == labels
    np.testing.assert_array_equal(found.found, reached)
    assert np.mean(reached) > 0.5


def test_targets_matter_among_several_classes():
    attack = PGD(epsilon=0.6, step_size=0.05, steps=40)
    for target in range(3):
        towards = np.full(COUNT, target)
        found = traced(attack, linear, labels=(towards + 1) % 3, towards=towards)
        np.testing.assert_array_equal(np.argmax(linear(found.images), -1), towards)
        assert np.all(found.found)


@pytest.mark.parametrize("draws", [None, 3])
@pytest.mark.parametrize(
    ("attack", "gradients", "queries"),
    [
        (FGSM(), 1, 1),
        (PGD(steps=5), 5, 1),
        (PGD(steps=0), 0, 1),
        (PGD(steps=5, restarts=3), 15, 3),
    ],
    ids=repr,
)
def test_costs_are_those_of_the_network(attack, gradients, queries, draws):
    network, factor = Counting(), draws or 1
    target = network if draws is None else ExpectationOverNoise(network, draws)
    found = traced(attack, target)
    np.testing.assert_array_equal(found.gradients, gradients * factor)
    np.testing.assert_array_equal(found.queries, queries * factor)
    assert network.calls == (gradients + queries) * factor
    assert network.images == COUNT * (gradients + queries) * factor


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(),
        PGD(steps=2),
        PGD(steps=2, restarts=2, early_stop=True),
        APGD(steps=2),
        RandomSearch(samples=2),
    ],
    ids=repr,
)
def test_more_than_half_of_the_draws_must_be_fooled(attack):
    """Of four draws in a row two, then three are."""
    for share, fools in ((2, False), (3, True)):
        calls = tf.Variable(0)

        def network(images, calls=calls, share=share):
            sign = tf.where(calls.assign_add(1) % 4 < share, 1.0, -1.0)
            score = sign + 0.1 * tf.reduce_mean(images, (1, 2, 3))
            return tf.stack([tf.zeros_like(score), score], 1)

        found = traced(attack, ExpectationOverNoise(network, 4))
        assert np.all(found.found == fools)


def test_early_stop_keeps_the_first_point_that_fools():
    """Of runs of 0, 1, 2, ... steps with the same start."""
    attack = PGD(epsilon=0.1, step_size=0.02, steps=10)
    paths = [
        dataclasses.replace(attack, steps=n).perturb(curved, IMAGES, ZEROS, seed=SEED)
        for n in range(11)
    ]
    fooled = np.array([np.argmax(curved(path), -1) != 0 for path in paths])
    expected = np.where(fooled.any(0), fooled.argmax(0), 10)
    assert len(set(expected)) > 3
    assert not fooled.any(0).all()
    network = Counting()
    found = traced(dataclasses.replace(attack, early_stop=True), network)
    np.testing.assert_array_equal(found.found, fooled.any(0))
    for i, step in enumerate(expected):
        np.testing.assert_allclose(found.images[i], paths[step][i], atol=1e-6)
    # The gradient at the first point that fools is what shows it.
    np.testing.assert_array_equal(found.gradients, np.minimum(expected + 1, 10))
    np.testing.assert_array_equal(found.queries, 1)
    assert network.images == np.sum(found.gradients + found.queries)


@pytest.mark.parametrize("draws", [None, 2])
def test_restarts_with_early_stop_skip_what_is_found(draws):
    network = Counting()
    target = network if draws is None else ExpectationOverNoise(network, draws)
    attack = PGD(epsilon=0.1, step_size=0.03, steps=3, restarts=3, early_stop=True)
    one = traced(dataclasses.replace(attack, restarts=1), target)
    network.images.assign(0)
    found, factor = traced(attack, target), draws or 1
    assert network.images == np.sum(found.gradients + found.queries)
    early = one.found.numpy()
    np.testing.assert_array_equal(found.images[early], one.images[early])
    np.testing.assert_array_equal(found.gradients[early], one.gradients[early])
    np.testing.assert_array_equal(found.queries[early], factor)
    assert np.all(found.found.numpy()[early])
    failed = ~found.found.numpy()
    assert 0 < np.sum(failed) < np.sum(~early) < COUNT
    np.testing.assert_array_equal(found.queries[failed], 3 * factor)
    np.testing.assert_array_equal(found.gradients[failed], 3 * 3 * factor)


PAIRS = [
    # With the same start and steps, the longer run passes the points of the shorter.
    (PGD(epsilon=0.1, step_size=0.02, early_stop=True), "steps", (2, 4, 9)),
    (PGD(epsilon=0.3, step_size=0.06, early_stop=True, norm="l2"), "steps", (2, 9)),
    (PGD(epsilon=0.1, step_size=0.02, steps=2), "restarts", (1, 3, 9)),
    (PGD(epsilon=0.1, step_size=0.02, steps=2, early_stop=True), "restarts", (1, 9)),
    (APGD(epsilon=0.1, steps=3, early_stop=True), "restarts", (1, 9)),
    (APGD(epsilon=0.1, steps=3, loss="dlr-targeted"), "target_classes", (1, 4)),
    (RandomSearch(epsilon=0.1), "samples", (10, 100, 1000)),
    (RandomSearch(epsilon=0.1, early_stop=True), "samples", (10, 1000)),
]


@pytest.mark.parametrize(("attack", "setting", "values"), PAIRS, ids=repr)
def test_more_effort_never_leaves_more_accuracy(attack, setting, values):
    """Image by image, on a deterministic network."""
    found = [
        traced(dataclasses.replace(attack, **{setting: value})) for value in values
    ]
    for outcome in found:
        predictions = np.argmax(curved(outcome.images), -1)
        np.testing.assert_array_equal(outcome.found, predictions != 0)
    for less, more in itertools.pairwise(found):
        assert np.all(more.found | ~less.found)
    assert np.sum(found[0].found) < np.sum(found[-1].found)
