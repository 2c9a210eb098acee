"""The Gaussian mechanism's curves: what an ideal observer of a mu-GDP mechanism can tell.

mu-GDP (Dong, Roth and Su 2022, "Gaussian differential privacy"): telling two neighbouring
data sets apart is as hard as telling N(0, 1) from N(mu, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.special import log_ndtr, ndtr, ndtri

from synth_common.errors import DataError

_CLOSE_ENOUGH = 1e-6
_LARGE = 700.0  # e to this is still a float


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at ``delta`` of a mu-GDP mechanism (Dong, Roth and Su 2022, corollary 2.13).

    Solves ``delta = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2)``. A mechanism that is
    within (0, delta) has epsilon 0; an infinite ``mu`` has an infinite one.

    Raises:
        DataError: ``mu`` is negative or no number, or ``delta`` is not in (0, 1).
    """
    refuse_delta(delta)
    if not mu >= 0:
        raise DataError(f"mu = {mu}: must be 0 or more")
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return math.inf

    def too_small(eps: float) -> bool:
        # e^eps Phi(..) in logarithms: e^eps alone overflows long before the product does.
        tail = math.exp(eps + float(log_ndtr(-eps / mu - mu / 2)))
        return float(ndtr(-eps / mu + mu / 2)) - tail > delta

    if not too_small(0.0):
        return 0.0
    high = 1.0
    while too_small(high):
        high *= 2
    return boundary(too_small, 0.0, high)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose :func:`gaussian_epsilon` is ``epsilon`` (its inverse).

    Raises:
        DataError: ``epsilon`` is negative or no number, or ``delta`` is not in (0, 1).
    """
    refuse_delta(delta)
    if not epsilon >= 0:
        raise DataError(f"epsilon = {epsilon}: must be 0 or more")
    if math.isinf(epsilon):
        return math.inf
    high = 1.0
    while gaussian_epsilon(high, delta) <= epsilon:
        high *= 2
    return boundary(lambda mu: gaussian_epsilon(mu, delta) <= epsilon, 0.0, high)


def gaussian_auc(mu: float) -> float:
    """Best AUC against a mu-GDP mechanism: ``Phi(mu / sqrt 2)`` (N(0, 1) against N(mu, 1))."""
    return float(ndtr(mu / math.sqrt(2)))


def gaussian_tpr(mu: float, fpr: float) -> float:
    """Best TPR at ``fpr`` against a mu-GDP mechanism: ``Phi(Phi^-1(fpr) + mu)``.

    The trade-off curve of Dong, Roth and Su 2022, equation 6.

    Raises:
        DataError: ``fpr`` is not in [0, 1].
    """
    if not 0 <= fpr <= 1:
        raise DataError(f"false positive rate {fpr}: must be in [0, 1]")
    return float(ndtr(ndtri(fpr) + mu))


def dp_tpr(epsilon: float, delta: float, fpr: float) -> float:
    """Largest TPR at ``fpr`` that an (epsilon, delta) guarantee allows any attack.

    ``min(e^eps fpr + delta, 1 - e^-eps (1 - delta - fpr))``, at most 1 (Kairouz, Oh and
    Viswanath 2015, theorem 2.1; Wasserman and Zhou 2010).

    Raises:
        DataError: ``epsilon`` is negative or no number, ``delta`` is not in [0, 1), or
            ``fpr`` is not in [0, 1].
    """
    refuse_delta(delta, zero=True)
    if not epsilon >= 0:
        raise DataError(f"epsilon = {epsilon}: must be 0 or more")
    if not 0 <= fpr <= 1:
        raise DataError(f"false positive rate {fpr}: must be in [0, 1]")
    if math.isinf(epsilon):
        return 1.0
    steep = fpr * math.exp(min(epsilon, _LARGE)) + delta
    return min(1.0, steep, 1.0 - math.exp(-epsilon) * max(0.0, 1.0 - delta - fpr))


def boundary(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The end of an interval on which ``holds``: it does at ``low`` and not at ``high``."""
    if holds(high):
        return high
    while high - low > _CLOSE_ENOUGH:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def refuse_delta(delta: float, zero: bool = False) -> None:
    """Raise DataError unless delta is in (0, 1), or 0 where that is allowed."""
    if not (0 < delta < 1 or (zero and delta == 0)):
        raise DataError(f"delta = {delta}: must be {'0 or ' if zero else ''}in (0, 1)")
