"""Auto-PGD against its paper's algorithm in NumPy, closed forms and counts."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf

from pni_tf import APGD, ExpectationOverNoise

SEED = tf.constant([3, 4], "int64")
COUNT = 6
LABELS = np.array([0, 1, 2, 0, 1, 2])


def random(*shape, low=0.0, high=1.0, seed=1):
    return np.random.default_rng(seed).uniform(low, high, shape).astype("float32")


IMAGES = np.round(random(COUNT, 4, 4, 1), 1)  # Some pixels are exactly 0 or 1.
HIDDEN, OUTPUT = random(16, 8, low=-1), random(8, 5, low=-2, high=2, seed=3)


def curved(images):
    """A deterministic network of five classes whose loss oscillates."""
    return tf.sin(6.0 * tf.reshape(images, (-1, 16)) @ HIDDEN) @ OUTPUT


class Counting:
    """A network that counts its calls and the images of them, in graphs too."""

    def __init__(self, network=curved):
        self.network = network
        self.calls, self.images = tf.Variable(0), tf.Variable(0)

    def __call__(self, images):
        self.calls.assign_add(1)
        self.images.assign_add(tf.shape(images)[0])
        return self.network(images)


def traced(attack, logits_fn=curved, images=IMAGES, labels=LABELS, **arguments):
    arguments = {"seed": SEED, **arguments}
    run = tf.function(attack.run, autograph=False)  # Autograph would only be slower.
    return run(logits_fn, images, labels, **arguments)


# --- Algorithm 1 --------------------------------------------------------------------


def written_checkpoints(steps):
    """p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    shares = [Fraction(0), Fraction(22, 100)]
    while True:
        length = max(shares[-1] - shares[-2] - Fraction(3, 100), Fraction(6, 100))
        if shares[-1] + length > 1:
            return [math.ceil(share * steps) for share in shares[1:]]
        shares.append(shares[-1] + length)


