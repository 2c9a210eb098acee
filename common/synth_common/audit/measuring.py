"""What an attack's scores amount to: AUC, true positives at few false ones, control, chance.

Scores are one number per patient, higher meaning "more likely a member".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synth_common.audit.policy import View
from synth_common.audit.statistics import (
    AucBootstrap,
    OperatingPoint,
    auc_chance,
    bootstrap_auc,
    detectable_auc,
    leading_members,
    roc_points,
    top_chance,
    tpr_at_fpr,
)
from synth_common.randomness import numpy_stream

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

RATES = (0.001, 0.01)
"""False positive rates at which true positives are reported."""

FEWEST = 20
"""Members and non-members below which a group is not tested."""

WAYS = 3
"""Ways in which the scores of one attack are looked at: AUC, highest percent, members on top."""

_RESAMPLES = 500
_RESAMPLES_OF_GROUP = 200


@dataclass(frozen=True)
class Scored:
    """Scores of one attack, by patient. SENSITIVE: they disclose membership.

    Attributes:
        view: What the adversary holds.
        attack: Its name.
        space: Feature space or model that the scores come from.
        members: (M,).
        nonmembers: (N,).
        blind: The same of the blind baseline: (M,) and (N,).
        within: Patients of the audit who are scored, members first; None means all.
    """

    view: View
    attack: str
    space: str
    members: Array
    nonmembers: Array
    blind: tuple[Array, Array]
    within: Flags | None = None


@dataclass(frozen=True)
class Measured:
    """An attack's rates, in all patients or in a group.

    Attributes:
        view, attack, space: As of :class:`Scored`.
        group: None for all patients.
        sides: Patients who are members, and who are not.
        auc: Of the attack.
        bounds: [low, high] of the AUC at the level that the gates need.
        points: Operating point at each of :data:`RATES`, 95 %.
        strict: The same with intervals at the gates' level.
        roc: [[FPR, TPR], ...]; empty for groups.
        baseline: Of the blind baseline.
        gain: [low, high] of the AUC minus the baseline's, paired, 95 %.
        control: Members against members; None for groups.
        control_chance: Two-sided probability of the control's AUC.
        chance: Probability of what was found, by chance, over all ways to look.
        leaders: Members above every non-member.
    """

    view: View
    attack: str
    space: str
    group: str | None
    sides: tuple[int, int]
    auc: AucBootstrap
    bounds: list[float]
    points: tuple[OperatingPoint, ...]
    strict: tuple[OperatingPoint, ...]
    roc: list[list[float]]
    baseline: AucBootstrap
    gain: list[float]
    control: AucBootstrap | None
    control_chance: float
    chance: float
    leaders: int


def detectable(sides: tuple[int, int], power: float, level: float) -> float:
    """The AUC that an attack on so many members and non-members shows with the given power.

    Args:
        sides: Members and non-members.
        power: Of being found by its AUC alone.
        level: Probability of a false alarm that one attack may take, over all :data:`WAYS`.
    """
    return detectable_auc(*sides, power, level / WAYS)


def measure(scored: Scored, level: float, seed: int) -> Measured:
    """Rates over all patients.

    Args:
        scored: The scores.
        level: Probability with which each end of ``bounds`` and of ``strict`` may miss.
        seed: Root seed of resamples.
    """
    name = (scored.view, scored.attack, scored.space)
    halves = numpy_stream(seed, "audit", "control", *name).permutation(scored.members)
    sides = (halves[: len(halves) // 2], halves[len(halves) // 2 :])
    control = bootstrap_auc(*sides, _RESAMPLES, numpy_stream(seed, "audit", "halves", *name))
    return _measure(
        scored,
        None,
        (level, _RESAMPLES, seed),
        (control, auc_chance(*sides, two_sided=True)),
    )


def measure_group(scored: Scored, group: str, chosen: Flags, seed: int) -> Measured | None:
    """Rates within a group of patients (P,), members first; None where it is too small."""
    if scored.within is not None:
        chosen = chosen[scored.within]
        if chosen.all():
            return None  # already looked at
    split = len(scored.members)
    first, second = chosen[:split], chosen[split:]
    if min(first.sum(), second.sum()) < FEWEST:
        return None
    part = Scored(
        scored.view,
        scored.attack,
        scored.space,
        scored.members[first],
        scored.nonmembers[second],
        (scored.blind[0][first], scored.blind[1][second]),
    )
    return _measure(part, group, (0.025, _RESAMPLES_OF_GROUP, seed), (None, 1.0))


def _measure(
    scored: Scored,
    group: str | None,
    how: tuple[float, int, int],
    control: tuple[AucBootstrap | None, float],
) -> Measured:
    """Rates of scores as they are."""
    level, resamples, seed = how
    first, second = scored.members, scored.nonmembers

    def bootstrap(sides: tuple[Array, Array]) -> AucBootstrap:
        # Attack and baseline draw the same patients, so that their difference is paired.
        return bootstrap_auc(*sides, resamples, numpy_stream(seed, "audit", "bootstrap"))

    measured, baseline = bootstrap((first, second)), bootstrap(scored.blind)
    gain = AucBootstrap(measured.value - baseline.value, measured.resamples - baseline.resamples)
    leaders, leading = leading_members(first, second)
    ways = (auc_chance(first, second), top_chance(first, second), leading)
    chance = min(1.0, WAYS * min(ways))  # Bonferroni makes one probability of them
    return Measured(
        scored.view,
        scored.attack,
        scored.space,
        group,
        (len(first), len(second)),
        measured,
        measured.bounds(level),
        tuple(tpr_at_fpr(first, second, rate) for rate in RATES),
        tuple(tpr_at_fpr(first, second, rate, 1 - 2 * level) for rate in RATES),
        roc_points(first, second) if group is None else [],
        baseline,
        gain.interval(),
        control[0],
        control[1],
        chance,
        leaders,
    )
