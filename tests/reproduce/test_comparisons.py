"""Whether a difference between two networks is larger than chance."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats
from reproductions import cells_of, results_of

from pni_tf.reproduce.cells import Claim
from pni_tf.reproduce.comparisons import compare


def claim_of(folder, *columns, **options):
    ours, other = cells_of(folder, *columns, **options)
    return Claim(text="A against B", ours=ours, other=other)


def compared(folder, *columns, **options):
    claim = claim_of(folder, *columns, **options)
    return compare(results_of(folder), claim)


def of_two_defences(folder, ours, other, **fields):
    """Returns the claim, with the second column of other trainings."""
    (first,) = cells_of(folder, ours, **fields)
    (second,) = cells_of(folder, other, defence="adversarial", **fields)
    return Claim(text="A against B", ours=first, other=second)


class TestPairs:
    def test_is_the_paired_test_of_student(self, tmp_path):
        """But for the one image more, which is 1 part in 500 here."""
        draw = np.random.default_rng(0)
        ours, other = draw.integers(0, 11, (2, 3000)) / 10
        found = compared(tmp_path, [[*ours]], [[*other]], draws=10, accuracy_std=0.0)
        expected = scipy.stats.ttest_rel(ours, other)
        assert found.difference / found.error == pytest.approx(
            expected.statistic, rel=2e-3
        )
        assert found.difference == pytest.approx(100 * np.mean(ours - other))
        assert found.paired

    @pytest.mark.parametrize(("gained", "holds"), [(4, False), (8, True)])
    def test_few_images_decide_as_the_exact_test_does(self, gained, holds, tmp_path):
        """McNemar's: all of the images that differ go one way."""
        ours = [1.0] * 50 + [0.0] * 50
        other = [0.0] * gained + ours[gained:]
        found = compared(tmp_path, [ours], [other])
        exact = scipy.stats.binomtest(gained, gained).pvalue
        assert (exact < 0.05) == holds
        assert (found.verdict.startswith("these two differ")) == holds
        # (g - g^2 / 100 + 1) / 100^2
        error = math.sqrt(gained - gained**2 / 100 + 1)
        assert found.error == pytest.approx(error)

    def test_is_surer_than_two_samples_of_images(self, tmp_path):
        """Both networks fail on nearly the same images."""
        ours = [1.0] * 60 + [0.0] * 40
        other = [0.0] * 9 + ours[9:]
        pairs = compared(tmp_path / "pairs", [ours], [other])
        samples = compared(tmp_path / "samples", [0.60], [0.51])
        assert pairs.difference == pytest.approx(samples.difference)
        assert pairs.verdict.startswith("these two differ")
        assert samples.verdict == "no difference is shown"
        assert not samples.paired

    def test_equal_networks_do_not_differ(self, tmp_path):
        found = compared(tmp_path, [[1.0, 0.0] * 20], [[1.0, 0.0] * 20])
        assert (found.difference, found.verdict) == (0, "no difference is shown")

    @pytest.mark.parametrize("fault", ["other images", "other run", "no verdicts"])
    def test_verdicts_that_do_not_match_are_not_used(self, fault, tmp_path):
        claim = claim_of(tmp_path, [[1.0, 0.0] * 20], [[1.0, 1.0] * 20])
        job = claim.ours.sources[0].evaluation
        verdicts = tmp_path / job.path / "per_example.csv"
        if fault == "no verdicts":
            verdicts.unlink()
        elif fault == "other images":
            verdicts.write_text("\n".join(verdicts.read_text().splitlines()[:-1]))
        else:
            content = json.loads((tmp_path / job.result).read_text())
            content["columns"]["model"][0]["accuracy_mean"] = 0.6
            (tmp_path / job.result).write_text(json.dumps(content))
        assert not compare(results_of(tmp_path), claim).paired


