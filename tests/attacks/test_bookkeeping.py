"""The search over a constant, the nearest image, and the loop of the attacks."""

import numpy as np
import pytest
import tensorflow as tf

from pni_tf.attacks.bookkeeping import Best, BinarySearch, repeat

INFINITE = float("inf")


@pytest.mark.parametrize(
    ("lower", "upper", "c", "succeeded", "expected"),
    [
        (0, INFINITE, 0.01, False, (0.01, INFINITE, 0.1)),
        (0, INFINITE, 0.01, True, (0, 0.01, 0.005)),
        (0.1, INFINITE, 1, False, (1, INFINITE, 10)),
        (0.1, INFINITE, 1, True, (0.1, 1, 0.55)),
        (1, 3, 2, True, (1, 2, 1.5)),
        (1, 3, 2, False, (2, 3, 2.5)),
        (1, 3, 3, True, (1, 3, 2)),  # The upper bound is tried again.
        (1, 3, 3, False, (3, 3, 3)),
        (1e9, INFINITE, 1e10, False, (1e10, INFINITE, 1e10)),  # It stays finite.
    ],
)
def test_binary_search(lower, upper, c, succeeded, expected):
    search = BinarySearch(*tf.constant([[lower], [upper], [c]], tf.float32))
    found = search.update(tf.constant([succeeded]))
    np.testing.assert_allclose(tf.concat(found, 0), expected, rtol=1e-6)


def test_binary_search_treats_images_apart_and_ends_at_the_upper_bound():
    search = BinarySearch.start(2, 0.01)
    np.testing.assert_allclose(search, [[0, 0], [np.inf, np.inf], [0.01, 0.01]])
    for _ in range(2):
        search = search.update(tf.constant([True, False]))
    np.testing.assert_allclose(search, [[0, 0.1], [0.005, np.inf], [0.0025, 1]])
    last = search.before(tf.constant(9), 10)
    np.testing.assert_allclose(last, [[0, 0.1], [0.005, np.inf], [0.005, 1]])


def test_the_best_is_the_nearest_that_fools_if_nothing_else_can_beat_the_start():
    images = tf.zeros((3, 1, 1, 1))
    best = Best.none(images, INFINITE)
    for value, fooled, distance in (
        (0.1, [True, True, False], [4.0, 4.0, 1.0]),
        (0.2, [True, True, False], [3.0, 5.0, 1.0]),
        (0.3, [False, True, False], [1.0, 4.0, 1.0]),
    ):
        best = best.update(images + value, tf.constant(fooled), -tf.constant(distance))
    np.testing.assert_allclose(best.images[:, 0, 0, 0], [0.2, 0.1, 0])
    np.testing.assert_array_equal(best.score, [-3, -4, np.inf])
    np.testing.assert_array_equal(best.fooled, [True, True, False])


@pytest.mark.parametrize("step", [8, 9])
def test_the_last_of_ten_steps_tries_the_upper_bound(step):
    search = BinarySearch(*tf.constant([[1.0], [3.0], [2.0]]))
    assert search.before(tf.constant(step), 10).c == (3 if step == 9 else 2)
    assert search.before(tf.constant(step), 9).c == 2


@pytest.mark.parametrize(("count", "steps"), [(0, 0), (2, 2), (9, 4)])
def test_repeat_ends_after_the_steps_or_when_nothing_goes_on(count, steps):
    """The state is `2 ** steps` and the sum of the numbers of the steps, from 0."""

    @tf.function
    def run(count):
        return repeat(
            count,
            lambda i, power, total: (2 * power, total + i),
            (tf.constant(1), tf.constant(0)),
            lambda power, total: power < 16,
        )

    assert [int(value) for value in run(tf.constant(count))] == [
        2**steps,
        sum(range(steps)),
    ]
