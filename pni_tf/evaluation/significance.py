"""Is one accuracy above another by more than chance?"""

import math

import numpy as np

from pni_tf.evaluation.results import Result


def lower(a: Result, b: Result) -> bool:
    """Returns whether accuracy `a` is lower than `b` by more than chance.

    The criterion: the mean of the paired differences of the images is below minus two
    of its standard errors.
    """
    difference = np.mean(a.correct_share) - np.mean(b.correct_share)
    return bool(difference < -chance_gap(a, b))


def chance_gap(a: Result, b: Result) -> float:
    """Returns two standard errors of the difference of two accuracies.

    The images are taken for independent, which they are not quite: those of a batch
    share the draws of weight noise. One image can show nothing: the gap is then 1.
    """
    differences = a.correct_share - b.correct_share
    if len(differences) < 2:
        return 1.0
    return float(2 * np.std(differences, ddof=1) / math.sqrt(len(differences)))
