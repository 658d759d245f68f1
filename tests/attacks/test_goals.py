"""The losses of the attacks against NumPy, written out from their papers."""

import numpy as np
import pytest
import tensorflow as tf

from pni_tf.attacks.goals import Goal

ROWS = 400


def case(classes, *, ties=False, seed=1):
    """Logits, labels and towards that differ from the labels."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=3, size=(ROWS, classes))
    if ties:  # With few levels, most rows have several equal logits.
        logits = generator.integers(-1, 2, (ROWS, classes))
    labels = generator.integers(0, classes, ROWS)
    towards = (labels + generator.integers(1, classes, ROWS)) % classes
    return logits.astype("float32"), labels, towards


CASES = pytest.mark.parametrize(
    ("classes", "ties"), [(3, False), (4, False), (10, False), (4, True), (10, True)]
)


def others(row, own):
    return [value for k, value in enumerate(row) if k != own]


def written_margin(logits, labels, towards=None):
    rows = logits.astype("float64")
    if towards is None:
        return [max(others(z, y)) - z[y] for z, y in zip(rows, labels, strict=True)]
    return [z[t] - max(others(z, t)) for z, t in zip(rows, towards, strict=True)]


def written_dlr(logits, labels):
    """-(z_y - max_{i != y} z_i) / (z_(1) - z_(3) + 1e-12), eq. 6."""
    found = []
    for z, y in zip(logits.astype("float64"), labels, strict=True):
        largest = sorted(z, reverse=True)
        span = largest[0] - largest[2] + 1e-12
        found.append(-(z[y] - max(others(z, y))) / span)
    return found


def written_targeted_dlr(logits, labels, towards):
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12), eq. 7."""
    found = []
    for z, y, t in zip(logits.astype("float64"), labels, towards, strict=True):
        largest = sorted(z, reverse=True)
        span = largest[0] - (largest[2] + largest[3]) / 2 + 1e-12
        found.append(-(z[y] - z[t]) / span)
    return found


def written_cross_entropy(logits, classes):
    logits = logits.astype("float64")
    total = np.log(np.sum(np.exp(logits), 1))
    return total - logits[np.arange(len(classes)), classes]


@CASES
def test_margin(classes, ties):
    logits, labels, towards = case(classes, ties=ties)
    margin = Goal.of(labels).margin(logits)
    np.testing.assert_allclose(margin, written_margin(logits, labels), rtol=1e-6)
    margin = Goal.of(labels, towards).margin(logits)
    expected = written_margin(logits, labels, towards)
    np.testing.assert_allclose(margin, expected, rtol=1e-6)


