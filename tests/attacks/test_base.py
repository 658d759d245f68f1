"""The attacks against closed forms, and their contract.

`test_draws.py` is about random networks and gradients.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from pni_tf import FGSM, PGD, Attack, ExpectationOverNoise

SHAPE = (4, 4, 1)
SEED = tf.constant([3, 4], "int64")


def random(*shape, low=0.0, high=1.0, seed=1):
    return np.random.default_rng(seed).uniform(low, high, shape).astype("float32")


LABELS = np.array([0, 1, 2, 0, 1])
WEIGHTS = random(16, 3, low=-1, seed=2)


def curved(images):
    """A deterministic network of three classes that is not linear."""
    hidden = tf.tanh(3.0 * tf.reshape(images, (-1, 16)) @ random(16, 8, low=-1))
    return hidden @ random(8, 3, low=-2, high=2, seed=3)


def losses(logits_fn, images, labels=LABELS):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=labels, logits=logits_fn(images)
    ).numpy()


def two_classes(images):
    return tf.reshape(images, (-1, 16)) @ WEIGHTS[:, :2]


def ascent(labels):
    """Direction in which the loss of `two_classes` grows: the same everywhere."""
    wrong = WEIGHTS[:, 1 - labels] - WEIGHTS[np.arange(16)[:, None], labels]
    return wrong.T.reshape(-1, *SHAPE)


def norms(delta):
    return np.sqrt(np.sum(np.square(delta), (1, 2, 3), keepdims=True))


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(epsilon=0.2),
        PGD(epsilon=0.2, step_size=0.05, steps=4, random_start=False),
        PGD(epsilon=0.2, step_size=0.15, steps=3, random_start=False),
        PGD(epsilon=0.2, step_size=0.05, steps=8, random_start=True),
        PGD(epsilon=0.2, step_size=0.05, steps=8, restarts=3),
    ],
    ids=repr,
)
def test_linf_optimum_of_a_linear_model(attack):
    images, labels = random(5, *SHAPE), LABELS % 2  # Some pixels end at 0 or 1.
    optimum = np.clip(images + 0.2 * np.sign(ascent(labels)), 0, 1)
    adversarial = attack.perturb(two_classes, images, labels)
    np.testing.assert_allclose(adversarial, optimum, atol=1e-6)


@pytest.mark.parametrize(
    ("attack", "tolerance"),
    [
        (PGD(epsilon=0.3, step_size=0.1, steps=3, norm="l2", random_start=False), 1e-6),
        (PGD(epsilon=0.3, step_size=0.5, steps=1, norm="l2", random_start=False), 1e-6),
        # Projected steps approach the optimum from a random start geometrically.
        (PGD(epsilon=0.3, step_size=0.5, steps=40, norm="l2"), 1e-5),
    ],
    ids=repr,
)
def test_l2_optimum_of_a_linear_model(attack, tolerance):
    images, labels = random(5, *SHAPE, low=0.4, high=0.6), LABELS % 2
    direction = ascent(labels) / norms(ascent(labels))
    adversarial = attack.perturb(two_classes, images, labels)
    np.testing.assert_allclose(adversarial, images + 0.3 * direction, atol=tolerance)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 0.9)])
def test_result_is_in_the_ball_and_in_range(norm, epsilon, restarts, steps):
    images = np.round(random(5, *SHAPE), 1)  # Some pixels are exactly 0 or 1.
    attack = PGD(
        epsilon=epsilon, step_size=0.4, steps=steps, norm=norm, restarts=restarts
    )
    adversarial = attack.perturb(curved, images, LABELS)
    assert adversarial.dtype == tf.float32
    assert np.all((adversarial >= 0) & (adversarial <= 1))
    delta = adversarial - images
    size = norms(delta) if norm == "l2" else np.abs(delta)
    assert np.all(size <= epsilon + 1e-6)
    assert np.all(np.any(delta != 0, (1, 2, 3)))


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(epsilon=0.02),
        PGD(epsilon=0.05, step_size=0.01, steps=10, random_start=False),
        PGD(epsilon=0.05, step_size=0.01, steps=20),
        PGD(epsilon=0.2, step_size=0.04, steps=20, norm="l2"),
    ],
    ids=repr,
)
def test_loss_of_every_example_rises(attack):
    images = random(5, *SHAPE, low=0.3, high=0.7)
    adversarial = attack.perturb(curved, images, LABELS)
    assert np.all(losses(curved, adversarial) > losses(curved, images))


def test_more_steps_raise_the_loss_and_each_restart_can_only_help():
    images = random(5, *SHAPE)
    attack = PGD(epsilon=0.3, step_size=0.05, steps=2, restarts=4)
    best = attack.perturb(curved, images, LABELS, seed=SEED)
    single = dataclasses.replace(attack, restarts=1)
    runs = [
        single.perturb(
            curved,
            images,
            LABELS,
            # The first is the run without restarts, so that they contain it.
            seed=tf.random.experimental.stateless_fold_in(SEED, i) if i else SEED,
        ).numpy()
        for i in tf.range(4, dtype="int64")
    ]
    of_runs = np.array([losses(curved, run) for run in runs])
    fooled = np.array([np.argmax(curved(run), -1) != LABELS for run in runs])
    # What fools comes first, then the loss counts.
    choice = (of_runs + 100 * fooled).argmax(0)
    assert len(set(choice)) > 1  # Otherwise the choice would not be per example.
    expected = np.array(runs)[choice, np.arange(5)]
    np.testing.assert_allclose(best, expected, atol=1e-6)
    longer = dataclasses.replace(attack, steps=20)
    longer = longer.perturb(curved, images, LABELS, seed=SEED)
    assert np.all(losses(curved, longer) > losses(curved, best))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_degenerate_settings(norm):
    images = random(5, *SHAPE)

    def perturb(**settings):
        attack = PGD(norm=norm, **{"epsilon": 0.1, "steps": 3, **settings})
        return attack.perturb(curved, images, LABELS, seed=SEED)

    np.testing.assert_allclose(perturb(epsilon=0), images, atol=1e-7)
    np.testing.assert_array_equal(perturb(steps=0, random_start=False), images)
    np.testing.assert_array_equal(perturb(step_size=0, random_start=False), images)
    start = perturb(steps=0)
    assert np.all(np.any(start != images, (1, 2, 3)))
    np.testing.assert_allclose(perturb(step_size=0), start, atol=1e-6)


def test_fgsm_with_epsilon_zero_and_with_a_flat_loss_changes_nothing():
    images = random(5, *SHAPE)
    for epsilon, scale in ((0, 1.0), (0.1, 0.0)):
        adversarial = FGSM(epsilon=epsilon).perturb(
            lambda x, scale=scale: scale * curved(x), images, LABELS
        )
        np.testing.assert_array_equal(adversarial, images)
    l2 = PGD(norm="l2", random_start=False).perturb(
        lambda x: 0.0 * curved(x), images, LABELS
    )
    np.testing.assert_array_equal(l2, images)  # It is not NaN.


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_start_is_uniform_in_the_ball(norm):
    """Counts in 10 bins of what is uniform: chi-square below 44.8, else once in 1e6.

    In the cube that is each coordinate, in the d-dimensional ball radius ** d.
    """
    images = np.full((20_000, 2, 2, 1), 0.5, "float32")
    attack = PGD(epsilon=0.1, steps=0, norm=norm)
    start = attack.perturb(two_classes, images, np.zeros(20_000, int), seed=SEED)
    delta = (start.numpy() - images).reshape(-1, 4) / 0.1
    radius = np.linalg.norm(delta, axis=1)
    columns = [radius**4] if norm == "l2" else list((delta.T + 1) / 2)
    if norm == "l2":
        # On the sphere in 4 dimensions, the angle of any two coordinates is uniform.
        turn = np.arctan2(delta[:, 0], delta[:, 1]) / (2 * np.pi) + 0.5
        other = np.arctan2(delta[:, 2], delta[:, 3]) / (2 * np.pi) + 0.5
        columns += [turn, other]
    for column in columns:
        counts = np.histogram(np.clip(column, 0, 1), 10, (0, 1))[0]
        assert counts.sum() == len(images)
        assert np.sum((counts - 2000) ** 2 / 2000) < 44.8
    assert len(np.unique(delta[:, 0])) > 0.9 * len(images)  # Each example has its own.


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
@pytest.mark.parametrize("convert", [np.asarray, tf.constant], ids=["NumPy", "tensor"])
def test_labels_of_any_integer_type(dtype, convert):
    images = random(5, *SHAPE)
    for attack in (FGSM(), PGD(steps=2), PGD(steps=2, restarts=2)):
        expected = attack(curved, images, tf.constant(LABELS), seed=SEED)
        labels = convert(LABELS.astype(dtype))
        result = attack.perturb(curved, tf.constant(images), labels, seed=SEED)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    "attack",
    [FGSM(), PGD(steps=3), PGD(steps=3, norm="l2", restarts=2)],
    ids=repr,
)
def test_traced_with_an_unknown_batch_size(attack):
    @tf.function(
        input_signature=[
            tf.TensorSpec((None, *SHAPE)),
            tf.TensorSpec((None,), "int32"),
        ]
    )
    def traced(images, labels):
        return attack.perturb(curved, images, labels, seed=SEED)

    for count in (1, 5):
        images, labels = random(count, *SHAPE), LABELS[:count].astype("int32")
        expected = attack.perturb(curved, images, labels, seed=SEED)
        np.testing.assert_allclose(traced(images, labels), expected, atol=1e-6)
        assert traced.experimental_get_tracing_count() == 1


def test_seed_determines_the_random_start():
    images = random(5, *SHAPE)
    attack = PGD(steps=1, restarts=2)

    def run(seed):
        return attack.perturb(curved, images, LABELS, seed=seed).numpy()

    first = run(SEED)
    np.testing.assert_array_equal(run(SEED), first)
    np.testing.assert_array_equal(run([3, 4]), first)
    assert np.any(run([3, 5]) != first)
    tf.random.set_seed(1)
    unseeded = [run(None), run(None)]
    assert np.any(unseeded[0] != unseeded[1])
    tf.random.set_seed(1)
    np.testing.assert_array_equal(run(None), unseeded[0])


def size_of_graph(logits_fn, attack):
    """Number of operations, those inside loops and functions included."""
    traced = tf.function(lambda images: attack.perturb(logits_fn, images, LABELS))
    graph = traced.get_concrete_function(tf.TensorSpec((5, *SHAPE))).graph
    definition = graph.as_graph_def()
    functions = definition.library.function
    return len(definition.node) + sum(len(f.node_def) for f in functions)


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ((PGD(steps=2), 0), (PGD(steps=50), 0)),
        ((PGD(steps=2, restarts=2), 0), (PGD(steps=2, restarts=50), 0)),
        ((PGD(steps=2, norm="l2"), 2), (PGD(steps=50, norm="l2"), 50)),
        ((FGSM(), 2), (FGSM(), 50)),
    ],
    ids=["steps", "restarts", "steps and draws", "draws"],
)
def test_graph_does_not_grow(small, large):
    sizes = [
        size_of_graph(ExpectationOverNoise(curved, draws) if draws else curved, attack)
        for attack, draws in (small, large)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("settings", "reaches"),
    [
        ({"epsilon": 0.1, "step_size": 0.02, "steps": 10}, True),
        ({"epsilon": 0.1, "step_size": 0.02, "steps": 9}, False),
        ({"epsilon": 0, "steps": 0}, True),
    ],
)
def test_reaches_boundary(settings, reaches):
    assert PGD(**settings).reaches_boundary is reaches


@pytest.mark.parametrize(
    "attack",
    [FGSM(epsilon=0.25), PGD(), PGD(epsilon=1, norm="l2", steps=9, restarts=2)],
    ids=repr,
)
def test_attacks_are_values(attack):
    """`repr` shows every setting, and no setting can be changed."""
    assert eval(repr(attack)) == attack
    for field in dataclasses.fields(attack):
        assert f"{field.name}={getattr(attack, field.name)!r}" in repr(attack)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(attack, field.name, 1)
    with pytest.raises(TypeError, match="positional"):
        type(attack)(0.1)
    with pytest.raises(TypeError, match="abstract"):
        Attack()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FGSM(epsilon=-0.1), "`epsilon` must be a finite number.*=-0.1"),
        (lambda: FGSM(epsilon=float("nan")), "epsilon=nan"),
        (lambda: PGD(epsilon=float("inf")), "epsilon=inf"),
        (lambda: PGD(epsilon="8/255"), "epsilon='8/255'"),
        (lambda: PGD(step_size=-1), "`step_size` must be.*=-1"),
        (lambda: PGD(steps=-1), "`steps` must be an integer of at least 0.*=-1"),
        (lambda: PGD(steps=1.5), "steps=1.5"),
        (lambda: PGD(steps=True), "steps=True"),
        (lambda: PGD(restarts=0), "`restarts` must be an integer of at least 1.*=0"),
        (lambda: PGD(norm="l1"), "`norm` must be one of .'linf', 'l2'.*norm='l1'"),
        (lambda: PGD(restarts=2, random_start=False), "Restarts without.*restarts=2"),
        (lambda: ExpectationOverNoise(curved, 0), "`draws` must be.*draws=0"),
        (lambda: ExpectationOverNoise(curved, 2.0), "draws=2.0"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


GOOD = np.full((3, 4, 4, 1), 0.5, "float32"), np.array([0, 1, 0])


@pytest.mark.parametrize("run", [True, False], ids=["run", "perturb"])
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD[0] * np.nan, GOOD[1], "`images` must be finite"),
        ((GOOD[0] * 255).astype("uint8"), GOOD[1], "`images` must be floats.*uint8"),
        (GOOD[0] * 255, GOOD[1], r"`images` must be in \[0, 1\].*127.5"),
        (tf.constant(GOOD[0] * 255), GOOD[1], r"`images` must be in \[0, 1\].*127.5"),
        (GOOD[0][:0], GOOD[1][:0], r"at least one image.*\(0, 4, 4, 1\)"),
        (GOOD[0][0], GOOD[1], r"`images` must have the shape.*\(4, 4, 1\)"),
        (None, GOOD[1], "`images` must be floats.*object"),
        (GOOD[0], GOOD[1].astype("float32"), "`labels` must be integers.*float32"),
        (GOOD[0], GOOD[1].astype("m8[s]"), "`labels` must be integers.*timedelta"),
        (GOOD[0], np.eye(2)[GOOD[1]], r"`labels` .*\(3, 2\).*argmax"),
        (GOOD[0], GOOD[1][:2], "`labels` must have one entry for each of the 3 images"),
        (GOOD[0], GOOD[1] - 1, "`labels` must be in 0..K - 1.*-1 to 0"),
        (GOOD[0], GOOD[1] + 1, r"`labels` must be in 0..1.*1 to 2"),
        (GOOD[0], [[0], [1, 2]], "`labels` is not an array"),
    ],
)
def test_wrong_batches_are_named(images, labels, message, run):
    for attack in (FGSM(epsilon=0.1), PGD(epsilon=0.1, steps=1)):
        call = attack.run if run else attack.perturb
        with pytest.raises(ValueError, match=message):
            call(two_classes, images, labels)
    with pytest.raises(ValueError, match="`(images|labels|towards)`"):
        attack.run(two_classes, images, labels, towards=labels)


def test_a_graph_knows_types_and_ranks():
    call = tf.function(PGD(steps=1).perturb).get_concrete_function
    images, labels = (
        tf.TensorSpec([None, 4, 4, 1]),
        tf.TensorSpec([None], tf.int32),
    )
    call(two_classes, images, labels)
    for wrong in (
        (tf.TensorSpec([None, 4, 4, 1], tf.uint8), labels),
        (tf.TensorSpec([None, 4, 4]), labels),
        (images, tf.TensorSpec([None])),
        (images, tf.TensorSpec([None, 2], tf.int32)),
    ):
        with pytest.raises(ValueError, match="must be (floats|integers)"):
            call(two_classes, *wrong)


@pytest.mark.parametrize("kind", ["float64", ">f4", ">f8", list])
def test_other_forms_of_the_same_batch(kind):
    images = GOOD[0].tolist() if kind is list else GOOD[0].astype(kind)
    labels = GOOD[1].tolist() if kind is list else GOOD[1].astype(">i2")
    attack = PGD(epsilon=0.1, steps=2)
    np.testing.assert_array_equal(
        attack.perturb(two_classes, images, labels, seed=SEED),
        attack.perturb(two_classes, *GOOD, seed=SEED),
    )
