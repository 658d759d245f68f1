"""The statistics of a result."""

import math

import numpy as np
import pytest

from pni_tf.evaluation import Result, Scenario


def result(labels, predictions, **fields):
    return Result(
        scenario=Scenario(name="clean"),
        target="network",
        stochastic=len(predictions) > 1,
        labels=np.array(labels),
        predictions=np.array(predictions),
        seed=3,
        **fields,
    )


class TestResult:
    # Labels, predictions of each draw, then mean, std (N - 1), vote and worst.
    TABLE = (
        ([0, 1], [[0, 1]], 1, 0, 1, 1),
        ([0, 1], [[1, 1]], 0.5, 0, 0.5, 0.5),
        ([0, 1, 2, 0], [[0, 1, 2, 0], [0, 1, 1, 1]], 0.75, math.sqrt(0.125), 0.75, 0.5),
        # Three draws: the vote is right where two are, the worst where all are.
        (
            [0, 1, 2],
            [[0, 1, 0], [0, 2, 2], [1, 1, 2]],
            2 / 3,
            0,
            1,
            0,
        ),
        # A tie goes to the smallest class, right or wrong.
        ([0, 2], [[0, 2], [1, 1]], 0.5, math.sqrt(0.5), 0.5, 0),
        # A plurality of three against two and two.
        ([4], [[4], [1], [4], [1], [4], [2], [2]], 3 / 7, math.sqrt(2 / 7), 1, 0),
    )

    @pytest.mark.parametrize(
        ("labels", "predictions", "mean", "std", "vote", "worst"), TABLE
    )
    def test_statistics(self, labels, predictions, mean, std, vote, worst):
        found = result(labels, predictions)
        assert found.draws == len(predictions)
        assert found.mean == pytest.approx(mean)
        assert found.std == pytest.approx(std)
        assert found.vote == pytest.approx(vote)
        assert found.worst == pytest.approx(worst)
        for number in (found.mean, found.std, found.vote, found.worst):
            assert type(number) is float  # Otherwise it would not be JSON.

    def test_statistics_of_many(self):
        generator = np.random.default_rng(0)
        labels = generator.integers(0, 5, 40)
        predictions = generator.integers(0, 5, (9, 40))
        found = result(labels, predictions)
        correct = predictions == labels
        assert found.mean == pytest.approx(correct.mean())
        assert found.std == pytest.approx(correct.mean(1).std(ddof=1))
        assert found.worst == correct.all(0).mean()
        votes = [np.bincount(column).argmax() for column in predictions.T]
        assert found.vote == (votes == labels).mean()
        np.testing.assert_allclose(found.accuracies, correct.mean(1))
        np.testing.assert_allclose(found.correct_share, correct.mean(0))

    # Claims, classes aimed at, accuracy by the attack's own verdict, share upheld.
    # The labels are 0, 1, 2; two draws predict 1, 1, 0 and 0, 2, 0.
    CLAIMS = (
        ([True, True, True], None, 0, 4 / 6),
        ([True, False, True], None, 1 / 3, 3 / 4),
        ([False, True, False], None, 2 / 3, 1 / 2),
        ([True, True, False], [1, 0, 0], 1 / 3, 1 / 4),
        ([False, False, False], None, 1, None),
    )

    @pytest.mark.parametrize(("claimed", "towards", "accuracy", "upheld"), CLAIMS)
    def test_claims(self, claimed, towards, accuracy, upheld):
        norms = np.array([1.0, 2.0, 4.0])
        found = result(
            [0, 1, 2],
            [[1, 1, 0], [0, 2, 0]],
            claimed=np.array(claimed),
            towards=None if towards is None else np.array(towards),
            l2=norms,
            linf=norms / 10,
            queries=np.array([10, 20, 60]),
            gradients=np.array([0, 0, 3]),
        )
        assert found.claimed_accuracy == pytest.approx(accuracy)
        assert found.upheld == (None if upheld is None else pytest.approx(upheld))
        summary = found.summary()
        assert summary["claimed_accuracy"] == found.claimed_accuracy
        assert summary["upheld"] == found.upheld
        mean = norms[claimed].mean() if any(claimed) else None
        assert summary["l2_mean_of_claimed"] == mean
        assert summary["linf_mean_of_claimed"] == (mean and pytest.approx(mean / 10))
        assert (summary["queries_mean"], summary["gradients_mean"]) == (30, 1)

    def test_clean_images_make_no_claim(self):
        found = result([0], [[0]])
        assert (found.claimed_accuracy, found.upheld) == (None, None)
        assert "upheld" not in found.summary()
