"""``synth-client doctor``: what is wrong is named with its fix, and nothing is touched."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from enrolment_scenario import Clock
from site_scenario import (
    OPERATOR,
    deployed_plan,
    enrolled,
    prepare,
    ready_site,
    site_values,
    write_settings,
)

from synth_client import cli
from synth_client.approval import revoke
from synth_client.doctor import examine
from synth_client.findings import Finding
from synth_client.rehearsal import rehearse
from synth_common.errors import ReadinessError
from synth_common.plan import Plan
from synth_common.privacy.ledger import Budget, Ledger
from synth_common.terminal import guarded


def _examined(directory: Path) -> dict[str, Finding]:
    return {f.check: f for f in examine(directory, "north", network=False)}


def _contents(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_site_that_is_ready_has_no_problem_and_is_left_as_it_was(tmp_path: Path) -> None:
    _, directory, plan = ready_site(tmp_path)
    before = _contents(directory)
    found = _examined(directory)
    assert _contents(directory) == before
    local = {n: f for n, f in found.items() if f.found != "--offline was given"}
    assert {f.outcome for f in local.values()} == {"ok"}, found
    assert set(found) - set(local) == {
        "DNS", "proxy", "port", "certificate", "clock", "coordinator",
    }  # fmt: skip
    assert "30 patients to train on, 10 held out" in found["data"].found
    assert plan.digest()[:16] in found["plan"].found
    assert "6 random patients, so a round takes" in found["private step"].found


def _toml(**sections: dict[str, Any]) -> Callable[[Path], None]:
    return lambda directory: write_settings(directory, site_values(**sections))


def _no_approval(directory: Path) -> None:
    revoke(directory / "ledger.sqlite", deployed_plan().digest(), OPERATOR)


def _small_budget(directory: Path) -> None:
    with Ledger.hold(directory / "ledger.sqlite") as ledger:
        ledger.set_budget(Budget(0.2, 1e-5, "rdp"), OPERATOR)


def _flip(directory: Path) -> None:
    path = directory / "ledger.sqlite"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"operator", b"operatir", 1))


@pytest.mark.parametrize(
    ("harm", "check", "words", "fix"),
    [
        (_toml(limits={"min_patients": 29}), "data", None, ""),
        (_toml(limits={"minimum": 3}), "settings", "unknown key", "docs/reference/site.md"),
        (_toml(data={"nominal_patients": 31}), "data", "prepared with 30", "--replace"),
        (_toml(compute={"device": "cuda"}), "device", "'cuda' is asked for", "compute.device"),
        (lambda d: d.chmod(0o755), "files", "others can read", "chmod 700"),
        (lambda d: (d / "keys/node.key").chmod(0o644), "files", "node.key", "chmod 600"),
        (lambda d: (d / "keys/sign.key").unlink(), "keys", "cannot read", "synth-client init"),
        (lambda d: (d / "kit.json").unlink(), "enrolment", "accepted no kit", "accept KIT"),
        (lambda d: (d / "data.npz").unlink(), "data", "not a prepared site", "prepare"),
        (_flip, "ledger", "was altered", "backup"),
        (_no_approval, "plan", "no plan is approved", "plan approve"),
        (_small_budget, "budget", "does NOT FIT", "budget --set"),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(
    tmp_path: Path, harm: Callable[[Path], None], check: str, words: str | None, fix: str
) -> None:
    _, directory, _ = ready_site(tmp_path)
    harm(directory)
    finding = _examined(directory)[check]
    if words is None:  # the harm that is none
        assert finding.outcome == "ok"
        return
    assert (finding.outcome, words in finding.found) == ("problem", True), finding
    assert fix in finding.fix


def test_too_few_patients_are_found_before_a_round_finds_them(tmp_path: Path) -> None:
    _, directory, plan = ready_site(tmp_path)
    values = site_values(limits={"min_patients": 30})
    values["data"]["source"]["patients"] = 36
    write_settings(directory, {**values, "limits": {}})
    prepare(directory, plan, replace=True)
    write_settings(directory, values)
    finding = _examined(directory)["data"]
    assert (finding.outcome, "has 27 training patients" in finding.found) == ("problem", True)


def test_checks_that_cannot_run_say_what_they_need(tmp_path: Path) -> None:
    _, directory = enrolled(tmp_path)
    found = _examined(directory)
    assert found["data"].outcome == "problem"
    assert (found["budget"].outcome, found["plan"].outcome) == ("not run", "not run")
    assert found["plan"].found == "needs ledger and data, see there"
    (directory / "site.toml").write_text("")
    found = {f.check: f for f in examine(directory, "north")}
    assert found["DNS"].found == "needs settings, see there"


def test_an_enrolment_that_ends_is_a_warning_and_then_a_problem(
    tmp_path: Path, clock: Clock
) -> None:
    _, directory, _ = ready_site(tmp_path)
    clock.advance(days=340)
    finding = _examined(directory)["enrolment"]
    assert (finding.outcome, "25 days left" in finding.found) == ("warning", True), finding
    clock.advance(days=26)
    finding = _examined(directory)["enrolment"]
    assert (finding.outcome, "EXPIRED" in finding.found) == ("problem", True)
    assert "synth-client init --site north" in finding.fix


def test_a_full_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, directory, _ = ready_site(tmp_path)
    usage = shutil.disk_usage(directory)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert _examined(directory)["disk"].outcome == "problem"


def test_a_machine_too_slow_for_the_plan_is_found(tmp_path: Path) -> None:
    plan = deployed_plan(federation={"round_timeout_s": 1e-4})
    _, directory, _ = ready_site(tmp_path, plan=plan)
    finding = _examined(directory)["private step"]
    assert (finding.outcome, "round_timeout_s" in finding.fix) == ("problem", True)


def test_another_plan_in_a_new_kit_is_found_field_by_field(tmp_path: Path) -> None:
    federation, directory, _ = ready_site(tmp_path)
    changed = deployed_plan(privacy={"clip_norm": 2.0})
    (federation.folder.path / "plan.json").write_text(changed.to_json())
    federation.enrol("river")  # every enrolment writes kits with the plan as it is now
    federation.accept("north")
    finding = _examined(directory)["plan"]
    assert finding.outcome == "problem"
    assert "privacy.clip_norm: 2.0 against 1.0" in finding.found


def test_a_plan_in_progress_is_judged_by_what_is_left(tmp_path: Path) -> None:
    from synth_client.round import RoundRequest, train_round
    from synth_client.site import load_site
    from synth_common.generators import build_generator

    _, directory, plan = ready_site(tmp_path, budget={"epsilon": 4.0})
    state = build_generator(plan.generator, 0).shared_state()
    train_round(load_site(directory), RoundRequest("run", 1, plan, state))
    finding = _examined(directory)["budget"]
    assert (finding.outcome, "for 3 more rounds" in finding.found) == ("ok", True), finding


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_the_rehearsal_takes_the_plan_s_own_steps(family: str) -> None:
    plan = deployed_plan(generator={"family": family, "with_mask": True, "channels": 3})
    done = rehearse(plan, "cpu")
    assert (done.device, done.patients) == ("cpu", 6)
    assert done.round_seconds == pytest.approx(2 * done.seconds)


def test_a_plan_of_one_release_is_rehearsed_as_a_release() -> None:
    plan = Plan.model_validate(
        {
            "generator": {"family": "embedding", "size": 28, "frequencies": 4},
            "training": {"rounds": 0},
            "release": {"embedding": {"share": 1.0}},
        }
    )
    assert rehearse(plan, "auto").round_seconds is None


def test_the_command_ends_with_its_own_code_and_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, directory, _ = ready_site(tmp_path)
    given = ["doctor", "--site", "north", "--home", str(directory.parents[1]), "--offline"]
    assert guarded(lambda: cli.app(given)) == 0
    assert "ok       ledger: " in capsys.readouterr().out
    _no_approval(directory)
    assert guarded(lambda: cli.app([*given, "--json"])) == ReadinessError.exit_code
    captured = capsys.readouterr()
    found = {item["check"]: item for item in json.loads(captured.out)}
    assert found["plan"]["outcome"] == "problem"
    assert "checks found a problem: plan" in captured.err
    guarded(lambda: cli.app(given))
    assert "How to fix: read " in capsys.readouterr().out
