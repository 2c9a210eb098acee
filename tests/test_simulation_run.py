"""A whole small federation: what it leaves behind, how it is refused, and how it goes on."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from simulation_scenario import write_tiny

from synth_common.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    Interrupted,
    PrivacyError,
)
from synth_common.facts import Fact, read_facts
from synth_common.privacy.ledger import Decision, Ledger
from synth_common.reporting.factbook import FactBook
from synth_server import coordinate, progress
from synth_server.checkpoint import load_latest
from synth_server.coordination import Coordination
from synth_sim.run import RunOptions, run_scenario
from synth_sim.sample import sample_run
from synth_sim.scenario import Scenario, load_scenario


def _tiny(folder: Path, *overrides: str, sites: int = 2) -> Scenario:
    return load_scenario(str(write_tiny(folder, sites)), overrides)


def _final(out: Path) -> Mapping[str, torch.Tensor]:
    checkpoint = load_latest(out / "checkpoints")
    assert checkpoint is not None
    return checkpoint.state


def _book(out: Path) -> FactBook:
    return FactBook(read_facts(out / "facts.jsonl"))


def _equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenario, Path]:
    folder = tmp_path_factory.mktemp("finished")
    scenario, out = _tiny(folder), folder / "run"
    report = run_scenario(scenario, RunOptions(out, command="synth-sim run tiny"))
    assert report == out / "report.html"
    return scenario, out


def test_a_run_leaves_the_documented_files(finished: tuple[Scenario, Path]) -> None:
    _, out = finished
    for name in (
        "facts.jsonl",
        "report.html",
        "report.json",
        "scenario.toml",
        "samples/synthetic.png",
        "samples/phantom.png",
        "checkpoints/round-0002.safetensors",
        "sites/alpha/ledger.sqlite",
        "sites/beta/facts.jsonl",
    ):
        assert (out / name).is_file(), name
    assert not list((out / "samples").glob("real*"))


def test_every_site_stays_within_its_target_and_the_ledger_counts_all_steps(
    finished: tuple[Scenario, Path],
) -> None:
    scenario, out = finished
    for site in ("alpha", "beta"):
        value = _book(out).value("privacy.site", site)
        assert 0 < value["epsilon"] <= scenario.privacy.epsilon
        assert value["steps"] == scenario.training.total_steps
    rounds = _book(out).all("federation.round")
    assert [f.value["replies"] for f in rounds] == [["alpha", "beta"]] * 2
    parameters = sum(t.numel() for t in _final(out).values())
    assert all(f.value["bytes_up"] > 4 * parameters * 2 for f in rounds)
    assert _book(out).value("run.rounds")["ended"] == "completed"


def test_site_figures_reach_the_report_with_their_site_and_scope(
    finished: tuple[Scenario, Path],
) -> None:
    _, out = finished
    for name in ("training.loss", "quality.frechet", "membership.attack", "quality.reconstruction"):
        found = _book(out).all(name)
        assert {f.site for f in found} == {"alpha", "beta"}, name
        assert {f.scope for f in found} == {"site-local"}, name
    places = {(f.site, f.detail["trained_on"]) for f in _book(out).all("utility.classification")}
    assert places >= {(s, t) for s in (None, "alpha", "beta") for t in ("real", "synthetic")}


def test_no_figure_measured_on_patients_is_in_a_reply(finished: tuple[Scenario, Path]) -> None:
    """What the coordinator got is in public facts; site-local ones come from the sites' files."""
    _, out = finished
    public = {f.name for f in read_facts(out / "facts.jsonl") if f.scope == "public"}
    assert not {n for n in public if n.startswith(("quality", "membership", "utility", "training"))}


def test_the_report_holds_the_runs_numbers(finished: tuple[Scenario, Path]) -> None:
    scenario, out = finished
    report = json.loads((out / "report.json").read_text())
    assert report["run"]["id"] == scenario.run_id()
    assert report["privacy"]["unit"] == "patient"
    assert report["privacy"]["noise_source"]["kind"] == "simulation"
    assert [s["name"] for s in report["privacy"]["sites"]] == ["alpha", "beta"]
    assert set(report["run"]["seconds"]) >= {"data", "training", "evaluation", "total"}
    assert report["run"]["peak_memory_bytes"] > 50_000_000


