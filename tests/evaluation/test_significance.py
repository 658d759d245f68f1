"""The one rule for differences of accuracies, against SciPy and by counting alarms."""

import numpy as np
import pytest
import scipy.stats

from pni_tf.evaluation.significance import (
    chance_gap,
    error_and_limit,
    lower,
    of_values,
)


def first(count, images=100):
    """The shares of a network that is right on the first images only."""
    return (np.arange(images) < count).astype(float)


class TestLower:
    def test_against_the_formula(self):
        generator = np.random.default_rng(0)
        limit = scipy.stats.t.ppf(0.975, 59)
        found, expected = [], []
        for shift in np.linspace(-0.1, 0.3, 200):
            chances = (generator.random(60), generator.random(60) + shift)
            a, b = ((generator.random((4, 60)) < c).mean(0) for c in chances)
            mean = sum(a - b) / 60
            # As if one more image had gone either way.
            error = (sum((d - mean) ** 2 for d in a - b) + 1) ** 0.5 / 60
            expected.append(mean + limit * error < 0)
            found.append(lower(a, b))
        assert found == expected
        assert 20 < sum(found) < 180

    def test_pairs_are_compared(self):
        """The same few images decide, however much the others differ."""
        a, b = first(50), first(56)
        assert lower(a, b) and not lower(b, a)
        assert not lower(a, b[::-1])

    def test_few_images_that_differ_decide_as_the_exact_test_does(self):
        """McNemar's: four are too few, at however many images."""
        assert scipy.stats.binomtest(4, 4).pvalue > 0.05
        assert not lower(first(50, 10_000), first(54, 10_000))
        assert scipy.stats.binomtest(7, 7).pvalue < 0.05
        assert lower(first(50, 10_000), first(57, 10_000))

    def test_equal_ones(self):
        assert not lower(first(50), first(50))
        assert lower(first(0), first(100))

    def test_one_image_shows_nothing(self):
        assert chance_gap(np.ones(1), np.zeros(1)) == 1
        assert not lower(np.zeros(1), np.ones(1))

    def test_equal_attacks_seldom_differ_by_chance(self):
        """One time in 40. Of 2,000, 50 are expected, with a deviation of 7."""
        generator = np.random.default_rng(1)

        def random():
            return (generator.random((3, 100)) > 0.5).mean(0)

        count = sum(lower(random(), random()) for _ in range(2000))
        assert 15 < count < 85


def test_parts_add_up_as_in_the_test_of_welch():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=7), draw.normal(0.5, 3, size=12)
    error, limit = error_and_limit(
        [of_values(np.var(x, ddof=1), x.size) for x in (a, b)]
    )
    expected = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert (a.mean() - b.mean()) / error == pytest.approx(expected.statistic)
    assert limit == pytest.approx(scipy.stats.t.ppf(0.975, expected.df))
