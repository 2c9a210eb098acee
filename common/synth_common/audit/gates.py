"""The gates of a policy: pass, fail, not run or not resolvable, each with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import norm

from synth_common.audit.copying import AUTHENTICITY, C_T
from synth_common.audit.judging import Judged, Results, Tested
from synth_common.audit.measuring import Measured, detectable
from synth_common.audit.policy import AuditPolicy, Gate, View
from synth_common.audit.statistics import clopper_pearson

Outcome = Literal["pass", "fail", "not run", "not resolvable"]


@dataclass(frozen=True)
class GateResult:
    """A gate's outcome, with the figure it rests on and why."""

    gate: Gate
    outcome: Outcome
    figure: float | int | None
    reason: str


def verdict(gates: Sequence[GateResult]) -> Outcome:
    """The verdict on a release: the worst gate's.

    A gate that the policy does not require may be "not run"; nothing else may be, and an audit
    of which no gate was run passes nothing.
    """
    outcomes = {g.outcome for g in gates if g.gate.required or g.outcome != "not run"}
    order: tuple[Outcome, ...] = ("fail", "not resolvable", "not run")
    return next(
        (outcome for outcome in order if outcome in outcomes), "pass" if outcomes else "not run"
    )


def decide(results: Results, policy: AuditPolicy) -> list[GateResult]:
    """The outcome of every gate of a policy."""
    return [_decide(gate, results, policy) for gate in policy.gates]


def _decide(gate: Gate, results: Results, policy: AuditPolicy) -> GateResult:
    """One gate."""
    limit = gate.limit if gate.limit is not None else 0.0
    if gate.measure == "epsilon":
        return _epsilon_gate(gate, results.epsilon, limit)
    if gate.measure == "near-copies":
        return _copies_gate(gate, results, limit)
    if gate.measure in ("membership", "auc", "tpr-at-1-percent", "tpr-at-0.1-percent"):
        pairs = zip(results.attacks, results.judged_attacks, strict=True)
        own = [(m, j) for m, j in pairs if m.view == gate.view]
        if not own:
            return GateResult(gate, "not run", None, _not_run(gate.view))
        if gate.measure == "membership":
            return _membership_gate(gate, own, results, policy.power)
        return _bound_gate(gate, own, limit)
    tests = [
        (t, j)
        for t, j in zip(results.tests, results.judged_tests, strict=True)
        if t.measure == gate.measure
    ]
    if not tests:
        return GateResult(gate, "not run", None, "what it needs was not given; see not tested")
    if gate.measure == "data-copying":
        return _copying_gate(gate, tests)
    return _advantage_gate(gate, [t for t, _ in tests], limit, results.level)


def _not_run(view: View) -> str:
    """Why a view has no results."""
    needs = {
        "images": "no attack could be run",
        "model": "no model was given (--model), or nothing of it can be attacked; see not tested",
        "server": "no updates were given (--updates), or too few candidates are from their sites",
    }
    return needs[view]


def _membership_gate(
    gate: Gate,
    own: Sequence[tuple[Measured, Judged]],
    results: Results,
    power: float,
) -> GateResult:
    """Whether any attack found members, in all patients or in a group, and at what power."""
    groups = zip(results.groups, results.judged_groups, strict=True)
    every = [*own, *((m, j) for m, j in groups if m.view == gate.view)]
    found = [m for m, j in every if j.verdict == "found"]
    if found:
        worst = max(found, key=lambda m: m.auc.value)
        reason = (
            f"{len(found)} of {len(every)} looks found members; the strongest: {_look(worst)}, "
            f"AUC {worst.auc.value:.3f}"
        )
        return GateResult(gate, "fail", len(found), reason)
    seen, sides = max((detectable(m.sides, power, results.level), m.sides) for m, _ in own)
    unread = [m for m, j in every if j.verdict == "not resolvable"]
    if unread:
        reason = (
            f"{len(unread)} of {len(every)} looks cannot be read: members and non-members differ "
            f"without any synthetic image, or the control fails; the first: {_look(unread[0])}"
        )
        return GateResult(gate, "not resolvable", 0.0, reason)
    words = (
        f"no attack found members; at power {power:g} an AUC of {seen:.3f} would have been "
        f"found with {sides[0]:,} members and {sides[1]:,} non-members"
    )
    if gate.limit is not None and seen > gate.limit:
        more = f"{words}; the policy asks for {gate.limit:g}: give more patients"
        return GateResult(gate, "not resolvable", 0.0, more)
    return GateResult(gate, "pass", 0.0, words)


