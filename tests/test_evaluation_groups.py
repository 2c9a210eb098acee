"""Fairness by group and the gain of augmentation: who is counted, what is hidden, what differs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_sets import blob_set, with_images

from synth_common.errors import DataError
from synth_common.evaluation.augmentation import share_of_patients
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.fairness import age_bands, fairness_facts, groups_of
from synth_common.evaluation.trials import Trial
from synth_common.evaluation.utility import evaluate_utility
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet, concatenate
from synth_common.images.people import age_column, sex_column

CONFIG = EvaluationConfig(group_minimum=5, bootstrap=200, utility_seeds=2)


def _people(patients: int = 60) -> ImageSet:
    """Two images a patient; 3 of 60 are past 65, a quarter of unknown sex."""
    images = blob_set(patients, 2, images_per_patient=2)
    who = images.units()
    ages = np.where(who < 3, 80.0, np.where(who % 2, 30.0, 10.0))
    sexes = np.array(["female", "male", "female", "unknown"])[who // 2 % 4]
    return replace(images, ages=ages, sexes=sexes, sites=np.where(who < 40, "north", "south"))


def _trial(setting: str, images: ImageSet, right: np.ndarray) -> Trial:
    """Two seeds that are right exactly where ``right`` says."""
    answers = np.where(right, images.labels, 1 - images.labels)
    return Trial(setting, 10, np.stack([np.eye(2)[answers]] * 2))  # type: ignore[arg-type]


def _by_group(facts: list[Fact], setting: str) -> dict[tuple[str, str], Fact]:
    return {
        (f.detail["dimension"], f.detail["group"]): f
        for f in facts
        if f.detail["trained_on"] == setting
    }


def test_a_group_that_synthetic_images_fail_is_seen_with_its_gap() -> None:
    images = _people()
    fails = (images.sexes == "male") & (images.labels == 1)
    everywhere = np.ones(len(images), dtype=bool)
    facts = fairness_facts(
        [_trial("synthetic", images, ~fails), _trial("real", images, everywhere)],
        images,
        CONFIG,
        0,
    )
    assert {f.scope for f in facts} == {"site-local"}
    synthetic, real = (_by_group(facts, s) for s in ("synthetic", "real"))
    men = synthetic["sex", "male"]
    assert men.value == {"score": 0.5, "gap_to_real": -0.5}
    assert men.detail["gap_interval"] == [-0.5, -0.5]  # every man with a lesion is missed
    assert synthetic["sex", "female"].value == {"score": 1.0, "gap_to_real": 0.0}
    assert real["sex", "male"].value["gap_to_real"] == 0.0
    missed = float(fails[images.labels == 1].mean())
    lesion = synthetic["class", "lesion"]
    assert lesion.value["score"] == pytest.approx(1 - missed)
    assert lesion.detail["measure"] == "recall"
    low, high = lesion.detail["gap_interval"]
    assert low < -missed < high < 0
    assert men.detail["n_test"] == 2 * men.detail["test_patients"]
    assert [d for d, _ in synthetic] == ["class"] * 2 + ["site"] * 2 + ["sex"] * 3 + ["age"] * 3
    assert [g for d, g in synthetic if d == "sex"] == ["female", "male", "not recorded"]


def test_a_small_group_is_named_without_figures_and_the_smallest_is_marked() -> None:
    images = _people()
    trials = [_trial("real", images, np.arange(len(images)) % 3 > 0)]
    ages = {
        g: f
        for (d, g), f in _by_group(fairness_facts(trials, images, CONFIG, 0), "real").items()
        if d == "age"
    }
    assert list(ages) == ["0-17", "18-39", "65+"]
    old = ages["65+"]
    assert old.value == {"score": None, "gap_to_real": None}
    assert old.detail["suppressed"] == "fewer than 5 patients"
    assert old.detail["n_test"] is old.detail["test_patients"] is old.detail["interval"] is None
    assert [g for g, f in ages.items() if f.detail["smallest"]] == ["65+"]
    assert ages["0-17"].detail["suppressed"] is None
    # One group alone is no comparison; without a record there is no dimension.
    bare = replace(images, ages=None, sites=None, sexes=np.full(len(images), "male"))
    assert {g.dimension for g in groups_of(bare, (18.0,))} == {"class"}


def test_intervals_of_groups_count_patients() -> None:
    images = _people(80)
    right = np.random.default_rng(3).random(80) < 0.7

    def width(of: ImageSet) -> float:
        trials = [_trial("real", of, right[images.units()])]
        fact = _by_group(fairness_facts(trials, of, CONFIG, 0), "real")["class", "lesion"]
        low, high = fact.detail["interval"]
        return float(high - low)

    by_patient, by_image = width(images), width(replace(images, patient_ids=None))
    assert by_patient == pytest.approx(by_image * 2**0.5, rel=0.25)


def test_bands_and_what_sources_write() -> None:
    ages = age_column(["045Y", "009M", "17.9", 18, "65", "", np.nan], "source")
    assert ages[0] == 45
    assert ages[1] == 0.75
    bands = age_bands(ages, (18.0, 40.0, 65.0)).tolist()
    assert bands == ["40-64", "0-17", "0-17", "18-39", "65+", "not recorded", "not recorded"]
    assert sex_column(["F", "male", "", "O", b"m"], "source").tolist() == [
        "female",
        "male",
        "unknown",
        "other",
        "male",
    ]
    with pytest.raises(DataError, match="source 's': sex 'x' is not known"):
        sex_column(["x"], "source 's'")
    for wrong in ("old", "-3", "131", "045X"):
        with pytest.raises(DataError, match=f"age '{wrong}'"):
            age_column([wrong], "s")


def test_shares_are_whole_patients_of_every_class_and_nested() -> None:
    train = concatenate([blob_set(40, 1, images_per_patient=3), blob_set(2, 9)])
    few, some = (
        train.subset(share_of_patients(train, share, np.random.default_rng(5)))
        for share in (0.01, 0.5)
    )
    assert few.patient_ids is not None
    assert some.patient_ids is not None
    assert set(few.labels.tolist()) == {0, 1}
    assert few.unit_count() == 2
    assert set(few.patient_ids.tolist()) <= set(some.patient_ids.tolist())
    assert some.unit_count() == pytest.approx(21, abs=1)
    for patient in np.unique(some.patient_ids):
        assert (some.patient_ids == patient).sum() == (train.patient_ids == patient).sum()


def test_synthetic_images_help_where_real_ones_are_few() -> None:
    train, holdout, fresh = blob_set(80, 1), blob_set(60, 2), blob_set(120, 3)
    config = EvaluationConfig(
        classifier_steps=40,
        classifier_batch=32,
        utility_seeds=2,
        bootstrap=100,
        augmentation_shares=(0.02, 1.0),
    )
    facts = evaluate_utility(train, holdout, with_images(fresh, fresh.images), config, 0)
    points = {
        (f.detail["share"], f.detail["trained_on"]): f
        for f in facts
        if f.name == "utility.augmentation"
    }
    assert list(points) == [(0.02, "real"), (0.02, "both"), (1.0, "real"), (1.0, "both")]
    alone, helped = points[0.02, "real"], points[0.02, "both"]
    assert alone.value["gain"] is None
    gain = helped.value["balanced_accuracy"] - alone.value["balanced_accuracy"]
    assert helped.value["gain"] == pytest.approx(gain)
    assert gain > 0.1
    assert helped.detail["gain_interval"][0] <= gain <= helped.detail["gain_interval"][1]
    assert alone.detail["train_patients"] == [2, 2]
    assert (alone.detail["n_synthetic"], helped.detail["n_synthetic"]) == (0, 120)
    whole = {f.detail["trained_on"]: f for f in facts if f.name == "utility.classification"}
    for setting in ("real", "both"):
        expected = whole[setting].value["balanced_accuracy"]
        assert points[1.0, setting].value["balanced_accuracy"] == pytest.approx(expected)
