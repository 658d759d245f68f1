"""Random search and the Square attack, against NumPy and closed forms."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from pni_tf import ExpectationOverNoise, RandomSearch, Square

SEED = (3, 4)
LABELS = np.array([0, 1, 1, 0, 1])


def random(*shape, low=0.0, high=1.0, seed=1):
    return np.random.default_rng(seed).uniform(low, high, shape).astype("float32")


IMAGES = np.round(random(5, 4, 4, 1), 1)  # Some pixels are exactly 0 or 1.
WEIGHTS = random(16, 3, low=-1, seed=2)
HIDDEN, OUTPUT = random(16, 8, low=-1), random(8, 3, low=-2, high=2, seed=3)


def two_classes(images):
    return tf.reshape(images, (-1, 16)) @ WEIGHTS[:, :2]


def curved(images):
    """A deterministic network of three classes that is not linear."""
    return tf.tanh(3.0 * tf.reshape(images, (-1, 16)) @ HIDDEN) @ OUTPUT


def margins(logits, labels):
    """The best other logit minus that of the label."""
    logits, rows = np.array(logits), np.arange(len(labels))
    own = logits[rows, labels].copy()
    logits[rows, labels] = -np.inf
    return logits.max(1) - own


class Recording:
    """A network that keeps every batch it is asked for."""

    def __init__(self, network):
        self.network, self.batches = network, []

    def __call__(self, images):
        self.batches.append(images.numpy())
        return self.network(images)


class Counting:
    """A network that counts the images it is asked for, in graphs too."""

    def __init__(self, network):
        self.network, self.images = network, tf.Variable(0, dtype=tf.int64)

    def __call__(self, images):
        self.images.assign_add(tf.shape(images, tf.int64)[0])
        return self.network(images)


class Noisy:
    """`two_classes` with weight noise: one draw a call, the same in every run."""

    def __init__(self, deviation):
        self.deviation, self.calls = deviation, tf.Variable(0, dtype=tf.int64)

    def __call__(self, images):
        seed = tf.stack([tf.constant(5, tf.int64), self.calls.assign_add(1)])
        noise = tf.random.stateless_normal((16, 2), seed, stddev=self.deviation)
        return two_classes(images) + tf.reshape(images, (-1, 16)) @ noise


def traced(attack, logits_fn, images=IMAGES, labels=LABELS, **arguments):
    run = tf.function(
        lambda: attack.run(logits_fn, images, labels, **arguments), autograph=False
    )
    return run()


# --- Square -------------------------------------------------------------------------


def written_side(i, squares, fraction, height, width):
    """The schedule of the authors' code, for 10,000 steps, stretched."""
    progress = i * 10_000 // (squares + 1)
    bounds = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    for bound in bounds:
        if progress > bound:
            fraction = fraction / 2
    side = round((fraction * height * width) ** 0.5)
    return min(max(side, 1), height, width)


def test_square_sides_follow_the_schedule():
    """A flat network keeps the stripes, so each square shows as a difference."""
    stripes, sides = [], []

    def observe(batch):
        if not stripes:
            stripes.append(batch)
        else:
            changed = (batch != stripes[0])[..., 0]
            rows, columns = changed.any(2), changed.any(1)
            sides.append(max(rows.sum(1).max(), columns.sum(1).max()))
        return np.zeros((len(batch), 2), "float32")

    def flat(images):
        logits = tf.numpy_function(observe, [images], tf.float32)
        return tf.ensure_shape(logits, (None, 2))

    images = random(8, 32, 32, 1, low=0.4, high=0.6)
    labels = np.zeros(8, int)
    traced(Square(epsilon=0.1, queries=2000), flat, images, labels, seed=SEED)
    expected = [written_side(i, 1999, 0.8, 32, 32) for i in range(1999)]
    assert sides == expected
    assert len(set(expected)) == 10  # Every bound of the schedule shows.


