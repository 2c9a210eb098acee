"""The audit of a release: it fails copies, passes fresh images, and says what it cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from audit_sets import POLICY, People, audit_set, inputs, nobodys, people, planted

from synth_common.audit.gates import GateResult
from synth_common.audit.intake import AuditSet
from synth_common.audit.policy import AuditPolicy, WrittenPolicy
from synth_common.audit.release_audit import Outcomes, audit_release
from synth_common.errors import DataError, UnlikeError
from synth_common.images.imageset import ImageSet, concatenate
from synth_common.validation import validate


def _written(text: str = POLICY) -> WrittenPolicy:
    import tomllib

    return WrittenPolicy(validate(AuditPolicy, tomllib.loads(text), "tests"), text, "tests")


@pytest.fixture(scope="module")
def drawn() -> People:
    return people()


@pytest.fixture(scope="module")
def audits(drawn: People) -> Callable[[str], Outcomes]:
    """The audit of the training set, of fresh people, and of fresh people with 3 % copies."""
    sets = {
        "train": drawn.members,
        "fresh": drawn.fresh,
        "planted": planted(drawn, 0.03)[0],
    }
    done: dict[str, Outcomes] = {}

    def audit(name: str) -> Outcomes:
        if name not in done:
            given = inputs(sets[name], drawn)
            done[name] = audit_release(given, _written(), None, 0, lambda stage: None)
        return done[name]

    return audit


def _gates(found: Outcomes) -> dict[str, GateResult]:
    return {f"{g.gate.measure}/{g.gate.view}": g for g in found.gates}


def _attacks(found: Outcomes, group: bool = False) -> list[dict]:
    facts = [f.value for f in found.facts if f.name == "audit.attack"]
    return [v for v in facts if (v["group"] is not None) == group]


def test_the_training_set_fails_every_gate_that_can_be_run(
    audits: Callable[[str], Outcomes],
) -> None:
    found = audits("train")
    assert found.verdict == "fail"
    outcomes = {name: g.outcome for name, g in _gates(found).items()}
    for measure in ("membership", "auc", "tpr-at-1-percent", "near-copies", "data-copying"):
        assert outcomes[f"{measure}/images"] == "fail"
    assert outcomes["reidentification/images"] == "fail"
    assert outcomes["membership/model"] == "not run"
    for value in _attacks(found):
        if value["attack"].startswith(("GAN-Leaks", "Monte Carlo", "DOMIAS", "Classifier")):
            assert value["verdict"] == "found", value["attack"]
    assert found.copies.of_members == found.copies.synthetic
    assert found.copies.of_nonmembers == 0


def test_fresh_people_pass_every_gate(audits: Callable[[str], Outcomes]) -> None:
    found = audits("fresh")
    told = {name: (g.outcome, g.reason) for name, g in _gates(found).items()}
    told.pop("membership/model")
    assert {outcome for outcome, _ in told.values()} == {"pass"}, told
    assert found.verdict == "pass"
    for value in [*_attacks(found), *_attacks(found, group=True)]:
        assert value["verdict"] == "not found"
        assert value["tpr_at_0_1pct"] == "not resolvable"


def test_controls_cover_one_half(audits: Callable[[str], Outcomes]) -> None:
    spans = [v["control_interval"] for n in ("train", "fresh") for v in _attacks(audits(n))]
    missed = [span for span in spans if not span[0] <= 0.5 <= span[1]]
    assert len(spans) == 24
    assert len(missed) <= 4  # one in twenty misses by chance, and attacks go together


def test_a_few_planted_copies_are_found_however_they_are_disguised(
    audits: Callable[[str], Outcomes], drawn: People
) -> None:
    found, (_, count) = audits("planted"), planted(drawn, 0.03)
    assert found.verdict == "fail"
    assert _gates(found)["near-copies/images"].outcome == "fail"
    assert count - 1 <= found.copies.of_members <= count
    assert found.copies.flips["mirrored"] >= 2
    pairs = {(int(s), int(r)) for s, r in found.copies.pairs[: found.copies.of_members]}
    assert pairs <= {(i, 7 * i) for i in range(count)}


def test_groups_are_attacked_too_and_outliers_are_one(audits: Callable[[str], Outcomes]) -> None:
    groups = {v["group"] for v in _attacks(audits("train"), group=True)}
    assert {"class lesion", "class normal", "outliers (the most unusual tenth)"} <= groups
    assert any(v["verdict"] == "found" for v in _attacks(audits("train"), group=True))


def test_every_figure_comes_with_its_baseline_and_no_score_of_a_patient_is_kept(
    audits: Callable[[str], Outcomes],
) -> None:
    for value in _attacks(audits("fresh")):
        assert value["baseline_interval"][0] <= 0.5
        assert len(value["roc"]) < 50
        assert not any(isinstance(v, list) and len(v) > 50 for v in value.values())
    for fact in audits("fresh").facts:
        assert fact.scope == ("public" if fact.name == "audit.policy" else "site-local")


def _brighter(images: ImageSet) -> ImageSet:
    return replace(images, images=np.clip(images.images + np.float32(0.08), 0, 1))


def test_sets_that_are_unlike_are_refused_before_anything_is_attacked(drawn: People) -> None:
    stages: list[str] = []
    unlike = replace(inputs(drawn.fresh, drawn), nonmembers=audit_set(_brighter(drawn.others)))
    with pytest.raises(UnlikeError, match="mean brightness"):
        audit_release(unlike, _written(), None, 0, stages.append)
    assert stages == ["are members and non-members alike?"]
    twins = drawn.others.images.copy()
    twins[:3] = drawn.members.images[:3]
    shared = audit_set(replace(drawn.others, images=twins))
    with pytest.raises(UnlikeError, match="3 pictures of members"):
        audit_release(
            replace(inputs(drawn.fresh, drawn), nonmembers=shared),
            _written(),
            None,
            0,
            stages.append,
        )
    with pytest.raises(UnlikeError, match="patients are on both sides"):
        audit_release(
            replace(inputs(drawn.fresh, drawn), nonmembers=audit_set(drawn.members)),
            _written(),
            None,
            0,
            stages.append,
        )


def test_several_images_of_a_patient_without_ids_are_refused(drawn: People) -> None:
    """Siblings that count as strangers keep to their side, and would be called members."""
    stages: list[str] = []
    given = inputs(drawn.fresh, drawn)

    def twice(images: ImageSet) -> AuditSet:
        few = nobodys(images.subset(np.arange(100)))
        again = replace(few, images=few.images * np.float32(0.98))
        return audit_set(concatenate([few, again]))

    nameless = replace(given, members=twice(drawn.members), nonmembers=twice(drawn.others))
    with pytest.raises(UnlikeError, match="record patient_id"):
        audit_release(nameless, _written(), None, 0, stages.append)
    assert not any("attacks" in stage for stage in stages)


def test_other_sizes_and_other_years_are_named(drawn: People) -> None:
    given = inputs(drawn.fresh, drawn)
    old, new = (np.arange(300.0) + start for start in (730_000.0, 731_500.0))
    dated = replace(
        given,
        members=replace(given.members, dates=old),
        nonmembers=replace(
            given.nonmembers,
            dates=new,
            outline=replace(given.nonmembers.outline, sides=given.nonmembers.outline.sides * 2),
        ),
    )
    with pytest.raises(UnlikeError) as refusal:
        audit_release(dated, _written(), None, 0, lambda stage: None)
    assert "date (days)" in str(refusal.value)
    assert "stored height (pixels)" in str(refusal.value)


def test_few_patients_leave_gates_open_and_very_few_are_refused(drawn: People) -> None:
    few = np.arange(60)
    small = People(*(s.subset(few) for s in vars(drawn).values()))
    found = audit_release(inputs(small.fresh, small), _written(), None, 0, lambda stage: None)
    gates = _gates(found)
    assert found.verdict == "not resolvable"
    assert gates["tpr-at-1-percent/images"].outcome == "not resolvable"
    assert "299 are needed" in gates["tpr-at-1-percent/images"].reason
    assert "give more patients" in gates["membership/images"].reason
    tiny = People(*(s.subset(np.arange(12)) for s in vars(drawn).values()))
    with pytest.raises(DataError, match="at least 20"):
        audit_release(inputs(tiny.fresh, tiny), _written(), None, 0, lambda stage: None)


def test_half_of_the_nonmembers_serve_as_reference(drawn: People) -> None:
    given = replace(inputs(nobodys(drawn.members.subset(np.arange(0, 200))), drawn), reference=None)
    found = audit_release(given, _written(), None, 0, lambda stage: None)
    used = next(f.value["used"] for f in found.facts if f.name == "audit.alike")
    assert (used["members"], used["nonmembers"]) == (304, 152)
    assert used["reference_how"].startswith("half of the non-members")
    assert found.verdict == "fail"
