"""Verdicts from scores alone: what a group hides, and whether the stated power is there."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from audit_sets import phantoms
from scipy.stats import norm
from small_sites import small_plan

from synth_common.audit.battery import Copies
from synth_common.audit.copying import AUTHENTICITY, C_T
from synth_common.audit.gates import GateResult, decide
from synth_common.audit.guarantee import patient_guarantee
from synth_common.audit.judging import Results, judge
from synth_common.audit.judging import Tested as Judgeable  # pytest takes Test... for its own
from synth_common.audit.measuring import Scored, detectable, measure, measure_group
from synth_common.audit.near_copies import BestMatch
from synth_common.audit.policy import AuditPolicy, Gate, Stated
from synth_common.audit.released_model import ReleasedModel
from synth_common.audit.statistics import share_difference
from synth_common.generators import build_generator

SIDES = (400, 400)


def _scored(shift: float = 0.0, blind: float = 0.0, seed: int = 0) -> Scored:
    """Normal scores; members lie higher by ``shift``, and by ``blind`` in the baseline."""
    rng = np.random.default_rng(seed)
    members, others, first, second = (rng.normal(size=n) for n in (*SIDES, *SIDES))
    return Scored("images", "attack", "space", members + shift, others, (first + blind, second))


def _no_copies() -> Copies:
    none = np.zeros(1)
    match = BestMatch(none, none.astype(np.int64), none.astype(np.int64))
    nothing = share_difference((0, SIDES[0]), (0, SIDES[1]))
    pairs = np.zeros((1, 2), dtype=np.int64)
    return Copies(1, 0, 0, (0, 0), SIDES, {}, (0.0, 0.0), nothing, pairs, match)


def _policy(*gates: Gate) -> AuditPolicy:
    return AuditPolicy(name="tests", gates=gates)


def _results(scored: Scored, groups: dict[str, Scored]) -> Results:
    everybody = np.ones(sum(SIDES), dtype=bool)
    measured = [measure_group(s, name, everybody, 0) for name, s in groups.items()]
    policy = _policy(Gate(measure="membership", limit=0.7))
    found = [m for m in measured if m is not None]
    return judge([measure(scored, 0.001, 0)], found, [], _no_copies(), policy, None)


def _membership(results: Results) -> GateResult:
    return decide(results, _policy(Gate(measure="membership", limit=0.7)))[0]


def test_a_group_in_which_nothing_can_be_read_is_not_passed_over() -> None:
    quiet = _scored()
    assert _membership(_results(quiet, {"class a": _scored(seed=1)})).outcome == "pass"
    spoilt = _membership(_results(quiet, {"class a": _scored(shift=0.5, blind=0.6, seed=1)}))
    assert spoilt.outcome == "not resolvable"
    assert "1 of 2 looks" in spoilt.reason
    assert "attack (space) in class a" in spoilt.reason


def test_a_group_whose_members_are_found_fails_by_name() -> None:
    found = _membership(_results(_scored(), {"class a": _scored(shift=0.6, seed=1)}))
    assert found.outcome == "fail"
    assert "in class a" in found.reason


def test_many_groups_do_not_make_the_baseline_an_obstacle_by_chance() -> None:
    """A deviation that is rare in one group is none in the worst of sixty."""
    third = measure_group(_scored(blind=0.0), "x", np.ones(sum(SIDES), dtype=bool), 0)
    assert third is not None
    spread = float(third.baseline.resamples.std())
    odd = replace(third.baseline, value=0.5 + 3.5 * spread)  # beyond 1 in 1,000, not in 60,000
    policy = _policy(Gate(measure="membership", limit=0.7))
    for groups, verdict in ((1, "not resolvable"), (60, "not found")):
        looks = [replace(third, group=f"g{k}", baseline=odd) for k in range(groups)]
        judged = judge([measure(_scored(), 0.001, 0)], looks, [], _no_copies(), policy, None)
        assert {j.verdict for j in judged.judged_groups} == {verdict}


@pytest.mark.parametrize("looks", [1, 30])
def test_the_stated_power_is_there_when_attacks_are_simulated(looks: int) -> None:
    level, power = 0.025 / looks, 0.8
    seen = detectable(SIDES, power, level)
    shift = math.sqrt(2) * float(norm.ppf(seen))
    everybody = np.ones(sum(SIDES), dtype=bool)
    repeats, found = 200, 0
    for seed in range(repeats):
        measured = measure_group(_scored(shift=shift, seed=seed), "all", everybody, seed)
        assert measured is not None
        found += measured.chance < level
    # Five standard errors of 200 repeats are 0.14; a way to look that power forgets costs 0.10.
    assert power - 0.06 < found / repeats < power + 0.14


def _copy_test(name: str, chance: float) -> Judgeable:
    return Judgeable("data-copying", name, "space", 0.0, 0.0, None, 0.0, None, chance, "words")


@pytest.mark.parametrize(
    ("tests", "outcome"),
    [
        ({AUTHENTICITY: 0.5, C_T: 0.5}, "pass"),
        ({AUTHENTICITY: 1e-9, C_T: 0.5}, "fail"),
        ({AUTHENTICITY: 0.5}, "not resolvable"),
        ({AUTHENTICITY: 1e-9}, "fail"),
        ({}, "not run"),
    ],
)
def test_copying_is_not_absent_where_it_was_not_looked_for(
    tests: dict[str, float], outcome: str
) -> None:
    policy = _policy(Gate(measure="data-copying"))
    looked = [_copy_test(name, chance) for name, chance in tests.items()]
    results = judge([measure(_scored(), 0.001, 0)], [], looked, _no_copies(), policy, None)
    assert decide(results, policy)[0].outcome == outcome


def test_groups_take_the_other_half_of_alpha_and_see_less() -> None:
    many = {f"class {k}": _scored(seed=k) for k in range(8)}
    results = _results(_scored(), many)
    assert results.level == pytest.approx(0.05 / 2 / 2)  # one attack and the search for copies
    assert results.group_level == pytest.approx(0.05 / 2 / 8)
    assert results.level_of(results.attacks[0]) == results.level
    assert results.level_of(results.groups[0]) == results.group_level


def _model(unit: str, epsilon: float | None) -> ReleasedModel:
    cap = {"max_images_per_patient": 1} if unit == "image" else {}
    plan = small_plan(unit=unit, **cap)
    return ReleasedModel(plan, build_generator(plan.generator, seed=0), 1, epsilon, "run")


def test_an_epsilon_of_one_image_is_no_bound_for_a_patient_with_several() -> None:
    one, several = phantoms(6, 1, images=1), phantoms(6, 1, images=2)
    policy = _policy(Gate(measure="epsilon", limit=8.0))
    assert patient_guarantee(policy, _model("image", 1.5), one) == (
        1.5,
        _model("image", 1.5).plan.privacy.delta,
        "recorded by the run in run",
    )
    refused = patient_guarantee(policy, _model("image", 1.5), several)
    assert isinstance(refused, str)
    assert "12 images are of 6 patients" in refused
    assert isinstance(patient_guarantee(policy, _model("patient", 1.5), several), tuple)


def test_without_a_record_the_stated_guarantee_serves() -> None:
    policy = _policy(Gate(measure="epsilon", limit=8.0))
    assert "stated.epsilon" in patient_guarantee(policy, None, phantoms(6, 1))
    stated = policy.model_copy(update={"stated": Stated(epsilon=2.0, delta=1e-5)})
    for model in (None, _model("patient", None)):
        found = patient_guarantee(stated, model, phantoms(6, 1))
        assert found == (2.0, 1e-5, "stated in the policy")
