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
    [Use(1.2, 0.04, 200), Use(1.5, 0.04, 100), Use(4.0, 0.3, 50)],
]


def reference_epsilon(history: list[Use], delta: float = DELTA) -> float:
    """Epsilon by dp-accounting's privacy-loss distributions (pessimistic)."""
    tool = PLDAccountant(value_discretization_interval=1e-3)
    for use in history:
        event = dp_accounting.PoissonSampledDpEvent(
            use.sample_rate, dp_accounting.GaussianDpEvent(use.noise_multiplier)
        )
        tool.compose(event, use.steps)
    return tool.get_epsilon(delta)


@pytest.mark.parametrize("history", GRID)
def test_prv_agrees_with_an_independent_accountant_on_the_safe_side(history):
    reference = reference_epsilon(history)
    ours = epsilon(history, DELTA, "prv")
    assert ours >= reference * 0.99 - 1e-3
    assert ours <= reference * 1.03 + 0.03


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
