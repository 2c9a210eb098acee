"""The audit of a scenario: what it puts in, what it sees, what it writes, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from canary_scenario import small_scenario
from simulation_scenario import write_tiny
from small_sites import blobs, small_plan

from synth_client.site import load_site
from synth_common.audit.canaries import AuditResult
from synth_common.errors import ConfigError, FederationError
from synth_common.facts import read_facts
from synth_common.privacy.optimiser import PatientOptimiser
from synth_common.terminal import guarded
from synth_sim import audit_cli, canaries
from synth_sim.canaries import AuditOptions, audit_scenario, draw_inclusion, with_canaries
from synth_sim.scenario import load_scenario


def _call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = guarded(lambda: audit_cli.app(list(arguments), standalone_mode=True))
    return code, *capsys.readouterr()


def test_a_canary_is_one_patient_with_as_many_images_as_a_step_may_use() -> None:
    plan, images = small_plan(max_images_per_patient=3), blobs(10)
    included = np.array([True, False, True])
    whole = with_canaries(images, included, plan)
    assert len(whole) == len(images) + 6
    assert whole.unit_count() == images.unit_count() + 2
    assert whole.labels[10:].tolist() == [2, 2, 2, 4, 4, 4]
    assert whole.class_names[:3] == ("left", "right", "canary-0")
    ids = whole.patient_ids
    assert ids is not None
    assert set(ids[10:]) == {"canary-0", "canary-2"}
    assert (whole.images[:10] == images.images).all()


def test_the_coins_are_fair_repeatable_and_differ_by_site() -> None:
    coins = draw_inclusion(4000, 1, "north")
    assert 0.46 < coins.mean() < 0.54
    assert (coins == draw_inclusion(4000, 1, "north")).all()
    assert 0.45 < (coins == draw_inclusion(4000, 1, "river")).mean() < 0.55


def test_an_audit_of_two_sites_from_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "audit"
    arguments = ["canaries", str(write_tiny(tmp_path)), "--canaries", "90", "--site", "beta"]
    code, text, err = _call(capsys, *arguments, "--out", str(out))
    assert (code, err) == (0, "")
    assert "CLAIM NOT REFUTED" in text
    assert "round 2/2" in text
    facts = {fact.name: fact for fact in read_facts(out / "facts.jsonl")}
    found = facts["audit.canaries"]
    assert (found.site, found.scope) == ("beta", "released")
    assert found.value["claim"]["epsilon"] == facts["privacy.site"].value["epsilon"]
    assert found.value["rounds"] == 2
    errors = found.value["errors"]
    assert errors["n_in"] + errors["n_out"] + found.value["chosen_on"] == 90
    included = draw_inclusion(90, 5, "beta")
    alpha, beta = (load_site(out / "sites" / name).train for name in ("alpha", "beta"))
    assert (beta.labels >= 2).sum() == 2 * included.sum()
    assert (alpha.labels < 2).all()
    page = (out / "canaries.md").read_text()
    assert f"{found.value['cp_gdp']:.3f}" in page
    assert "prove" not in page + text


def test_a_refuted_claim_has_an_exit_code_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        PatientOptimiser,
        "add_noise",
        lambda self: [setattr(p, "grad", p.summed_grad) for p in self.params],
    )
    tiny = str(write_tiny(tmp_path))
    arguments = ["--canaries", "600", "--out", str(tmp_path / "audit"), "--set"]
    code, text, err = _call(capsys, "canaries", tiny, *arguments, "training.patients_per_step=60")
    assert code == 13
    assert "CLAIM REFUTED" in text
    assert err.startswith("error: site alpha: the claimed epsilon")
    assert err.count("\n") == 1
    assert (tmp_path / "audit" / "canaries.md").is_file()


@pytest.mark.parametrize(
    ("overrides", "options", "names"),
    [
        (["privacy.epsilon=inf"], {}, "privacy.epsilon = inf"),
        (["privacy.clip_norm=1e7"], {}, "privacy.clip_norm"),
        ([], {"canaries": 59}, "--canaries 59"),
        ([], {"alpha": 0.0}, "--alpha"),
        ([], {"site": "gamma"}, "--site 'gamma'"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_anything_is_made(
    tmp_path: Path, overrides: list[str], options: dict[str, object], names: str
) -> None:
    scenario = load_scenario(str(write_tiny(tmp_path)), overrides)
    with pytest.raises(ConfigError, match=names):
        audit_scenario(scenario, AuditOptions(tmp_path / "audit", **options))
    assert not (tmp_path / "audit").exists()


def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        audit_scenario(small_scenario(tmp_path), AuditOptions(tmp_path / "audit"))


def test_a_site_that_cannot_train_ends_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("secret of a patient")

    monkeypatch.setattr(PatientOptimiser, "add_noise", fail)
    with pytest.raises(FederationError, match=r"solo.*errors\.log") as caught:
        audit_scenario(small_scenario(tmp_path), AuditOptions(tmp_path / "audit", canaries=90))
    assert "secret" not in str(caught.value)


def test_what_is_scored_is_what_was_sent_and_replied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The averaged weights of a lone site are its reply, and are sent to it next."""
    seen = []
    scored = canaries.canary_scores

    def watch(sent, replied, rates):
        seen.append((sent, replied, rates))
        return scored(sent, replied, rates)

    monkeypatch.setattr(canaries, "canary_scores", watch)
    scenario = small_scenario(tmp_path, "training.rounds=3", "training.schedule=cosine")
    result = audit_scenario(scenario, AuditOptions(tmp_path / "audit", canaries=90)).result
    ((sent, replied, rates),) = seen
    assert sent.shape == replied.shape == (3, 90)
    assert not sent[0].any()
    assert (sent[1:] == replied[:-1]).all()
    assert rates[0] > rates[1] > rates[2] > 0
    assert isinstance(result, AuditResult)


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    heavy = ("torch", "opacus", "flwr", "numpy", "scipy", "pydantic", "sklearn")
    program = f"import sys, synth_sim.audit_cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
