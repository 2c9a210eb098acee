"""A site's part of a release: what is charged, what is free, what is refused, what may leave."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_sites import OPERATOR, approve, enrolled_sites, other_numpy, release_plan, small_site
from test_privacy_accounting import reference_epsilon

from synth_client import charge
from synth_client import release as module
from synth_client import round as rounds
from synth_client.charge import plan_uses
from synth_client.cost import cost_of
from synth_client.enrol import agree, load_key, load_peers, make_key
from synth_client.release import ReleaseRequest, ready, release_embedding
from synth_client.round import RoundRequest, train_round
from synth_client.site import privacy_facts, save_site
from synth_common.errors import (
    AttemptSpentError,
    BudgetError,
    ConfigError,
    LedgerError,
    PlanError,
    PrivacyError,
)
from synth_common.generators import build_generator
from synth_common.generators.embedding import build_embedding
from synth_common.plan import Plan
from synth_common.privacy import egress
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.ledger import Budget, Ledger
from synth_common.privacy.release_noise import release_noise
from synth_common.privacy.secure_sum import Lattice, NoiseTerms, RunningSum
from synth_common.privacy.statistics import embedding_sum
from synth_common.randomness import SimulationNoise

NAMES = ("east", "north", "west")


def _request(plan, attempt=1, participants=NAMES, run_id="run"):
    return ReleaseRequest(run_id, attempt, participants, plan)


def _ask(site, plan, *arguments, **options):
    approve(site, plan)
    return release_embedding(site, _request(plan, *arguments, **options))


def _words(reply) -> np.ndarray:
    (tensor,) = reply.statistics.values()
    return tensor.numpy().view(np.uint64)


def _exact(sites, plan) -> np.ndarray:
    """The sum without noise; patients have two images, so that none is left out."""
    embedding = build_embedding(plan.generator)
    return sum(
        embedding_sum(s.train, embedding, plan.generator, 4, SimulationNoise(0)) for s in sites
    )


def _attempts(site, run_id="run"):
    with Ledger.read(site.ledger_path) as ledger:
        return [r.key.attempt for r in ledger.reservations(run_id)]


# ------------------------------------------------------------------ the sum and its noise


@pytest.mark.parametrize(("trust", "sites"), [("secure-aggregation", 3), ("local", 1)])
def test_the_sum_of_the_replies_is_the_statistic_with_the_planned_noise(tmp_path, trust, sites):
    """Locally each site adds all of it; in the secure sum the three do, and one to spare."""
    plan, own = release_plan(trust), enrolled_sites(tmp_path)
    replies = [_ask(site, plan) for site in own]
    size = build_embedding(plan.generator).size
    total = RunningSum(size, Lattice())
    for reply in replies:
        total.add(_words(reply))
    terms = NoiseTerms(release_noise(plan), size, Lattice(), sites, 1 if sites > 1 else 0)
    share = math.sqrt(terms.variance()) / 2**24
    noise = total.vector() - _exact(own, plan)
    assert noise.std() == pytest.approx(math.sqrt(3) * share, rel=6 / math.sqrt(2 * size))
    assert [reply.values["noise_share"] for reply in replies] == pytest.approx([share] * 3)
    # The whole sum bears one site less, or one site alone.
    assert math.sqrt(2 if sites == 3 else 1) * share == pytest.approx(release_noise(plan), rel=1e-3)
    charged = replies[0].values["epsilon"]
    history = [Use(release_noise(plan), 1.0, 1, "embedding")]
    assert reference_epsilon(history) <= charged <= 8.0


def test_a_masked_reply_alone_tells_nothing_of_its_vector(tmp_path):
    plan, (site, *_) = release_plan(), enrolled_sites(tmp_path)
    values = _words(_ask(site, plan)) / 2.0**64
    assert abs(values.mean() - 0.5) < 4 * math.sqrt(1 / 12 / len(values))
    octets = _words(_ask(site, plan)).view(np.uint8)
    assert np.bincount(octets, minlength=256).min() > 0


def test_equal_seeds_repeat_a_simulation_and_attempts_draw_fresh_noise(tmp_path):
    plan = release_plan("local", spare_attempts=2)
    site = small_site(tmp_path / "a")
    first, second = (_words(_ask(site, plan, number)) for number in (1, 2))
    assert (first != second).mean() > 0.99
    again = small_site(tmp_path / "b")
    assert (_words(_ask(again, plan, 1)) == first).all()


# ------------------------------------------------------------------ the books


def test_a_request_that_comes_twice_gets_the_same_reply_for_free(tmp_path):
    plan, (site, *_) = release_plan(spare_attempts=1), enrolled_sites(tmp_path)
    first, second = _ask(site, plan), _ask(site, plan)
    assert (_words(first) == _words(second)).all()
    assert dict(first.values) == dict(second.values)
    assert _attempts(site) == [1]


def test_an_attempt_is_answered_once_whatever_else_is_asked_under_its_number(tmp_path):
    plan = release_plan(spare_attempts=1)
    site, *_ = enrolled_sites(tmp_path, ("east", "north", "south", "west"))
    four = ("east", "north", "south", "west")
    _ask(site, plan, 1, four)
    with pytest.raises(AttemptSpentError, match=r"attempt 1 .* was begun before"):
        _ask(site, plan, 1, NAMES)
    assert _attempts(site) == [1]
    _ask(site, plan, 2, NAMES)  # as a new attempt it is charged
    assert _attempts(site) == [1, 2]
    for stored in (site.outbox / "run").iterdir():
        stored.unlink()
    with pytest.raises(AttemptSpentError):  # never made again under the same masks
        _ask(site, plan, 2, NAMES)


def test_spare_attempts_are_calibrated_for_and_further_ones_refused(tmp_path):
    none, two = release_plan(), release_plan(spare_attempts=2)
    assert release_noise(two) > 1.4 * release_noise(none)
    site, *_ = enrolled_sites(tmp_path)
    for number in (1, 2, 3):
        reply = _ask(site, two, number)
        assert reply.values["noise_multiplier"] == release_noise(two)
    assert 7.9 < reply.values["epsilon"] <= 8.0
    with pytest.raises(BudgetError, match=r"3 attempts .*spare_attempts"):
        _ask(site, two, 4)
    with pytest.raises(BudgetError):
        ready(site, two, "run")
    assert _attempts(site) == [1, 2, 3]


def test_a_crash_between_reserve_and_commit_stays_charged(tmp_path, monkeypatch):
    plan, (site, *_) = release_plan(spare_attempts=1), enrolled_sites(tmp_path)

    def die(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_use", die)
        with pytest.raises(KeyboardInterrupt):
            _ask(site, plan)
    assert _attempts(site) == [1]
    with pytest.raises(AttemptSpentError):
        _ask(site, plan)
    reply = _ask(site, plan, 2)
    with Ledger.read(site.ledger_path) as ledger:
        assert len(ledger.history()) == 2
        assert reply.values["epsilon"] == epsilon(ledger.history(), 1e-5, "rdp")


def test_a_site_whose_numpy_draws_other_features_refuses_before_the_charge(tmp_path, monkeypatch):
    plan, (site, *_) = release_plan(), enrolled_sites(tmp_path)
    approve(site, plan)
    other_numpy(monkeypatch)
    with pytest.raises(ConfigError, match="NumPy"):
        ready(site, plan, "run")
    with pytest.raises(ConfigError, match="NumPy"):
        release_embedding(site, _request(plan))
    assert _attempts(site) == []


def test_rounds_after_a_release_stay_within_the_whole_target(tmp_path):
    plan = release_plan(rounds=3, spare_attempts=1)
    site, *_ = enrolled_sites(tmp_path)
    _allow(site, 8.0)
    _ask(site, plan)
    with Ledger.read(site.ledger_path) as ledger:
        assert 0.2 * 8 < epsilon(ledger.history(), 1e-5, "rdp") < 0.4 * 8
    state, noise = build_generator(plan.generator, 0).shared_state(), []
    for number in (1, 2, 3):
        reply = train_round(site, RoundRequest("run", number, plan, state))
        state = reply.tensors
        noise.append(reply.values["noise_multiplier"])
    assert len(set(noise)) == 1
    whole, *per_round = privacy_facts(site, plan, "run")
    assert 6.0 < whole.value["epsilon"] <= 8.0
    assert reference_epsilon([Use(**use) for use in whole.value["history"]]) <= 8.0
    assert [fact.round for fact in per_round] == [0, 1, 2, 3]
    alone = plan_uses(plan.model_copy(update={"release": type(plan.release)()}), 0.25, 3)
    assert noise[0] > alone[0].noise_multiplier


def test_a_tighter_lifetime_budget_makes_a_site_add_all_that_is_missing_itself(tmp_path):
    plan, (site, *_) = release_plan(), enrolled_sites(tmp_path)
    with Ledger.hold(site.ledger_path) as ledger:
        ledger.set_budget(Budget(5.0, 1e-5, "rdp"), OPERATOR)
    values = _ask(site, plan).values
    size = build_embedding(plan.generator).size
    own, planned = values["noise_multiplier"], release_noise(plan)
    terms = NoiseTerms(planned, size, Lattice(), 3, 1)
    assert 4.9 < values["epsilon"] <= 5.0
    assert own > 1.2 * planned
    unit = (terms.sensitivity / 2**24) ** 2
    assert values["noise_share"] ** 2 == pytest.approx(
        (own**2 - planned**2 + planned**2 / 2) * unit, rel=1e-6
    )
    with Ledger.hold(site.ledger_path) as ledger:
        ledger.set_budget(Budget(5.01, 1e-5, "rdp"), OPERATOR)
    with pytest.raises(BudgetError, match=r"budget_epsilon = 5\.01"):
        _ask(site, plan, run_id="another")


def test_the_cost_is_told_before_a_plan_is_approved(tmp_path):
    site = small_site(tmp_path)
    save_site(site)
    only = cost_of(release_plan(spare_attempts=1), site.directory)
    assert "one release" in only
    assert "1 attempts at the release interrupted" in only
    assert "at most 1 of the other sites collude" in only
    both = cost_of(release_plan("local", rounds=3), site.directory)
    assert "15 steps" in both
    assert "collude" not in both


# ------------------------------------------------------------------ before the rounds, and after


def _half(rounds: int, **privacy: object) -> Plan:
    """Half of epsilon 4 for the release, the rest for the rounds, nothing to spare."""
    base = release_plan("local", rounds=rounds, share=0.5).model_dump()
    base["privacy"] |= {"epsilon": 4.0, "spare_rounds": 0, **privacy}
    return Plan.model_validate(base)


def _train(site, plan, number, state=None):
    state = state or build_generator(plan.generator, 0).shared_state()
    return train_round(site, RoundRequest("run", number, plan, state)).tensors


def _allow(site, most: float) -> None:
    """A lifetime budget by RDP, which is quick."""
    with Ledger.hold(site.ledger_path) as ledger:
        ledger.set_budget(Budget(most, 1e-5, "rdp"), OPERATOR)


def _spent(site) -> float:
    with Ledger.read(site.ledger_path) as ledger:
        return epsilon(ledger.history(), 1e-5, "rdp")


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("target", [4.0, math.inf])
def test_a_run_that_trains_has_no_release_any_more(tmp_path, monkeypatch, interrupted, target):
    plan, site = _half(3, epsilon=target), small_site(tmp_path)
    _allow(site, target)
    approve(site, plan)

    def die(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if interrupted:
            patch.setattr(rounds, "_use", die)
        with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
            _train(site, plan, 1)
    for asking in (lambda: ready(site, plan, "run"), lambda: _ask(site, plan)):
        with pytest.raises(PrivacyError, match=r"run run: .* after the run's rounds have begun"):
            asking()
    assert _attempts(site) == [0]


def test_a_release_after_all_rounds_would_cost_more_than_the_target(tmp_path, monkeypatch):
    """Even without the refusal by name: whatever a run used counts against its release."""
    plan, site = _half(3), small_site(tmp_path)
    _allow(site, 100.0)
    approve(site, plan)
    state = None
    for number in (1, 2, 3):
        state = _train(site, plan, number, state)
    late = Use(release_noise(plan), 1.0, 1, "embedding")
    monkeypatch.setattr(charge, "_require_before_rounds", lambda *_: None)
    with Ledger.read(site.ledger_path) as ledger:
        assert epsilon([*ledger.history(), late], 1e-5, "rdp") <= 4.0
    _train(site, plan, 3, {k: v + 1 for k, v in state.items()})  # the room that was left
    with Ledger.read(site.ledger_path) as ledger:
        assert epsilon(ledger.history(), 1e-5, "rdp") <= 4.0
        assert epsilon([*ledger.history(), late], 1e-5, "rdp") > 4.0
    for asking in (lambda: ready(site, plan, "run"), lambda: _ask(site, plan)):
        with pytest.raises(BudgetError, match=r"share allows, epsilon 2"):
            asking()
    assert _spent(site) <= 4.0


def test_nobody_pays_for_a_release_whose_rounds_the_budget_cannot_bear(tmp_path):
    plan, site = _half(4), small_site(tmp_path)
    _allow(site, 2.05)
    approve(site, plan)
    for asking in (lambda: ready(site, plan, "run"), lambda: _ask(site, plan)):
        with pytest.raises(BudgetError, match=r"the rounds .* refused: .*budget_epsilon = 2\.05"):
            asking()
    assert _attempts(site) == []
    assert "NOT FIT: the site will refuse it" in _cost(site, plan)
    _allow(site, 2.6)  # with more noise than planned, and less than would undo all
    assert "more noise" in _cost(site, plan)
    ready(site, plan, "run")
    _ask(site, plan)
    state = None
    for number in (1, 2, 3, 4):
        state = _train(site, plan, number, state)
    assert 2.5 < _spent(site) <= 2.6


def _cost(site, plan) -> str:
    save_site(site)
    return cost_of(plan, site.directory)


def test_a_kept_reply_is_sent_again_until_the_second_round(tmp_path):
    plan, (site, *_) = release_plan(rounds=3), enrolled_sites(tmp_path)
    _allow(site, 8.0)
    first = _ask(site, plan)
    state = _train(site, plan, 1)
    assert (_words(_ask(site, plan)) == _words(first)).all()
    _train(site, plan, 2, state)
    with pytest.raises(AttemptSpentError):
        _ask(site, plan)
    assert _attempts(site) == [1, 0, 0]


# ------------------------------------------------------------------ what is refused


def test_requests_that_cannot_be_met_are_refused_and_cost_nothing(tmp_path):
    plan, (site, *_) = release_plan(), enrolled_sites(tmp_path)
    approve(site, plan)
    good = _request(plan)
    for wrong, error, words in [
        ({"participants": NAMES[:2]}, PrivacyError, "at least 3 sites"),
        ({"participants": ("north", "west", "xavier")}, PrivacyError, "east is not among them"),
        ({"participants": ("east", "north", "xavier")}, PrivacyError, "'xavier' is not enrolled"),
        ({"participants": ("north", "east", "west")}, PrivacyError, "sorted"),
        ({"participants": ("east", "east", "west")}, PrivacyError, "sorted"),
        ({"run_id": "../run"}, PrivacyError, "run id"),
        ({"anchor": "0" * 64}, LedgerError, "older or another copy"),
        ({"plan": release_plan(spare_attempts=3)}, PlanError, "spare_attempts: 3 against 0"),
    ]:
        with pytest.raises(error, match=words):
            release_embedding(site, replace(good, **wrong))
    assert _attempts(site) == []


def test_more_colluders_need_more_sites(tmp_path):
    plan = release_plan(colluders=2)
    site, *_ = enrolled_sites(tmp_path)
    with pytest.raises(PrivacyError, match="at least 4 sites"):
        _ask(site, plan)


def test_a_plan_without_a_release_or_a_grid_without_room_is_refused(tmp_path):
    site, *_ = enrolled_sites(tmp_path)
    with pytest.raises(PlanError, match=r"release\.embedding"):
        _ask(site, release_plan().model_copy(update={"release": type(release_plan().release)()}))
    small = release_plan(scale_bits=24, modulus_bits=34)
    with pytest.raises(PrivacyError, match="modulus_bits = 34"):
        _ask(site, small)
    assert _attempts(site) == []


def test_a_key_that_others_can_read_is_refused(tmp_path):
    plan, (site, *_) = release_plan(), enrolled_sites(tmp_path)
    private = site.directory / "keys" / "private.key"
    assert private.stat().st_mode & 0o777 == 0o600
    assert private.parent.stat().st_mode & 0o777 == 0o700
    before = make_key(site.directory)
    assert make_key(site.directory) == before  # kept, not made again
    private.chmod(0o640)
    with pytest.raises(PrivacyError, match="mode 640"):
        _ask(site, plan)
    with pytest.raises(PrivacyError, match="mode 640"):
        ready(site, plan, "run")
    private.chmod(0o600)
    private.write_text("no key")
    with pytest.raises(PrivacyError, match="holds no key"):
        load_key(site.directory)
    (site.directory / "keys" / "peers.json").write_text("[]")
    with pytest.raises(PrivacyError, match="no keys of peers"):
        load_peers(site.directory)
    agree(site.directory, {"west": "00ff"})
    assert load_peers(site.directory) == {"west": b"\x00\xff"}
    assert _attempts(site) == []


def test_a_roll_call_is_free_and_looks_at_no_image(tmp_path, monkeypatch):
    plan, (site, *_) = release_plan(), enrolled_sites(tmp_path)
    monkeypatch.setattr(module, "embedding_sum", lambda *_: pytest.fail("looked"))
    with pytest.raises(PlanError):
        ready(site, plan, "run")
    approve(site, plan)
    assert dict(ready(site, plan, "run").values) == {"site": "east"}
    assert _attempts(site) == []


def test_a_roll_call_refuses_what_an_attempt_would(tmp_path):
    """Else others pay for an attempt that one of them was bound to refuse."""
    plan, sites = release_plan(spare_attempts=1), enrolled_sites(tmp_path)
    site, large, other = sites
    for one in sites:
        approve(one, plan)
        ready(one, plan, "run")
    with pytest.raises(PrivacyError, match="run id"):
        ready(site, plan, "../run")
    with pytest.raises(LedgerError, match="older or another copy"):
        ready(site, plan, "run", "0" * 64)
    small = release_plan(scale_bits=24, modulus_bits=40)
    for one in (site, large):
        approve(one, small)
    ready(site, small, "run")
    large = replace(large, nominal_patients=5000)
    for asking in (lambda: ready(large, small, "run"), lambda: _ask(large, small)):
        with pytest.raises(PrivacyError, match="modulus_bits = 40"):
            asking()
    agree(other.directory, {"east": "00ff", "north": "00ff"})
    with pytest.raises(PrivacyError, match="the public key of 'east' cannot be used"):
        ready(other, plan, "run")
    agree(other.directory, {"east": "00" * 32})
    with pytest.raises(PrivacyError, match="at least 3 sites"):
        ready(other, plan, "run")
    _ask(site, plan)
    with pytest.raises(PlanError, match="another plan needs another run"):
        ready(site, small, "run")
    assert [_attempts(one) for one in sites] == [[1], [], []]


# ------------------------------------------------------------------ what may leave


def test_the_gate_lets_each_vector_pass_under_its_own_trust_model_only():
    vector = torch.zeros(4, dtype=torch.int64)
    for name, fits, other in [
        ("embedding", "local", "secure-aggregation"),
        ("masked_embedding", "secure-aggregation", "local"),
    ]:
        made = egress.Outgoing({}, {}, {name: vector})
        egress.release(made, egress.Permitted({}, {name: (4,)}, fits))
        with pytest.raises(PrivacyError, match=f"'{name}' leave the site under"):
            egress.release(made, egress.Permitted({}, {name: (4,)}, other))
        with pytest.raises(PrivacyError, match="nothing charged"):
            egress.release(made, egress.Permitted({}, {}, fits))
        wrong = egress.Outgoing({}, {}, {name: vector.double()})
        with pytest.raises(PrivacyError, match="shape or type"):
            egress.release(wrong, egress.Permitted({}, {name: (4,)}, fits))


def test_a_reply_holds_one_vector_and_declared_values(tmp_path):
    for trust, name in [("local", "embedding"), ("secure-aggregation", "masked_embedding")]:
        site, *_ = enrolled_sites(tmp_path / trust)
        reply = _ask(site, release_plan(trust), 1, NAMES)
        assert set(reply.statistics) == {name}
        assert not reply.tensors
        assert set(reply.values) == {
            "site", "attempt", "epsilon", "noise_multiplier", "noise_share", "ledger_head",
        }  # fmt: skip


def test_without_noise_a_release_needs_a_site_that_allows_it(tmp_path):
    base = release_plan("local").model_dump()
    base["privacy"]["epsilon"] = math.inf
    plan = Plan.model_validate(base)
    bound = small_site(tmp_path)
    approve(bound, plan)
    for asking in (lambda: ready(bound, plan, "run"), lambda: _ask(bound, plan)):
        with pytest.raises(BudgetError, match="without noise, but the budget is 8"):
            asking()
    site = small_site(tmp_path, "open", budget=math.inf)
    reply = _ask(site, plan)
    assert reply.values["noise_share"] == 0.0
    total = RunningSum(len(_words(reply)), Lattice())
    total.add(_words(reply))
    assert np.abs(total.vector() - _exact([site], plan)).max() <= 0.5 / 2**24
