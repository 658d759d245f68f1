"""The PNI function against NumPy, closed forms and finite differences."""

import numpy as np
import pytest
import tensorflow as tf

from pni_tf.noise import formula

SEED = tf.constant([7, 11], "int64")


def values_of(shape):
    return tf.constant(np.random.default_rng(3).normal(2.0, 1.5, shape), tf.float32)


@pytest.mark.parametrize(
    ("shape", "granularity", "axes", "expected"),
    [
        ((3, 3, 4, 8), "layerwise", (-1,), ()),
        ((3, 3, 4, 8), "channelwise", (-1,), (1, 1, 1, 8)),
        ((3, 3, 4, 8), "channelwise", (-2,), (1, 1, 4, 1)),
        ((3, 3, 4, 2), "channelwise", (-2, -1), (1, 1, 4, 2)),
        ((5, 2, 3), "channelwise", (1, -1), (1, 2, 3)),
        ((3, 3, 4, 8), "elementwise", (-1,), (3, 3, 4, 8)),
    ],
)
def test_alpha_shape(shape, granularity, axes, expected):
    assert formula.alpha_shape(shape, granularity, axes) == expected


def test_unknown_granularity_is_named():
    with pytest.raises(ValueError, match="granularity='pixelwise'"):
        formula.alpha_shape((2, 3), "pixelwise")


@pytest.mark.parametrize("axis", [None, [1, 2], [0], [2]])
@pytest.mark.parametrize("keepdims", [True, False])
def test_standard_deviation_divides_by_n_minus_1(axis, keepdims):
    values = values_of((4, 3, 5))
    np.testing.assert_allclose(
        formula.standard_deviation(values, axis, keepdims),
        np.std(
            values, None if axis is None else tuple(axis), ddof=1, keepdims=keepdims
        ),
        rtol=1e-5,
    )


@pytest.mark.parametrize(("shape", "axis"), [((1,), None), ((4, 1), [1]), ((3,), [])])
def test_standard_deviation_of_one_element_is_zero(shape, axis):
    deviation = formula.standard_deviation(values_of(shape), axis)
    np.testing.assert_array_equal(deviation, np.zeros(deviation.shape))


@pytest.mark.parametrize("sigma_over", formula.SIGMA_SCOPES)
@pytest.mark.parametrize("alpha_shape", [(), (1, 1, 5), (1, 3, 5)])
def test_noisy_value_is_v_plus_alpha_sigma_z(sigma_over, alpha_shape):
    values = values_of((4, 3, 5))
    alpha = np.random.default_rng(1).normal(size=alpha_shape).astype("float32")
    axes = (1, 2) if sigma_over == "example" else None
    sigma = np.std(values, axes, ddof=1, keepdims=True)
    z = tf.random.stateless_normal(values.shape, SEED).numpy()
    np.testing.assert_allclose(
        formula.parametric_noise(values, alpha, SEED, sigma_over=sigma_over),
        values + alpha * sigma * z,
        rtol=1e-5,
        atol=1e-5,
    )


def test_noise_shape_shares_one_draw_between_examples():
    values = values_of((4, 6))
    noisy = formula.parametric_noise(values, 0.5, SEED, noise_shape=[1, 6])
    z = tf.random.stateless_normal([1, 6], SEED).numpy()
    np.testing.assert_allclose(
        noisy - values, 0.5 * np.std(values, ddof=1) * np.tile(z, (4, 1)), atol=1e-5
    )


@pytest.mark.parametrize("sigma_over", formula.SIGMA_SCOPES)
def test_sigma_and_eta_are_constants_for_the_gradient(sigma_over):
    values = values_of((4, 3))
    alpha = tf.constant(0.4)
    weights = tf.constant(np.random.default_rng(2).normal(size=(4, 3)), "float32")

    def weighted(alpha):
        noisy = formula.parametric_noise(values, alpha, SEED, sigma_over=sigma_over)
        return tf.reduce_sum(weights * noisy)

    with tf.GradientTape() as tape:
        tape.watch([values, alpha])
        total = weighted(alpha)
    with_respect_to_values, with_respect_to_alpha = tape.gradient(
        total, [values, alpha]
    )
    # Were sigma differentiated, `weights` would not come back unchanged.
    np.testing.assert_array_equal(with_respect_to_values, weights)

    axes = 1 if sigma_over == "example" else None
    sigma = np.std(values, axes, ddof=1, keepdims=True)
    eta = sigma * tf.random.stateless_normal(values.shape, SEED).numpy()
    np.testing.assert_allclose(
        with_respect_to_alpha, np.sum(weights * eta), rtol=1e-4, atol=1e-4
    )
    # The noise is linear in alpha, so a central difference has no truncation error.
    difference = (weighted(alpha + 0.5) - weighted(alpha - 0.5)) / 1.0
    np.testing.assert_allclose(with_respect_to_alpha, difference, rtol=1e-3)


@pytest.mark.parametrize("granularity", formula.GRANULARITIES)
def test_gradient_of_alpha_is_eta_summed_over_what_alpha_covers(granularity):
    values = values_of((4, 3))
    shape = formula.alpha_shape((4, 3), granularity)
    alpha = tf.fill(shape, 0.25)
    with tf.GradientTape() as tape:
        tape.watch(alpha)
        noisy = formula.parametric_noise(values, alpha, SEED)
    eta = np.std(values, ddof=1) * tf.random.stateless_normal((4, 3), SEED).numpy()
    covered = {"layerwise": (0, 1), "channelwise": (0,), "elementwise": ()}[granularity]
    np.testing.assert_allclose(
        tape.gradient(noisy, alpha),
        eta.sum(covered).reshape(shape),
        rtol=1e-4,
        atol=1e-5,
    )


def test_noise_has_mean_zero_and_standard_deviation_alpha_sigma():
    """Both estimates within 5 standard errors: wrong by chance once in 870,000 seeds.

    With n normal samples the standard error of the mean is s / sqrt(n) and that of
    the standard deviation s / sqrt(2 n).
    """
    n, alpha = 200_000, 0.25
    values = values_of((n,))
    expected = alpha * np.std(values, ddof=1)
    added = (formula.parametric_noise(values, alpha, SEED) - values).numpy()
    assert abs(added.mean()) < 5 * expected / np.sqrt(n)
    assert abs(added.std(ddof=1) - expected) < 5 * expected / np.sqrt(2 * n)


def test_another_seed_is_another_draw_and_the_same_seed_the_same():
    values = values_of((50,))
    draws = [
        formula.parametric_noise(values, 0.25, seed).numpy()
        for seed in ([7, 11], [7, 11], [7, 12], [8, 11])
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    for other in draws[2:]:
        assert not np.any(other == draws[0])
