"""A round at a site: what is charged, what is free, what is refused, what may leave."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from small_sites import small_plan, small_site
from test_privacy_accounting import reference_epsilon

from synth_client import round as rounds
from synth_client.round import RoundRequest, train_round
from synth_client.site import load_site, privacy_facts, save_site
from synth_common.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    PrivacyError,
    StorageError,
    TrainingError,
)
from synth_common.generators import build_generator
from synth_common.privacy import egress
from synth_common.privacy.accounting import Use
from synth_common.privacy.ledger import Ledger
from synth_common.privacy.optimiser import PatientOptimiser
from synth_common.privacy.training import Mechanism


def _request(plan, number=1, state=None, run_id="run"):
    state = build_generator(plan.generator, 0).shared_state() if state is None else state
    return RoundRequest(run_id, number, plan.digest(), state)


def _spent(site):
    with Ledger.hold(site.ledger_path) as ledger:
        return sum(use.steps for use in ledger.history())


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_whole_run_stays_within_its_target_by_an_independent_accountant(tmp_path, family):
    plan, site = small_plan(family), small_site(tmp_path)
    state = None
    for number in (1, 2, 3):
        reply = train_round(site, plan, _request(plan, number, state))
        state = reply.tensors
    (whole, *_per_round) = privacy_facts(site, plan)
    value = whole.value
    assert value["steps"] == 15
    assert value["noise_multiplier"] == reply.values["noise_multiplier"]
    history = [Use(**use) for use in value["history"]]
    assert reference_epsilon(history) <= value["epsilon"] * 1.001 <= 8.0 * 1.001
    assert [f.round for f in _per_round] == [1, 2, 3]
    assert _per_round[-1].value == value["epsilon"]


def test_the_same_request_twice_is_answered_alike_and_charged_once(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    first = train_round(site, plan, _request(plan))
    second = train_round(site, plan, _request(plan))
    assert _spent(site) == 5
    assert all(torch.equal(first.tensors[k], second.tensors[k]) for k in first.tensors)


def test_another_state_for_the_same_round_is_charged_again(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    train_round(site, plan, _request(plan))
    other = build_generator(plan.generator, 1).shared_state()
    train_round(site, plan, _request(plan, state=other))
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
            patch.setattr(rounds, "_train", die)
            with pytest.raises(KeyboardInterrupt):
                train_round(site, plan, _request(plan))
        with Ledger.hold(site.ledger_path) as ledger:
            noise.append(ledger.history()[-1].noise_multiplier)
    assert noise[0] == noise[1] < noise[2]
    for number in (1, 2, 3):
        train_round(site, plan, _request(plan, number))
    (whole, *_) = privacy_facts(site, plan)
    assert whole.value["steps"] == 30
    assert whole.value["epsilon"] <= 8.0


def test_an_exhausted_target_is_refused_before_the_images_are_touched(tmp_path, monkeypatch):
    plan, site = small_plan(spare_rounds=0), small_site(tmp_path)
    state = None
    for number in (1, 2, 3):
        state = train_round(site, plan, _request(plan, number, state)).tensors
    monkeypatch.setattr(rounds, "_train", lambda *_: pytest.fail("trained without budget"))
    with pytest.raises(BudgetError):
        train_round(
            site, plan, _request(plan, 3, build_generator(plan.generator, 5).shared_state())
        )
    assert _spent(site) == 15


def test_a_later_run_that_does_not_fit_the_lifetime_budget_is_refused_at_once(tmp_path):
    plan, site = small_plan(), small_site(tmp_path, budget=8.5)
    for number in (1, 2):
        train_round(site, plan, _request(plan, number, run_id="first"))
    with pytest.raises(BudgetError, match=r"budget_epsilon = 8\.5 of site north"):
        train_round(site, plan, _request(plan, run_id="second"))
    assert _spent(site) == 10


def test_the_non_private_twin_needs_a_site_that_allows_it(tmp_path):
    plan = small_plan(epsilon=math.inf)
    with pytest.raises(BudgetError):
        train_round(small_site(tmp_path), plan, _request(plan))
    open_site = small_site(tmp_path, "open", budget=math.inf)
    reply = train_round(open_site, plan, _request(plan))
    assert reply.values["epsilon"] == math.inf
    (whole, *_) = privacy_facts(open_site, plan)
    assert whole.value["clip_norm"] is None


def test_requests_that_deviate_are_refused_and_cost_nothing(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    good = _request(plan)
    with pytest.raises(PrivacyError, match="plan digest"):
        train_round(site, plan, replace(good, plan_digest="0" * 64))
    with pytest.raises(PrivacyError, match="round 4"):
        train_round(site, plan, replace(good, round=4))
    with pytest.raises(CheckpointError):
        train_round(site, plan, replace(good, state={"x": torch.zeros(1)}))
    no_ids = replace(site, train=replace(site.train, patient_ids=None))
    with pytest.raises(PrivacyError, match="no patient ids"):
        train_round(no_ids, plan, good)
    assert _spent(site) == 0


def test_a_lost_or_forged_reply_is_not_sent(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    train_round(site, plan, _request(plan))
    (stored,) = site.outbox.glob("*.safetensors")
    from safetensors.torch import load_file, save_file

    tensors = load_file(stored)
    save_file({k: v + 1 for k, v in tensors.items()}, stored)
    with pytest.raises(PrivacyError, match="not the reply"):
        train_round(site, plan, _request(plan))
    stored.unlink()
    with pytest.raises(StorageError, match="is lost"):
        train_round(site, plan, _request(plan))


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
    train_round(site, plan, _request(plan))
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
        reply = train_round(site, plan, _request(plan, number))
        noise.append(reply.values["noise_multiplier"])
    assert len(set(noise)) == 1


def test_a_unit_of_image_ignores_patient_ids(tmp_path, monkeypatch):
    plan, site = small_plan(unit="image"), small_site(tmp_path)
    units = []
    trainer = rounds.PrivateTrainer

    def spy(generator, data, *rest):
        units.append(data.unit_count())
        return trainer(generator, data, *rest)

    monkeypatch.setattr(rounds, "PrivateTrainer", spy)
    train_round(site, plan, _request(plan))
    assert units == [len(site.train)]


@pytest.mark.parametrize("run_id", ["../../escape", "a/b", "*", "", "x" * 65])
def test_a_run_id_cannot_leave_the_sites_directory(tmp_path, run_id):
    plan, site = small_plan(), small_site(tmp_path)
    with pytest.raises(PrivacyError, match="run id"):
        train_round(site, plan, _request(plan, run_id=run_id))
    assert _spent(site) == 0


def test_weights_that_are_no_numbers_are_refused_before_anything_is_charged(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    state = build_generator(plan.generator, 0).shared_state()
    name = next(iter(state))
    with pytest.raises(CheckpointError, match="not finite"):
        train_round(site, plan, _request(plan, state={**state, name: state[name] * math.nan}))
    with pytest.raises(CheckpointError, match="type"):
        train_round(site, plan, _request(plan, state={**state, name: state[name].double()}))
    assert _spent(site) == 0


def test_a_looser_delta_than_the_budgets_is_refused(tmp_path):
    plan, site = small_plan(delta=1e-3), small_site(tmp_path)
    with pytest.raises(PrivacyError, match=r"privacy.delta = 0.001 is above the 1e-05"):
        train_round(site, plan, _request(plan))


def test_losses_stay_in_the_sites_own_facts(tmp_path):
    plan, site = small_plan(), small_site(tmp_path)
    reply = train_round(site, plan, _request(plan))
    (line,) = (site.directory / "facts.jsonl").read_text().splitlines()
    fact = json.loads(line)
    assert fact["name"] == "training.loss"
    assert fact["scope"] == "site-local"
    assert fact["value"] not in reply.values.values()
    assert reply.values.keys() <= egress.PUBLIC_VALUES.keys()


def test_the_gate_refuses_what_nobody_declared():
    state = {"w": torch.zeros(2)}
    with pytest.raises(PrivacyError, match="loss"):
        egress.acknowledge({"loss": 0.3})
    with pytest.raises(PrivacyError, match="histogram"):
        egress.release_state({**state, "histogram": torch.zeros(2)}, state, {})
    with pytest.raises(PrivacyError, match="shape"):
        egress.release_state({"w": torch.zeros(3)}, state, {})
    with pytest.raises(TrainingError, match="not finite"):
        egress.release_state({"w": torch.tensor([0.0, math.nan])}, state, {})


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
