"""What a history of private uses costs, and how much noise a plan needs.

Every mechanism is a Poisson-subsampled Gaussian under add/remove adjacency of one unit:
the steps of DP-SGD, and with a sample rate of 1 the single Gaussian release of a statistic
or a histogram. Any mixture composes. The default accountant is PRV (Gopi et al. 2021,
arXiv 2106.02848) as built into Opacus, whose upper bound is used. RDP (Mironov 2017;
Mironov et al. 2019) is looser by 7 to 11 %; PLD (Doroshenko et al. 2022, arXiv 2207.04380)
is that of dp-accounting with pessimistic rounding. Epsilon depends on settings only, never
on data, so it is public.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from synth_common.errors import BudgetError, PrivacyError
from synth_common.plan import Accountant

_LARGEST_NOISE = 1e4
_LEAST_NOISE = 0.25
_CLOSE_ENOUGH = 1e-3
_GRID = 1e-3
"""Width of a cell of privacy loss in the PLD accountant; losses are rounded up to it."""

Purpose = Literal["training", "label histogram", "embedding"]


@dataclass(frozen=True)
class Use:
    """Private steps of one kind.

    Attributes:
        noise_multiplier: Noise standard deviation over the most that one unit can move the
            sum (the clip norm, in L2); 0 means no noise.
        sample_rate: Probability with which each unit enters a step, in (0, 1].
        steps: Number of steps; 1 at rate 1 is a single Gaussian release.
        purpose: What the steps are for; says nothing about the cost.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    purpose: Purpose = "training"

    def __post_init__(self) -> None:
        if not (self.noise_multiplier >= 0 and math.isfinite(self.noise_multiplier)):
            raise PrivacyError(f"noise_multiplier = {self.noise_multiplier}: must be 0 or more")
        if not 0 < self.sample_rate <= 1:
            raise PrivacyError(f"sample_rate = {self.sample_rate}: must be in (0, 1]")
        if self.steps < 1:
            raise PrivacyError(f"steps = {self.steps}: must be 1 or more")


def merged(history: Sequence[Use]) -> tuple[Use, ...]:
    """The same history with uses of equal kind added up (composition commutes)."""
    steps: dict[tuple[float, float, Purpose], int] = {}
    for use in history:
        key = (use.noise_multiplier, use.sample_rate, use.purpose)
        steps[key] = steps.get(key, 0) + use.steps
    return tuple(Use(noise, rate, n, purpose) for (noise, rate, purpose), n in steps.items())


def epsilon(history: Sequence[Use], delta: float, accountant: Accountant) -> float:
    """Epsilon of everything in ``history`` composed, at ``delta``; an upper bound.

    Returns 0 for an empty history and infinity as soon as one use had no noise.
    """
    return _epsilon(merged(history), delta, accountant)


@lru_cache(maxsize=4096)
def _epsilon(history: tuple[Use, ...], delta: float, accountant: Accountant) -> float:
    if not history:
        return 0.0
    if any(use.noise_multiplier == 0 for use in history):
        return math.inf
    if accountant == "pld":
        return _epsilon_by_pld(history, delta)
    from opacus.accountants import create_accountant

    tool = create_accountant(accountant)
    tool.history = [(u.noise_multiplier, u.sample_rate, u.steps) for u in history]
    with warnings.catch_warnings():
        # RDP warns when the best order lies at the edge of its list; its bound still holds.
        warnings.simplefilter("ignore")
        return float(tool.get_epsilon(delta))


def _epsilon_by_pld(history: tuple[Use, ...], delta: float) -> float:
    """Epsilon by the privacy loss distributions of dp-accounting, rounded up."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    tool = PLDAccountant(value_discretization_interval=_GRID)
    for use in history:
        event = PoissonSampledDpEvent(use.sample_rate, GaussianDpEvent(use.noise_multiplier))
        tool.compose(event, use.steps)
    return float(tool.get_epsilon(delta))


def calibrate(
    history: Sequence[Use],
    planned: tuple[float, int],
    target: tuple[float, float],
    accountant: Accountant,
    ceiling: float = _LARGEST_NOISE,
) -> float:
    """The least noise multiplier with which ``history`` plus the plan stays within target.

    Args:
        history: What was spent already.
        planned: (sample rate, steps) still to come.
        target: (epsilon, delta) that the composition may reach.
        accountant: Which accountant bounds it.
        ceiling: Larger noise than this is refused: it would drown what was learnt.

    Returns:
        A noise multiplier at most 0.1 % above the least one.

    Raises:
        BudgetError: No noise up to ``ceiling`` fits into what the history left.
    """
    (rate, steps), (goal, delta) = planned, target

    def fits(noise: float, by: Accountant) -> bool:
        return epsilon([*history, Use(noise, rate, steps)], delta, by) <= goal

    # RDP answers at once, and its sigma is a little too large: a good place to start.
    high = min(_LEAST_NOISE, ceiling)
    while high < ceiling and not fits(high, "rdp"):
        high = min(2 * high, ceiling)
    if fits(high, "rdp"):
        high = _least(high / 2, high, lambda noise: fits(noise, "rdp"))
    if not fits(high, accountant):
        high = ceiling
        if epsilon(history, delta, accountant) >= goal or not fits(high, accountant):
            spent = epsilon(history, delta, accountant)
            raise BudgetError(
                f"epsilon {spent:.4g} of {goal:.4g} is spent, and no noise up to {ceiling:.4g} "
                f"times the clip norm makes {steps} more steps fit: raise the budget, or end "
                "training here"
            )
    shrink = 0.9
    low = high * shrink
    while low > _LEAST_NOISE / 2 and fits(low, accountant):
        shrink *= shrink
        low, high = low * shrink, low
    return _least(low, high, lambda noise: fits(noise, accountant))


def _least(low: float, high: float, fits: Callable[[float], bool]) -> float:
    """Bisect to the least value that fits; ``high`` fits."""
    while high - low > _CLOSE_ENOUGH * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