@pytest.mark.parametrize(
    ("shape", "fraction"), [((9, 12, 3), 0.8), ((12, 9, 1), 0.3)], ids=str
)
def test_square_replayed_in_numpy(shape, fraction):
    """Stripes, squares, schedule and choice, from the images the network was asked."""
    height, width, channels = shape
    images = np.round(random(12, *shape), 1)
    labels = np.arange(12) % 3
    weights = random(height * width * channels, 3, low=-1, seed=4)

    def network(batch):
        return np.tanh(np.reshape(batch, (len(batch), -1)) @ weights / 4)

    recording = Recording(lambda batch: tf.constant(network(batch.numpy())))
    attack = Square(epsilon=0.15, queries=150, initial_fraction=fraction)
    outcome = attack.run(recording, images, labels, seed=SEED)
    first, *proposals = recording.batches
    assert len(proposals) == 149

    epsilon = np.float32(0.15)
    high, low = np.clip(images + epsilon, 0, 1), np.clip(images - epsilon, 0, 1)
    raised, lowered = (first == high).all(1), (first == low).all(1)
    assert np.all(raised ^ lowered)  # A column has one sign in each channel.
    assert 0.3 < raised.mean() < 0.7  # 5 standard deviations at 12 * 9 columns

    current, best = first, margins(network(first), labels)
    reached = np.zeros((height, width), bool)
    seen = set()
    for i, proposal in enumerate(proposals):
        side = written_side(i, 149, fraction, height, width)
        seen.add(side)
        changed = proposal != current
        places = changed.any(-1)
        reached |= places.any(0)
        extents = []
        for n in range(len(images)):
            rows, columns = np.flatnonzero(places[n].any(1)), places[n].any(0)
            columns = np.flatnonzero(columns)
            assert rows.size  # No query is wasted on the image that is already kept.
            extents += [np.ptp(rows) + 1, np.ptp(columns) + 1]
            for channel in range(channels):
                where = changed[n, ..., channel]
                new = proposal[n, ..., channel][where]
                is_high = np.all(new == high[n, ..., channel][where])
                assert is_high or np.all(new == low[n, ..., channel][where])
        assert max(extents) == side  # At least one of 12 squares changes at its rim.
        value = margins(network(proposal), labels)
        better = value > best
        current = np.where(better[:, None, None, None], proposal, current)
        best = np.where(better, value, best)
    assert len(seen) >= 4
    assert reached.all()  # This includes the last row and column.
    np.testing.assert_array_equal(outcome.images, current)
    np.testing.assert_array_equal(outcome.found, best > 0)
    assert outcome.found.numpy().any()


@pytest.mark.parametrize("reevaluate", [False, True])
@pytest.mark.parametrize("towards", [None, 1 - LABELS], ids=["untargeted", "targeted"])
def test_square_finds_the_optimum_of_a_linear_model(towards, reevaluate):
    # Of the last 300 squares of one pixel each, none tries a given one of the 80 pixels
    # with a probability below 80 * (15 / 16) ** 300 = 3e-7.
    attack = Square(epsilon=0.2, queries=700, reevaluate=reevaluate)
    outcome = traced(attack, two_classes, towards=towards, seed=SEED)
    wrong = WEIGHTS[:, 1 - LABELS] - WEIGHTS[:, LABELS]
    optimum = np.clip(IMAGES + 0.2 * np.sign(wrong.T.reshape(IMAGES.shape)), 0, 1)
    np.testing.assert_allclose(outcome.images, optimum, atol=1e-6)
    expected = margins(two_classes(optimum), LABELS) > 0
    np.testing.assert_array_equal(outcome.found, expected)
    assert 0 < expected.sum() < 5  # Otherwise the verdict would not be tested.


