"""Intervals and rates against known values and slow versions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from synth_common.audit.statistics import (
    auc,
    bootstrap_auc,
    clopper_pearson,
    detectable_auc,
    leading_members,
    resolvable_from,
    tpr_at_fpr,
)
from synth_common.errors import DataError


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.3084971),
        (10, 10, 0.6915029, 1.0),
        (1, 20, 0.0012651, 0.2487328),
        (50, 100, 0.3983211, 0.6016789),
    ],
)
def test_clopper_pearson_known_values(hits: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(hits, trials) == (
        pytest.approx(low, abs=1e-6),
        pytest.approx(high, abs=1e-6),
    )


def test_clopper_pearson_agrees_with_scipy() -> None:
    for hits in range(8):
        expected = binomtest(hits, 7).proportion_ci(0.9, "exact")
        assert clopper_pearson(hits, 7, 0.9) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("hits", "trials"), [(1, 0), (-1, 5), (6, 5)])
def test_clopper_pearson_refuses_what_is_no_share(hits: int, trials: int) -> None:
    with pytest.raises(DataError):
        clopper_pearson(hits, trials)


def test_auc_agrees_with_a_loop_and_with_the_gaussian_mechanism() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 5, 30).astype(float), rng.integers(0, 5, 20).astype(float)
    wins = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(members, others)]
    assert auc(members, others) == pytest.approx(np.mean(wins))
    # Gaussian mechanism, mu = 1: AUC 0.7602, TPR at 1 % FPR 0.0924.
    members, others = rng.normal(1, 1, 4000), rng.normal(0, 1, 4000)
    assert auc(members, others) == pytest.approx(0.7602, abs=0.02)
    assert tpr_at_fpr(members, others, 0.01).tpr == pytest.approx(0.0924, abs=0.03)


def test_the_bootstrap_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(1)
    members, others = rng.normal(0.5, 1, 40), rng.normal(0, 1, 30)
    fast = bootstrap_auc(members, others, 1000, np.random.default_rng(2))
    slow = [auc(rng.choice(members, 40), rng.choice(others, 30)) for _ in range(1000)]
    assert fast.value == pytest.approx(auc(members, others))
    assert len(fast.resamples) == 1000
    assert fast.interval() == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.02)


def test_the_bootstrap_interval_covers_at_its_rate() -> None:
    rng = np.random.default_rng(3)
    truth = float(norm.cdf(0.5 / 2**0.5))
    covered = 0
    for _ in range(100):
        drawn = bootstrap_auc(rng.normal(0.5, 1, 80), rng.normal(0, 1, 60), 200, rng).interval()
        covered += drawn[0] <= truth <= drawn[1]
    assert 88 <= covered <= 100


def test_one_percent_needs_299_nonmembers() -> None:
    assert resolvable_from(0.01) == 299
    assert resolvable_from(0.001) == 2995
    members = np.linspace(0, 1, 50)
    assert tpr_at_fpr(members, np.zeros(298), 0.01).tpr == "not resolvable"
    assert tpr_at_fpr(members, np.zeros(298), 0.01).interval == "not resolvable"
    assert tpr_at_fpr(members, np.zeros(299), 0.01).tpr == pytest.approx(49 / 50)


def test_the_threshold_lets_through_at_most_the_rate() -> None:
    nonmembers = np.arange(400.0)
    members = np.array([395.0, 395.5, 396.0, 500.0])
    point = tpr_at_fpr(members, nonmembers, 0.01)  # four may pass: the threshold is 395
    assert point.tpr == 0.75
    assert point.interval == pytest.approx(clopper_pearson(3, 4))


def test_leading_members_and_their_chance() -> None:
    assert leading_members(np.array([1.0, 3.0]), np.array([2.0, 0.0])) == (1, pytest.approx(0.5))
    count, chance = leading_members(np.array([5.0, 6.0, 7.0]), np.array([1.0, 2.0]))
    assert (count, chance) == (3, pytest.approx(3 / 5 * 2 / 4 * 1 / 3))
    assert leading_members(np.array([1.0]), np.array([1.0, 2.0])) == (0, 1.0)
    rng = np.random.default_rng(4)
    low = [leading_members(rng.random(30), rng.random(10))[1] <= 0.05 for _ in range(2000)]
    assert np.mean(low) <= 0.06


def test_the_detectable_auc_is_found_at_the_stated_power() -> None:
    target = detectable_auc(150, 150)
    shift = 2**0.5 * norm.ppf(target)
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(150):
        drawn = bootstrap_auc(rng.normal(shift, 1, 150), rng.normal(0, 1, 150), 150, rng)
        found += drawn.interval()[0] > 0.5
    assert found / 150 == pytest.approx(0.8, abs=0.1)
    assert detectable_auc(2, 2) == 1.0
