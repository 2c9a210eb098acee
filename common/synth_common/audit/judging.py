"""From what was measured to verdicts: corrected for how often one looked, then gate by gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import norm

from synth_common.audit.battery import Copies
from synth_common.audit.copying import CopyTest
from synth_common.audit.linkage import Linkability, Reidentification
from synth_common.audit.measuring import Measured
from synth_common.audit.policy import AuditPolicy
from synth_common.audit.statistics import Difference, holm

_RARE = 0.001
"""A baseline or control that chance alone would give so rarely makes an attack unreadable."""

Verdict = Literal["found", "not found", "not resolvable"]


@dataclass(frozen=True)
class Tested:
    """A result that is not an AUC: a share or statistic of members against its control.

    Attributes:
        measure: The gate's measure that it belongs to.
        test: Its name.
        space: Feature space.
        value, control: The figure and what it is without membership.
        advantage: How far the figure goes beyond its control; None for a statistic.
        error: Standard error of the advantage.
        control_interval: 95 % of the control, where it was drawn.
        chance: Probability by chance.
        numbers: What it rests on, in words.
    """

    measure: str
    test: str
    space: str
    value: float
    control: float
    advantage: float | None
    error: float
    control_interval: list[float] | None
    chance: float
    numbers: str


@dataclass(frozen=True)
class Judged:
    """A corrected probability and the verdict."""

    corrected: float
    verdict: Verdict


@dataclass(frozen=True)
class Results:
    """All that was measured, and how it was judged.

    Attributes:
        attacks: Over all patients.
        groups: Within groups.
        tests: What is no AUC.
        copies: The search for near-copies.
        judged_attacks, judged_groups, judged_tests: In the same order.
        judged_copies: Of the search.
        epsilon: The recorded or stated epsilon; None where there is none.
        level: Probability of a false alarm that one look at all patients may take.
        group_level: The same of one look at a group.
    """

    attacks: Sequence[Measured]
    groups: Sequence[Measured]
    tests: Sequence[Tested]
    copies: Copies
    judged_attacks: Sequence[Judged]
    judged_groups: Sequence[Judged]
    judged_tests: Sequence[Judged]
    judged_copies: Judged
    epsilon: float | None
    level: float
    group_level: float

    def level_of(self, measured: Measured) -> float:
        """The probability of a false alarm that this look may take."""
        return self.level if measured.group is None else self.group_level


def judge(
    attacks: Sequence[Measured],
    groups: Sequence[Measured],
    tests: Sequence[Tested],
    copies: Copies,
    policy: AuditPolicy,
    epsilon: float | None,
) -> Results:
    """Correct for the number of looks (Holm) and judge.

    Half of alpha goes to everything that looks at all patients, half to the groups.
    """
    chances = [*(a.chance for a in attacks), *(t.chance for t in tests), copies.difference.chance]
    corrected, half = holm(chances), policy.alpha / 2
    of_groups = holm([g.chance for g in groups])
    rare = _RARE / max(1, len({g.group for g in groups}))
    n = len(attacks)
    plain = [Judged(p, "found" if p < half else "not found") for p in corrected]
    return Results(
        attacks,
        groups,
        tests,
        copies,
        [_attack(m, p, half, _RARE) for m, p in zip(attacks, corrected, strict=False)],
        [_attack(m, p, half, rare) for m, p in zip(groups, of_groups, strict=True)],
        plain[n:-1],
        plain[-1],
        epsilon,
        half / len(chances),
        half / max(1, len(groups)),
    )


def _attack(measured: Measured, corrected: float, alpha: float, rare: float) -> Judged:
    """An attack counts only beside its blind baseline and its control."""
    if measured.control_chance < rare:
        return Judged(corrected, "not resolvable")
    if corrected >= alpha:
        # Members and non-members that clearly differ by themselves can hide a leak.
        unlike = measured.baseline.bounds(rare)[0] > 0.5
        return Judged(corrected, "not resolvable" if unlike else "not found")
    gained = measured.gain[0] > 0 or measured.baseline.interval()[0] <= 0.5
    return Judged(corrected, "found" if gained else "not resolvable")


def copy_tests(copying: Mapping[str, CopyTest], space: str) -> list[Tested]:
    """Tests for copying of the whole set."""
    words = "control: members dealt out anew among the same patients, 200 times"
    return [
        Tested(
            "data-copying",
            name,
            space,
            test.value,
            test.control,
            None,
            0.0,
            test.control_interval,
            test.chance,
            words,
        )
        for name, test in copying.items()
    ]


def link_tests(
    reidentified: Reidentification,
    linked: Linkability | None,
    inferred: Mapping[str, Difference],
    space: str,
) -> list[Tested]:
    """WP216's singling out, linkability and inference."""
    found = [
        Tested(
            "reidentification",
            "Re-identification, top-1",
            space,
            reidentified.member_share,
            reidentified.control_share,
            reidentified.advantage,
            reidentified.error,
            None,
            reidentified.chance,
            f"{reidentified.singled_out:,} of {reidentified.gallery:,} patients are singled out",
        )
    ]
    if linked is not None:
        hits, patients = linked.direct
        words = (
            f"{linked.linked.member[1]:,} members and {linked.linked.control[1]:,} others with two "
            f"images; without synthetic images {hits / patients:.1%} are linked"
        )
        found.append(_share("linkability", "Linkability", space, linked.linked, words))
    for attribute, difference in inferred.items():
        words = f"{difference.member[1]:,} members and {difference.control[1]:,} others"
        name = f"Attribute inference: {attribute}"
        found.append(_share("attribute-inference", name, space, difference, words))
    return found


def _share(measure: str, test: str, space: str, found: Difference, numbers: str) -> Tested:
    """A difference of two shares."""
    member, control = (hits / trials for hits, trials in (found.member, found.control))
    error = (found.interval[1] - found.interval[0]) / (2 * float(norm.isf(0.025)))
    return Tested(
        measure, test, space, member, control, found.value, error, None, found.chance, numbers
    )
