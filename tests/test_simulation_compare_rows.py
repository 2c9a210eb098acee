"""The line of a comparison holds what a run recorded of each use, and nothing that it did not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulation_scenario import write_tiny
from small_sets import blob_set

from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.tasks import evaluate_tasks, evaluate_tasks_at
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet
from synth_common.reporting.compare import build_comparison
from synth_common.reporting.compare_page import render_comparison
from synth_sim.compare_rows import row_fact, summary_facts
from synth_sim.scenario import Scenario, load_scenario

CONFIG = EvaluationConfig(
    classifier_steps=3,
    segmenter_steps=2,
    utility_seeds=1,
    bootstrap=40,
    group_minimum=5,
    augmentation_shares=(0.25, 0.5),
    anomaly_normal="normal",
    anomaly_neighbours=2,
)
MEASURED = (
    "surface_distance_synthetic_pixels",
    "surface_distance_real_pixels",
    "surface_distance_synthetic_mm",
    "anomaly_auroc_synthetic",
    "anomaly_auroc_real",
    "augmentation_gain_at_25pct",
    "worst_group_synthetic",
    "worst_group_real",
)


def _masked(patients: int, seed: int) -> ImageSet:
    images = blob_set(patients, seed)
    masks = (images.images[:, 0] > 0.5).astype(np.uint8)
    return replace(images, masks=masks, spacings=np.full(len(images), 0.5))


@pytest.fixture(scope="module")
def recorded() -> list[Fact]:
    """What an evaluation records over all sites, and after it at one site alone."""
    sets = [_masked(patients, seed) for seed, patients in enumerate((24, 20, 16))]
    own = evaluate_tasks_at("alpha", *sets, CONFIG, 5)
    return [*evaluate_tasks(*sets, CONFIG, 0), *own]


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return load_scenario(str(write_tiny(tmp_path)))


def _pooled(facts: list[Fact], name: str, **detail: object) -> Fact:
    (found,) = (
        f for f in facts if (f.name, f.site) == (name, None) and detail.items() <= f.detail.items()
    )
    return found


def test_every_use_has_its_columns(recorded: list[Fact], scenario: Scenario) -> None:
    row = row_fact("vae", scenario, recorded, "report.html").value
    for kind in ("synthetic", "real"):
        drawn = _pooled(recorded, "utility.segmentation", trained_on=kind)
        assert row[f"surface_distance_{kind}_pixels"] == drawn.value["surface_distance"]
        interval = drawn.detail["surface_interval"]
        assert row[f"surface_distance_{kind}_pixels_interval"] == interval
        in_mm = drawn.value["surface_distance"] / 2
        assert row[f"surface_distance_{kind}_mm"] == pytest.approx(in_mm)
        interval = drawn.detail["surface_mm_interval"]
        assert row[f"surface_distance_{kind}_mm_interval"] == interval
        odd = _pooled(recorded, "utility.anomaly", trained_on=kind)
        assert row[f"anomaly_auroc_{kind}"] == odd.value["auroc"]
        assert row[f"anomaly_auroc_{kind}_interval"] == odd.detail["interval"]
    added = _pooled(recorded, "utility.augmentation", trained_on="both", share=0.25)
    assert row["augmentation_gain_at_25pct"] == added.value["gain"]
    assert row["augmentation_gain_at_25pct_interval"] == added.detail["gain_interval"]
    assert "augmentation_gain_at_50pct" not in row


def _group(dimension: str, group: str, trained_on: str, score: float | None) -> Fact:
    detail = {"dimension": dimension, "group": group, "trained_on": trained_on}
    detail["interval"] = None if score is None else [score - 0.1, score + 0.1]  # type: ignore[assignment]
    return Fact("fairness.group", {"score": score}, "site-local", "tests", detail=detail)


def test_the_worst_group_is_that_of_the_synthetic_images_beside_its_own_real_score(
    scenario: Scenario,
) -> None:
    facts = [
        _group("class", "normal", "synthetic", 0.7),
        _group("class", "normal", "real", 0.4),  # worst with real images, not with synthetic
        _group("sex", "female", "synthetic", 0.5),
        _group("sex", "female", "real", 0.9),
        _group("age", "65+", "synthetic", None),  # too few patients to show
        _group("age", "65+", "real", None),
        replace(_group("sex", "male", "synthetic", 0.1), site="alpha"),
    ]
    row = row_fact("vae", scenario, facts, "report.html").value
    assert row["worst_group"] == "sex female"
    assert (row["worst_group_synthetic"], row["worst_group_real"]) == (0.5, 0.9)
    assert row["worst_group_synthetic_interval"] == [0.4, 0.6]
    nobody = row_fact("vae", scenario, facts[4:], "report.html").value
    assert not [name for name in nobody if name.startswith("worst_group")]


def test_what_one_run_lacks_is_said_and_what_all_lack_has_no_column(
    recorded: list[Fact], scenario: Scenario
) -> None:
    bare = [f for f in recorded if f.name == "utility.classification"]
    few = row_fact("gan", scenario, bare, "gan/report.html")
    comparison = build_comparison([row_fact("vae", scenario, recorded, "vae/report.html"), few])
    names = [column["name"] for column in comparison["columns"]]
    assert set(MEASURED) <= set(names)
    gan = comparison["rows"][0]
    assert gan["generator"] == "gan"
    assert {gan[name] for name in MEASURED} == {"NOT RECORDED"}
    page = render_comparison(comparison)
    for title in (
        "Surface distance synthetic (pixels) ↓",
        "Surface distance synthetic (mm) ↓",
        "Anomaly AUROC synthetic ↑",
        "Augmentation gain at 25 % ↑",
        "Worst group synthetic ↑",
    ):
        assert title in page
    none = build_comparison([few])
    assert not {column["name"] for column in none["columns"]} & set(MEASURED)


def test_over_seeds_a_text_lists_what_the_seeds_gave(scenario: Scenario) -> None:
    rows = [
        row_fact("vae", scenario.model_copy(update={"seed": seed}), facts, f"{seed}/report.html")
        for seed, facts in enumerate(
            (
                [_group("sex", "female", "synthetic", 0.5)],
                [_group("class", "lesion", "synthetic", 0.3)],
            )
        )
    ]
    (line,) = summary_facts(rows)
    assert line.value["worst_group"] == "sex female, class lesion"
    assert line.value["worst_group_synthetic"] == pytest.approx(0.4)
    assert line.value["worst_group_synthetic_interval"] == [0.3, 0.5]
    assert "report" not in line.value
