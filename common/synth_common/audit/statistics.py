"""Intervals and error rates of membership attacks.

Scores are one number per patient, higher meaning "more likely a member"; resampling the
scores therefore resamples patients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm

from synth_common.errors import DataError

Array = npt.NDArray[np.float64]

_DRAWS_AT_ONCE = 64


def clopper_pearson(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a share (Clopper and Pearson 1934).

    Raises:
        DataError: ``trials`` below 1, or ``hits`` outside 0..trials.
    """
    if trials < 1 or not 0 <= hits <= trials:
        raise DataError(
            f"{hits} hits in {trials} trials is no share; need 0 <= hits <= trials >= 1"
        )
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def resolvable_from(rate: float, confidence: float = 0.95) -> int:
    """Non-members from which zero false positives bound the false positive rate by ``rate``.

    ``(1 - rate)^n <= 1 - confidence``: 299 for 1 %, 2,995 for 0.1 %.
    """
    return math.ceil(math.log(1 - confidence) / math.log(1 - rate))


def auc(members: Array, nonmembers: Array) -> float:
    """Share of member/non-member pairs in which the member scores higher; ties count half."""
    return float(_wins(members, nonmembers).mean())


def _wins(members: Array, nonmembers: Array) -> npt.NDArray[np.float32]:
    """(M, N): 1 where the member scores higher, 0.5 at a tie, else 0."""
    gap = np.sign(members[:, None] - nonmembers[None, :]).astype(np.float32)
    return 0.5 * (gap + 1.0)


@dataclass(frozen=True)
class AucBootstrap:
    """AUCs over resamples of patients. Two scores bootstrapped with equal seeds are paired.

    Attributes:
        value: AUC of the scores as they are.
        resamples: (B,) AUCs.
    """

    value: float
    resamples: Array

    def interval(self) -> list[float]:
        """95 % percentile interval: [low, high]."""
        low, high = np.quantile(self.resamples, [0.025, 0.975])
        return [float(low), float(high)]


def bootstrap_auc(
    members: Array, nonmembers: Array, resamples: int, rng: np.random.Generator
) -> AucBootstrap:
    """AUC of patient scores with ``resamples`` draws of patients with replacement.

    Members and non-members are drawn apart, so their numbers stay. All pairs are compared
    once; a resample only weighs them anew.
    """
    wins = _wins(members, nonmembers)
    m, n = wins.shape
    values = []
    for start in range(0, resamples, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, resamples - start)
        first = rng.multinomial(m, np.full(m, 1 / m), size=size).astype(np.float32)
        second = rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float32)
        values.append(((first @ wins) * second).sum(axis=1, dtype=np.float64) / (m * n))
    return AucBootstrap(float(wins.mean(dtype=np.float64)), np.concatenate(values))


@dataclass(frozen=True)
class OperatingPoint:
    """True positive rate at a false positive rate that the numbers can resolve, or not.

    Attributes:
        tpr: Share of members found; "not resolvable" with too few non-members.
        interval: Its Clopper-Pearson interval, for the threshold as it was set.
    """

    tpr: float | str
    interval: list[float] | str


def tpr_at_fpr(members: Array, nonmembers: Array, rate: float) -> OperatingPoint:
    """TPR with the threshold at which at most ``rate`` of the non-members score higher."""
    if len(nonmembers) < resolvable_from(rate):
        return OperatingPoint("not resolvable", "not resolvable")
    allowed = math.floor(rate * len(nonmembers))
    threshold = np.sort(nonmembers)[::-1][allowed]
    hits = int((members > threshold).sum())
    return OperatingPoint(hits / len(members), list(clopper_pearson(hits, len(members))))


def leading_members(members: Array, nonmembers: Array) -> tuple[int, float]:
    """How many members score above every non-member, and how likely that is by chance.

    If membership told nothing, the top ``k`` of ``M + N`` exchangeable patients would all
    be members with probability ``C(M, k) / C(M + N, k)``. A few copied patients show here
    long before they move the AUC.
    """
    k = int((members > nonmembers.max()).sum())
    m, total = len(members), len(members) + len(nonmembers)
    steps = np.arange(k)
    return k, float(np.exp(np.sum(np.log(m - steps) - np.log(total - steps))))


def detectable_auc(members: int, nonmembers: int, power: float = 0.8) -> float:
    """The AUC that a 95 % interval tells from 0.5 with the given power, at these numbers.

    Uses the standard error at AUC 0.5, ``sqrt((M + N + 1) / (12 M N))`` (Mann and Whitney
    1947); at most 1.
    """
    error = math.sqrt((members + nonmembers + 1) / (12 * members * nonmembers))
    return min(1.0, 0.5 + float(norm.ppf(0.975) + norm.ppf(power)) * error)
