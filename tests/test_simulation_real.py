"""The packaged scenarios on the real images, in a small form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_privacy_accounting import reference_epsilon

from synth_common.facts import read_facts
from synth_common.privacy.accounting import Use
from synth_common.reporting.factbook import FactBook
from synth_sim.prepare import prepare_sites
from synth_sim.run import RunOptions, run_scenario
from synth_sim.scenario import load_scenario

_SMALL = (
    "training.rounds=1",
    "training.steps_per_round=2",
    "training.device=cpu",
    "generator.size=28",
    "generator.width=8",
    "evaluation.synthetic_images=48",
    "evaluation.max_images=48",
    "evaluation.diversity_pairs=8",
    "evaluation.classifier_steps=2",
    "evaluation.segmenter_steps=2",
    "evaluation.utility_seeds=1",
    "evaluation.bootstrap=20",
)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sites", "unit"),
    [
        ("chest-xray-hospitals", {"guangzhou-east", "guangzhou-west", "bethesda"}, "patient"),
        ("mednist", {f"hospital-{i}" for i in range(1, 6)}, "image"),
        ("nuclei", {"fluorescence-small", "fluorescence-large", "bright-field"}, "image"),
    ],
)
def test_a_packaged_scenario_runs_on_its_real_images(
    name: str, sites: set[str], unit: str, data_root: Path, tmp_path: Path
) -> None:
    scenario = load_scenario(name, (*_SMALL, f"data.root={data_root}"))
    run_scenario(scenario, RunOptions(tmp_path / "run"))
    book = FactBook(read_facts(tmp_path / "run" / "facts.jsonl"))
    assert book.value("privacy.unit") == unit
    ledgers = {f.site: f.value for f in book.all("privacy.site")}
    assert ledgers.keys() == sites
    assert all(0 < v["epsilon"] <= v["target_epsilon"] for v in ledgers.values())
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {site["name"] for site in report["privacy"]["sites"]} == sites
    for site in report["privacy"]["sites"]:
        again = reference_epsilon([Use(**use) for use in site["history"]])
        assert again <= site["epsilon"] * 1.001 <= site["target_epsilon"] * 1.001
    assert {f.site for f in book.all("membership.attack")} == sites
    for fact in book.all("data.intake"):
        aside = sum(fact.value["set_aside"].values())
        assert fact.value["offered"] == fact.value["accepted"] + aside
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.data
def test_the_digits_keep_their_official_split(data_root: Path, tmp_path: Path) -> None:
    """Every training image trains, every test image is held out, each at one site."""
    scenario = load_scenario("mnist", [f"data.root={data_root}"])
    facts = prepare_sites(scenario, tmp_path)
    splits = {f.site: f.value for f in facts if f.name == "data.split"}
    assert splits.keys() == {f"site-{i}" for i in range(1, 6)}
    assert sum(v["train_images"] for v in splits.values()) == 60_000
    assert sum(v["holdout_images"] for v in splits.values()) == 10_000
    assert sum(v["holdout_per_class"]["1"] for v in splits.values()) == 1135
    assert all(abs(v["train_images"] - 12_000) < 300 for v in splits.values())


@pytest.mark.data
@pytest.mark.slow
def test_coloured_nuclei_end_in_pairs_and_their_dice(data_root: Path, tmp_path: Path) -> None:
    scenario = load_scenario("nuclei", (*_SMALL, "generator.channels=3", f"data.root={data_root}"))
    run_scenario(scenario, RunOptions(tmp_path / "run"))
    book = FactBook(read_facts(tmp_path / "run" / "facts.jsonl"))
    assert book.all("utility.classification") == []  # one class
    found = {(f.site, f.detail["trained_on"]): f for f in book.all("utility.segmentation")}
    assert len(found) == 4 * 3
    assert found[None, "real"].detail["n_test"] == 166
    assert all(0 <= f.value["dice"] <= 1 for f in found.values())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Usefulness for training a segmenter" in page
    assert "nothing to classify" in page
