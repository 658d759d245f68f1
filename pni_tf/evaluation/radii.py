"""Closed forms of certified radii, and the confidence bounds that they need."""

import numpy as np
import scipy.stats

from pni_tf.checks import check_choice, check_number
from pni_tf.noise.layers import DISTRIBUTIONS


def pixeldp_radius(
    lower: np.ndarray,
    upper: np.ndarray,
    *,
    scale: float,
    sensitivity: float = 1.0,
    distribution: str = "gaussian",
) -> np.ndarray:
    """Returns the radius that PixelDP certifies: the largest at which it holds.

    A change of the image by `r` leaves the expected scores `(e, d)` differentially
    private, where with Gaussian noise `scale = sensitivity * r * sqrt(2 ln(1.25 / d)) /
    e` for `e` in `(0, 1]`, and with Laplace noise `scale = sensitivity * r / e` and
    `d = 0`. The predicted class then stays the largest if
    `lower > exp(2 e) * upper + (1 + exp(e)) * d`. The largest radius over all `e` is
    taken, for Gaussian noise over 2,000 of them.

    Args:
        lower: Lower bounds on the expected score of the predicted class, in `[0, 1]`.
        upper: Upper bounds on the largest expected score of another class.
        scale: Standard deviation of Gaussian noise, or `b` of Laplace noise.
        sensitivity: Of what comes before the noise: from L2 to L2 for Gaussian, from L1
            to L1 for Laplace noise.
        distribution: `"gaussian"` or `"laplace"`.

    Returns:
        Radii in the L2 (Gaussian) or L1 norm (Laplace); 0 where nothing is certified.
        With Laplace noise, infinity where `upper` is 0.

    Reference: https://arxiv.org/abs/1802.03471, proposition 2 and section 3.4.
    """
    check_choice("distribution", distribution, DISTRIBUTIONS)
    lower, upper = np.asarray(lower, float), np.asarray(upper, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Above it no d is left.
        most = np.where(lower > upper, 0.5 * np.log(lower / upper), 0)
    if distribution == "laplace":
        return most * scale / sensitivity
    shares = np.linspace(0, 1, 2001)[1:].reshape(-1, *[1] * lower.ndim)
    epsilon = np.minimum(most, 1) * shares  # The Gaussian mechanism holds up to 1.
    delta = (lower - np.exp(2 * epsilon) * upper) / (1 + np.exp(epsilon))
    possible = np.maximum(delta, np.finfo(float).tiny)
    radii = scale * epsilon / (sensitivity * np.sqrt(2 * np.log(1.25 / possible)))
    return np.where(delta > 0, radii, 0.0).max(0)


def cohen_radius(
    lower: np.ndarray, *, scale: float, sensitivity: float = 1.0
) -> np.ndarray:
    """Returns the L2 radius of randomized smoothing: `scale * Phi^-1(lower)`.

    It takes votes, and Gaussian noise. Noise after a linear map certifies as far in the
    space of its outputs, which divided by its sensitivity is a distance of images.

    Args:
        lower: Lower bounds on the probability that the predicted class is voted for.
        scale: Standard deviation of the noise.
        sensitivity: L2 operator norm of what comes before the noise.

    Returns:
        The radii; 0 where the bound is not above one half.

    Reference: https://arxiv.org/abs/1902.02918, theorem 1 and its proof's bound
    `p_B <= 1 - p_A`.
    """
    lower = np.asarray(lower, float)
    quantile = scipy.stats.norm.ppf(np.clip(lower, 0.5, 1))
    return quantile * scale / sensitivity


def hoeffding_bounds(
    means: np.ndarray, draws: int, failure: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns bounds on expectations of values in `[0, 1]`, from means over draws.

    The draws are independent, and each side fails with the probability `failure`.
    """
    width = np.sqrt(np.log(1 / failure) / (2 * draws))
    return np.maximum(means - width, 0), np.minimum(means + width, 1)


def clopper_pearson_bounds(
    counts: np.ndarray, draws: int, failure: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns exact bounds on the probability of an event, from its counts in draws.

    The draws are independent, and each side fails with the probability `failure`.
    """
    check_number("draws", draws, minimum=1, integer=True)
    counts = np.asarray(counts)
    beta = scipy.stats.beta
    lower = beta.ppf(failure, counts, draws - counts + 1)
    upper = beta.ppf(1 - failure, counts + 1, draws - counts)
    return np.where(counts == 0, 0.0, lower), np.where(counts == draws, 1.0, upper)
