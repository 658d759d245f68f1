"""Is one accuracy above another by more than chance? The one rule for all that compare.

A difference is shown if its 95 % confidence interval leaves out 0. What differs by
chance has several parts (images, training seeds, draws); each is given as the variance
of a mean and its degrees of freedom, and `error_and_limit` puts them together.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats

# The variance of a mean, and its degrees of freedom.
Part = tuple[float, int]


def error_and_limit(parts: Sequence[Part]) -> tuple[float, float]:
    """Returns the standard error of a difference, and how many of them show one.

    The limit is that of Student's t, with degrees of freedom after Welch and
    Satterthwaite: if there is no difference, `difference / error` exceeds it, either
    way, in 5 % of cases.
    """
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / df for variance, df in parts)
    return math.sqrt(total), float(scipy.stats.t.ppf(0.975, freedom))


def of_pairs(differences: np.ndarray) -> Part:
    """Returns the part of the images, where two networks saw the same ones.

    As if one more image had gone either way: where few images differ, their own spread
    says too little of how many might have (Agresti and Min, 2005, add a half to each
    cell of the table of pairs).

    Args:
        differences: By image, how much more often the first one is right, `[N]`.
    """
    squares = np.sum((differences - differences.mean()) ** 2) + 1
    return float(squares) / differences.size**2, differences.size - 1


def of_share(share: float, images: int) -> Part:
    """Returns the part of the images of one network, by its accuracy on them.

    As if one more image were right and one wrong (Agresti and Caffo, 2000).
    """
    count = images + 2
    share = (images * share + 1) / count
    return share * (1 - share) / count, count - 1


def of_values(variance: float, count: int) -> Part:
    """Returns the part of repetitions, such as draws, by their variance."""
    return variance / count, count - 1


def lower(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether accuracy `a` is lower than `b` by more than chance.

    Both are the shares of right draws by image, `[N]`, on the same images.
    """
    return bool(np.mean(a) - np.mean(b) < -chance_gap(a, b))


def chance_gap(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the smallest difference of two accuracies that would show something.

    The images are taken for independent, which they are not quite: those of a batch
    share the draws of weight noise. One image can show nothing: the gap is then 1.
    """
    if len(a) < 2:
        return 1.0
    error, limit = error_and_limit([of_pairs(a - b)])
    return limit * error
