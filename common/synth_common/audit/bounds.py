"""Lower bounds on epsilon from what an attack got right: pure functions of counts.

Two kinds of attack are scored. A *threshold* attack says "in" or "out" of every canary and
is counted by its errors (false positives, false negatives). A *guessing* attack may abstain:
of ``m`` canaries it guesses ``r`` and gets ``v`` right. In both, every canary was in with
probability 1/2, independently of the others.

No bound here says that a mechanism is private: each says how much the attack has already
shown that it is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom

from synth_common.audit.gaussian import boundary, gaussian_epsilon, refuse_delta
from synth_common.errors import DataError

_MOST = 200.0
"""Largest epsilon searched for."""


@dataclass(frozen=True)
class Guesses:
    """What a guessing attack got right.

    Attributes:
        canaries: m, canaries it looked at.
        made: r, guesses it made; of the others it said nothing.
        right: v, guesses that were right.
    """

    canaries: int
    made: int
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.made <= self.canaries or self.canaries < 1:
            raise DataError(
                f"{self.right} right of {self.made} guesses on {self.canaries} canaries is "
                "impossible; need 0 <= right <= made <= canaries >= 1"
            )


@dataclass(frozen=True)
class Errors:
    """What a threshold attack got wrong.

    Attributes:
        false_positives: Canaries that were out and called in.
        false_negatives: Canaries that were in and called out.
        n_in: Canaries that were in.
        n_out: Canaries that were out.
    """

    false_positives: int
    false_negatives: int
    n_in: int
    n_out: int

    def __post_init__(self) -> None:
        possible = (
            0 <= self.false_positives <= self.n_out and 0 <= self.false_negatives <= self.n_in
        )
        if not possible or min(self.n_in, self.n_out) < 1:
            raise DataError(
                f"{self.false_positives} false positives of {self.n_out} and "
                f"{self.false_negatives} false negatives of {self.n_in} is impossible; need at "
                "least one canary on either side and no more errors than canaries"
            )


# ------------------------------------------------------------------ threshold attacks


def upper_rate(errors: int, trials: int, alpha: float) -> float:
    """Clopper-Pearson upper end of an error rate, missed with probability ``alpha / 2``."""
    _refuse_alpha(alpha)
    if errors >= trials:
        return 1.0
    return float(beta.ppf(1 - alpha / 2, errors + 1, trials - errors))


def jagielski_epsilon(errors: Errors, delta: float, alpha: float) -> float:
    """Lower bound from the two error rates (Jagielski, Ullman and Oprea 2020, section 4).

    ``max(ln((1 - delta - u_FP) / u_FN), ln((1 - delta - u_FN) / u_FP), 0)`` with u the
    Clopper-Pearson upper ends, each missed with probability ``alpha / 2``. Holds for any
    mechanism.

    Raises:
        DataError: ``delta`` is not in [0, 1), or ``alpha`` not in (0, 1).
    """
    refuse_delta(delta, zero=True)
    fp, fn = _upper_rates(errors, alpha)
    ratios = ((1 - delta - fp) / fn, (1 - delta - fn) / fp)
    return max([0.0, *(math.log(ratio) for ratio in ratios if ratio > 0)])


def cp_gdp_mu(errors: Errors, alpha: float) -> float:
    """Lower bound on mu: ``Phi^-1(1 - u_FP) - Phi^-1(u_FN)``, at least 0.

    The route of Nasr et al. 2023 (arXiv 2302.07956, section 4): it takes for granted that
    the trade-off curve is a Gaussian mechanism's, which is what lets a few hundred canaries
    speak of small deltas.
    """
    fp, fn = _upper_rates(errors, alpha)
    return max(0.0, float(ndtri(1 - fp) - ndtri(fn)))


def cp_gdp_epsilon(errors: Errors, delta: float, alpha: float) -> float:
    """Lower bound on epsilon at ``delta`` for a Gaussian mechanism; see :func:`cp_gdp_mu`.

    Raises:
        DataError: ``delta`` or ``alpha`` is not in (0, 1).
    """
    return gaussian_epsilon(cp_gdp_mu(errors, alpha), delta)


def cp_gdp_power(claimed_mu: float, true_mu: float, sizes: tuple[int, int], alpha: float) -> float:
    """Probability that :func:`cp_gdp_mu` exceeds ``claimed_mu`` when scores are ``true_mu`` apart.

    Both errors are binomial with rate ``Phi(-true_mu / 2)``, the threshold half-way between
    N(0, 1) and N(true_mu, 1); summed over all counts, not simulated.

    Args:
        claimed_mu: What the claim allows.
        true_mu: How far apart the scores of canaries that were in and out really are.
        sizes: Canaries that were in, and out.
        alpha: Of the bound.

    Raises:
        DataError: ``alpha`` is not in (0, 1), or a side has no canary.
    """
    _refuse_alpha(alpha)
    if min(sizes) < 1:
        raise DataError(f"{sizes} canaries in and out: need at least one on either side")
    rate = float(ndtr(-true_mu / 2))
    n_in, n_out = sizes
    gain_in, gain_out = cp_gdp_gains(n_in, alpha), cp_gdp_gains(n_out, alpha)
    # For every number of false positives: how many false negatives still refute the claim.
    allowed = np.searchsorted(-gain_in, gain_out - claimed_mu, side="left") - 1
    chances = binom.pmf(np.arange(n_out + 1), n_out, rate)
    return min(1.0, float(np.sum(chances * binom.cdf(allowed, n_in, rate))))


@lru_cache(maxsize=64)
def cp_gdp_gains(trials: int, alpha: float) -> npt.NDArray[np.float64]:
    """(trials + 1,) what 0, 1, 2, ... errors of one kind add to :func:`cp_gdp_mu`; falling."""
    errors = np.arange(trials)
    gains = np.append(-ndtri(beta.ppf(1 - alpha / 2, errors + 1, trials - errors)), -np.inf)
    gains.setflags(write=False)
    return gains


def _upper_rates(errors: Errors, alpha: float) -> tuple[float, float]:
    """Upper ends of the false positive and false negative rate."""
    return (
        upper_rate(errors.false_positives, errors.n_out, alpha),
        upper_rate(errors.false_negatives, errors.n_in, alpha),
    )


# ------------------------------------------------------------------ guessing attacks


def steinke_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Probability of so many right guesses under (epsilon, delta)-DP, bounded from above.

    Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846, theorem 5.2): with
    ``q = e^eps / (1 + e^eps)``, ``beta = P[Bin(r, q) >= v]`` and
    ``alpha = max_i P[v - i <= Bin(r, q) < v] / i``, it is ``beta + 2 m delta alpha``.
    The second term is what delta may have given away; without it the bound is wrong.

    Raises:
        DataError: ``epsilon`` is negative, or ``delta`` is not in [0, 1).
    """
    refuse_delta(delta, zero=True)
    if not epsilon >= 0:
        raise DataError(f"epsilon = {epsilon}: must be 0 or more")
    r, v = guesses.made, guesses.right
    if v == 0:
        return 1.0
    q = 1.0 / (1.0 + math.exp(-epsilon))
    below = np.cumsum(binom.pmf(np.arange(v - 1, -1, -1), r, q))
    alpha = float((below / np.arange(1, v + 1)).max())
    return min(1.0, float(binom.sf(v - 1, r, q)) + 2 * guesses.canaries * delta * alpha)


