"""ZOO against gradients, closed forms and counted queries."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from pni_tf import ZOO, ExpectationOverNoise, inject_pni
from pni_tf.attacks.bookkeeping import Judge
from pni_tf.attacks.goals import Goal
from pni_tf.attacks.zoo.coordinates import SPACES, Grid, Modifier, importance, sample
from pni_tf.attacks.zoo.queries import Points, ask_each, ask_together

SEED = tf.constant([3, 4])
SIDE = 4
COUNT = SIDE * SIDE


def random(*shape, low=0.0, high=1.0, seed=1):
    return np.random.default_rng(seed).uniform(low, high, shape).astype("float32")


IMAGES = random(5, SIDE, SIDE, 1, low=0.3, high=0.7)
WEIGHTS = random(COUNT, 3, low=-1, seed=2)
FULL = Grid(SIDE, SIDE, (SIDE, SIDE, 1))
MIXED = np.arange(5) % 2
ALL = tf.tile(tf.range(COUNT)[None], (5, 1))

QUICK = ZOO(
    iterations=60,
    binary_search_steps=2,
    coordinates=4,
    initial_const=1.0,
    learning_rate=0.05,
    space="box",
    query_noise="shared",
    patience=20,
)


def linear(images):
    return tf.reshape(images, (-1, COUNT)) @ WEIGHTS[:, :2]


def curved(images):
    hidden = tf.tanh(tf.reshape(images, (-1, COUNT)) @ random(COUNT, 8, low=-1))
    return hidden @ random(8, 3, low=-2, high=2, seed=3)


def constant(images):
    return tf.tile([[1.0, 0.0, 0.0]], (tf.shape(images)[0], 1))


def labels_of(network, images=IMAGES):
    return np.argmax(network(images), 1)


def distances(images, originals=IMAGES):
    return np.sqrt(np.sum(np.square(images - originals), (1, 2, 3)))


def attack(zoo, network, images=IMAGES, labels=None, *, eager=False, **options):
    """Runs in a graph, as all long attacks should.

    As in all these tests without autograph, which has nothing to convert.
    """
    labels = labels_of(network, images) if labels is None else labels
    run = zoo.run if eager else tf.function(zoo.run, autograph=False)
    return run(network, tf.constant(images), labels, **{"seed": SEED, **options})


class Counting:
    """A network that notes the rows of each pass, outside TensorFlow: no gradient."""

    def __init__(self, network):
        self.network, self.passes = network, []

    def __call__(self, images):
        def count(images):
            self.passes.append(images)
            return self.network(images).numpy()

        return tf.numpy_function(count, [images], tf.float32)

    @property
    def rows(self):
        return [len(images) for images in self.passes]


def cosines(a, b):
    a, b = np.reshape(a, (len(a), -1)), np.reshape(b, (len(b), -1))
    return np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


class Margins(Judge):
    """Its loss is minus the margin, so it has a slope everywhere."""

    def values(self, logits):
        margin = self.goal.margin(logits)
        return [-margin, self.goal.fooled(logits), margin]


def answers(network, *, how, space="box", difference=1e-4, images=IMAGES, batch=4096):
    """Asks about every coordinate of the unchanged images; the loss is -margin."""
    ask = ask_each if how == "independent" else lambda *a: ask_together(*a, batch)
    space = SPACES[space].of(tf.constant(images))
    points = Points(space, tf.zeros(images.shape), FULL, ALL, difference)
    return ask(Margins(network, Goal.of(MIXED), 0.0, 0.9), points)


# Grids, and which coordinates are drawn.


@pytest.mark.parametrize("grid", [FULL, Grid(2, 3, (4, 5, 2)), Grid(4, 4, (9, 7, 1))])
def test_offsets_are_those_of_the_scaling(grid):
    units = tf.eye(grid.count)
    offsets = grid.offsets(tf.range(grid.count))
    np.testing.assert_allclose(offsets, grid.upscale(units), atol=1e-6)
    values = random(2, *grid.image)
    flat = np.reshape(offsets, (grid.count, -1))
    for power in (1, 2):
        np.testing.assert_allclose(
            grid.collect(values, squared=power == 2),
            values.reshape(2, -1) @ (flat**power).T,
            rtol=1e-4,
        )


def test_coordinates_are_distinct_and_uniform():
    chosen = sample(SEED, 4000, FULL, 5).numpy()
    assert all(len(set(row)) == 5 for row in chosen)
    share = np.bincount(chosen.ravel(), minlength=COUNT) / 4000
    np.testing.assert_allclose(share, 5 / COUNT, atol=0.04)  # 5 standard deviations


def test_coordinates_follow_the_weights():
    weights = np.zeros((4000, COUNT), "float32")
    weights[:, 2], weights[:, 7] = 3.0, 1.0
    first = sample(SEED, 4000, FULL, 1, tf.constant(weights)).numpy()
    assert set(first.ravel()) == {2, 7}
    np.testing.assert_allclose(np.mean(first == 2), 0.75, atol=0.035)
    chosen = sample(SEED, 4000, FULL, 3, tf.constant(weights)).numpy()
    assert all({2, 7} < set(row) and len(set(row)) == 3 for row in chosen)


def test_importance_is_the_largest_change_of_the_region():
    grid = Grid(20, 18, (20, 18, 2))  # Regions are 2 x 2, the last ones whole.
    modifier = random(3, 20, 18, 2, low=-1)
    expected = np.empty_like(modifier)
    for y in range(0, 20, 2):
        for x in range(0, 18, 2):
            region = np.s_[:, y : y + 2, x : x + 2]
            expected[region] = np.abs(modifier[region]).max((1, 2), keepdims=True)
    weights = importance(grid, tf.reshape(modifier, (3, -1)))
    np.testing.assert_array_equal(weights, expected.reshape(3, -1))


def test_importance_of_sides_that_regions_do_not_divide():
    grid = Grid(17, 17, (17, 17, 1))  # Regions are 2 x 2, the last ones cut.
    modifier = np.zeros((1, 17, 17, 1), "float32")
    modifier[0, 16, 16] = -2.0
    weights = grid.unflatten(importance(grid, tf.reshape(modifier, (1, -1))))
    np.testing.assert_array_equal(weights, np.abs(modifier))


# Differences.


@pytest.mark.parametrize("how", ["independent", "shared"])
@pytest.mark.parametrize("space", ["tanh", "box"])
def test_slopes_are_the_gradient(how, space):
    # Measured: the cosine at h = 1e-4 exceeds 0.9999.
    change = tf.zeros(IMAGES.shape)
    with tf.GradientTape() as tape:
        tape.watch(change)
        images = SPACES[space].of(tf.constant(IMAGES)).image(change)
        margin = Goal.of(MIXED).margin(curved(images))
    gradient = -np.reshape(tape.gradient(margin, change), (5, -1))
    estimate = answers(curved, how=how, space=space)
    slope = estimate.slope(1e-4).numpy()
    assert np.all(cosines(slope, gradient) > 0.999)
    np.testing.assert_allclose(slope, gradient, atol=0.02 * np.abs(gradient).max())
    large = np.abs(gradient) > 0.1 * np.abs(gradient).max()
    assert np.array_equal(np.sign(slope[large]), np.sign(gradient[large]))
    assert (slope[large] > 0).any() and (slope[large] < 0).any()
    np.testing.assert_allclose(estimate.loss, -margin, atol=1e-5)


def test_the_second_difference_needs_a_larger_step():
    def quadratic(images):  # Its margin is the sum of w x^2.
        values = tf.reshape(tf.square(images), (-1, COUNT)) @ WEIGHTS[:, :1]
        return tf.concat([tf.zeros_like(values), values], 1)

    truth = 2.0 * np.outer(2 * MIXED - 1, WEIGHTS[:, 0])
    # 0.05: four roundings of 1e-7 over the square of 1e-2, and some more.
    curvature = answers(quadratic, how="shared", difference=1e-2).curvature(1e-2)
    np.testing.assert_allclose(curvature, truth, atol=0.05)
    rounding = answers(quadratic, how="shared").curvature(1e-4) - truth
    assert np.abs(rounding).max() > 2.0  # This is why the docstring warns.


@pytest.mark.parametrize("space", ["tanh", "box"])
def test_derivatives_of_the_space(space):
    points = SPACES[space].of(tf.constant(IMAGES))
    change = tf.constant(random(*IMAGES.shape, low=-0.2, high=0.2, seed=5))
    with tf.GradientTape() as outer:
        outer.watch(change)
        with tf.GradientTape() as inner:
            inner.watch(change)
            image = points.image(change)
        first = inner.gradient(image, change)
    second = outer.gradient(first, change)
    second = tf.zeros_like(change) if second is None else second
    for mine, true in zip(points.derivatives(change), (first, second), strict=True):
        np.testing.assert_allclose(mine, true, atol=1e-5)


def test_pixels_at_the_border_of_the_box_have_a_slope():
    images = IMAGES.copy()
    images[:, 0], images[:, 1] = 0.0, 1.0
    slope = answers(linear, how="shared", images=images).slope(1e-4)
    true = np.outer(1 - 2 * MIXED, WEIGHTS[:, 0] - WEIGHTS[:, 1])
    np.testing.assert_allclose(slope, true, atol=0.02)


def test_the_box_bounds_the_modifier():
    space = SPACES["box"].of(tf.constant(IMAGES))
    for value, border in ((-3.0, 0.0), (3.0, 1.0)):
        modifier = space.project(tf.fill((5, COUNT), value), FULL)
        moved = IMAGES + np.reshape(modifier, IMAGES.shape)
        np.testing.assert_allclose(moved, np.full_like(IMAGES, border), atol=1e-6)
    inside = random(5, COUNT, low=-0.3, high=0.3)
    np.testing.assert_array_equal(space.project(tf.constant(inside), FULL), inside)


def test_each_coordinate_counts_its_own_steps():
    modifier = Modifier.start(tf.zeros((1, 3)))
    for coordinates, gradient in (([0, 1], [1.0, -4.0]), ([1, 2], [-4.0, 9.0])):
        modifier = modifier.adam(
            tf.constant([coordinates]), tf.constant([gradient]), 0.01, (0.9, 0.999)
        )
    # With a constant gradient each step of Adam is the learning rate.
    np.testing.assert_allclose(modifier.value, [[-0.01, 0.02, -0.01]], rtol=1e-3)
    np.testing.assert_array_equal(modifier.steps, [[1, 2, 1]])


def test_newton_divides_by_a_guarded_curvature():
    modifier = Modifier.start(tf.zeros((1, 4))).newton(
        tf.constant([[3, 0, 1]]),
        tf.constant([[1.0, 1.0, 1.0]]),
        tf.constant([[-5.0, 0.01, 4.0]]),
        0.1,
    )
    np.testing.assert_allclose(modifier.value, [[-1.0, -0.025, 0.0, -0.1]], rtol=1e-6)


# The attack.


@pytest.mark.parametrize(
    ("solver", "space", "targeted"),
    [
        ("adam", "tanh", False),
        ("adam", "box", True),
        ("newton", "tanh", True),
        ("newton", "box", False),
    ],
)
def test_smallest_perturbation_of_a_linear_network(solver, space, targeted):
    """Two classes: the distance to the other is |margin| / ||w||, along w."""
    zoo = ZOO(
        iterations=150,
        binary_search_steps=6,
        coordinates=COUNT,
        initial_const=0.3,
        solver=solver,
        space=space,
        difference=1e-4 if solver == "adam" else 1e-2,
        learning_rate=0.02 if solver == "adam" else 0.3,
        query_noise="shared",
    )
    labels = labels_of(linear)
    towards = 1 - labels if targeted else None
    outcome = attack(zoo, linear, labels=labels, towards=towards)
    assert outcome.found.numpy().all()
    assert (labels_of(linear, outcome.images) == 1 - labels).all()
    normal = WEIGHTS[:, 0] - WEIGHTS[:, 1]
    margin = np.abs(np.subtract(*np.transpose(linear(IMAGES))))
    ratio = distances(outcome.images) / (margin / np.linalg.norm(normal))
    assert np.all((ratio > 0.999) & (ratio < 1.05)), ratio
    change = np.reshape(outcome.images - IMAGES, (5, -1))
    towards = np.where(labels[:, None] == 0, -normal, normal)
    assert np.all(cosines(change, towards) > 0.95)
    assert (change > 1e-3).any() and (change < -1e-3).any()


def test_constants_of_ten_steps():
    """One step of Newton ends at the minimum for a constant: -c g / 2 from the image.

    So the second pass of each step shows its constant.
    """
    zoo = dataclasses.replace(
        *(QUICK,),
        **dict(solver="newton", learning_rate=1.0, difference=0.05, iterations=2),
        **dict(initial_const=0.005, binary_search_steps=10, coordinates=COUNT),
    )
    images, labels = IMAGES[:1], labels_of(linear)[:1]
    network = Counting(linear)
    outcome = zoo.run(network, tf.constant(images), labels, seed=SEED)
    towards = (1 - 2 * labels[0]) * (WEIGHTS[:, 1] - WEIGHTS[:, 0])
    margin = np.abs(np.subtract(*linear(images)[0]))
    c, low, high, expected = 0.005, 0.0, np.inf, []
    for k in range(10):
        c = high if k == 9 else c
        ends = np.clip(images + c / 2 * towards.reshape(images.shape), 0, 1)
        expected.append(ends)
        fooled = np.sum((ends - images).ravel() * towards) > margin
        low, high = (low, min(high, c)) if fooled else (c, high)
        c = (low + high) / 2 if high < np.inf else 10 * c
    points = [passed[:1] for passed in network.passes[1::2]]
    np.testing.assert_allclose(points, expected, atol=1e-3)
    assert outcome.found.numpy().all()


def test_each_step_draws_its_own_coordinates():
    network = Counting(constant)
    zoo = dataclasses.replace(QUICK, iterations=2)
    zoo.run(network, tf.constant(IMAGES), np.zeros(5, int), seed=SEED)
    moved = [
        np.abs(passed - np.repeat(IMAGES, 9, 0)) > 5e-5 for passed in network.passes
    ]
    assert len(moved) == 4
    assert len({mask.tobytes() for mask in moved}) == 4


def test_targets_are_reached():
    labels = labels_of(curved)
    towards = (labels + 1 + np.arange(5) % 2) % 3
    zoo = dataclasses.replace(QUICK, iterations=300, initial_const=10.0)
    images = IMAGES * 0.2 + 0.4
    outcome = attack(zoo, curved, images, labels, towards=towards)
    reached = labels_of(curved, outcome.images) == towards
    np.testing.assert_array_equal(outcome.found, reached | (towards == labels))
    assert reached.sum() >= 3


def test_a_found_image_keeps_the_confidence():
    zoo = dataclasses.replace(QUICK, confidence=0.5, coordinates=COUNT)
    outcome = attack(zoo, linear)
    assert outcome.found.numpy().all()
    margin = Goal.of(labels_of(linear)).margin(linear(outcome.images)).numpy()
    assert np.all((margin > 0.5 - 1e-5) & (margin < 0.8))


def test_a_misclassified_image_is_its_own_answer():
    zoo = dataclasses.replace(QUICK, iterations=3)
    outcome = attack(zoo, linear, labels=1 - labels_of(linear), eager=True)
    assert outcome.found.numpy().all()
    np.testing.assert_array_equal(outcome.images, IMAGES)


@pytest.mark.parametrize("space", ["tanh", "box"])
def test_failure_returns_the_image_unchanged(space):
    zoo = dataclasses.replace(QUICK, space=space)
    outcome = attack(zoo, constant, labels=np.zeros(5, int))
    assert not outcome.found.numpy().any()
    np.testing.assert_array_equal(outcome.images, IMAGES)
    # Stopped at the second look: 21 iterations of 2 * 4 + 1, for each constant.
    np.testing.assert_array_equal(outcome.queries, [2 * 21 * 9] * 5)
    np.testing.assert_array_equal(outcome.gradients, [0] * 5)


def test_images_stay_in_the_box():
    images = np.round(IMAGES)
    zoo = dataclasses.replace(QUICK, confidence=3.0, learning_rate=0.3)
    outcome = attack(zoo, linear, images)
    found = outcome.images.numpy()
    assert outcome.found.numpy().any() and not np.array_equal(found, images)
    assert found.min() >= 0 and found.max() <= 1


# Queries.


@pytest.mark.parametrize("query_noise", ["independent", "shared"])
@pytest.mark.parametrize("draws", [None, 3])
def test_queries_are_counted_without_a_gradient(query_noise, draws):
    network = Counting(curved)
    target = ExpectationOverNoise(network, draws) if draws else network
    zoo = dataclasses.replace(
        QUICK, query_noise=query_noise, iterations=12, learning_rate=0.1, patience=5
    )
    labels = labels_of(curved)
    outcome = tf.function(zoo.run, autograph=False)(target, IMAGES, labels, seed=SEED)
    assert outcome.queries.numpy().sum() == sum(network.rows)
    assert outcome.queries.dtype == outcome.gradients.dtype == tf.int64
    assert not outcome.gradients.numpy().any()
    assert outcome.found.numpy().any()
    if draws:  # Some were asked again, on top of the 9 points of each iteration.
        assert any(outcome.queries.numpy() % (9 * draws))
    else:
        assert not any(outcome.queries.numpy() % 9)
    if query_noise == "independent":
        assert max(network.rows) <= 5
    else:
        assert max(network.rows) == 5 * 9


def test_what_is_known_is_not_asked():
    """Without noise, the images are the same for fewer queries."""
    settings = {"coordinates": COUNT, "learning_rate": 0.02, "difference": 1e-3}
    outcomes, passes = {}, {}
    for how in ("shared", "none"):
        network = Counting(lambda images: 100 * curved(images))
        zoo = dataclasses.replace(QUICK, query_noise=how, **settings)
        outcomes[how] = tf.function(zoo.run, autograph=False)(
            network, IMAGES, labels_of(curved), seed=SEED
        )
        passes[how] = sum(network.rows)
        assert outcomes[how].queries.numpy().sum() == passes[how]
    shared, none = outcomes["shared"], outcomes["none"]
    assert shared.found.numpy().all()
    np.testing.assert_allclose(none.images, shared.images, atol=1e-3)
    assert passes["none"] < 0.8 * passes["shared"]


def test_early_stop_leaves_an_image_at_its_first_success():
    outcomes = {}
    for stops in (False, True):
        network = Counting(curved)
        zoo = dataclasses.replace(QUICK, early_stop=stops, learning_rate=0.02)
        outcomes[stops] = tf.function(zoo.run, autograph=False)(
            network, IMAGES, labels_of(curved), seed=SEED
        )
        assert outcomes[stops].queries.numpy().sum() == sum(network.rows)
    whole, first = outcomes[False], outcomes[True]
    assert whole.found.numpy().all() and first.found.numpy().all()
    assert np.all(first.queries.numpy() < whole.queries.numpy())
    assert np.all(distances(whole.images) <= distances(first.images) + 1e-6)
    assert distances(whole.images).sum() < distances(first.images).sum()


def test_a_shared_pass_keeps_to_the_batch_and_the_image():
    plain = answers(curved, how="shared")
    points = 2 * COUNT + 1
    for batch, expected in ((70, [2, 2, 1]), (1, [1] * 5), (200, [5])):
        network = Counting(curved)
        result = answers(network, how="shared", batch=batch)
        assert network.rows == [images * points for images in expected]
        for mine, other in zip(result, plain, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-6)


def test_independent_and_shared_agree_on_a_deterministic_network():
    shared, independent = (
        answers(curved, how=how) for how in ("shared", "independent")
    )
    for mine, other in zip(shared, independent, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)
    # Roundings grow from step to step, so only some steps, and of long differences.
    results = [
        attack(
            dataclasses.replace(
                QUICK, query_noise=how, difference=1e-2, coordinates=COUNT
            ),
            curved,
        )
        for how in ("shared", "independent")
    ]
    np.testing.assert_allclose(results[0].images, results[1].images, atol=1e-3)
    np.testing.assert_array_equal(results[0].found, results[1].found)
    assert results[0].found.numpy().any()


def half_flat(images):
    """Bright images see a linear network, dark ones a constant one."""
    bright = tf.reduce_mean(images, (1, 2, 3)) > 0.5
    flat = tf.constant([[5.0, 0.0]]) - 0.0 * linear(images)
    return tf.where(bright[:, None], linear(images), flat)


def test_each_image_stops_on_its_own():
    images = IMAGES * 0.2 + np.array([0.1, 0.8, 0.1, 0.8, 0.1]).reshape(5, 1, 1, 1)
    images = images.astype("float32")
    labels = labels_of(half_flat, images)
    zoo = dataclasses.replace(QUICK, binary_search_steps=1, learning_rate=1e-3)
    network = Counting(half_flat)
    outcome = tf.function(zoo.run, autograph=False)(network, images, labels, seed=SEED)
    np.testing.assert_array_equal(outcome.queries, [21 * 9, 60 * 9] * 2 + [21 * 9])
    assert network.rows == [5 * 9] * 21 + [2 * 9] * 39


def test_without_abort_early_no_image_stops():
    zoo = dataclasses.replace(QUICK, abort_early=False)
    outcome = attack(zoo, constant, labels=np.zeros(5, int))
    np.testing.assert_array_equal(outcome.queries, [2 * 60 * 9] * 5)


# Attack-space reduction.


def residual_outside(grid, change):
    """Returns the share of changes that no modifier of the grid makes."""
    basis = np.reshape(grid.offsets(tf.range(grid.count)), (grid.count, -1)).T
    change = np.reshape(change, (len(change), -1)).T
    fit = basis @ np.linalg.lstsq(basis, change, rcond=None)[0]
    return np.linalg.norm(change - fit) / np.linalg.norm(change)


def test_hierarchical_attack_doubles_the_modifier():
    small, large = (Grid(size, size, (8, 8, 1)) for size in (2, 4))
    images = random(3, 8, 8, 1, low=0.45, high=0.55)
    weights = random(64, 2, low=-1, seed=6)

    def network(images):
        return tf.reshape(images, (-1, 64)) @ weights

    labels = labels_of(network, images)
    zoo = dataclasses.replace(QUICK, attack_size=2, abort_early=False)
    change = attack(zoo, network, images).images - images
    assert residual_outside(small, change) < 1e-5
    zoo = dataclasses.replace(zoo, upscale_at=(30,), coordinates=8)
    outcome = attack(zoo, network, images, labels)
    change = outcome.images - images
    assert outcome.found.numpy().all()
    assert residual_outside(large, change) < 1e-5
    assert residual_outside(small, change) > 0.1
    # The first grid has but 4 coordinates, the second gets all 8.
    np.testing.assert_array_equal(outcome.queries, [2 * 30 * (9 + 17)] * 3)


def test_the_modifier_survives_upscaling():
    images = random(3, 8, 8, 1, low=0.45, high=0.55)

    def rising(images):  # Brighter is better, and never enough.
        value = tf.reduce_sum(images, (1, 2, 3))[:, None]
        return tf.concat([0.0 * value, 0.01 * value - 10.0], 1)

    network = Counting(rising)
    zoo = dataclasses.replace(
        QUICK, attack_size=2, upscale_at=(1,), iterations=2, binary_search_steps=1
    )
    tf.function(zoo.run, autograph=False)(network, images, [0] * 3, seed=SEED)
    first, second = (passed.reshape(3, 9, 8, 8, 1) for passed in network.passes)
    np.testing.assert_array_equal(first[:, 0], images)
    # One step of Adam moved all four coordinates by the learning rate.
    np.testing.assert_allclose(second[:, 0], images + 0.05, atol=1e-4)


@pytest.mark.parametrize("importance_sampling", [False, True])
def test_importance_moves_the_queries_to_what_changed(importance_sampling):
    images = random(2, 16, 16, 1, low=0.45, high=0.55)

    def network(images):  # Only the left quarter matters.
        value = 0.1 * tf.reduce_sum(images[:, :, :4], (1, 2, 3))[:, None]
        return tf.concat([0.0 * value, value - 10.0], 1)

    counting = Counting(network)
    zoo = dataclasses.replace(
        QUICK,
        attack_size=8,
        upscale_at=(40,),
        binary_search_steps=1,
        importance_sampling=importance_sampling,
        difference=1e-2,  # Rounding must not move what has no slope.
        learning_rate=0.01,
    )
    tf.function(zoo.run, autograph=False)(
        counting, images, np.zeros(2, "int32"), seed=SEED
    )
    shares = []
    for passes in (counting.passes[:40], counting.passes[40:]):
        rows = np.stack(passes).reshape(-1, 9, 16, 16)
        moved = np.abs(rows[:, 1:] - rows[:, :1])
        # Scaling lets a coordinate just outside the quarter reach into it.
        shares.append(moved[..., :6].sum() / moved.sum())
    assert abs(shares[0] - 6 / 16) < 0.1
    assert (shares[1] > 0.75) if importance_sampling else (shares[1] < 0.5)


# Random networks.


def noisy_network(location):
    inputs = keras.Input((SIDE, SIDE, 1))
    values = kl.Dense(32, activation="tanh")(kl.Flatten()(inputs))
    plain = keras.Model(inputs, kl.Dense(2)(values))
    return plain, inject_pni(plain, location, seed=1)


@pytest.mark.parametrize(
    ("location", "how", "low", "high"),
    [
        # Measured: -0.02, 0.94 and -0.02. With 16 coordinates and noise common to the
        # images the first varies by 0.3 from one estimate to the next.
        ("w", "independent", -0.4, 0.4),
        ("w", "shared", 0.8, 1.0),
        ("a-a", "shared", -0.4, 0.4),
    ],
)
def test_differences_over_a_random_network(location, how, low, high):
    plain, noisy = noisy_network(location)
    images = random(32, SIDE, SIDE, 1, low=0.3, high=0.7)
    with tf.GradientTape() as tape:
        variable = tf.constant(images)
        tape.watch(variable)
        margin = Goal.of(np.zeros(32)).margin(plain(variable))
    gradient = -tape.gradient(margin, variable)
    passes = []

    def network(images):
        passes.append(images)
        return noisy(images)

    coordinates = tf.tile(tf.range(COUNT)[None], (32, 1))
    ask = ask_each if how == "independent" else lambda *a: ask_together(*a, 4096)
    found = []
    for _ in range(4):
        passes.clear()
        space = SPACES["box"].of(images)
        points = Points(space, tf.zeros(images.shape), FULL, coordinates, 1e-4)
        estimate = ask(Margins(network, Goal.of(np.zeros(32)), 0.0, 0.9), points)
        assert len(passes) == (2 * COUNT + 1 if how == "independent" else 1)
        found.append(np.mean(cosines(estimate.slope(1e-4).numpy(), gradient)))
    assert low < np.mean(found) < high, found


def test_a_lucky_draw_is_no_success():
    draw = tf.Variable(0)

    def coin(images):  # It is fooled at every second pass.
        fooled = tf.cast(draw.assign_add(1) % 2, tf.float32)
        return constant(images) + fooled * tf.constant([0.0, 9.0, 0.0])

    labels = np.zeros(5, int)
    zoo = dataclasses.replace(QUICK, iterations=4, binary_search_steps=1)

    def found(zoo, network):
        outcome = attack(zoo, network, labels=labels, eager=True)
        return np.mean(outcome.found)

    assert found(zoo, coin) == 1
    mean = ExpectationOverNoise(coin, 4)
    assert found(zoo, mean) == 0
    assert found(dataclasses.replace(zoo, agreement=0.5), mean) == 1


@pytest.mark.parametrize(("fooled_passes", "found"), [(2, False), (4, True)])
def test_fresh_draws_must_confirm(fooled_passes, found):
    draw = tf.Variable(0)

    def network(images):
        fooled = tf.cast(draw.assign_add(1) <= fooled_passes, tf.float32)
        return constant(images) + fooled * tf.constant([0.0, 9.0, 0.0])

    zoo = dataclasses.replace(QUICK, iterations=1, binary_search_steps=1)
    mean = ExpectationOverNoise(network, 2)
    outcome = attack(zoo, mean, labels=np.zeros(5, int), eager=True)
    np.testing.assert_array_equal(outcome.found, [found] * 5)
    np.testing.assert_array_equal(outcome.queries, [2 * 9 + 2] * 5)
    assert draw == 4


# The contract.


def test_labels_of_any_integer_type():
    labels = labels_of(curved)
    zoo = dataclasses.replace(
        QUICK, iterations=6, binary_search_steps=1, learning_rate=0.3
    )
    kinds = [labels.astype("int32"), tf.constant(labels, tf.int64), labels.tolist()]
    results = [attack(zoo, curved, labels=k, eager=True).images for k in kinds]
    assert distances(results[0]).max() > 0.1
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("query_noise", ["independent", "shared", "none"])
def test_one_graph_for_any_batch(query_noise):
    zoo = dataclasses.replace(
        QUICK, query_noise=query_noise, iterations=20, difference=1e-2
    )

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, SIDE, SIDE, 1]),
            tf.TensorSpec([None], tf.int64),
        ]
    )
    def run(images, labels):
        return zoo.run(curved, images, labels, seed=SEED)

    labels = labels_of(curved)
    whole = run(IMAGES, labels)
    assert distances(whole.images).max() > 0.1
    for count in (1, 3):
        part = run(IMAGES[:count], labels[:count])
        # The coordinates of an image depend on its place in the batch alone.
        np.testing.assert_allclose(part.images, whole.images[:count], atol=1e-3)
        np.testing.assert_array_equal(part.queries, whole.queries[:count])
    if query_noise == "shared":
        eager = attack(zoo, curved, eager=True)
        np.testing.assert_allclose(eager.images, whole.images, atol=1e-3)
    empty = run(IMAGES[:0], labels[:0])
    assert empty.images.shape == (0, SIDE, SIDE, 1)


def test_an_image_does_not_depend_on_the_others():
    zoo = dataclasses.replace(QUICK, difference=1e-2)
    mine = attack(zoo, curved).images[:1]
    same = attack(zoo, curved, IMAGES[[0, 4, 4, 1, 2]]).images[:1]
    assert distances(mine, IMAGES[:1]) > 0.1
    np.testing.assert_allclose(mine, same, atol=1e-4)


def test_the_seed_decides():
    zoo = dataclasses.replace(
        QUICK, iterations=6, binary_search_steps=1, learning_rate=0.3
    )
    first, again, other = (
        attack(zoo, curved, seed=tf.constant(seed), eager=True).images.numpy()
        for seed in ([1, 2], [1, 2], [1, 3])
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_graph_does_not_grow():
    def size(iterations, steps):
        zoo = dataclasses.replace(
            QUICK, iterations=iterations, binary_search_steps=steps
        )
        run = tf.function(
            lambda images: zoo.run(curved, images, [0] * 5, seed=SEED), autograph=False
        )
        graph = run.get_concrete_function(tf.constant(IMAGES)).graph.as_graph_def()
        return sum(len(f.node_def) for f in graph.library.function)

    assert size(10, 2) == size(1000, 9)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"iterations": 0}, "iterations"),
        ({"coordinates": 1.5}, "coordinates"),
        ({"binary_search_steps": 0}, "binary_search_steps"),
        ({"patience": 0}, "patience"),
        ({"query_batch": 0}, "query_batch"),
        ({"confidence": -1.0}, "confidence"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"difference": 0.0}, "difference"),
        ({"initial_const": 0.0}, "initial_const"),
        ({"agreement": 0.0}, "agreement"),
        ({"agreement": 1.1}, "agreement"),
        ({"beta_1": 1.0}, "beta_1"),
        ({"beta_2": -0.1}, "beta_2"),
        ({"solver": "sgd"}, "solver"),
        ({"space": "log"}, "space"),
        ({"query_noise": "some"}, "query_noise"),
        ({"attack_size": 0}, "attack_size"),
        ({"upscale_at": (5,)}, "needs `attack_size`"),
        ({"upscale_at": (5, 5), "attack_size": 2}, "must grow"),
        ({"upscale_at": (1000,), "attack_size": 2}, "`iterations`"),
        ({"importance_sampling": True}, "first upscaling"),
    ],
)
def test_settings_out_of_range(setting, words):
    with pytest.raises(ValueError, match=words):
        ZOO(**setting)


def test_the_modifier_must_fit_the_image():
    zoo = dataclasses.replace(QUICK, attack_size=4, upscale_at=(5,))
    with pytest.raises(ValueError, match="must not exceed the side"):
        zoo.run(curved, tf.constant(IMAGES), np.zeros(5, int))


def test_the_size_of_the_image_must_be_known():
    spec = tf.TensorSpec([None, None, None, 1])
    with pytest.raises(ValueError, match="only N may be unknown"):
        tf.function(QUICK.run).get_concrete_function(curved, spec, [0])