@CASES
def test_dlr(classes, ties):
    """With ties the span may be 0: then z_y below it costs 1e12 times the gap."""
    logits, labels, towards = case(classes, ties=ties)
    expected = written_dlr(logits, labels)
    if ties:
        assert max(expected) > 1e11  # The 1e-12 matters.
        assert 0.0 in expected
    np.testing.assert_allclose(Goal.of(labels).dlr(logits), expected, rtol=1e-5)
    if classes == 3:
        return
    expected = written_targeted_dlr(logits, labels, towards)
    found = Goal.of(labels, towards).dlr(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_dlr_needs_three_and_targeted_four_classes():
    for goal, classes in ((Goal.of([0]), 2), (Goal.of([0], [1]), 3)):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            goal.dlr(tf.zeros((1, classes)))
        goal.dlr(tf.zeros((1, classes + 1)))


@pytest.mark.parametrize(("classes", "targeted"), [(3, False), (4, True), (10, True)])
def test_dlr_does_not_change_with_shift_and_scale(classes, targeted):
    """Unlike the margin and the cross-entropy."""
    logits, labels, towards = case(classes)
    goal = Goal.of(labels, towards if targeted else None)
    changed = 7.0 * logits + np.linspace(-5, 5, ROWS, dtype="float32")[:, None]
    expected = goal.dlr(logits)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(goal.dlr(changed), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        goal.margin(changed), 7 * goal.margin(logits), rtol=1e-3, atol=1e-4
    )
    assert np.all(goal.cross_entropy(changed) != goal.cross_entropy(logits))


@CASES
def test_cross_entropy(classes, ties):
    logits, labels, towards = case(classes, ties=ties)
    expected = written_cross_entropy(logits, labels)
    found = Goal.of(labels).cross_entropy(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    expected = -written_cross_entropy(logits, towards)
    found = Goal.of(labels, towards).cross_entropy(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@CASES
def test_fooled(classes, ties):
    """Of equal logits the first is the prediction."""
    logits, labels, towards = case(classes, ties=ties)
    predictions = [list(row).index(max(row)) for row in logits]
    fooled = Goal.of(labels).fooled(logits)
    np.testing.assert_array_equal(fooled, (predictions != labels).astype("float32"))
    reached = Goal.of(labels, towards).fooled(logits)
    np.testing.assert_array_equal(reached, (predictions == towards).astype("float32"))
    assert 0 < np.sum(reached) < np.sum(fooled) < ROWS
    for verdict, margin in (
        (fooled, Goal.of(labels).margin(logits)),
        (reached, Goal.of(labels, towards).margin(logits)),
    ):
        # A margin of 0 is a tie, and may be either.
        assert np.all(verdict.numpy()[margin > 0] == 1)
        assert np.all(verdict.numpy()[margin < 0] == 0)
    assert np.any(Goal.of(labels).margin(logits) == 0) == ties


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("targeted", [False, True])
def test_logits_of_other_types(dtype, targeted):
    """Computed and returned in float32: 60000 - -60000 is infinite in float16."""
    logits, labels, towards = case(4)
    goal = Goal.of(labels, towards if targeted else None)
    rounded = tf.cast(np.clip(logits * 6000, -6e4, 6e4), dtype)
    single = tf.cast(rounded, tf.float32)
    for name in ("margin", "dlr", "cross_entropy", "fooled"):
        found = getattr(goal, name)(rounded)
        assert found.dtype == tf.float32
        assert np.all(np.isfinite(found))
        np.testing.assert_array_equal(found, getattr(goal, name)(single))
    assert np.max(np.abs(goal.margin(rounded))) > 65504  # That is the largest float16.


@pytest.mark.parametrize(
    ("name", "targeted"),
    [
        ("margin", False),
        ("margin", True),
        ("cross_entropy", False),
        ("cross_entropy", True),
        ("dlr", False),  # Targeted, it asks only that the target be above the label.
    ],
)
def test_ascent_reaches_the_goal(name, targeted):
    """A wrong sign in a loss would make every attack a defence."""
    logits, labels, towards = case(10)
    goal = Goal.of(labels, towards if targeted else None)
    for _ in range(40):
        logits = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = tf.reduce_sum(getattr(goal, name)(logits))
        gradient = tape.gradient(loss, logits)
        size = tf.norm(gradient, axis=1, keepdims=True)
        logits = logits + 0.5 * gradient / (size + 1e-12)
    assert np.mean(goal.fooled(case(10)[0])) < 0.95
    assert np.all(goal.fooled(logits) == 1)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_labels_of_any_integer_type(dtype):
    logits, labels, towards = case(10)
    for convert in (np.asarray, tf.constant):
        goal = Goal.of(convert(labels.astype(dtype)), convert(towards.astype(dtype)))
        assert goal.labels.dtype == goal.towards.dtype == tf.int64
        expected = Goal.of(labels, towards).margin(logits)
        np.testing.assert_array_equal(goal.margin(logits), expected)


@pytest.mark.parametrize("targeted", [False, True])
def test_take(targeted):
    _, labels, towards = case(10)
    goal = Goal.of(labels, towards if targeted else None)
    rows = np.array([5, 2, 2, 399])
    taken = goal.take(tf.constant(rows))
    np.testing.assert_array_equal(taken.labels, labels[rows])
    if not targeted:
        assert taken.towards is None
        return
    np.testing.assert_array_equal(taken.towards, towards[rows])