def steinke_epsilon(guesses: Guesses, delta: float, alpha: float) -> float:
    """Largest epsilon that the guesses refute: ``steinke_p_value < alpha``; 0 for none.

    Raises:
        DataError: ``delta`` is not in [0, 1), or ``alpha`` not in (0, 1).
    """
    _refuse_alpha(alpha)
    refuse_delta(delta, zero=True)

    def refuted(epsilon: float) -> bool:
        return steinke_p_value(guesses, epsilon, delta) < alpha

    return boundary(refuted, 0.0, _MOST) if refuted(0.0) else 0.0


def fdp_refutes(guesses: Guesses, mu: float, alpha: float) -> bool:
    """Whether the guesses refute mu-GDP.

    The numerical recursion of Mahloujifar, Melis and Chaudhuri 2025 (arXiv 2410.22235) with
    ``f(a) = Phi(Phi^-1(a) - mu)``, the inverse of one minus the Gaussian trade-off curve. It
    starts from a tail of ``alpha`` at v right guesses and adds up what mu-GDP allows for every
    smaller number; more than the whole of ``r / m`` is a contradiction.

    Raises:
        DataError: ``alpha`` is not in (0, 1).
    """
    _refuse_alpha(alpha)
    m, r, v = guesses.canaries, guesses.made, guesses.right
    if v == 0:
        return False
    a, h = alpha * v / m, alpha * (r - v) / m
    for i in range(v - 1, -1, -1):
        raised = max(h, float(ndtr(ndtri(a) - mu)))
        if raised == h:
            break
        a, h = min(1.0, a + i / (r - i) * (raised - h)), raised
    return a + h > r / m


def fdp_epsilon(guesses: Guesses, delta: float, alpha: float) -> float:
    """Epsilon at ``delta`` of the largest mu that :func:`fdp_refutes`; 0 for none.

    Raises:
        DataError: ``delta`` or ``alpha`` is not in (0, 1).
    """
    refuse_delta(delta)
    if not fdp_refutes(guesses, 0.0, alpha):
        return 0.0
    mu = boundary(lambda mu: fdp_refutes(guesses, mu, alpha), 0.0, math.sqrt(_MOST))
    return gaussian_epsilon(mu, delta)


def _refuse_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise DataError(f"alpha = {alpha}: must be in (0, 1)")
