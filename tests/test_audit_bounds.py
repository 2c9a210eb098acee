"""Lower bounds on epsilon: published numbers, slow definitions, error rates, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from synth_common.audit.bounds import (
    Errors,
    Guesses,
    cp_gdp_epsilon,
    cp_gdp_gains,
    cp_gdp_mu,
    cp_gdp_power,
    fdp_epsilon,
    fdp_refutes,
    jagielski_epsilon,
    steinke_epsilon,
    steinke_p_value,
    upper_rate,
)
from synth_common.audit.gaussian import gaussian_auc, gaussian_epsilon, gaussian_mu, gaussian_tpr
from synth_common.audit.statistics import clopper_pearson
from synth_common.errors import DataError

# Each bound is the largest epsilon refuted at 95 %; the f-DP one is its mu turned into an
# epsilon at the same delta.
_ONE_RUN = [
    ((100, 100, 100), 0.0, 3.493, None),
    ((1000, 100, 100), 1e-5, 3.465, 5.549),
    ((1000, 100, 95), 1e-5, 2.165, 3.323),
    ((1000, 200, 180), 1e-5, 1.796, 2.901),
    ((5000, 500, 450), 1e-5, 1.941, 2.776),
    ((1000, 20, 19), 1e-5, 1.268, None),
    ((1000, 1000, 600), 0.0, 0.297, None),
    ((1000, 1000, 500), 0.0, 0.0, None),
]


@pytest.mark.parametrize(("counts", "delta", "steinke", "fdp"), _ONE_RUN)
def test_one_run_bounds_reproduce_reference_numbers(counts, delta, steinke, fdp):
    guesses = Guesses(*counts)
    assert steinke_epsilon(guesses, delta, 0.05) == pytest.approx(steinke, abs=6e-4)
    if fdp is not None:
        assert fdp_epsilon(guesses, delta, 0.05) == pytest.approx(fdp, abs=6e-4)


@pytest.mark.parametrize(
    ("counts", "expected"), [((1000, 100, 95), 6.639e-4), ((1000, 200, 180), 4.362e-4)]
)
def test_p_values_reproduce_reference_numbers(counts, expected):
    assert steinke_p_value(Guesses(*counts), 1.0, 1e-5) == pytest.approx(expected, rel=1e-3)


def test_the_one_run_bound_cannot_reach_8_with_fewer_than_8932_canaries():
    """All right and nothing given away by delta: still ln(0.05) / ln(q) guesses are needed."""
    assert steinke_epsilon(Guesses(8931, 8931, 8931), 0.0, 0.05) < 8.0
    assert steinke_epsilon(Guesses(8932, 8932, 8932), 0.0, 0.05) == pytest.approx(8.0, abs=1e-3)


def test_the_p_value_is_the_formula_term_by_term():
    m, r, v, eps, delta = 60, 20, 15, 0.7, 1e-3
    q = math.exp(eps) / (1 + math.exp(eps))
    tail = sum(binom.pmf(k, r, q) for k in range(v, r + 1))
    given_away = max(sum(binom.pmf(k, r, q) for k in range(v - i, v)) / i for i in range(1, v + 1))
    expected = tail + 2 * m * delta * given_away
    assert steinke_p_value(Guesses(m, r, v), eps, delta) == pytest.approx(expected, rel=1e-9)
    assert expected > 1.05 * tail  # ports that forget the delta term fail here


@pytest.mark.parametrize(
    ("n", "delta", "alpha", "expected"), [(500, 0.0, 0.01, 4.5419), (1000, 1e-5, 0.05, 5.6006)]
)
def test_jagielski_without_errors_reproduces_reference_numbers(n, delta, alpha, expected):
    assert jagielski_epsilon(Errors(0, 0, n, n), delta, alpha) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("mu", "auc", "tpr", "epsilon"),
    [(0.5, 0.6382, 0.0339, 1.9931), (1, 0.7602, 0.0924, 4.3772), (2, 0.9214, 0.3721, 9.9973)],
)
def test_the_gaussian_mechanism_reproduces_reference_numbers(mu, auc, tpr, epsilon):
    assert gaussian_auc(mu) == pytest.approx(auc, abs=5e-5)
    assert gaussian_tpr(mu, 0.01) == pytest.approx(tpr, abs=5e-5)
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(epsilon, abs=5e-4)
    assert gaussian_mu(epsilon, 1e-5) == pytest.approx(mu, abs=1e-4)


def test_the_gaussian_curves_hold_at_their_ends():
    assert gaussian_epsilon(0.0, 1e-5) == 0.0
    assert gaussian_epsilon(1e-3, 1e-2) == 0.0  # within (0, delta) already
    assert gaussian_epsilon(math.inf, 1e-5) == math.inf
    assert gaussian_mu(math.inf, 1e-5) == math.inf
    assert 1200 < gaussian_epsilon(50.0, 1e-5) < 1700  # e^eps alone would overflow
    assert gaussian_tpr(1.0, 0.0) == 0.0
    assert gaussian_tpr(1.0, 1.0) == 1.0


def test_the_upper_rate_is_the_upper_end_of_a_two_sided_interval():
    assert upper_rate(7, 50, 0.05) == pytest.approx(clopper_pearson(7, 50)[1], rel=1e-12)
    assert upper_rate(50, 50, 0.05) == 1.0


def _scored(rng, mu, n):
    """Errors of the best threshold on N(0, 1) and N(mu, 1), n canaries each."""
    false_positives = int((rng.normal(0, 1, n) > mu / 2).sum())
    return Errors(false_positives, int((rng.normal(mu, 1, n) <= mu / 2).sum()), n, n)


def test_cp_gdp_stays_below_the_truth_and_close_to_it():
    rng = np.random.default_rng(0)
    bounds = [cp_gdp_mu(_scored(rng, 1.5, 400), 0.05) for _ in range(400)]
    assert np.mean(np.array(bounds) > 1.5) < 0.05
    assert 1.1 < np.mean(bounds) < 1.5


def test_what_errors_add_to_mu_is_the_bound_itself():
    gain_in, gain_out = cp_gdp_gains(40, 0.05), cp_gdp_gains(30, 0.05)
    assert gain_in[3] + gain_out[5] == pytest.approx(cp_gdp_mu(Errors(5, 3, 40, 30), 0.05))
    assert (np.diff(gain_in) < 0).all()


def test_cp_gdp_needs_fewer_canaries_than_the_general_bound():
    errors = _scored(np.random.default_rng(1), 1.5, 400)
    assert cp_gdp_epsilon(errors, 1e-5, 0.05) > 2 * jagielski_epsilon(errors, 1e-5, 0.05)


def test_an_attack_that_fails_shows_nothing():
    for errors in (Errors(50, 50, 100, 100), Errors(100, 100, 100, 100), Errors(0, 100, 100, 100)):
        assert cp_gdp_epsilon(errors, 1e-5, 0.05) == 0.0
        assert jagielski_epsilon(errors, 1e-5, 0.05) == 0.0
    for guesses in (Guesses(100, 0, 0), Guesses(100, 50, 0), Guesses(100, 50, 25)):
        assert steinke_epsilon(guesses, 1e-5, 0.05) == 0.0
        assert fdp_epsilon(guesses, 1e-5, 0.05) == 0.0


@pytest.mark.parametrize("claimed", [0.9, 1.4])
def test_power_is_the_share_of_simulated_audits_that_refute(claimed):
    rng, runs = np.random.default_rng(2), 600
    refuted = [cp_gdp_mu(_scored(rng, 1.6, 150), 0.05) > claimed for _ in range(runs)]
    power = cp_gdp_power(claimed, 1.6, (150, 150), 0.05)
    assert abs(np.mean(refuted) - power) < 4 * math.sqrt(power * (1 - power) / runs) + 1e-9


def test_power_grows_with_the_fault_and_with_the_canaries():
    weak, strong = (cp_gdp_power(1.5, mu, (200, 200), 0.01) for mu in (1.5, 2.5))
    assert weak < 0.01 < strong
    assert cp_gdp_power(1.5, 2.5, (100, 100), 0.01) < strong < 1.0
    assert cp_gdp_power(math.inf, 5.0, (100, 100), 0.01) == 0.0


def test_the_fdp_bound_holds_under_its_null():
    """Guesses from a true Gaussian mechanism refute its own mu less often than alpha."""
    rng, mu, m = np.random.default_rng(3), 1.0, 300
    refuted = 0
    for _ in range(100):
        included = rng.random(m) < 0.5
        scores = rng.normal(0, 1, m) + mu * included
        order = np.argsort(scores)
        right = int(included[order[-50:]].sum() + (~included[order[:50]]).sum())
        refuted += fdp_refutes(Guesses(m, 100, right), mu, 0.05)
        assert not fdp_refutes(Guesses(m, 100, right), 2 * mu, 0.05)
    assert refuted <= 5


@pytest.mark.parametrize("delta", [0.0, 1e-5])
def test_more_right_guesses_never_lower_a_bound(delta):
    bounds = [steinke_epsilon(Guesses(500, 60, v), delta, 0.05) for v in range(30, 61, 6)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0]


@pytest.mark.parametrize(
    "impossible",
    [
        lambda: Guesses(10, 11, 5),
        lambda: Guesses(10, 5, 6),
        lambda: Guesses(0, 0, 0),
        lambda: Errors(3, 0, 5, 2),
        lambda: Errors(0, -1, 5, 5),
        lambda: Errors(0, 0, 0, 5),
        lambda: steinke_p_value(Guesses(10, 5, 5), -1.0, 0.0),
        lambda: steinke_epsilon(Guesses(10, 5, 5), 1.0, 0.05),
        lambda: steinke_epsilon(Guesses(10, 5, 5), 1e-5, 0.0),
        lambda: fdp_epsilon(Guesses(10, 5, 5), 0.0, 0.05),
        lambda: jagielski_epsilon(Errors(0, 0, 5, 5), -1e-5, 0.05),
        lambda: cp_gdp_mu(Errors(0, 0, 5, 5), 1.0),
        lambda: cp_gdp_power(1.0, 1.0, (0, 5), 0.05),
        lambda: gaussian_epsilon(-1.0, 1e-5),
        lambda: gaussian_epsilon(math.nan, 1e-5),
        lambda: gaussian_mu(-1.0, 1e-5),
        lambda: gaussian_tpr(1.0, 1.1),
    ],
)
def test_the_impossible_is_refused(impossible):
    with pytest.raises(DataError):
        impossible()


def test_the_auc_formula_is_the_share_of_pairs():
    x = np.linspace(-8, 8, 4001)
    share = np.trapezoid(norm.pdf(x, 1.3) * norm.cdf(x), x)
    assert gaussian_auc(1.3) == pytest.approx(share, abs=1e-6)
