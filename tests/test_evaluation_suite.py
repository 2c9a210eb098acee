"""The evaluator's facts: shapes, equal numbers, floors, and sets too small to judge."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_sets import blob_set, with_images

from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.resampling import bootstrap_weights, comparable_count, draw_like
from synth_common.evaluation.suite import evaluate_fidelity, fidelity_encoders
from synth_common.facts import Fact, FactLog, read_facts

CONFIG = EvaluationConfig(diversity_pairs=20, classifier_steps=15, classifier_batch=16)
SPACES = ("frechet", "kid", "precision", "recall", "density", "coverage")


def _values(facts: list[Fact], encoder: str) -> dict[str, float]:
    return {
        f.name.removeprefix("quality."): f.value
        for f in facts
        if str(f.detail["encoder"]).startswith(encoder)
    }


def test_facts_name_numbers_encoders_and_floors(tmp_path: Path) -> None:
    holdout, train, fresh = blob_set(60, 1), blob_set(120, 2), blob_set(80, 3)
    facts = evaluate_fidelity(
        holdout, train, with_images(fresh, fresh.images), None, CONFIG, 0, "A"
    )
    names = [f.name.removeprefix("quality.") for f in facts]
    assert names == [*SPACES, *SPACES, "ms_ssim_diversity", "inception_score"]
    for fact in facts:
        assert fact.scope == "site-local"
        assert fact.site == "A"
        assert np.isfinite(fact.value)
        assert np.isfinite(fact.detail["floor"])
        assert fact.detail["better"] in ("lower", "higher")
        assert fact.detail["n_real"] == fact.detail["n_synthetic"] > 0
        assert fact.detail["floor_how"]
    assert {f.detail["n_real"] for f in facts if f.name == "quality.frechet"} == {60}
    FactLog(tmp_path / "facts.jsonl").extend(facts)
    assert [f.value for f in read_facts(tmp_path / "facts.jsonl")] == [f.value for f in facts]


def test_fresh_images_sit_at_the_floor_and_bad_ones_far_from_it() -> None:
    holdout, train, fresh = blob_set(120, 1), blob_set(120, 2), blob_set(120, 3)
    rng = np.random.default_rng(0)
    made = {
        "fresh": fresh.images,
        "noisy": fresh.images + 0.15 * rng.normal(size=fresh.images.shape),
        "collapsed": fresh.images[np.arange(120) % 2],
    }
    got = {}
    for name, images in made.items():
        facts = evaluate_fidelity(holdout, train, with_images(fresh, images), None, CONFIG, 0, None)
        got[name] = facts
    for encoder in ("radiomics", "random convolutions"):
        fresh_values = _values(got["fresh"], encoder)
        floor = next(f for f in got["fresh"] if str(f.detail["encoder"]).startswith(encoder))
        assert fresh_values["frechet"] < 4 * floor.detail["floor"]
        for bad in ("noisy", "collapsed"):
            assert _values(got[bad], encoder)["frechet"] > 3 * fresh_values["frechet"]
            assert _values(got[bad], encoder)["coverage"] < fresh_values["coverage"]
        assert _values(got["noisy"], encoder)["precision"] < 0.5
        assert _values(got["collapsed"], encoder)["recall"] < 0.5
    diversity = {k: _values(v, "none (MS-SSIM")["ms_ssim_diversity"] for k, v in got.items()}
    assert diversity["collapsed"] < 0.2 * diversity["fresh"]


def test_a_few_images_give_no_number_and_a_reason() -> None:
    holdout, train, fresh = blob_set(9, 1), blob_set(40, 2), blob_set(30, 3)
    facts = evaluate_fidelity(
        holdout, train, with_images(fresh, fresh.images), None, CONFIG, 0, None
    )
    for fact in facts[:12]:
        assert fact.value is None
        assert fact.detail["reason"].startswith("too few images: 9 a side")
    for empty in (holdout.subset(np.arange(0)), train.subset(np.arange(0))):
        none = evaluate_fidelity(empty, empty, empty, None, CONFIG, 0, None)
        assert all(f.value is None and f.detail["reason"] for f in none)


def test_forty_images_of_one_class_are_enough_for_distances() -> None:
    holdout, train, fresh = (
        s.subset(s.labels == 1) for s in map(blob_set, (80, 90, 100), (1, 2, 3))
    )
    facts = evaluate_fidelity(
        holdout, train, with_images(fresh, fresh.images), None, CONFIG, 0, None
    )
    by_name = {f.name: f for f in facts}
    assert np.isfinite(by_name["quality.frechet"].value)
    assert by_name["quality.frechet"].detail["n_real"] == 40
    assert by_name["quality.inception_score"].value is None
    assert "two classes" in by_name["quality.inception_score"].detail["reason"]


def test_the_reference_decides_the_second_space() -> None:
    config = EvaluationConfig(encoder_steps=1)
    assert fidelity_encoders(1, None, config, 0)[1].name.startswith("random convolutions")
    assert fidelity_encoders(1, blob_set(63, 1), config, 0)[1].name.startswith("random")
    assert fidelity_encoders(3, blob_set(64, 1), config, 0)[1].name.startswith("random")
    assert fidelity_encoders(1, blob_set(64, 1), config, 0)[1].name.startswith("SimCLR")


def test_draws_repeat_the_class_mix() -> None:
    wanted = np.array([0] * 30 + [1] * 10)
    pool = np.array([0, 1] * 50)
    chosen = draw_like(wanted, pool, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(pool[chosen]), [30, 10])
    assert len(set(chosen.tolist())) == 40
    # A class that the pool lacks is filled from the others.
    assert len(draw_like(wanted, np.zeros(40, dtype=np.int64), np.random.default_rng(0))) == 40


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ([0] * 90 + [1] * 30, 120),  # the same mix
        ([0] * 60 + [1] * 60, 80),  # class 0 is scarce: 60 / 0.75
        ([0] * 20 + [1] * 100, 60),  # never below half
        ([1] * 120, 120),  # an absent class counts against the pool
        ([], 0),
    ],
)
def test_equal_numbers_keep_the_mix_where_they_can(pool: list[int], expected: int) -> None:
    target = np.array([0] * 90 + [1] * 30)
    assert comparable_count(target, [np.array(pool, dtype=np.int64)], 1000) == expected


def test_bootstrap_draws_patients_whole() -> None:
    units = np.array([0, 0, 0, 1, 2, 2])
    weights = bootstrap_weights(units, 300, np.random.default_rng(0))
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 4], weights[:, 5])
    np.testing.assert_array_equal(weights[:, [0, 3, 4]].sum(axis=1), 3)


def test_the_settings_load_without_torch() -> None:
    code = "import sys, synth_common.evaluation.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