class TestChance:
    def test_of_images(self, tmp_path):
        """71 and 51 of 102, as one more were right and one wrong."""
        found = compared(tmp_path, [0.7], [0.5])
        parts = [71 * 31 / 102**3, 51 * 51 / 102**3]
        assert found.error == pytest.approx(100 * math.sqrt(sum(parts)))
        assert found.limit == pytest.approx(1.97, abs=0.01)

    def test_of_draws(self, tmp_path):
        """Of a single training: the mean of 4 draws, each with deviation 0.02."""
        none = compared(tmp_path / "none", [0.7], [0.5])
        four = compared(tmp_path / "four", [0.7], [0.5], draws=4)
        difference = (four.error**2 - none.error**2) / 100**2
        assert difference == pytest.approx(2 * 0.02**2 / 4)

    def test_of_seeds(self, tmp_path):
        """Variances 0.005 and 0.02 over 2 seeds; 300 images each, always the same."""
        claim = of_two_defences(tmp_path, [0.5, 0.6], [0.5, 0.7], images=300)
        found = compare(results_of(tmp_path), claim)
        images = [(n / 302) * (1 - n / 302) / 302 for n in (166, 181)]
        seeds = [0.005 / 2, 0.02 / 2]
        total = sum(images) + sum(seeds)
        assert found.error == pytest.approx(100 * math.sqrt(total))
        # Welch and Satterthwaite.
        freedom = total**2 / (
            sum(v**2 / 301 for v in images) + sum(v**2 for v in seeds)
        )
        assert found.limit == pytest.approx(scipy.stats.t.ppf(0.975, freedom))
        low, high = found.interval
        assert (low + high) / 2 == pytest.approx(-5)
        assert (high - low) / 2 == pytest.approx(found.limit * found.error)

    def test_only_seeds_that_both_have_count(self, tmp_path):
        claim = claim_of(tmp_path, [0.7, 0.1], [0.5, 0.5])
        kept = dataclasses.replace(claim.other, sources=claim.other.sources[:1])
        claim = dataclasses.replace(claim, other=kept)
        found = compare(results_of(tmp_path), claim)
        assert (round(found.difference, 9), found.seeds) == (20, [0])

    def test_of_one_network_under_two_attacks(self, tmp_path):
        """What its trainings have in common cancels: 0.09 and 0.11 remain."""
        found = compared(tmp_path, [0.50, 0.70], [0.41, 0.59])
        images = [(n / 102) * (1 - n / 102) / 102 for n in (61, 51)]
        error = math.sqrt(sum(images) + 0.0002 / 2)
        assert found.error == pytest.approx(100 * error)

    @pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
    def test_equal_defences_seldom_differ(self, spread, tmp_path):
        """Two seeds of one defence against two others of it, on 60 images, 120 times.

        Images differ in difficulty, trainings by `spread`. False alarms were 1.1, 4.7
        and 6.3 % of 20,000; at 6.3 %, more than 16 of 120 have a probability of 0.1 %.
        """
        draw = np.random.default_rng(1)
        alarms = 0
        for i in range(120):
            ease = draw.normal(size=60) + spread * draw.normal(size=(4, 1))
            right = (draw.logistic(size=(4, 60)) < ease).astype(float).tolist()
            folder = tmp_path / str(i)
            claim = of_two_defences(folder, right[:2], right[2:])
            found = compare(results_of(folder), claim)
            alarms += found.verdict != "no difference is shown"
        assert alarms <= 16

    def test_one_training_each_shows_nothing_of_others(self, tmp_path):
        """However many images and draws there are."""
        for ours, other in ((0.9, 0.1), (0.1, 0.9)):
            found = compared(tmp_path / str(ours), [ours], [other], images=10**6)
            assert found.verdict == (
                "these two differ, which one training each does not show of others"
            )

    def test_several_trainings_decide(self, tmp_path):
        for ours, words in ((0.9, "it holds"), (0.1, "the opposite holds")):
            claim = of_two_defences(tmp_path / words, [ours] * 3, [0.5] * 3)
            found = compare(results_of(tmp_path / words), claim)
            assert found.verdict == words
