"""Noise on the integers: the exact distribution, and the price of its being discrete."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from synth_common.errors import PrivacyError
from synth_common.privacy import discrete_gaussian as module
from synth_common.privacy.discrete_gaussian import discrete_gaussian, divergence
from synth_common.randomness import SecureNoise, SimulationNoise

SOURCES = [lambda i: SimulationNoise(i), lambda _: SecureNoise()]


def pmf(variance: float, reach: int = 60) -> np.ndarray:
    """Probabilities of -reach .. reach, from the definition."""
    y = np.arange(-reach, reach + 1)
    weights = np.exp(-(y**2) / (2.0 * variance))
    return weights / weights.sum()


def fits(values: np.ndarray, variance: float) -> bool:
    """Chi-square of the counts against the pmf, rare values pooled."""
    expected = pmf(variance) * len(values)
    counts = np.bincount(values + 60, minlength=121).astype(float)
    often = expected >= 10
    pooled = (np.append(counts[often], counts[~often].sum()),
              np.append(expected[often], expected[~often].sum()))  # fmt: skip
    if pooled[1][-1] < 1e-3:
        pooled = (pooled[0][:-1], pooled[1][:-1])
    return bool(
        stats.chisquare(pooled[0], pooled[1] * pooled[0].sum() / pooled[1].sum()).pvalue > 1e-4
    )


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("variance", [1, 2, 7, 30])
def test_small_variances_follow_the_definition_and_no_other_variance(source, variance):
    values = discrete_gaussian(200_000, variance, source(variance))
    assert fits(values, variance)
    assert not fits(values, 0.9 * variance)
    assert not fits(values, 1.1 * variance + 0.05)


@pytest.mark.parametrize("deviation", [1e6, 3e8, 2.0**50])
def test_large_variances_look_like_the_continuous_gaussian_of_that_scale(deviation):
    values = discrete_gaussian(100_000, int(deviation) ** 2, SimulationNoise(3)) / deviation
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert stats.kstest(0.9 * values, "norm").pvalue < 1e-6
    # Low bits carry nothing: all residues occur alike.
    low = discrete_gaussian(100_000, int(deviation) ** 2, SimulationNoise(4)) & 7
    assert stats.chisquare(np.bincount(low, minlength=8)).pvalue > 1e-4


def test_every_threshold_can_be_decided_exactly(monkeypatch):
    """With every comparison sent the slow way the distribution stays what it is."""
    monkeypatch.setattr(module, "_SURE", math.inf)
    values = discrete_gaussian(3000, 2, SimulationNoise(5))
    assert fits(values, 2)
    assert not fits(values, 3)


def test_the_slow_and_the_fast_comparison_agree_where_both_are_sure():
    noise = SimulationNoise(6)
    for numerator, denominator in [(1, 1), (7, 3), (1, 10**12), (10**24 + 1, 10**24)]:
        p = math.exp(-numerator / denominator)
        for u in (0.5 * p, p * (1 - 1e-9), min(p * (1 + 1e-9), 1 - 1e-12)):
            word = int(u * 2**64)
            wanted = word < p * 2**64
            assert module._below_exactly(word, (numerator, denominator), noise) is wanted


def test_the_margin_of_the_fast_comparison_covers_the_error_of_its_threshold():
    """Against 60 digits, for exponents of the size and from the formula that are used."""
    from decimal import Decimal, localcontext

    rng, variance = np.random.default_rng(0), int(7.3e7) ** 2 + 12345
    scale = math.isqrt(variance) + 1
    worst = 0.0
    for y in (rng.standard_normal(500) * math.sqrt(variance) * 2).astype(np.int64):
        y = abs(int(y))
        fast = math.exp(-((y - variance / scale) ** 2) / (2.0 * variance)) * 2.0**64
        with localcontext() as context:
            context.prec = 60
            exact = (-Decimal((y * scale - variance) ** 2) / (2 * variance * scale**2)).exp()
            worst = max(worst, abs(float(Decimal(fast) - exact * 2**64)))
    assert worst < module._SURE / 32


def test_zero_variance_draws_zeros_and_impossible_ones_are_refused():
    assert not discrete_gaussian(5, 0, SimulationNoise(0)).any()
    assert discrete_gaussian(0, 9, SimulationNoise(0)).shape == (0,)
    for variance in (-1, 2**104):
        with pytest.raises(PrivacyError, match="variance"):
            discrete_gaussian(1, variance, SimulationNoise(0))


def test_equal_seeds_give_equal_noise_and_the_operating_system_never_does():
    first, again, other = (discrete_gaussian(50, 10**12, SimulationNoise(s)) for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    secret = [discrete_gaussian(50, 10**12, SecureNoise()) for _ in range(2)]
    assert (secret[0] != secret[1]).any()


@pytest.mark.parametrize("variance", [0.3, 0.5, 1.0])
def test_the_stated_divergence_bounds_what_convolving_really_does(variance):
    """Small variances, where the effect can be seen: log-ratios over all values."""
    summands = 4
    reach = 400
    y = np.arange(-reach, reach + 1)
    total = one = np.exp(-(y**2) / (2.0 * variance))
    for _ in range(summands - 1):
        total = np.convolve(total, one, mode="same")
    whole = np.exp(-(y**2) / (2.0 * variance * summands))
    near = np.abs(y) < 15
    ratio = np.log((total / total.sum())[near] * whole.sum() / whole[near])
    stated = divergence(variance, summands, coordinates=1) / 2
    assert 0 < np.abs(ratio).max() <= stated


def test_the_discrete_gaussian_is_a_randomly_rounded_continuous_one():
    """The second fact of the module's text, by numerical integration."""
    variance, rounding = 2.0, 0.5
    y = np.arange(-30, 31)
    x = np.linspace(-25, 25, 100_001)
    density = stats.norm.pdf(x, scale=math.sqrt(variance - rounding))
    weights = np.exp(-((y[:, None] - x) ** 2) / (2 * rounding))
    rounded = (weights / weights.sum(0) * density).sum(1) * (x[1] - x[0])
    ratio = np.log(rounded / pmf(variance, 30))[20:41]
    assert 0 < np.abs(ratio).max() <= module._factor(rounding)


def test_the_divergence_grows_with_size_and_vanishes_with_variance():
    sizes = [divergence(0.8, 5, d) for d in (1, 10, 1000)]
    assert all(a < b for a, b in pairwise(sizes))
    assert divergence(0.001, 3, 1) == math.inf
    assert divergence(100.0, 50, 10**7) < 1e-100