def test_a_finished_run_is_not_run_again(finished: tuple[Scenario, Path]) -> None:
    scenario, out = finished
    before = (out / "facts.jsonl").read_bytes()
    (out / "report.html").unlink()
    said: list[str] = []
    run_scenario(scenario, RunOptions(out, resume=True, say=said.append))
    assert said == [f"the run in {out} is finished; only its report is written anew"]
    assert (out / "facts.jsonl").read_bytes() == before
    assert (out / "report.html").is_file()


def test_samples_depend_on_label_and_seed_alone(
    finished: tuple[Scenario, Path], tmp_path: Path
) -> None:
    _, out = finished

    def pixels(name: str, count: int, label: str, seed: int = 0) -> list[np.ndarray]:
        folder = sample_run(out, count, label, tmp_path / name, seed)
        assert len((folder / "metadata.csv").read_text().splitlines()) == count + 1
        return [np.asarray(Image.open(folder / f"{i:05d}.png")) for i in range(count)]

    few, many = pixels("few", 2, "lesion"), pixels("many", 5, "lesion")
    assert few[0].shape == (28, 28)
    assert all((a == b).all() for a, b in zip(few, many, strict=False))
    assert (pixels("other", 1, "lesion", seed=1)[0] != few[0]).any()
    assert (pixels("normal", 1, "normal")[0] != few[0]).any()
    with pytest.raises(ConfigError, match=r"pneumonia.*normal, lesion"):
        sample_run(out, 1, "pneumonia", tmp_path / "none")
    with pytest.raises(ConfigError, match="not an empty folder"):
        sample_run(out, 1, "lesion", tmp_path / "few")


_SITE_STAGES = (
    "drawing 24 synthetic images",
    "features, distances and diversity beside its own images",
    "reconstructions",
    "membership attacks",
    "done",
)
_POOLED_STAGES = (
    "drawing 5 synthetic images",
    *(
        f"{network}s trained on {images}"
        for network in ("classifier", "segmenter")
        for images in ("synthetic images", "real images", "both kinds of images")
    ),
    "pictures for the report",
)


def test_masks_are_judged_beside_classes_and_every_stage_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synth_sim.compare_rows import row_fact

    overrides = ("generator.with_mask=true", "training.rounds=1", "evaluation.utility_images=5")
    scenario, out = _tiny(tmp_path, *overrides), tmp_path / "masked"
    told: list[str] = []
    monkeypatch.setattr(
        progress.PlainReporter, "stage", lambda _, where, what: told.append(f"{where}: {what}")
    )
    run_scenario(scenario, RunOptions(out))
    assert told == [
        f"evaluation{place}: {stage}"
        for place, stages in (
            (" 1/2, alpha", _SITE_STAGES),
            (" 2/2, beta", _SITE_STAGES),
            (", all sites", _POOLED_STAGES),
        )
        for stage in stages
    ]
    book = _book(out)
    for name in ("utility.classification", "utility.segmentation"):
        found = {(f.site, f.detail["trained_on"]): f for f in book.all(name)}
        assert found.keys() == {
            (s, t) for s in (None, "alpha", "beta") for t in ("synthetic", "real", "both")
        }
        assert found[None, "synthetic"].detail["n_train"] == 5  # evaluation.utility_images
        assert found[None, "real"].detail["n_train"] > 5
        assert {f.scope for f in found.values()} == {"site-local"}
    pooled = found[None, "synthetic"]
    facts = list(read_facts(out / "facts.jsonl"))
    row = row_fact("vae", scenario, facts, "masked/report.html").value
    assert row["dice_synthetic"] == pooled.value["dice"]
    assert row["dice_synthetic_interval"] == pooled.detail["interval"]
    assert row["dice_real"] == found[None, "real"].value["dice"]
    assert row.get("dice_ratio_to_real") == pooled.value["ratio_to_real"]


def test_a_comparison_row_holds_what_the_run_recorded(finished: tuple[Scenario, Path]) -> None:
    from synth_sim.compare_rows import row_fact

    scenario, out = finished
    facts = list(read_facts(out / "facts.jsonl"))
    row = row_fact("vae", scenario, facts, "vae/report.html").value
    book = _book(out)
    radiomics = [
        f.value for f in book.all("quality.frechet") if f.detail["encoder"].startswith("radiomics")
    ]
    if all(value is not None for value in radiomics):
        assert row["frechet_radiomics"] == pytest.approx(np.mean(radiomics))
    pooled = [
        f.value["balanced_accuracy"]
        for f in book.all("utility.classification")
        if f.site is None and f.detail["trained_on"] == "synthetic"
    ]
    assert row["utility_synthetic"] == pooled[0]
    spent = [book.value("privacy.site", s)["epsilon"] for s in ("alpha", "beta")]
    assert row["epsilon_spent"] == max(spent)
    assert row["peak_memory_bytes"] == book.value("run.peak_memory_bytes")
    assert None not in row.values()


