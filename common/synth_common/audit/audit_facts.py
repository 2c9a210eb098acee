"""The facts of an audit. Everything computed from patients is site-local; scores are not kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synth_common.audit.alike import Likeness
from synth_common.audit.gates import GateResult, Outcome
from synth_common.audit.gathering import Gathered, Inputs
from synth_common.audit.gaussian import dp_tpr
from synth_common.audit.guarantee import Guarantee
from synth_common.audit.intake import AuditSet
from synth_common.audit.judging import Judged, Results, Tested
from synth_common.audit.measuring import RATES, Measured, detectable
from synth_common.audit.policy import AuditPolicy, WrittenPolicy
from synth_common.facts import Fact

_SOURCE = "synth_common.audit.release_audit.audit_release"
_CURVE = np.geomspace(1e-4, 1.0, 41)


def _local(name: str, value: Any, **detail: Any) -> Fact:
    """A fact computed from patients without a charge."""
    return Fact(name, value, "site-local", _SOURCE, detail=detail)


def input_facts(inputs: Inputs, gathered: Gathered, likeness: Sequence[Likeness]) -> list[Fact]:
    """The sets, what was left out, and how alike members and non-members are."""
    sets = {
        "synthetic": inputs.synthetic,
        "members": inputs.members,
        "nonmembers": inputs.nonmembers,
        "reference": inputs.reference,
    }
    facts = [_set_fact(role, given) for role, given in sets.items() if given is not None]
    used = {
        "members": gathered.sides[0],
        "nonmembers": gathered.sides[1],
        "real_images": len(gathered.real),
        "synthetic": len(gathered.synthetic),
        "reference": len(gathered.reference),
        "reference_how": gathered.reference_how,
        "left_out": dict(gathered.left_out),
    }
    quantities = [
        {
            "quantity": item.quantity,
            "members": item.members,
            "nonmembers": item.nonmembers,
            "distance": item.distance,
            "chance": item.chance,
            "alike": item.alike,
        }
        for item in likeness
    ]
    facts.append(_local("audit.alike", {"quantities": quantities, "used": used}))
    shape = {"size": gathered.real.size, "channels": gathered.real.channels, "with_mask": False}
    shape["with_mask"] = gathered.real.masks is not None
    facts.append(_local("data.shape", shape))
    return [*facts, _local("data.classes", list(gathered.real.class_names))]


def _shown(path: Path) -> str:
    """The name of a set; a release's folder is called ``images``, and only its parent names it."""
    return f"{path.absolute().parent.name}/{path.name}" if path.name == "images" else path.name


def _set_fact(role: str, given: AuditSet) -> Fact:
    """One set as it came in."""
    sides = given.outline.sides
    value = {
        "role": role,
        "path": _shown(given.outline.path),
        "splits": list(given.outline.splits or ()),
        **given.report.as_fact_value(),
        "patients": given.images.unit_count(),
        "unit": "image" if given.images.patient_ids is None else "patient",
        "stored_height": float(np.median(sides[:, 0])),
        "stored_width": float(np.median(sides[:, 1])),
        "columns": sorted(given.attributes),
        "dates": len(given.dates),
    }
    return _local("audit.set", value)


def policy_facts(written: WrittenPolicy) -> list[Fact]:
    """The policy, by its SHA-256."""
    value = {
        "name": written.policy.name,
        "sha256": written.sha256,
        "origin": written.origin,
        "settings": written.policy.model_dump(mode="json"),
    }
    return [Fact("audit.policy", value, "public", _SOURCE)]


