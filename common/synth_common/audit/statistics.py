"""Intervals and error rates of membership attacks.

Scores are one number per patient, higher meaning "more likely a member"; resampling the
scores therefore resamples patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, fisher_exact, hypergeom, mannwhitneyu, norm

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

    def bounds(self, level: float) -> list[float]:
        """[low, high] by the resamples' spread, each end missed with probability ``level``.

        Far ends of an interval cannot be read from the percentiles of few resamples.
        """
        half = float(norm.isf(level)) * float(self.resamples.std())
        return [max(0.0, self.value - half), min(1.0, self.value + half)]


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


def tpr_at_fpr(
    members: Array, nonmembers: Array, rate: float, confidence: float = 0.95
) -> OperatingPoint:
    """TPR with the threshold at which at most ``rate`` of the non-members score higher."""
    if len(nonmembers) < resolvable_from(rate):
        return OperatingPoint("not resolvable", "not resolvable")
    allowed = math.floor(rate * len(nonmembers))
    threshold = np.sort(nonmembers)[::-1][allowed]
    hits = int((members > threshold).sum())
    interval = list(clopper_pearson(hits, len(members), confidence))
    return OperatingPoint(hits / len(members), interval)


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


def detectable_auc(
    members: int, nonmembers: int, power: float = 0.8, level: float = 0.025
) -> float:
    """The AUC that a one-sided test at ``level`` tells from 0.5 with the given power.

    The default level is that of a two-sided 95 % interval. Uses the standard error at AUC
    0.5, ``sqrt((M + N + 1) / (12 M N))`` (Mann and Whitney 1947); at most 1.
    """
    error = math.sqrt((members + nonmembers + 1) / (12 * members * nonmembers))
    return min(1.0, 0.5 + float(norm.isf(level) + norm.ppf(power)) * error)


def auc_chance(members: Array, nonmembers: Array, two_sided: bool = False) -> float:
    """How likely so high an AUC is if membership tells nothing (Mann and Whitney 1947).

    Normal approximation with the correction for ties; 1 where all scores are equal.
    """
    if np.ptp(np.concatenate([members, nonmembers])) == 0:
        return 1.0
    alternative = "two-sided" if two_sided else "greater"
    test = mannwhitneyu(members, nonmembers, alternative=alternative, method="asymptotic")
    return float(test.pvalue)


def top_chance(members: Array, nonmembers: Array, share: float = 0.01) -> float:
    """How likely so many members are among the highest ``share`` of all, by chance.

    Patients above the score at that place are counted; given their number, the members
    among them are hypergeometric if membership tells nothing.
    """
    scores = np.concatenate([members, nonmembers])
    place = math.ceil(share * len(scores))
    threshold = np.sort(scores)[::-1][min(place, len(scores) - 1)]
    top, hits = int((scores > threshold).sum()), int((members > threshold).sum())
    return float(hypergeom.sf(hits - 1, len(scores), len(members), top)) if top else 1.0


def holm(chances: Sequence[float]) -> list[float]:
    """Probabilities corrected for their number by Holm's step-down (Holm 1979), in order."""
    count = len(chances)
    adjusted, highest = [1.0] * count, 0.0
    for step, place in enumerate(sorted(range(count), key=lambda i: chances[i])):
        highest = max(highest, min(1.0, (count - step) * chances[place]))
        adjusted[place] = highest
    return adjusted


def roc_points(members: Array, nonmembers: Array, most: int = 40) -> list[list[float]]:
    """[[FPR, TPR], ...] with false positives evenly spread in logarithm, at most ``most``.

    The threshold of a point is the score of a non-member, who then is not accused.
    """
    ordered = np.sort(nonmembers)[::-1]
    count = len(ordered)
    places = np.unique(np.round(np.geomspace(1, count, most)).astype(np.int64)) - 1
    points = [
        [float((nonmembers > ordered[k]).mean()), float((members > ordered[k]).mean())]
        for k in places
    ]
    return [*points, [1.0, 1.0]]


@dataclass(frozen=True)
class Difference:
    """A share among members minus the same share among non-members.

    Attributes:
        member, control: (hits, trials) of members and of non-members.
        value: Difference of the shares.
        interval: Newcombe's (1998, method 10) interval of the difference: [low, high].
        chance: Fisher's exact probability of so large a difference by chance.
    """

    member: tuple[int, int]
    control: tuple[int, int]
    value: float
    interval: list[float]
    chance: float


def share_difference(
    member: tuple[int, int], control: tuple[int, int], confidence: float = 0.95
) -> Difference:
    """Compare two shares of independent patients, given as (hits, trials).

    Raises:
        DataError: No trials, or more hits than trials.
    """
    for hits, trials in (member, control):
        if trials < 1 or not 0 <= hits <= trials:
            raise DataError(
                f"{hits} hits in {trials} trials is no share; need 0 <= hits <= trials >= 1"
            )
    z = float(norm.isf((1 - confidence) / 2))
    first, second = member[0] / member[1], control[0] / control[1]
    (low1, high1), (low2, high2) = (_wilson(*side, z) for side in (member, control))
    value = first - second
    table = [[hits, trials - hits] for hits, trials in (member, control)]
    return Difference(
        member,
        control,
        value,
        [
            value - math.hypot(first - low1, high2 - second),
            value + math.hypot(high1 - first, second - low2),
        ],
        float(fisher_exact(table, alternative="greater").pvalue),
    )


def _wilson(hits: int, trials: int, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share (1927)."""
    share, square = hits / trials, z * z / trials
    middle = share + square / 2
    half = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return (middle - half) / (1 + square), (middle + half) / (1 + square)