@pytest.mark.parametrize("queries", [1, 2, 60])
def test_square_is_at_the_rim_of_the_ball(queries):
    outcome = traced(Square(epsilon=0.3, queries=queries), curved)
    result = outcome.images.numpy()
    assert result.dtype == np.float32
    epsilon = np.float32(0.3)
    high, low = np.clip(IMAGES + epsilon, 0, 1), np.clip(IMAGES - epsilon, 0, 1)
    assert np.all((result == high) | (result == low))
    assert np.all(np.abs(result - IMAGES) <= epsilon + 1e-7)
    assert result.min() == 0 and result.max() == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2)], ids=str)
def test_square_on_the_smallest_images(size):
    images, labels = random(4, *size, 1), np.zeros(4, "int64")

    def network(batch):
        total = tf.reduce_sum(batch, [1, 2, 3])
        return tf.stack([tf.zeros_like(total), total], 1)

    attack = Square(epsilon=0.1, queries=60, initial_fraction=1)
    outcome = traced(attack, network, images, labels, seed=SEED)
    np.testing.assert_allclose(outcome.images, np.clip(images + 0.1, 0, 1), atol=1e-6)


@pytest.mark.parametrize("attack", [Square, RandomSearch])
def test_epsilon_zero_changes_nothing(attack):
    settings = {"queries": 5} if attack is Square else {"samples": 5}
    outcome = attack(epsilon=0, **settings).run(curved, IMAGES, LABELS)
    np.testing.assert_array_equal(outcome.images, IMAGES)
    expected = margins(curved(IMAGES), LABELS) > 0
    np.testing.assert_array_equal(outcome.found, expected)


def test_square_reevaluates_the_kept_image_beside_the_new_one():
    recording = Recording(curved)
    attack = Square(epsilon=0.2, queries=21, reevaluate=True)
    outcome = attack.run(recording, IMAGES, LABELS, seed=SEED)
    assert len(recording.batches) == 10 and np.all(outcome.queries == 20)
    current = recording.batches[0][::2]  # These are the stripes.
    for batch in recording.batches:
        assert batch.shape == (10, 4, 4, 1)
        np.testing.assert_array_equal(batch[::2], current)
        loss = margins(curved(batch), LABELS.repeat(2))
        better = (loss[1::2] > loss[::2])[:, None, None, None]
        current = np.where(better, batch[1::2], current)
    np.testing.assert_array_equal(outcome.images, current)


def test_square_on_a_noisy_network_gains_from_reevaluation():
    """The noise has mean zero, so `two_classes` gives the expected margin."""

    def gain(**settings):
        attack = Square(epsilon=0.2, queries=400, **settings)
        images = traced(attack, Noisy(0.5), seed=SEED).images
        after = margins(two_classes(images), LABELS)
        return np.mean(after - margins(two_classes(IMAGES), LABELS))

    wrong = WEIGHTS[:, 1 - LABELS] - WEIGHTS[:, LABELS]
    optimum = np.clip(IMAGES + 0.2 * np.sign(wrong.T.reshape(IMAGES.shape)), 0, 1)
    best = np.mean(np.sum((optimum - IMAGES) * wrong.T.reshape(IMAGES.shape), (1, 2)))
    stored, fair = gain(), gain(reevaluate=True)
    assert stored < 0.6 * best
    assert 0.7 * best < fair <= best + 1e-5


# --- Both ---------------------------------------------------------------------------

ATTACKS = [
    RandomSearch(epsilon=0.2, samples=30),
    RandomSearch(epsilon=0.8, samples=30, norm="l2"),
    RandomSearch(epsilon=0.2, samples=30, early_stop=True),
    Square(epsilon=0.2, queries=30),
    Square(epsilon=0.2, queries=30, early_stop=True),
    Square(epsilon=0.2, queries=31, reevaluate=True),
]


@pytest.mark.parametrize("draws", [None, 3])
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_queries_are_those_the_network_counts(attack, draws):
    network = Counting(curved)
    logits_fn = ExpectationOverNoise(network, draws) if draws else network
    outcome = traced(attack, logits_fn, seed=SEED)
    assert outcome.queries.dtype == outcome.gradients.dtype == tf.int64
    assert sum(outcome.queries.numpy()) == network.images.numpy()
    if not attack.early_stop:
        np.testing.assert_array_equal(outcome.queries, [30 * (draws or 1)] * 5)
    np.testing.assert_array_equal(outcome.gradients, [0] * 5)
    expected = margins(curved(outcome.images), LABELS) > 0
    np.testing.assert_array_equal(outcome.found, expected)