def _look(measured: Measured) -> str:
    """An attack, its space, and the group where it is one."""
    where = f" in {measured.group}" if measured.group is not None else ""
    return f"{measured.attack} ({measured.space}){where}"


def _bound_gate(gate: Gate, own: Sequence[tuple[Measured, Judged]], limit: float) -> GateResult:
    """Whether the strongest attack's corrected interval stays under a limit."""
    place = {"tpr-at-0.1-percent": 0, "tpr-at-1-percent": 1}.get(gate.measure)
    spans: list[tuple[float, float, float, str]] = []
    for measured, _ in own:
        if place is None:
            low, high = measured.bounds
            value = measured.auc.value
        else:
            point = measured.strict[place]
            if isinstance(point.tpr, str) or isinstance(point.interval, str):
                needed = {0: "2,995", 1: "299"}[place]
                reason = (
                    f"{measured.sides[1]:,} non-members; {needed} are needed. Without --reference "
                    "half of the non-members serve as the adversary's reference"
                )
                return GateResult(gate, "not resolvable", None, reason)
            value, (low, high) = point.tpr, point.interval
        spans.append((value, low, high, _look(measured)))
    return _by_limit(gate, spans, limit)


def _by_limit(
    gate: Gate, spans: Sequence[tuple[float, float, float, str]], limit: float
) -> GateResult:
    """Fail if an interval lies above the limit, pass if all lie below, else open."""
    value, low, high, what = max(spans, key=lambda s: s[1])
    if low > limit:
        reason = f"{what}: {value:.3g}, at least {low:.3g} (limit {limit:g})"
        return GateResult(gate, "fail", value, reason)
    value, low, high, what = max(spans, key=lambda s: s[2])
    reason = f"highest: {what}: {value:.3g}, at most {high:.3g} (limit {limit:g})"
    if high <= limit:
        return GateResult(gate, "pass", value, reason)
    return GateResult(gate, "not resolvable", value, f"{reason}: give more patients on both sides")


def _copying_gate(gate: Gate, tests: Sequence[tuple[Tested, Judged]]) -> GateResult:
    """Whether a test of the whole set found copying; each has to have been run in some space."""
    found = [t.test for t, j in tests if j.verdict == "found"]
    if found:
        return GateResult(gate, "fail", len(found), f"found by {', '.join(found)}")
    if missing := {AUTHENTICITY, C_T} - {t.test for t, _ in tests}:
        reason = f"{', '.join(sorted(missing))} could be run in no space; see not tested"
        return GateResult(gate, "not resolvable", None, reason)
    return GateResult(gate, "pass", 0, "no test found copying")


def _advantage_gate(gate: Gate, tests: Sequence[Tested], limit: float, level: float) -> GateResult:
    """Whether every advantage over the control stays under a limit."""
    reach = float(norm.isf(level))
    spans = [
        (
            t.advantage,
            t.advantage - reach * t.error,
            t.advantage + reach * t.error,
            f"{t.test} ({t.space})",
        )
        for t in tests
        if t.advantage is not None
    ]
    return _by_limit(gate, spans, limit)


def _copies_gate(gate: Gate, results: Results, limit: float) -> GateResult:
    """Whether near-copies of members are rare enough."""
    copies = results.copies
    share = copies.of_members / copies.synthetic
    low, high = clopper_pearson(copies.of_members, copies.synthetic)
    reason = (
        f"{copies.of_members:,} of {copies.synthetic:,} synthetic images are near-copies of a "
        f"member (control, non-members: {copies.of_nonmembers:,}); share {low:.2%} to {high:.2%}"
    )
    if share <= limit:
        return GateResult(gate, "pass", share, reason)
    if copies.of_nonmembers >= copies.of_members and results.judged_copies.verdict != "found":
        more = f"{reason}: images of this kind are too alike to tell a copy"
        return GateResult(gate, "not resolvable", share, more)
    return GateResult(gate, "fail", share, reason)


def _epsilon_gate(gate: Gate, epsilon: float | None, limit: float) -> GateResult:
    """Whether the guarantee is tight enough."""
    if epsilon is None:
        return GateResult(gate, "not run", None, "no epsilon of a patient is recorded or stated")
    outcome: Outcome = "pass" if epsilon <= limit else "fail"
    return GateResult(gate, outcome, epsilon, f"epsilon {epsilon:.4g} (limit {limit:g})")
