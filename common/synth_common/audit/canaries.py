"""The verdict of a canary audit: does what a curious server saw refute the claimed epsilon?

Canaries are patients of the auditor's, in with probability 1/2, each with a weight of its
own in the updates (:mod:`synth_common.generators.canary`). Because neither weights, noise,
draws nor coins are shared, canaries are independent trials of one and the same question:
was this patient in? A verdict never says that a claim is right. It says whether this audit
could refute it, and how likely it would have done so if the noise had been too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from synth_common.audit.bounds import (
    Errors,
    Guesses,
    cp_gdp_epsilon,
    cp_gdp_power,
    fdp_epsilon,
    jagielski_epsilon,
    steinke_epsilon,
)
from synth_common.audit.gaussian import gaussian_epsilon, gaussian_mu
from synth_common.audit.statistics import auc
from synth_common.errors import DataError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Verdict = Literal["claim not refuted", "claim refuted"]

FEWEST = 60
"""Fewer canaries than this leave too few to choose a threshold on and to count errors on."""
_SHARES = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
_POWER = 0.8
_MOST_MU = 60.0


@dataclass(frozen=True)
class Claim:
    """What is put to the test.

    Attributes:
        epsilon: Claimed epsilon, finite.
        delta: At this delta.
        alpha: Probability with which the audit may refute a claim that holds.
    """

    epsilon: float
    delta: float
    alpha: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise DataError(f"epsilon = {self.epsilon}: an audit needs a finite claim above 0")
        for name, value in (("delta", self.delta), ("alpha", self.alpha)):
            if not 0 < value < 1:
                raise DataError(f"{name} = {value}: must be in (0, 1)")


@dataclass(frozen=True)
class Power:
    """What the audit would have noticed.

    Attributes:
        half_noise: Probability that it refutes the claim if the noise were half as large.
        detectable_epsilon: The smallest true epsilon that it refutes with 80 % power;
            infinite if none is small enough.
        efficiency: How far apart canaries that were in and out scored, over what the claim
            would allow an ideal observer, at most 1. The two numbers above assume that the
            attack stays as efficient as it was.
    """

    half_noise: float
    detectable_epsilon: float
    efficiency: float


@dataclass(frozen=True)
class AuditResult:
    """A canary audit of one site, whole.

    Attributes:
        claim: What was put to the test.
        verdict: "claim refuted" if ``cp_gdp`` is above the claimed epsilon.
        cp_gdp: The lower bound on epsilon that decides; for Gaussian noise.
        fdp: One-run lower bound for Gaussian noise, from guesses (reported only).
        steinke: One-run lower bound for any mechanism, from guesses (reported only).
        jagielski: Lower bound for any mechanism, from the errors (reported only).
        errors: What the threshold got wrong on the canaries it was not chosen on.
        guesses: The guesses behind the one-run bounds, on the same canaries.
        auc: Share of pairs in which the canary that was in scored higher.
        threshold: Chosen on the other canaries.
        chosen_on: How many those were.
        power: What the audit would have noticed.
    """

    claim: Claim
    verdict: Verdict
    cp_gdp: float
    fdp: float
    steinke: float
    jagielski: float
    errors: Errors
    guesses: Guesses
    auc: float
    threshold: float
    chosen_on: int
    power: Power

    @property
    def refuted(self) -> bool:
        """Whether the claim is refuted."""
        return self.verdict == "claim refuted"

    def as_fact_value(self) -> dict[str, Any]:
        """The result as nested plain values."""
        return asdict(self)


def canary_scores(sent: Floats, replied: Floats, rates: Sequence[float]) -> Floats:
    """One score per canary, higher for one that seems to be in.

    A canary that is in pushes its weight down. What a round moved it by is divided by the
    round's summed learning rate, which every server knows from the plan, so that each step
    counts alike.

    Args:
        sent: (rounds, canaries) weights sent to the site.
        replied: (rounds, canaries) weights in its replies.
        rates: The learning rate (up to a common factor) summed over each round's steps.

    Raises:
        DataError: Shapes differ, there is no round, or a rate is not above 0.
    """
    if sent.shape != replied.shape or sent.ndim != 2 or sent.shape[0] != len(rates) or not rates:
        raise DataError(
            f"weights sent {sent.shape} and replied {replied.shape} do not belong to "
            f"{len(rates)} rounds"
        )
    if not min(rates) > 0:
        raise DataError(f"learning rates {list(rates)}: must be above 0")
    moved: Floats = (sent - replied) / np.asarray(rates, dtype=np.float64)[:, None]
    return np.asarray(moved.sum(axis=0))


def audit_canaries(
    included: Flags, scores: Floats, claim: Claim, rng: np.random.Generator
) -> AuditResult:
    """Choose a threshold on a random third of the canaries, judge the claim on the rest.

    Args:
        included: (N,) whether each canary was in.
        scores: (N,) finite, higher for one that seems to be in.
        claim: What is put to the test.
        rng: Draws the third. Its draw must not depend on the scores.

    Raises:
        DataError: Fewer than 60 canaries, shapes that differ, scores that are not finite, or
            a part of the canaries in which all or none were in.
    """
    _refuse_unusable(included, scores)
    order = rng.permutation(len(scores))
    third, rest = order[: len(order) // 3], order[len(order) // 3 :]
    for part in (third, rest):
        if not 0 < included[part].sum() < len(part):
            raise DataError(
                f"all or none of {len(part)} canaries were in: use more canaries, each in with "
                "probability 1/2"
            )
    threshold = _balanced_threshold(included[third], scores[third])
    share = _best_share(included[third], scores[third], claim, len(rest))
    errors = _errors(included[rest], scores[rest], threshold)
    guesses = _guesses(included[rest], scores[rest], share)
    bound = cp_gdp_epsilon(errors, claim.delta, claim.alpha)
    area = auc(scores[rest][included[rest]], scores[rest][~included[rest]])
    return AuditResult(
        claim=claim,
        verdict="claim refuted" if bound > claim.epsilon else "claim not refuted",
        cp_gdp=bound,
        fdp=fdp_epsilon(guesses, claim.delta, claim.alpha),
        steinke=steinke_epsilon(guesses, claim.delta, claim.alpha),
        jagielski=jagielski_epsilon(errors, claim.delta, claim.alpha),
        errors=errors,
        guesses=guesses,
        auc=area,
        threshold=threshold,
        chosen_on=len(third),
        power=audit_power(claim, area, (errors.n_in, errors.n_out)),
    )


def audit_power(claim: Claim, area: float, sizes: tuple[int, int]) -> Power:
    """What an audit with these canaries would notice, by the binomial model under GDP.

    Scores of canaries that were in and out are taken for N(mu, 1) and N(0, 1); half the
    noise doubles mu, and a mechanism of epsilon' shows mu(epsilon') times the efficiency.

    Args:
        claim: What is put to the test.
        area: Measured AUC of the scores.
        sizes: Canaries that were in, and out, of those that count.
    """
    allowed = gaussian_mu(claim.epsilon, claim.delta)
    measured = max(0.0, math.sqrt(2) * float(ndtri(area)))
    efficiency = min(1.0, measured / allowed)

    def power(mu: float) -> float:
        return cp_gdp_power(allowed, mu, sizes, claim.alpha)

    half = power(2 * efficiency * allowed)
    if efficiency == 0 or power(_MOST_MU) < _POWER:
        return Power(half, math.inf, efficiency)
    low, high = 0.0, _MOST_MU
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= _POWER else (middle, high)
    return Power(half, gaussian_epsilon(high / efficiency, claim.delta), efficiency)


def _refuse_unusable(included: Flags, scores: Floats) -> None:
    if included.shape != scores.shape or included.ndim != 1 or included.dtype != np.bool_:
        raise DataError(
            f"inclusion {included.dtype} {included.shape} does not fit scores {scores.shape}; "
            "expected bool (N,) and float (N,)"
        )
    if len(scores) < FEWEST:
        raise DataError(f"{len(scores)} canaries: an audit needs at least {FEWEST}")
    if not np.isfinite(scores).all():
        raise DataError("a canary's score is not finite")


def _errors(included: Flags, scores: Floats, threshold: float) -> Errors:
    """Errors of calling "in" whatever scores above the threshold."""
    called = scores > threshold
    return Errors(
        int((called & ~included).sum()),
        int((~called & included).sum()),
        int(included.sum()),
        int((~included).sum()),
    )


def _balanced_threshold(included: Flags, scores: Floats) -> float:
    """Half-way between two scores, where both kinds of errors are equally frequent.

    It is the best one for two Gaussians, and less at the mercy of few canaries than the one
    that happens to have the largest bound.
    """
    values = np.unique(scores)
    if len(values) == 1:
        return float(values[0])
    between = (values[:-1] + values[1:]) / 2
    inside, outside = np.sort(scores[included]), np.sort(scores[~included])
    missed = np.searchsorted(inside, between, side="right") / len(inside)
    mistaken = 1 - np.searchsorted(outside, between, side="right") / len(outside)
    gaps = np.abs(missed - mistaken)
    best = np.flatnonzero(gaps == gaps.min())
    return float(between[best[len(best) // 2]])


def _guesses(included: Flags, scores: Floats, share: float) -> Guesses:
    """Call the highest scores in and the lowest out, ``share`` of all canaries in sum."""
    half = max(1, round(share * len(scores) / 2))
    order = np.argsort(scores, kind="stable")
    top, bottom = order[-half:], order[:half]
    right = int(included[top].sum() + (~included[bottom]).sum())
    return Guesses(len(scores), 2 * half, right)


def _best_share(included: Flags, scores: Floats, claim: Claim, canaries: int) -> float:
    """The share of canaries to guess on: with the largest bound, as if there were ``canaries``."""
    bounds = []
    for share in _SHARES:
        small = _guesses(included, scores, float(share))
        made = min(canaries, max(2, round(share * canaries)))
        right = math.floor(small.right / small.made * made)
        scaled = Guesses(canaries, made, right)
        bounds.append(steinke_epsilon(scaled, claim.delta, claim.alpha))
    return float(_SHARES[int(np.argmax(bounds))])