def test_another_process_in_the_directory_is_refused(finished: tuple[Scenario, Path]) -> None:
    scenario, out = finished
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process"):
            run_scenario(scenario, RunOptions(out, resume=True))


def test_resuming_with_other_settings_is_refused(
    finished: tuple[Scenario, Path], tmp_path: Path
) -> None:
    _, out = finished
    other = _tiny(tmp_path, "training.rounds=3")
    with pytest.raises(ConfigError, match="other settings"):
        run_scenario(other, RunOptions(out, resume=True))


def _stop_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Press Ctrl-C when the given round has been recorded."""
    original = progress.PlainReporter.round

    def stop(self: progress.PlainReporter, at: int, epsilons: Mapping[str, Any]) -> None:
        original(self, at, epsilons)
        if at == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.PlainReporter, "round", stop)


def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_result(
    finished: tuple[Scenario, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, undisturbed = finished
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        _stop_after(patch, 1)
        with pytest.raises(Interrupted, match="--resume") as caught:
            run_scenario(scenario, RunOptions(out))
    assert caught.value.exit_code == 130
    assert not (out / "report.html").exists()

    damaged = out / "checkpoints" / "round-0001.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match=r"round-0001\.safetensors.*delete it"):
        run_scenario(scenario, RunOptions(out, resume=True))
    damaged.write_bytes(whole)

    said: list[str] = []
    with monkeypatch.context() as patch:
        _stop_after(patch, 2)
        with pytest.raises(Interrupted):
            run_scenario(scenario, RunOptions(out, resume=True, say=said.append))
    run_scenario(scenario, RunOptions(out, resume=True, say=said.append))
    assert said == ["resuming at round 2 of 2", "resuming at the evaluation"]
    assert _equal(_final(out), _final(undisturbed))
    book = _book(out)
    assert [f.value for f in book.all("run.resumed")] == [
        {"at": "round 2"},
        {"at": "the evaluation"},
    ]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "stopped and continued at the evaluation." in page
    for site in ("alpha", "beta"):
        before = _book(undisturbed).value("privacy.site", site)
        assert book.value("privacy.site", site)["steps"] == before["steps"]


def test_a_round_lost_with_its_checkpoint_is_answered_from_the_outbox_for_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, out = _tiny(tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        _stop_after(patch, 1)
        with pytest.raises(Interrupted):
            run_scenario(scenario, RunOptions(out))
    state = _final(out)
    (out / "checkpoints" / "round-0001.safetensors").unlink()
    with monkeypatch.context() as patch:
        _stop_after(patch, 1)
        with pytest.raises(Interrupted):
            run_scenario(scenario, RunOptions(out, resume=True))
    assert _equal(_final(out), state)
    assert _entries(out / "sites" / "alpha") == ["reserve", "commit"]


def test_a_spent_budget_ends_training_in_good_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operators lower their budgets after the first of two rounds."""
    scenario, out = _tiny(tmp_path), tmp_path / "run"
    after_round = coordinate.after_round

    def then_lower(run: Coordination, result: Any) -> None:
        after_round(run, result)
        for site in (out / "sites").iterdir():
            with Ledger.hold(site / "ledger.sqlite") as ledger:
                budget = replace(ledger.budget, epsilon=0.01)
                ledger.set_budget(budget, Decision("alice", "stop"))

    monkeypatch.setattr(coordinate, "after_round", then_lower)
    run_scenario(scenario, RunOptions(out))
    book = _book(out)
    assert book.value("run.rounds") == {"planned": 2, "completed": 1, "ended": "budget spent"}
    failures = book.all("federation.failure")
    assert {(f.site, f.value["code"]) for f in failures} == {
        ("alpha", "BudgetError"),
        ("beta", "BudgetError"),
    }
    assert book.value("privacy.site", "alpha")["steps"] == 3
    assert "0.01" in (out / "sites" / "alpha" / "errors.log").read_text()
    assert not any("0.01" in str(f.value) for f in failures)
    assert (out / "report.html").is_file()