@pytest.mark.parametrize("attack", [ATTACKS[0], ATTACKS[1], ATTACKS[3]], ids=repr)
def test_the_best_of_all_that_was_asked_is_kept(attack):
    recording = Recording(curved)
    outcome = attack.run(recording, IMAGES, LABELS, seed=SEED)
    asked = np.array(recording.batches)
    values = np.array([margins(curved(batch), LABELS) for batch in asked])
    choice = values.argmax(0)
    assert len(set(choice)) > 1
    np.testing.assert_array_equal(outcome.images, asked[choice, np.arange(5)])


@pytest.mark.parametrize("attack", [ATTACKS[2], ATTACKS[4]], ids=repr)
def test_early_stop_keeps_the_first_image_that_fools(attack):
    recording, images = Recording(curved), random(30, 4, 4, 1)
    labels = np.argmax(curved(images), -1)
    attack = dataclasses.replace(attack, epsilon=0.1)
    full = dataclasses.replace(attack, early_stop=False)
    full.run(recording, images, labels, seed=SEED)
    asked = np.array(recording.batches)
    fooled = np.array([margins(curved(batch), labels) > 0 for batch in asked])
    (found,) = np.nonzero(fooled.any(0))
    assert 0 < len(found) < 30
    first = np.where(fooled.any(0), fooled.argmax(0), 29)
    assert len(set(first)) > 2  # Images leave one after the other.
    recording.batches.clear()
    outcome = attack.run(recording, images, labels, seed=SEED)
    np.testing.assert_array_equal(outcome.queries, first + 1)
    np.testing.assert_array_equal(outcome.found, fooled.any(0))
    kept = outcome.images.numpy()[found]
    np.testing.assert_array_equal(kept, asked[first[found], found])
    sizes = [len(batch) for batch in recording.batches]
    assert sizes == [np.sum(first >= i) for i in range(30)]


