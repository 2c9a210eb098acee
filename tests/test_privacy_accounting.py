"""Accounting against dp-accounting, and calibration that lands on the safe side."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from synth_common.errors import BudgetError, PrivacyError
from synth_common.privacy.accounting import Use, calibrate, epsilon, merged

DELTA = 1e-5
GRID = [
    [Use(1.0, 0.01, 1000)],
    [Use(0.8, 0.05, 300)],
    [Use(3.0, 0.25, 400)],
    [Use(2.0, 1.0, 20)],
    # Several mechanisms: DP-SGD at several rates, a Gaussian release, a label histogram.
    [Use(1.2, 0.04, 200), Use(1.5, 0.04, 100), Use(4.0, 0.3, 50)],
    [Use(3.73, 1.0, 1)],
    [Use(1.1, 0.08, 320), Use(6.0, 1.0, 1, "label histogram"), Use(20.0, 1.0, 1)],
    [Use(5.0, 1.0, 1, "label histogram"), Use(5.0, 1.0, 3), Use(12.0, 0.5, 100)],
]
TOLERANCE = 0.01
"""What an accountant may be above the truth: 1 %, and 0.02 where epsilon is small."""


def reference_epsilon(
    history: list[Use], delta: float = DELTA, grid: float = 1e-3, *, above: bool = True
) -> float:
    """Epsilon by dp-accounting's privacy-loss distributions.

    Losses are rounded up to the grid (a bound above the truth), or down (below it).
    """
    tool = PLDAccountant(value_discretization_interval=grid)
    for use in history:
        event = dp_accounting.PoissonSampledDpEvent(
            use.sample_rate, dp_accounting.GaussianDpEvent(use.noise_multiplier)
        )
        tool.compose(event, use.steps)
    if above:
        return tool.get_epsilon(delta)
    return _below(history, delta, grid)


def _below(history: list[Use], delta: float, grid: float) -> float:
    """A bound below the truth: the same distributions with losses rounded down."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    whole = None
    for use in history:
        one = pld.from_gaussian_mechanism(
            use.noise_multiplier,
            pessimistic_estimate=False,
            value_discretization_interval=grid,
            sampling_prob=use.sample_rate,
            use_connect_dots=False,
        ).self_compose(use.steps)
        whole = one if whole is None else whole.compose(one)
    return whole.get_epsilon_for_delta(delta)


@pytest.mark.parametrize("history", GRID)
def test_accountants_agree_with_dp_accounting_and_are_never_below_the_truth(history):
    low, high = _below(history, DELTA, 4e-5), reference_epsilon(history, grid=1e-4)
    assert 0.985 * high < low <= high  # so that 1.5 % too low would be noticed
    for accountant in ("prv", "pld"):
        assert low <= epsilon(history, DELTA, accountant) <= high * (1 + TOLERANCE) + 0.02


@pytest.mark.parametrize("history", GRID)
def test_rdp_is_never_below_prv(history):
    assert epsilon(history, DELTA, "rdp") >= epsilon(history, DELTA, "prv") - 0.02


@pytest.mark.parametrize(("goal", "rate", "steps"), [(8.0, 0.04, 400), (1.0, 0.1, 100)])
def test_calibration_meets_the_target_and_wastes_little(goal, rate, steps):
    noise = calibrate([], (rate, steps), (goal, DELTA), "prv")
    reached = epsilon([Use(noise, rate, steps)], DELTA, "prv")
    assert reached <= goal
    assert epsilon([Use(noise * 0.99, rate, steps)], DELTA, "prv") > goal * 0.999


def test_calibration_counts_what_was_spent_before():
    spent = [Use(1.0, 0.04, 100)]
    noise = calibrate(spent, (0.04, 300), (8.0, DELTA), "prv")
    assert noise > calibrate([], (0.04, 300), (8.0, DELTA), "prv")
    assert epsilon([*spent, Use(noise, 0.04, 300)], DELTA, "prv") <= 8.0


def test_a_spent_budget_is_refused():
    spent = [Use(0.6, 0.1, 500)]
    with pytest.raises(BudgetError, match="is spent"):
        calibrate(spent, (0.1, 10), (1.0, DELTA), "prv")


def test_what_still_fits_by_prv_is_not_refused_because_rdp_is_looser():
    spent = [Use(0.9, 0.04, 450)]
    goal = epsilon(spent, DELTA, "prv") + 0.15
    assert epsilon(spent, DELTA, "rdp") > goal
    noise = calibrate(spent, (0.04, 40), (goal, DELTA), "prv")
    assert epsilon([*spent, Use(noise, 0.04, 40)], DELTA, "prv") <= goal
    with pytest.raises(BudgetError, match="no noise up to 1"):
        calibrate(spent, (0.04, 40), (goal, DELTA), "prv", ceiling=1.0)


def test_every_mechanism_of_a_mixture_counts():
    parts = [Use(1.1, 0.08, 320), Use(6.0, 1.0, 1, "label histogram"), Use(12.0, 1.0, 1)]
    for accountant in ("prv", "rdp", "pld"):
        whole = epsilon(parts, DELTA, accountant)
        for left_out in range(3):
            assert epsilon(parts[:left_out] + parts[left_out + 1 :], DELTA, accountant) < whole


def test_a_single_gaussian_release_costs_what_the_closed_form_says():
    """Balle and Wang 2018, theorem 8: sigma 3.73 is epsilon 1 at delta 1e-5."""
    for accountant in ("prv", "pld"):
        assert epsilon([Use(3.7306, 1.0, 1)], DELTA, accountant) == pytest.approx(1.0, abs=0.02)


def test_ten_rounds_each_calibrated_alone_cost_more_than_one():
    noise = calibrate([], (0.05, 50), (1.0, DELTA), "prv")
    assert epsilon([Use(noise, 0.05, 500)], DELTA, "prv") > 2.5


def test_no_noise_is_infinite_and_nothing_is_zero():
    assert epsilon([Use(0.0, 0.1, 1)], DELTA, "prv") == math.inf
    assert epsilon([], DELTA, "prv") == 0.0


def test_order_of_uses_does_not_matter():
    a, b = Use(1.0, 0.04, 10), Use(2.0, 0.04, 10)
    assert set(merged([a, b, a])) == {Use(1.0, 0.04, 20), b}
    assert epsilon([a, b, a], DELTA, "prv") == pytest.approx(epsilon([b, a, a], DELTA, "prv"))


@pytest.mark.parametrize("bad", [(-1.0, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 0.1, 0)])
def test_impossible_uses_are_refused(bad):
    with pytest.raises(PrivacyError):
        Use(*bad)