def result_facts(results: Results, policy: AuditPolicy) -> list[Fact]:
    """Attacks, groups, tests, near-copies, and how they were corrected."""
    sides = results.attacks[0].sides
    correction = {
        "method": "Holm (1979); half of alpha to looks at all patients, half to groups",
        "alpha": policy.alpha,
        "looks": len(results.attacks) + len(results.tests) + 1,
        "group_looks": len(results.groups),
        "level": results.level,
        "group_level": results.group_level,
        "power": policy.power,
        "members": sides[0],
        "nonmembers": sides[1],
        "detectable_auc": detectable(sides, policy.power, results.level),
    }
    facts = [_local("audit.correction", correction)]
    for measured, judged in [
        *zip(results.attacks, results.judged_attacks, strict=True),
        *zip(results.groups, results.judged_groups, strict=True),
    ]:
        seen = detectable(measured.sides, policy.power, results.level_of(measured))
        facts.append(_local("audit.attack", _attack_value(measured, judged, seen)))
    facts += [
        _local("audit.test", _test_value(test, judged))
        for test, judged in zip(results.tests, results.judged_tests, strict=True)
    ]
    copies = results.copies
    value = {
        "threshold": policy.copy_similarity,
        "synthetic": copies.synthetic,
        "of_members": copies.of_members,
        "of_nonmembers": copies.of_nonmembers,
        "members_copied": copies.patients[0],
        "nonmembers_copied": copies.patients[1],
        "members": copies.sides[0],
        "nonmembers": copies.sides[1],
        "flips": copies.flips,
        "highest_member": copies.highest[0],
        "highest_nonmember": copies.highest[1],
        "chance": copies.difference.chance,
        "chance_corrected": results.judged_copies.corrected,
        "verdict": results.judged_copies.verdict,
    }
    return [*facts, _local("audit.near_copies", value)]


def _attack_value(measured: Measured, judged: Judged, seen: float) -> dict[str, Any]:
    """An attack's rates; no score of a patient is among them."""
    control = measured.control
    value = {
        "view": measured.view,
        "attack": measured.attack,
        "space": measured.space,
        "group": measured.group,
        "members": measured.sides[0],
        "nonmembers": measured.sides[1],
        "auc": measured.auc.value,
        "auc_interval": measured.auc.interval(),
        "advantage": 2 * measured.auc.value - 1,
        "baseline_auc": measured.baseline.value,
        "baseline_interval": measured.baseline.interval(),
        "control_auc": None if control is None else control.value,
        "control_interval": None if control is None else control.interval(),
        "chance": measured.chance,
        "chance_corrected": judged.corrected,
        "verdict": judged.verdict,
        "leaders": measured.leaders,
        "detectable_auc": seen,
        "roc": measured.roc,
    }
    for rate, point in zip(RATES, measured.points, strict=True):
        key = f"tpr_at_{100 * rate:g}pct".replace(".", "_")
        value[key], value[f"{key}_interval"] = point.tpr, point.interval
    return value


def _test_value(test: Tested, judged: Judged) -> dict[str, Any]:
    """A test's figure beside its control."""
    reach = 1.96 * test.error
    advantage = test.advantage
    return {
        "measure": test.measure,
        "test": test.test,
        "space": test.space,
        "value": test.value,
        "control": test.control,
        "control_interval": test.control_interval,
        "advantage": advantage,
        "advantage_interval": None if advantage is None else [advantage - reach, advantage + reach],
        "chance": test.chance,
        "chance_corrected": judged.corrected,
        "verdict": judged.verdict,
        "numbers": test.numbers,
    }


def ceiling_facts(guarantee: Guarantee | str, with_model: bool) -> list[Fact]:
    """What a guarantee allows any attack at most; nothing where none is known."""
    if isinstance(guarantee, str):
        return []
    epsilon, delta, origin = guarantee
    value = {
        "epsilon": epsilon,
        "delta": delta,
        "origin": origin,
        "curve": [[float(fpr), dp_tpr(epsilon, delta, float(fpr))] for fpr in _CURVE],
        "tpr_at_0_1pct": dp_tpr(epsilon, delta, 0.001),
        "tpr_at_1pct": dp_tpr(epsilon, delta, 0.01),
    }
    return [Fact("audit.ceiling", value, "public", _SOURCE, detail={"with_model": with_model})]


def gate_facts(
    gates: Sequence[GateResult], verdict: Outcome, untested: Mapping[str, str]
) -> list[Fact]:
    """Gates, verdict, and what was not tested."""
    facts = [
        _local(
            "audit.gate",
            {
                "number": number,
                "measure": result.gate.measure,
                "view": result.gate.view,
                "limit": result.gate.limit,
                "required": result.gate.required,
                "outcome": result.outcome,
                "figure": result.figure,
                "reason": result.reason,
            },
        )
        for number, result in enumerate(gates, start=1)
    ]
    facts += [
        _local("audit.untested", {"what": what, "why": why}) for what, why in untested.items()
    ]
    return [*facts, _local("audit.verdict", verdict)]