def test_a_run_without_a_single_round_is_an_error_and_no_report(tmp_path: Path) -> None:
    scenario = _tiny(
        tmp_path,
        "partition.sites.0.budget_epsilon=0.01",
        "partition.sites.1.budget_epsilon=0.01",
    )
    with pytest.raises(BudgetError, match=r"no round could be trained.*errors\.log"):
        run_scenario(scenario, RunOptions(tmp_path / "run"))
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_patient_unit_without_patient_ids_is_refused(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "noids.npz",
        images=rng.integers(0, 255, (40, 28, 28)).astype(np.uint8),
        labels=np.arange(40) % 2,
    )
    text = write_tiny(tmp_path).read_text()
    start, end = text.index("[[data.sources]]"), text.index("[partition]")
    source = '[[data.sources]]\nkind = "npz"\nname = "n"\npath = "noids.npz"\n'
    source += 'labels = ["normal", "lesion"]\n\n'
    (tmp_path / "noids.toml").write_text(text[:start] + source + text[end:])
    scenario = load_scenario(str(tmp_path / "noids.toml"), [f"data.root={tmp_path}"])
    with pytest.raises(PrivacyError, match="unit = 'image'"):
        run_scenario(scenario, RunOptions(tmp_path / "run"))


def _entries(site: Path) -> list[str]:
    """Kinds of the ledger's entries, read beside a running process."""
    path = site / "ledger.sqlite"
    if not path.exists():
        return []
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) as connection:
            rows = connection.execute("SELECT body FROM entries ORDER BY number").fetchall()
    except sqlite3.OperationalError:
        return []
    kinds = [json.loads(body)["kind"] for (body,) in rows]
    return [kind for kind in kinds if kind in ("reserve", "commit")]


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "synth_sim.cli", *arguments]


@pytest.mark.slow
def test_a_run_killed_within_a_round_resumes_and_charges_at_least_as_much(tmp_path: Path) -> None:
    steps = 400
    scenario = str(write_tiny(tmp_path))
    out = tmp_path / "run"
    options = ["--set", f"training.steps_per_round={steps}", "--out", str(out)]
    process = subprocess.Popen(_command("run", scenario, *options), stdout=subprocess.DEVNULL)
    beta = out / "sites" / "beta"
    deadline = time.monotonic() + 120
    while _entries(beta) != ["reserve"]:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _entries(beta) == ["reserve"], "the kill came too late to be within a round"
    assert not (out / "checkpoints").exists()

    done = subprocess.run(
        _command("run", scenario, *options, "--resume"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    planned = 2 * steps
    sites = {name: _book(out).value("privacy.site", name) for name in ("alpha", "beta")}
    assert sites["alpha"]["steps"] >= planned
    assert sites["beta"]["steps"] == planned + steps  # the lost round stays charged
    assert all(value["epsilon"] <= value["target_epsilon"] for value in sites.values())
    assert _book(out).value("run.rounds")["ended"] == "completed"


@pytest.mark.slow
def test_a_real_ctrl_c_exits_130_and_says_how_to_continue(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = _command("run", str(write_tiny(tmp_path)), "--out", str(out))
    arguments += ["--set", "training.steps_per_round=400"]
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while "reserve" not in _entries(out / "sites" / "alpha"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.startswith("error: stopped")
    assert f"--out {out} --resume" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    """The shell's file-size limit makes the kernel refuse, as a full disk would."""
    command = _command("run", str(write_tiny(tmp_path)), "--out", str(tmp_path / "run"))
    limited = f"ulimit -f 64; exec {' '.join(command)}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False)
    assert done.returncode == 10, done.stderr
    assert done.stderr.startswith("error: cannot write")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_ray_gives_the_same_result_as_one_process(
    finished: tuple[Scenario, Path], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'synthward[ray]')")
    _, undisturbed = finished
    out = tmp_path / "run"
    scenario = str(undisturbed / "scenario.toml")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        _command("run", scenario, "--out", str(out), "--engine", "ray"),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert _equal(_final(out), _final(undisturbed))

    def figures(run: Path) -> list[tuple[object, ...]]:
        names = ("privacy.site", "training.loss", "quality.frechet", "membership.attack")
        found: list[Fact] = _book(run).all(*names)
        return [(f.name, f.site, f.round, f.detail.get("encoder"), _comparable(f)) for f in found]

    assert figures(out) == figures(undisturbed)


def _comparable(fact: Fact) -> object:
    """A fact's value without what holds the time (the ledger's hash)."""
    if isinstance(fact.value, Mapping):
        return {k: v for k, v in fact.value.items() if k != "ledger_head"}
    return fact.value