def whole_checkpoints(steps):
    """The same in lengths of whole steps, at least one."""
    length = max(22 * steps // 100, 1)
    found = [length]
    while found[-1] < steps:
        length = max(length - max(3 * steps // 100, 1), max(6 * steps // 100, 1))
        found.append(found[-1] + length)
    return [step for step in found if step <= steps]


def test_checkpoints():
    assert APGD(steps=100).checkpoints == [22, 41, 57, 70, 80, 87, 93, 99]
    for steps in (100, 200, 500, 1000, 1900):
        assert APGD(steps=steps).checkpoints == written_checkpoints(steps)
    for steps in range(1, 400):
        assert APGD(steps=steps).checkpoints == whole_checkpoints(steps)


def written_clip(image, point, epsilon, norm):
    delta = point - image
    if norm == "linf":
        delta = np.clip(delta, -epsilon, epsilon)
    else:
        delta = delta * min(1.0, epsilon / (np.linalg.norm(delta) + 1e-12))
    return np.clip(image + delta, 0, 1)


def written_apgd(evaluate, image, start, *, epsilon, norm, steps, rho):
    """Algorithm 1 for one image: from x(0) = start to x(steps), the last evaluated.

    Returns the point with the largest loss and the step size at each checkpoint.
    """
    checkpoints, ends, step_sizes = whole_checkpoints(steps), [0], []
    points, losses = [start], []  # x(k), and f(x(k)) as it was before a return.
    eta, halved, before = 2 * epsilon, False, None
    best = (-math.inf, None, None)
    for k in range(steps + 1):
        loss, gradient = evaluate(points[k])
        losses.append(loss)
        if loss > best[0]:
            best = (loss, points[k], gradient)
        before = best[0] if k == 0 else before
        if k in checkpoints:
            risen = sum(losses[i + 1] > losses[i] for i in range(ends[-1], k))
            first = risen < rho * (k - ends[-1])
            second = not halved and best[0] == before
            halved, before = first or second, best[0]
            if halved:
                eta = eta / 2
                _, points[k], gradient = best
            ends.append(k)
            step_sizes.append(eta)
        if k == steps:
            return best[1], step_sizes
        length = np.linalg.norm(gradient) + 1e-12
        direction = np.sign(gradient) if norm == "linf" else gradient / length
        now = points[k]
        point = written_clip(image, now + eta * direction, epsilon, norm)
        if k > 0:
            point = now + 0.75 * (point - now) + 0.25 * (now - points[k - 1])
        points.append(written_clip(image, point, epsilon, norm))


def unfooled(frequency):
    """A flatter `curved` that always says 0: its best point has the largest loss."""

    def network(images):
        inner = frequency * tf.reshape(images, (-1, 16)) @ HIDDEN
        return tf.sin(inner) @ OUTPUT / 4 + 3 * tf.one_hot(0, 5)

    def evaluate(point):
        """Returns the cross-entropy of class 0 at one point and its gradient."""
        inner = frequency * point.reshape(16) @ HIDDEN
        logits = np.sin(inner) @ OUTPUT / 4 + 3 * np.eye(5)[0]
        odds = np.exp(logits) / np.exp(logits).sum()
        slope = (odds - np.eye(5)[0]) / 4
        gradient = HIDDEN @ (frequency * np.cos(inner) * (OUTPUT @ slope))
        return -np.log(odds[0]), gradient.reshape(4, 4, 1)

    return network, evaluate


@pytest.mark.parametrize(
    ("norm", "epsilon", "frequency", "steps", "rho"),
    [
        ("linf", 0.1, 6, 50, 0.75),
        ("linf", 0.1, 6, 17, 0.5),
        ("l2", 0.8, 2, 30, 0.75),
        ("l2", 0.8, 2, 30, 0.5),
    ],
)
def test_run_is_algorithm_1(norm, epsilon, frequency, steps, rho):
    """From the first point, where a run on a network without slope stays.

    All 40 images agreed to 1e-5. Two may differ on other machines: rounding can turn a
    comparison of two losses that are nearly equal, and so the rest of the run.
    """
    network, evaluate = unfooled(frequency)
    attack = APGD(epsilon=epsilon, norm=norm, steps=steps, rho=rho)
    images, labels = random(40, 4, 4, 1, seed=5), np.zeros(40, int)
    first = dataclasses.replace(attack, steps=1)
    start = first.perturb(lambda x: 0 * curved(x), images, labels, seed=SEED).numpy()
    found = traced(attack, network, images, labels)
    assert not np.any(found.found)
    errors, trajectories = [], set()
    for image, begin, end in zip(images, start, found.images.numpy(), strict=True):
        expected, sizes = written_apgd(
            evaluate,
            image.astype("float64"),
            begin.astype("float64"),
            epsilon=epsilon,
            norm=norm,
            steps=steps,
            rho=rho,
        )
        errors.append(np.abs(end - expected).max())
        trajectories.add(tuple(sizes))
    assert np.sum(np.array(errors) < 1e-5) >= 38
    assert np.all(np.max(np.abs(found.images - start), (1, 2, 3)) > 0.01)
    assert len(trajectories) >= 4  # Images halve at checkpoints of their own.


# --- Losses and goals ---------------------------------------------------------------

WEIGHTS = random(16, 5, low=-1, seed=2)


def linear(images):
    return tf.reshape(images, (-1, 16)) @ WEIGHTS


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_optimum_of_a_linear_model(norm):
    """Of two classes, so that the best direction is the same everywhere.

    In L2, the loss 1e-3 from the optimum differs from the best by less than rounding.
    """
    images, labels = random(COUNT, 4, 4, 1, low=0.35, high=0.65), LABELS % 2
    wrong = WEIGHTS[:, 1 - labels] - WEIGHTS[:, labels]
    move = np.sign(wrong) if norm == "linf" else wrong / np.linalg.norm(wrong, axis=0)
    attack = APGD(epsilon=0.3, norm=norm, steps=60)
    found = traced(attack, lambda x: linear(x)[:, :2], images, labels)
    expected = images + 0.3 * move.T.reshape(images.shape)
    tolerance = 1e-6 if norm == "linf" else 1e-3
    np.testing.assert_allclose(found.images, expected, atol=tolerance)


@pytest.mark.parametrize(
    ("loss", "norm", "epsilon"),
    [("ce", "l2", 0.3), ("dlr", "linf", 0.1), ("dlr-targeted", "l2", 0.3)],
)
def test_every_loss_fools_within_the_ball(loss, norm, epsilon):
    attack = APGD(epsilon=epsilon, norm=norm, loss=loss, steps=30, target_classes=2)
    images = random(COUNT, 4, 4, 1, seed=5)
    labels = np.argmax(curved(images), -1)
    found = traced(attack, images=images, labels=labels)
    predictions = np.argmax(curved(found.images), -1)
    np.testing.assert_array_equal(found.found, predictions != labels)
    assert np.mean(found.found) > 0.6
    delta = (found.images - images).numpy().reshape(COUNT, 16)
    size = np.linalg.norm(delta, np.inf if norm == "linf" else 2, axis=1)
    assert np.all(size <= epsilon + 1e-6)
    assert np.all((found.images >= 0) & (found.images <= 1))


@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
def test_targets(loss):
    """The targeted DLR asks that the target beat the label: a third class may win."""
    attack = APGD(epsilon=0.5, loss=loss, steps=40)
    images = random(40, 4, 4, 1, low=0.4, high=0.6)
    labels = np.argmax(linear(images), -1)
    towards = (labels + np.arange(40) % 4 + 1) % 5
    found = traced(attack, linear, images, labels, towards=towards)
    logits = linear(found.images).numpy()
    reached = np.argmax(logits, -1) == towards
    np.testing.assert_array_equal(found.found, reached)
    rows = np.arange(40)
    assert np.all(logits[rows, towards] > logits[rows, labels])
    assert np.mean(reached) == 1 if loss == "ce" else np.mean(reached) > 0.9


def decoy(images):
    """Class 1 is ever the nearest to class 0 and never beats it; class 4 can.

    Class 4 is the least likely, and beats class 0 where the mean rises by 0.19.
    """
    rise = tf.reduce_mean(images, (1, 2, 3)) - 0.5
    one = tf.ones_like(rise)
    return tf.stack([one, 0.9 - 0.3 * rise, -one, -1.2 * one, -2 + 16 * rise], 1)


def test_targeted_dlr_tries_every_wrong_class():
    """A random start lies 0.18, or six standard deviations, from class 4."""
    images, labels = np.full((5, 4, 4, 1), 0.5, "float32"), np.zeros(5, int)
    attack = APGD(epsilon=0.2, loss="dlr", steps=30)
    assert not np.any(traced(attack, decoy, images, labels).found)
    for classes, finds in ((3, False), (4, True), (9, True)):
        targeted = dataclasses.replace(
            attack, loss="dlr-targeted", target_classes=classes
        )
        network = Counting(decoy)
        found = traced(targeted, network, images, labels)
        assert np.all(found.found) if finds else not np.any(found.found)
        np.testing.assert_array_equal(found.gradients, 31 * min(classes, 4))
        np.testing.assert_array_equal(found.queries, 1)  # It ranks the classes.
        assert network.calls == 31 * min(classes, 4) + 1


@pytest.mark.parametrize(
    ("loss", "classes", "towards", "needed"),
    [
        ("dlr", 2, None, 3),
        ("dlr", 3, [1] * COUNT, 4),
        ("dlr-targeted", 3, None, 4),
        ("dlr-targeted", 3, [1] * COUNT, 4),
        ("ce", 2, None, None),
        ("dlr", 3, None, None),
        ("dlr-targeted", 4, None, None),
    ],
)
def test_too_few_classes(loss, classes, towards, needed):
    attack = APGD(loss=loss, steps=2)

    def run():
        return traced(
            attack, lambda x: linear(x)[:, :classes], towards=towards, labels=LABELS % 2
        )

    if needed is None:
        assert run().images.shape == IMAGES.shape
        return
    with pytest.raises(ValueError, match=f"at least {needed} classes.*of {classes} "):
        run()


def test_number_of_classes_known_only_at_run_time():
    attack = APGD(epsilon=0.1, loss="dlr-targeted", steps=5, target_classes=9)

    def unknown(images):
        return tf.compat.v1.placeholder_with_default(curved(images), (None, None))

    expected, found = traced(attack), traced(attack, unknown)
    tf.nest.map_structure(np.testing.assert_array_equal, found, expected)


# --- Effort -------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "restarts"), [("ce", 1), ("dlr-targeted", 3)])
def test_early_stop_leaves_out_images_that_fool(restarts, loss):
    attack = APGD(
        epsilon=0.02, loss=loss, steps=20, restarts=restarts, target_classes=2
    )
    images = random(20, 4, 4, 1, seed=5)
    labels = np.argmax(curved(images), -1)
    runs = restarts * (1 if loss == "ce" else 2)
    network = Counting()
    full = traced(attack, network, images, labels)
    np.testing.assert_array_equal(full.gradients, 21 * runs)
    assert network.images == np.sum(full.gradients + full.queries)
    network = Counting()
    stopped = dataclasses.replace(attack, early_stop=True)
    found = traced(stopped, network, images, labels)
    if runs == 1:  # Otherwise later starts differ from the full batch's.
        np.testing.assert_array_equal(found.found, full.found)
    predictions = np.argmax(curved(found.images), -1)
    np.testing.assert_array_equal(found.found, predictions != labels)
    assert network.images == np.sum(found.gradients + found.queries)
    failed = ~found.found.numpy()
    assert 0 < np.sum(failed) < 20
    assert np.all(found.gradients[failed] == 21 * runs)
    assert np.all(found.gradients[~failed] < 21 * runs)
    assert len(set(found.gradients.numpy())) > 2


@pytest.mark.parametrize("loss", ["ce", "dlr-targeted"])
def test_more_restarts_never_do_worse(loss):
    images, labels = random(30, 4, 4, 1, seed=5), np.zeros(30, int)

    def hard(images):
        return curved(images) + 7 * tf.one_hot(0, 5)

    attack = APGD(epsilon=0.1, loss=loss, steps=4, target_classes=2)
    found = [
        traced(dataclasses.replace(attack, restarts=n), hard, images, labels)
        for n in (1, 8)
    ]
    assert np.all(found[1].found | ~found[0].found)
    assert np.sum(found[0].found) < np.sum(found[-1].found) < 30


# --- Random networks ----------------------------------------------------------------


class Lucky:
    """Every fourth draw is fooled where the mean falls, the others where it rises.

    A judge of the last draw of four prefers the fall, the average the rise.
    """

    def __init__(self):
        self.calls = tf.Variable(0)

    def __call__(self, images):
        rise = tf.reduce_mean(images, (1, 2, 3)) - 0.5
        lucky = self.calls.assign_add(1) % 4 == 0
        score = tf.where(lucky, 1 - 4 * rise, 20 * (rise - 0.1))
        return tf.stack([tf.zeros_like(score), score], 1)


def test_averages_choose_the_point_and_the_verdict():
    images, labels = np.full((5, 4, 4, 1), 0.5, "float32"), np.zeros(5, int)
    for epsilon, fools in ((0.05, False), (0.2, True)):
        attack = APGD(epsilon=epsilon, steps=20)
        if not fools:  # At least one draw says so.
            assert np.all(traced(attack, Lucky(), images, labels).found)
        network = Lucky()
        found = traced(attack, ExpectationOverNoise(network, 4), images, labels)
        assert np.all(found.found == fools)
        np.testing.assert_allclose(found.images, images + epsilon, atol=1e-6)
        np.testing.assert_array_equal(found.gradients, 21 * 4)
        assert network.calls == 21 * 4


# --- Contract -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        APGD(steps=6),
        APGD(steps=6, norm="l2", loss="dlr", restarts=2),
        APGD(epsilon=0.02, steps=6, loss="dlr-targeted", early_stop=True),
    ],
    ids=repr,
)
def test_traced_with_an_unknown_batch_size(attack):
    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 4, 4, 1)),
            tf.TensorSpec((None,), "int32"),
        ]
    )
    def unknown(images, labels):
        return attack.run(curved, images, labels, seed=SEED)

    for count in (1, 5):
        images, labels = IMAGES[:count], LABELS[:count].astype("int32")
        expected = attack.run(curved, images, labels, seed=SEED)
        found = unknown(images, labels)
        np.testing.assert_allclose(found.images, expected.images, atol=1e-6)
        np.testing.assert_array_equal(found.gradients, expected.gradients)
    assert unknown.experimental_get_tracing_count() == 1


def test_graph_does_not_grow():
    def size(attack):
        function = tf.function(
            lambda images: attack.perturb(curved, images, LABELS), autograph=False
        )
        graph = function.get_concrete_function(tf.TensorSpec(IMAGES.shape)).graph
        graph = graph.as_graph_def()
        return len(graph.node) + sum(len(f.node_def) for f in graph.library.function)

    for loss in ("ce", "dlr-targeted"):
        few = size(APGD(steps=5, restarts=2, loss=loss))
        assert size(APGD(steps=500, restarts=50, loss=loss)) == few


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": -1}, "`epsilon` must be"),
        ({"steps": 0}, "`steps` must be an integer of at least 1"),
        ({"restarts": 0}, "`restarts` must be"),
        ({"target_classes": 0}, "`target_classes` must be"),
        ({"rho": -0.1}, "`rho` must be"),
        ({"norm": "l1"}, "`norm` must be one of"),
        ({"loss": "cw"}, "`loss` must be one of .'ce', 'dlr', 'dlr-targeted'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        APGD(**settings)
