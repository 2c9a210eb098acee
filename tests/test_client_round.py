"""A round at a site: what is charged, what is free, what is refused, what may leave."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from small_sites import OPERATOR, approve, small_plan, small_site
from test_privacy_accounting import reference_epsilon

from synth_client import round as rounds
from synth_client.round import RoundRequest, train_round
from synth_client.site import load_site, privacy_facts, save_site
from synth_common.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    LedgerError,
    PlanError,
    PrivacyError,
    TrainingError,
)
from synth_common.generators import build_generator
from synth_common.plan import ReleasePlan
from synth_common.privacy import egress
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.ledger import Budget, Ledger, RoundKey
from synth_common.privacy.optimiser import PatientOptimiser
from synth_common.privacy.training import Mechanism


def _request(plan, number=1, state=None, run_id="run"):
    state = build_generator(plan.generator, 0).shared_state() if state is None else state
    return RoundRequest(run_id, number, plan, state)


def _train(site, plan, request):
    approve(site, plan)
    return train_round(site, request)


def _spent(site):
    with Ledger.hold(site.ledger_path) as ledger:
        return sum(use.steps for use in ledger.history())


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_whole_run_stays_within_its_target_by_an_independent_accountant(tmp_path, family):
    plan, site = small_plan(family), small_site(tmp_path)
    state = None
    for number in (1, 2, 3):
        reply = _train(site, plan, _request(plan, number, state))
        state = reply.tensors
    (whole, *_per_round) = privacy_facts(site, plan, "run")
    value = whole.value
    assert value["steps"] == 15
    assert value["noise_multiplier"] == reply.values["noise_multiplier"]
    history = [Use(**use) for use in value["history"]]
    assert reference_epsilon(history) <= value["epsilon"] * 1.001 <= 8.0 * 1.001
    assert [f.round for f in _per_round] == [1, 2, 3]
    assert _per_round[-1].value == value["epsilon"]


def test_the_same_request_twice_is_answered_alike_and_charged_once(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    first = _train(site, plan, _request(plan))
    second = _train(site, plan, _request(plan))
    assert _spent(site) == 5
    assert all(torch.equal(first.tensors[k], second.tensors[k]) for k in first.tensors)


def test_another_state_for_the_same_round_is_charged_again(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    _train(site, plan, _request(plan))
    other = build_generator(plan.generator, 1).shared_state()
    _train(site, plan, _request(plan, state=other))
    assert _spent(site) == 10


def test_an_interrupted_round_is_spent_and_the_noise_grows_when_the_reserve_is_gone(
    tmp_path, monkeypatch
):
    plan, site = small_plan(spare_rounds=1), small_site(tmp_path)
    noise = []

    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(rounds, "_use", die)
            with pytest.raises(KeyboardInterrupt):
                _train(site, plan, _request(plan))
        with Ledger.hold(site.ledger_path) as ledger:
            noise.append(ledger.history()[-1].noise_multiplier)
    assert noise[0] == noise[1] < noise[2]
    for number in (1, 2, 3):
        _train(site, plan, _request(plan, number))
    (whole, *_) = privacy_facts(site, plan, "run")
    assert whole.value["steps"] == 30
    assert whole.value["epsilon"] <= 8.0


def test_an_exhausted_target_is_refused_before_the_images_are_touched(tmp_path, monkeypatch):
    plan, site = small_plan(spare_rounds=0), small_site(tmp_path)
    state = None
    for number in (1, 2, 3):
        state = _train(site, plan, _request(plan, number, state)).tensors
    monkeypatch.setattr(rounds, "_use", lambda *_: pytest.fail("trained without budget"))
    with pytest.raises(BudgetError):
        _train(site, plan, _request(plan, 3, build_generator(plan.generator, 5).shared_state()))
    assert _spent(site) == 15


def test_a_later_run_gets_the_noise_that_the_lifetime_budget_asks_for(tmp_path):
    """The second run alone would cost 8; the site adds noise until both runs cost 8.5."""
    plan, site = small_plan(), small_site(tmp_path, budget=8.5)
    for number in (1, 2, 3):
        alone = _train(site, plan, _request(plan, number, run_id="first"))
    with Ledger.read(site.ledger_path) as ledger:
        before = epsilon(ledger.history(), 1e-5, "prv")
    for number in (1, 2, 3):
        later = _train(site, plan, _request(plan, number, run_id="second"))
    assert before < 7.5
    assert later.values["noise_multiplier"] > 1.15 * alone.values["noise_multiplier"]
    with Ledger.read(site.ledger_path) as ledger:
        assert reference_epsilon(ledger.history()) <= 8.5 * 1.001
    assert later.values["epsilon"] <= 8.5
    assert _spent(site) == 30


def test_a_later_run_that_does_not_fit_the_lifetime_budget_is_refused_at_once(tmp_path):
    plan, site = small_plan(), small_site(tmp_path, budget=6.0)
    for number in (1, 2):
        _train(site, plan, _request(plan, number, run_id="first"))
    with Ledger.hold(site.ledger_path) as ledger:
        spent = epsilon(ledger.history(), 1e-5, "prv")
        ledger.set_budget(Budget(spent * 1.005, 1e-5), OPERATOR)
    with pytest.raises(BudgetError, match=r"budget_epsilon = .* is spent, the"):
        _train(site, plan, _request(plan, run_id="second"))
    assert _spent(site) == 10


def test_the_non_private_twin_needs_a_site_that_allows_it(tmp_path):
    plan = small_plan(epsilon=math.inf)
    with pytest.raises(BudgetError):
        _train(small_site(tmp_path), plan, _request(plan))
    open_site = small_site(tmp_path, "open", budget=math.inf)
    reply = _train(open_site, plan, _request(plan))
    assert reply.values["epsilon"] == math.inf
    (whole, *_) = privacy_facts(open_site, plan, "run")
    assert whole.value["clip_norm"] is None


def test_requests_that_deviate_are_refused_and_cost_nothing(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    good = _request(plan)
    with pytest.raises(PrivacyError, match="round 4"):
        _train(site, plan, replace(good, round=4))
    with pytest.raises(CheckpointError):
        _train(site, plan, replace(good, state={"x": torch.zeros(1)}))
    no_ids = replace(site, train=replace(site.train, patient_ids=None))
    with pytest.raises(PrivacyError, match="no patient ids"):
        _train(no_ids, plan, good)
    assert _spent(site) == 0


def test_a_forged_reply_is_not_sent(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    _train(site, plan, _request(plan))
    (stored,) = site.outbox.rglob("*.safetensors")
    from safetensors.torch import load_file, save_file

    tensors = load_file(stored)
    save_file({k: v + 1 for k, v in tensors.items()}, stored)
    with pytest.raises(PrivacyError, match="not the reply"):
        _train(site, plan, _request(plan))
    assert _spent(site) == 5


@pytest.mark.parametrize("loss", ["removed", "emptied", "torn"])
def test_a_lost_reply_is_made_and_charged_again(tmp_path, loss):
    plan, site = small_plan(), small_site(tmp_path)
    first = _train(site, plan, _request(plan))
    (stored,) = site.outbox.rglob("*.safetensors")
    if loss == "removed":
        stored.unlink()
    else:
        stored.write_bytes(stored.read_bytes()[: 0 if loss == "emptied" else 500])
    again = _train(site, plan, _request(plan))
    assert _spent(site) == 10
    assert any(not torch.equal(first.tensors[k], again.tensors[k]) for k in first.tensors)


def test_runs_whose_names_begin_alike_keep_apart(tmp_path):
    plan, site = small_plan(epsilon=4.0), small_site(tmp_path, budget=20.0)
    for run_id in ("a-b", "a", "a-1"):
        for number in (1, 2, 3):
            _train(site, plan, _request(plan, number, run_id=run_id))
    with Ledger.read(site.ledger_path) as ledger:
        assert len(ledger.commits()) == len(ledger.reservations()) == 9


def test_another_plan_needs_another_run(tmp_path):
    plan, site = small_plan(), small_site(tmp_path, budget=20.0)
    _train(site, plan, _request(plan))
    stricter = small_plan(epsilon=1.0)
    with pytest.raises(PlanError, match="another plan needs another run"):
        _train(site, stricter, _request(stricter))
    _train(site, stricter, _request(stricter, run_id="other"))


def test_noise_never_grows_beyond_four_times_the_plans_own(tmp_path):
    plan, site = small_plan(spare_rounds=0), small_site(tmp_path, budget=4.0)
    alone = _train(small_site(tmp_path, "alone"), plan, _request(plan)).values["noise_multiplier"]
    first = _train(site, plan, _request(plan)).values["noise_multiplier"]
    assert 1.2 * alone < first < 4 * alone
    with Ledger.hold(site.ledger_path) as ledger:
        spent = epsilon(ledger.history(), 1e-5, "prv")
        ledger.set_budget(Budget(spent * 1.01, 1e-5), OPERATOR)
    with pytest.raises(BudgetError, match="even"):
        _train(site, plan, _request(plan, 2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("left",)}, "have classes \\['left', 'right'\\]"),
        ({"classes": ("right", "left")}, "have classes"),
        ({"classes": ("left", "right", "more")}, "have classes"),
        ({"size": 32}, "generator.channels, size"),
        ({"channels": 3}, "generator.channels, size"),
        ({"with_mask": True}, "masks: False"),
    ],
)
def test_a_plan_for_other_images_is_refused_before_any_step(tmp_path, changes, words):
    """A label that the plan does not know would fail only when its patient is drawn."""
    plan, site = small_plan(), small_site(tmp_path)
    other = plan.model_copy(update={"generator": plan.generator.model_copy(update=changes)})
    with pytest.raises(PrivacyError, match=words):
        _train(site, other, _request(other))
    assert _spent(site) == 0


def test_canaries_are_refused_at_a_real_site(tmp_path):
    plan, site = small_plan(noise="secure"), small_site(tmp_path)
    audit = plan.model_copy(update={"generator": plan.generator.model_copy(update={"canaries": 4})})
    with pytest.raises(PrivacyError, match="is a real site"):
        _train(replace(site, simulated=False), audit, _request(audit))


def test_what_is_charged_is_what_runs(tmp_path, monkeypatch):
    """The mechanism that trains is the one that was reserved, step for step."""
    plan, site = small_plan(), small_site(tmp_path)
    built, added = [], []
    trainer, add_noise = rounds.PrivateTrainer, PatientOptimiser.add_noise

    def spy(generator, data, mechanism, training, noise):
        built.append(mechanism)
        return trainer(generator, data, mechanism, training, noise)

    def count(self):
        added.append((self.noise_multiplier, self.max_grad_norm, self.expected_batch_size))
        add_noise(self)

    monkeypatch.setattr(rounds, "PrivateTrainer", spy)
    monkeypatch.setattr(PatientOptimiser, "add_noise", count)
    _train(site, plan, _request(plan))
    with Ledger.hold(site.ledger_path) as ledger:
        (use,) = ledger.history()
    expected = Mechanism(use.noise_multiplier, use.sample_rate, 1.0, 4, 10)
    assert built == [expected]
    assert use.sample_rate == 10 / 40
    assert added == [(use.noise_multiplier, 1.0, 10)] * use.steps


def test_no_message_changes_the_noise(tmp_path):
    """Whatever round is asked for first, the noise is that of the whole plan."""
    plan, noise = small_plan(), []
    for number in (1, 2, 3):
        site = small_site(tmp_path, f"site-{number}")
        reply = _train(site, plan, _request(plan, number))
        noise.append(reply.values["noise_multiplier"])
    assert len(set(noise)) == 1


def test_a_unit_of_image_ignores_patient_ids(tmp_path, monkeypatch):
    plan, site = small_plan(unit="image"), small_site(tmp_path, unit="image")
    units = []
    trainer = rounds.PrivateTrainer

    def spy(generator, data, *rest):
        units.append(data.unit_count())
        return trainer(generator, data, *rest)

    monkeypatch.setattr(rounds, "PrivateTrainer", spy)
    _train(site, plan, _request(plan))
    assert units == [len(site.train)]


def test_a_budget_per_patient_takes_no_use_that_hides_images_only(tmp_path):
    plan, site = small_plan(unit="image"), small_site(tmp_path)
    with pytest.raises(PrivacyError, match="stated per patient"):
        _train(site, plan, _request(plan))
    with Ledger.hold(site.ledger_path) as ledger:
        with pytest.raises(BudgetError, match="stated per patient"):
            ledger.reserve(RoundKey("run", 1, "aa", "plan"), [Use(2.0, 0.1, 5)], "image")
        ledger.set_budget(Budget(8.0, 1e-5, unit="image"), OPERATOR)
    _train(site, plan, _request(plan))
    stronger = small_plan()  # what hides a patient hides an image, too
    _train(site, stronger, _request(stronger, run_id="other"))
    with (
        Ledger.hold(site.ledger_path) as ledger,
        pytest.raises(ConfigError, match="what a patient lost is unknown"),
    ):
        ledger.set_budget(Budget(8.0, 1e-5), OPERATOR)


def test_another_request_does_not_take_the_place_of_a_committed_reply(tmp_path, monkeypatch):
    plan, site = small_plan(), small_site(tmp_path)
    first = _train(site, plan, _request(plan))
    other = build_generator(plan.generator, 1).shared_state()

    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            _train(site, plan, _request(plan, state=other))
    again = _train(site, plan, _request(plan))
    assert all(torch.equal(first.tensors[k], again.tensors[k]) for k in first.tensors)
    assert _spent(site) == 10


@pytest.mark.parametrize("run_id", ["../../escape", "a/b", "*", "", "x" * 65])
def test_a_run_id_cannot_leave_the_sites_directory(tmp_path, run_id):
    plan, site = small_plan(), small_site(tmp_path)
    with pytest.raises(PrivacyError, match="run id"):
        _train(site, plan, _request(plan, run_id=run_id))
    assert _spent(site) == 0


def test_weights_that_are_no_numbers_are_refused_before_anything_is_charged(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    state = build_generator(plan.generator, 0).shared_state()
    name = next(iter(state))
    with pytest.raises(CheckpointError, match="not finite"):
        _train(site, plan, _request(plan, state={**state, name: state[name] * math.nan}))
    with pytest.raises(CheckpointError, match="type"):
        _train(site, plan, _request(plan, state={**state, name: state[name].double()}))
    assert _spent(site) == 0


def test_a_looser_delta_than_the_budgets_is_refused(tmp_path):
    plan, site = small_plan(delta=1e-3), small_site(tmp_path)
    with pytest.raises(PrivacyError, match=r"privacy.delta = 0.001 is above the 1e-05"):
        _train(site, plan, _request(plan))


def test_losses_stay_in_the_sites_own_facts(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    reply = _train(site, plan, _request(plan))
    (line,) = (site.directory / "facts.jsonl").read_text().splitlines()
    fact = json.loads(line)
    assert fact["name"] == "training.loss"
    assert fact["scope"] == "site-local"
    assert fact["value"] not in reply.values.values()
    assert reply.values.keys() <= egress.PUBLIC_VALUES.keys()


def test_the_gate_refuses_what_nobody_declared():
    state, charged = {"w": torch.zeros(2)}, {}

    def gate(tensors, values=None, statistics=None):
        permitted = egress.Permitted(state, charged)
        return egress.release(egress.Outgoing(tensors, values or {}, statistics or {}), permitted)

    for name in ("loss", "gradient_norm", "examples", "accuracy", "minimum"):
        with pytest.raises(PrivacyError, match=f"refused to let '{name}' leave"):
            egress.acknowledge({name: 0.3})
        with pytest.raises(PrivacyError, match=name):
            gate(state, {name: 0.3})
    with pytest.raises(PrivacyError, match="histogram"):
        gate({**state, "histogram": torch.zeros(2)})
    with pytest.raises(PrivacyError, match="shape"):
        gate({"w": torch.zeros(3)})
    with pytest.raises(TrainingError, match="not finite"):
        gate({"w": torch.tensor([0.0, math.nan])})
    with pytest.raises(PrivacyError, match="nothing charged: \\['means'\\]"):
        gate(state, None, {"means": torch.zeros(3)})
    with pytest.raises(PrivacyError, match="nothing charged"):
        gate(state, None, {"label_histogram": torch.zeros(3)})
    charged["label_histogram"] = (3,)
    with pytest.raises(PrivacyError, match="nothing charged"):
        gate(state)  # paid for, and missing
    with pytest.raises(PrivacyError, match="label_histogram changed its shape"):
        gate(state, None, {"label_histogram": torch.zeros(4)})
    passed = gate(state, {"site": "north"}, {"label_histogram": torch.zeros(3)})
    assert list(passed.statistics) == ["label_histogram"]


def test_only_an_approved_plan_runs_and_a_deviation_is_named_with_both_values(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    with pytest.raises(PlanError, match="no plan is approved"):
        train_round(site, _request(plan))
    approve(site, plan)
    terms = plan.privacy.model_copy(update={"clip_norm": 9.0, "epsilon": math.inf})
    greedy = plan.model_copy(update={"privacy": terms})
    with pytest.raises(PlanError) as refusal:
        train_round(site, _request(greedy))
    assert "privacy.clip_norm: 9.0 against 1.0" in str(refusal.value)
    assert "privacy.epsilon: inf against 8.0" in str(refusal.value)
    with Ledger.hold(site.ledger_path) as ledger:
        ledger.revoke(plan.digest(), OPERATOR)
    with pytest.raises(PlanError):
        train_round(site, _request(plan))
    assert _spent(site) == 0


def test_repeatable_noise_is_refused_at_a_real_site(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    with pytest.raises(PrivacyError, match="no simulated site"):
        _train(replace(site, simulated=False), plan, _request(plan))
    secure = small_plan(noise="secure")
    _train(replace(site, simulated=False), secure, _request(secure))


def test_a_coordinator_that_saw_more_than_the_ledger_holds_is_told_so(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    first = _train(site, plan, _request(plan))
    seen = first.values["ledger_head"]
    _train(site, plan, replace(_request(plan, 2), anchor=seen))
    with pytest.raises(LedgerError, match="which the coordinator saw"):
        _train(site, plan, replace(_request(plan, 3), anchor="f" * 64))
    assert _spent(site) == 10


def test_the_label_histogram_is_charged_once_released_once_and_sent_again_for_free(tmp_path):
    plan = small_plan().model_copy(update={"release": ReleasePlan(label_histogram=4.0)})
    site = small_site(tmp_path)
    first = _train(site, plan, _request(plan))
    again = _train(site, plan, _request(plan))
    second = _train(site, plan, _request(plan, 2))
    histogram = first.statistics["label_histogram"]
    assert torch.equal(histogram, again.statistics["label_histogram"])
    assert second.statistics == {}
    with Ledger.read(site.ledger_path) as ledger:
        history = ledger.history()
    assert [use.purpose for use in history] == ["training", "label histogram", "training"]
    assert (history[1].noise_multiplier, history[1].sample_rate, history[1].steps) == (4.0, 1.0, 1)
    exact = torch.bincount(torch.from_numpy(site.train.labels), minlength=2) / 2
    assert 0 < float((histogram - exact).abs().max()) < 4.0 * 6
    third = _train(site, plan, _request(plan, 3))
    with Ledger.read(site.ledger_path) as ledger:
        assert reference_epsilon(ledger.history()) <= third.values["epsilon"] * 1.001 <= 8.008
    assert history[0].noise_multiplier > _noise_without_histogram(tmp_path)


def _noise_without_histogram(tmp_path) -> float:
    plan, site = small_plan(), small_site(tmp_path, "plain")
    return _train(site, plan, _request(plan)).values["noise_multiplier"]


def test_an_interrupted_histogram_is_charged_again(tmp_path, monkeypatch):
    plan = small_plan().model_copy(update={"release": ReleasePlan(label_histogram=4.0)})
    site = small_site(tmp_path)

    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rounds.Outbox, "keep", die)
        with pytest.raises(KeyboardInterrupt):
            _train(site, plan, _request(plan))
    _train(site, plan, _request(plan))
    with Ledger.read(site.ledger_path) as ledger:
        assert [u.purpose for u in ledger.history()].count("label histogram") == 2
        assert [r.attempt for r in ledger.reservations()] == [1, 2]


def test_a_site_survives_its_directory(tmp_path):
    site = small_site(tmp_path)
    save_site(site)
    back = load_site(site.directory)
    assert (back.train.images == site.train.images).all()
    assert (back.train.patient_ids == site.train.patient_ids).all()
    assert back.nominal_patients == site.nominal_patients
    assert back.holdout.masks is None
    assert (site.directory / "data.npz").stat().st_mode & 0o077 == 0
    (site.directory / "data.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match="not a prepared site"):
        load_site(site.directory)


def test_a_site_without_a_declared_size_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nominal_patients"):
        replace(small_site(tmp_path), nominal_patients=0)