def test_more_samples_are_never_worse():
    results = []
    for samples in (1, 5, 25, 100):
        attack = RandomSearch(epsilon=0.2, samples=samples)
        images = traced(attack, curved, seed=SEED).images
        results.append(margins(curved(images), LABELS))
    assert np.all(np.diff(results, axis=0) >= 0)
    assert np.all(results[-1] > results[0])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_samples_are_uniform_in_the_ball(norm):
    """Counts in 10 bins of what is uniform: chi-square below 44.8, else once in 1e6.

    In the cube that is each coordinate, in the d-dimensional ball radius ** d.
    """
    images = np.full((10_000, 2, 2, 1), 0.5, "float32")
    recording = Recording(lambda batch: tf.reshape(batch, (-1, 4)))
    attack = RandomSearch(epsilon=0.1, samples=2, norm=norm)
    attack.run(recording, images, np.zeros(10_000, int), seed=SEED)
    first, second = ((batch - images).reshape(-1, 4) for batch in recording.batches)
    # 5 standard deviations of a correlation of independent numbers.
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.05
    for delta in (first / 0.1, second / 0.1):
        radius = np.linalg.norm(delta, axis=1)
        columns = [radius**4] if norm == "l2" else list((delta.T + 1) / 2)
        for column in columns:
            counts = np.histogram(np.clip(column, 0, 1), 10, (0, 1))[0]
            assert np.sum((counts - 1000) ** 2 / 1000) < 44.8


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 0.9)])
def test_samples_are_in_the_ball_and_in_range(norm, epsilon):
    recording = Recording(curved)
    attack = RandomSearch(epsilon=epsilon, samples=20, norm=norm)
    attack.run(recording, IMAGES, LABELS)
    asked = np.array(recording.batches)
    assert asked.min() == 0 and asked.max() == 1  # They are clipped.
    delta = asked - IMAGES
    size = np.abs(delta).max((2, 3, 4))
    if norm == "l2":
        size = np.sqrt(np.sum(delta**2, (2, 3, 4)))
    assert np.all(size <= epsilon + 1e-6) and size.max() > 0.7 * epsilon


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_no_gradient_is_needed_and_any_labels_do(attack):
    def multiply(images):
        return images.reshape(-1, 16) @ WEIGHTS

    def numpy(images):
        return tf.numpy_function(multiply, [images], tf.float32)

    def run(network, labels, convert=lambda array: array):
        return attack.run(network, convert(IMAGES), convert(labels), seed=SEED)

    def tensors(images, labels):
        return attack.run(numpy, images, labels, seed=SEED)

    expected = run(lambda x: tf.reshape(x, (-1, 16)) @ WEIGHTS, LABELS)
    unknown = tf.function(
        tensors,
        input_signature=[
            tf.TensorSpec((None, 4, 4, 1)),
            tf.TensorSpec((None,), "int32"),
        ],
    )
    outcomes = [
        run(numpy, LABELS.astype("int32")),
        run(numpy, LABELS.astype("uint8"), tf.constant),
        unknown(IMAGES, LABELS.astype("int32")),
    ]
    for outcome in outcomes:
        np.testing.assert_allclose(outcome.images, expected.images, atol=1e-6)
        np.testing.assert_array_equal(outcome.found, expected.found)
        np.testing.assert_array_equal(outcome.queries, expected.queries)
    assert unknown(IMAGES[:1], [0]).images.shape == (1, 4, 4, 1)
    assert unknown.experimental_get_tracing_count() == 1


def test_seed_determines_the_search():
    for attack in (RandomSearch(samples=4), Square(queries=4)):

        def run(seed, attack=attack):
            return attack.perturb(curved, IMAGES, LABELS, seed=seed).numpy()

        first = run(SEED)
        np.testing.assert_array_equal(run(SEED), first)
        assert np.any(run((3, 5)) != first)
        tf.random.set_seed(1)
        unseeded = [run(None), run(None)]
        assert np.any(unseeded[0] != unseeded[1])


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (Square(queries=10), Square(queries=5000)),
        (
            Square(queries=10, reevaluate=True),
            Square(queries=5000, reevaluate=True),
        ),
        (RandomSearch(samples=10), RandomSearch(samples=5000)),
    ],
    ids=repr,
)
def test_graph_does_not_grow(small, large):
    def size(attack):
        function = tf.function(
            lambda images: attack.perturb(curved, images, LABELS), autograph=False
        )
        graph = function.get_concrete_function(tf.TensorSpec((5, 4, 4, 1))).graph
        definition = graph.as_graph_def()
        functions = definition.library.function
        return len(definition.node) + sum(len(f.node_def) for f in functions)

    assert size(small) == size(large)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_attacks_are_values(attack):
    assert eval(repr(attack)) == attack and hash(attack) == hash(eval(repr(attack)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.epsilon = 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Square(epsilon=-1), "`epsilon` must be.*=-1"),
        (lambda: Square(queries=0), "`queries` must be an integer of at least 1.*=0"),
        (lambda: Square(queries=1, reevaluate=True), "`queries`.*at least 2.*=1"),
        (lambda: Square(initial_fraction=0), "above 0 and at most 1.*=0"),
        (lambda: Square(initial_fraction=1.5), "at most 1.*=1.5"),
        (lambda: Square(initial_fraction=float("nan")), "initial_fraction=nan"),
        (lambda: Square(early_stop=True, reevaluate=True), "choose one"),
        (lambda: RandomSearch(epsilon="1"), "epsilon='1'"),
        (lambda: RandomSearch(samples=2.5), "samples=2.5"),
        (lambda: RandomSearch(norm="l1"), "`norm` must be one of"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
