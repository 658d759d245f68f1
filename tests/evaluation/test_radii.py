"""Certified radii against the conditions that define them."""

import math

import numpy as np
import pytest
import scipy.stats

from pni_tf.evaluation.radii import (
    clopper_pearson_bounds,
    cohen_radius,
    hoeffding_bounds,
    pixeldp_radius,
)

# Bounds on the expected scores of the best class and of the next.
SCORES = [(1.0, 0.0), (0.99, 0.01), (0.9, 0.02), (0.7, 0.1), (0.6, 0.3), (0.51, 0.49)]


def is_certified(lower, upper, radius, scale, sensitivity):
    """Whether some privacy (e, d) of the noise at a radius keeps the best class best.

    Here d follows from e and the radius, where the library goes from e and d to it.
    """
    e = np.linspace(0, 1, 100_001)[1:]
    d = 1.25 * np.exp(-((scale * e / (sensitivity * radius)) ** 2) / 2)
    return bool(np.any(lower > np.exp(2 * e) * upper + (1 + np.exp(e)) * d))


@pytest.mark.parametrize(("lower", "upper"), SCORES)
def test_gaussian_radius_is_the_largest_that_the_condition_holds_at(lower, upper):
    noise = {"scale": 0.7, "sensitivity": 1.3}
    radius = float(pixeldp_radius(lower, upper, **noise))
    assert radius > 0
    assert is_certified(lower, upper, radius * (1 - 1e-6), **noise)
    assert not is_certified(lower, upper, radius * 1.001, **noise)


@pytest.mark.parametrize("distribution", ["gaussian", "laplace"])
def test_nothing_is_certified_for_a_tie(distribution):
    lower, upper = [0.5, 0.3, 0.0], [0.5, 0.4, 0.0]
    radii = pixeldp_radius(lower, upper, scale=1.0, distribution=distribution)
    assert radii.tolist() == [0, 0, 0]


def test_the_construction_bound_is_certified_for_a_sure_prediction():
    """With (1, 0.05) the condition at L is lower > e^2 upper + 0.05 (1 + e)."""
    scale = 0.1 * math.sqrt(2 * math.log(1.25 / 0.05))
    just = math.exp(2) * 0.02 + 0.05 * (1 + math.e)
    assert pixeldp_radius(just + 1e-9, 0.02, scale=scale) >= 0.1
    # And not much more is asked for: another (e, d) is at most a little better.
    assert pixeldp_radius(0.98 * just, 0.02, scale=scale) < 0.1


@pytest.mark.parametrize(("lower", "upper"), SCORES[1:])
def test_laplace_radius(lower, upper):
    radius = pixeldp_radius(
        lower, upper, scale=0.7, sensitivity=1.3, distribution="laplace"
    )
    privacy = 1.3 * radius / 0.7
    assert lower == pytest.approx(math.exp(2 * privacy) * upper)


def test_laplace_noise_without_a_second_class():
    radius = pixeldp_radius(0.9, 0.0, scale=1.0, distribution="laplace")
    assert radius == math.inf


def test_cohen_radius_is_the_distance_to_a_plane():
    """For a linear classifier it is exact (Cohen et al., proposition 1)."""
    distance, scale = np.array([0.1, 0.5, 2.0]), 0.8
    votes = scipy.stats.norm.cdf(distance / scale)
    np.testing.assert_allclose(cohen_radius(votes, scale=scale), distance)
    # After a map that stretches by 2, images are half as far away.
    found = cohen_radius(votes, scale=scale, sensitivity=2.0)
    np.testing.assert_allclose(found, distance / 2)
    assert cohen_radius([0.2, 0.5], scale=scale).tolist() == [0, 0]


def test_clopper_pearson_bounds_are_exact():
    draws, failure = 50, 0.03
    counts = np.arange(51)
    lower, upper = clopper_pearson_bounds(counts, draws, failure)
    binomial = scipy.stats.binom
    assert (lower[0], upper[-1]) == (0, 1)
    at_least = binomial.sf(counts[1:] - 1, draws, lower[1:])
    np.testing.assert_allclose(at_least, failure)
    np.testing.assert_allclose(binomial.cdf(counts[:-1], draws, upper[:-1]), failure)


def test_hoeffding_bounds():
    lower, upper = hoeffding_bounds(np.array([0.0, 0.4, 1.0]), 200, 0.01)
    width = math.sqrt(math.log(100) / 400)
    assert math.exp(-2 * 200 * width**2) == pytest.approx(0.01)
    np.testing.assert_allclose(lower, [0, 0.4 - width, 1 - width])
    np.testing.assert_allclose(upper, [width, 0.4 + width, 1])


def test_unknown_distribution():
    with pytest.raises(ValueError, match="`distribution` must be one of .*'uniform'"):
        pixeldp_radius(0.9, 0.1, scale=1.0, distribution="uniform")
