"""What the uses that a statement lists cost at the least, computed without the site's ledger."""

from __future__ import annotations

import math
from collections.abc import Sequence

from synth_common.release.statement import PrivacyStatement, StatedUse

_LEAST_NOISE = 0.05
_CELL = 1e-4
_MOST_CELLS = 1e5
_TOLERANCE = 1e-6


def understated(statement: PrivacyStatement) -> str | None:
    """What is wrong with a statement's epsilon, in words; None for nothing.

    A statement is signed by the site that it speaks of, so that its uses are the site's word; but
    its epsilon must not be less than these uses cost, and all runs cost no less than one.
    """
    if statement.epsilon_all_runs < statement.epsilon * (1 - _TOLERANCE):
        return (
            f"says that all runs cost epsilon {statement.epsilon_all_runs:.6g} together, and this "
            f"one {statement.epsilon:.6g}"
        )
    if any(use.noise_multiplier < _LEAST_NOISE for use in statement.uses):
        return f"lists a use with a noise multiplier below {_LEAST_NOISE:g}, for which no plan asks"
    try:
        least = least_epsilon(statement.uses, statement.delta)
    except OverflowError:
        return "lists uses that cost so much that their epsilon cannot be computed"
    if statement.epsilon < least * (1 - _TOLERANCE):
        return (
            f"states epsilon {statement.epsilon:.6g}, and the uses that it lists cost at least "
            f"{least:.6g} at delta {statement.delta:g}"
        )
    return None


def least_epsilon(uses: Sequence[StatedUse], delta: float) -> float:
    """A lower bound of what the uses cost together, whatever accountant is asked.

    Privacy loss distributions of dp-accounting with losses rounded down (Doroshenko et al. 2022,
    arXiv 2207.04380, section 4), composed: Poisson-subsampled Gaussians under add/remove adjacency.

    Args:
        uses: Of one run; at least one.
        delta: At which epsilon is asked for.

    Raises:
        OverflowError: They cost some hundreds or more.
    """
    from dp_accounting.pld import privacy_loss_distribution as pld

    cell = _cell(uses)
    total = None
    for use in uses:
        each = pld.from_gaussian_mechanism(
            standard_deviation=use.noise_multiplier,
            pessimistic_estimate=False,
            value_discretization_interval=cell,
            sampling_prob=use.sample_rate,
            use_connect_dots=False,
        )
        each = each.self_compose(use.steps) if use.steps > 1 else each
        total = each if total is None else total.compose(each)
    return 0.0 if total is None else float(total.get_epsilon_for_delta(delta))


def _cell(uses: Sequence[StatedUse]) -> float:
    """Width of a cell of privacy loss: fine, but of no more cells than memory is there for.

    A wider cell makes the bound lower, and it stays one; whatever is stated, it is computed.
    """
    least = min(use.noise_multiplier for use in uses)
    one = 0.5 / least**2 + 12.0 / least  # losses of one step lie within, but for a tiny tail
    every = 0.0
    for use in uses:
        inverse = use.noise_multiplier**-2
        mean = use.steps * min(0.5 * inverse, use.sample_rate**2 * math.expm1(inverse))
        every += mean + 12.0 * math.sqrt(2.0 * mean)
    return max(_CELL, one / _MOST_CELLS, every / (20 * _MOST_CELLS))
