"""``synth-client``: the operator's view of the ledger, and the operator's decisions."""

from __future__ import annotations

import getpass
import json
import math
from dataclasses import replace

import pytest
from small_sites import OPERATOR, approve, small_plan, small_site

from synth_client import cli
from synth_client.budget import PlanOutlook, _outlook_line, rounds_that_fit, statement
from synth_client.charge import plan_uses
from synth_client.round import RoundRequest, train_round
from synth_client.site import save_site
from synth_common.generators import build_generator
from synth_common.plan import ReleasePlan
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.ledger import Budget, Ledger, RoundKey
from synth_common.terminal import guarded


def _site(tmp_path, **changes):
    """A site below ``tmp_path/sites`` as the command finds it."""
    site = small_site(tmp_path / "sites", **changes)
    save_site(site)
    return site


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command on ``tmp_path`` as home; returns (code, stdout, stderr)."""

    def call(*arguments):
        full = [*arguments, "--home", str(tmp_path)]
        code = guarded(lambda: cli.app(full, standalone_mode=True))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def _trained(tmp_path, rounds=2):
    site, plan = _site(tmp_path), small_plan()
    approve(site, plan)
    state = build_generator(plan.generator, 0).shared_state()
    for number in range(1, rounds + 1):
        state = train_round(site, RoundRequest("first", number, plan, state)).tensors
    return site, plan


def test_the_account_says_what_was_spent_on_what_and_what_remains(tmp_path, run):
    site, plan = _trained(tmp_path)
    with Ledger.hold(site.ledger_path) as ledger:
        uses = ledger.history()
        ledger.reserve(RoundKey("first", 3, "lost", plan.digest()), uses[:1], "patient")
        spent = epsilon(ledger.history(), 1e-5, "prv")
    code, out, _ = run("budget", "--site", "north")
    assert code == 0
    assert f"spent      epsilon {spent:.4f}" in out
    assert f"remains    epsilon {8 - spent:.4f}" in out
    assert "first: 2 rounds, 1 interrupted and spent" in out
    assert f"training: 15 x noise {uses[0].noise_multiplier:.4f}, sample rate 0.25" in out
    assert "epsilon 8 per patient at delta 1e-05 (prv)" in out
    assert "by operator: test" in out
    assert plan.digest()[:16] in out
    _, text, _ = run("budget", "--site", "north", "--json")
    account = json.loads(text)
    assert account["spent"] == pytest.approx(spent)
    assert account["runs"][0]["interrupted"] == 1
    assert account["outlook"]["rounds_left"] == 1  # of the spare that calibration kept
    assert account["outlook"]["made"] == 2
    assert "the budget bears 1 further round; a whole run has 3" in out


def test_a_budget_that_bears_no_more_says_what_another_round_would_cost(tmp_path, run):
    site, _ = _trained(tmp_path, rounds=3)
    with Ledger.hold(site.ledger_path) as ledger:
        history = ledger.history()
        ledger.set_budget(Budget(epsilon(history, 1e-5, "prv") + 0.01, 1e-5), OPERATOR)
    another = epsilon([*history, history[-1]], 1e-5, "prv")
    _, out, _ = run("budget", "--site", "north")
    last = out.splitlines()[-1]
    assert "its 3 rounds are made; nothing more fits: another round at noise" in last
    assert f"would bring epsilon to {another:.4f}, above the budget of" in last
    assert " 0 " not in last
    release = PlanOutlook("d" * 64, 0, 1, 0, 9.5, 3.7, 1.0)
    line = _outlook_line(release, Budget(8.0, 1e-5))
    assert "its release is made; nothing more fits: another release at noise 3.7000" in line
    assert "to 9.5000, above the budget of 8" in line
    fresh = _outlook_line(replace(release, made=0, rounds_left=2), Budget(8.0, 1e-5))
    assert fresh.endswith("the budget bears 2 further releases")


def test_rounds_left_is_the_last_number_that_fits():
    history, one = [Use(1.0, 0.1, 20)], Use(1.2, 0.1, 10)
    budget = Budget(6.0, 1e-5, "rdp")
    left = rounds_that_fit(history, one, budget, 1000)

    def cost(rounds):
        return epsilon([*history, Use(1.2, 0.1, 10 * rounds)], 1e-5, "rdp")

    assert left > 2
    assert cost(left) <= 6.0 < cost(left + 1)
    assert rounds_that_fit(history, one, budget, 2) == 2
    assert rounds_that_fit([Use(0.3, 0.5, 100)], one, budget, 1000) == 0
    assert rounds_that_fit(history, one, Budget(math.inf, 1e-5), 1000) == 1000


@pytest.mark.parametrize("epsilon", ["inf", "1e4"])
def test_a_budget_without_end_is_shown_at_once(tmp_path, run, epsilon):
    _trained(tmp_path, rounds=1)
    code, out, _ = run("budget", "--site", "north", "--set", epsilon, "--reason", "x")
    assert code == 0
    assert "the budget bears 30 or more further rounds; a whole run has 3" in out


def test_an_overspent_budget_says_so_everywhere(tmp_path, run):
    _trained(tmp_path, rounds=2)
    _, out, _ = run("budget", "--site", "north", "--set", "2", "--reason", "halt")
    assert "OVERSPENT" in out
    assert "before     epsilon 8" in out
    assert "budget     epsilon 2" in out
    file = tmp_path / "plan.json"
    file.write_text(small_plan(epsilon=7.0).to_json())
    _, out, _ = run("plan", "approve", str(file), "--site", "north", "--reason", "x", "--yes")
    assert "does NOT FIT" in out
    assert "these hold, too" in out
    run("budget", "--site", "north", "--set", "7.5", "--reason", "go on")
    file.write_text(small_plan(epsilon=7.1).to_json())
    _, out, _ = run("plan", "approve", str(file), "--site", "north", "--reason", "x", "--yes")
    assert "will add more noise, about " in out


def test_only_the_operator_sets_the_budget_and_gives_a_reason(tmp_path, run):
    _site(tmp_path)
    code, _, err = run("budget", "--site", "north", "--set", "12")
    assert (code, "reason is empty" in err) == (2, True)
    code, _, err = run("budget", "--site", "north", "--reason", "why not")
    assert (code, "--set EPSILON" in err) == (2, True)
    code, _, err = run("budget", "--site", "north", "--set", "-3", "--reason", "x")
    assert (code, "budget_epsilon = -3" in err) == (2, True)
    options = ("--set", "12", "--reason", "vote 12", "--operator", "bob")
    code, out, _ = run("budget", "--site", "north", *options)
    assert code == 0
    assert "epsilon 8 per patient at" in out  # what held before stays readable
    assert "epsilon 12 per patient at" in out
    assert "by bob: vote 12" in out
    code, _, err = run("budget", "--site", "north", "--delta", "1e-4")
    assert (code, "belong to --set" in err) == (2, True)


def test_a_new_budget_keeps_the_terms_that_are_not_named(tmp_path, run):
    site = _site(tmp_path)
    with Ledger.hold(site.ledger_path) as ledger:
        ledger.set_budget(Budget(3.0, 1e-7, "rdp"), OPERATOR)
    assert run("budget", "--site", "north", "--set", "4", "--reason", "x")[0] == 0
    with Ledger.read(site.ledger_path) as ledger:
        assert ledger.budget == Budget(4.0, 1e-7, "rdp")
    options = ("--set", "4", "--reason", "x", "--accountant", "pld", "--delta", "1e-6")
    assert run("budget", "--site", "north", *options)[0] == 0
    with Ledger.read(site.ledger_path) as ledger:
        assert ledger.budget == Budget(4.0, 1e-6, "pld")


def test_approval_states_the_cost_of_everything_that_the_plan_releases(tmp_path, run):
    _site(tmp_path)
    plan = small_plan(accountant="rdp", spare_rounds=1)
    plan = plan.model_copy(update={"release": ReleasePlan(label_histogram=1.0)})
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    _, out, _ = run("plan", "approve", str(file), "--site", "north", "--reason", "x", "--yes")
    uses = plan_uses(plan, 0.25, 3)
    assert [use.purpose for use in uses] == ["training", "label histogram"]
    assert f"from 0.000 to {epsilon(uses, 1e-5, 'prv'):.3f}, or " in out


def test_a_site_that_is_not_there_is_named_with_those_that_are(tmp_path, run):
    _site(tmp_path)
    code, _, err = run("budget", "--site", "nroth")
    assert code == 2
    assert "holds north" in err


def test_a_damaged_ledger_is_refused(tmp_path, run):
    site = _site(tmp_path)
    site.ledger_path.with_suffix(".head").unlink()
    code, _, err = run("budget", "--site", "north")
    assert (code, "lost its anchor" in err) == (6, True)
    site.ledger_path.write_bytes(b"")
    code, _, err = run("budget", "--site", "north")
    assert (code, "is not a ledger" in err) == (6, True)


def test_a_plan_is_read_approved_and_revoked(tmp_path, run):
    site, plan = _site(tmp_path), small_plan()
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    decided = ("--site", "north", "--reason", "trial", "--yes")
    code, out, _ = run("plan", "approve", str(file), *decided)
    assert code == 0
    assert '"clip_norm": 1.0' in out
    assert "epsilon goes from 0.000 to 7." in out
    code, _, err = run("plan", "approve", str(file), *decided)
    assert (code, "is approved already" in err) == (2, True)
    with Ledger.read(site.ledger_path) as ledger:
        assert len(ledger.approved()) == 1
    assert plan.digest() in run("plan", "show", "--site", "north")[1]
    code, _, err = run("plan", "revoke", "0" * 12, *decided[:4])
    assert (code, "0 plans that hold" in err) == (2, True)
    assert run("plan", "revoke", plan.digest()[:12], *decided[:4])[0] == 0
    shown = run("plan", "show", "--site", "north")[1]
    assert "by root: trial" in shown.replace(getpass.getuser(), "root")
    assert "REVOKED" in shown
    (kept,) = json.loads(run("plan", "show", "--site", "north", "--json")[1])
    assert kept["revoked"][0]["reason"] == "trial"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("{", 2, "not JSON"),
        ("[]", 2, "not a JSON object"),
        ('{"privacy": {"noise": "simulation", "clip": 3}}', 2, "privacy.clip: unknown key"),
        ('{"privacy": {"noise": "simulation"}}', 4, "have classes"),
        ('{"privacy": {"epsilon": "inf", "noise": "simulation"}}', 5, "without noise"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_not_approved(tmp_path, run, text, code, words):
    site = _site(tmp_path)
    file = tmp_path / "plan.json"
    file.write_text(text)
    found, _, err = run("plan", "approve", str(file), "--site", "north", "--reason", "x", "--yes")
    assert (found, words in err) == (code, True), err
    with Ledger.read(site.ledger_path) as ledger:
        assert ledger.approved() == {}


def test_the_account_of_a_fresh_site_needs_no_run(tmp_path):
    site = _site(tmp_path)
    account = statement(site.directory)
    assert (account.spent, account.remaining, account.runs, account.outlook) == (0.0, 8.0, (), None)
