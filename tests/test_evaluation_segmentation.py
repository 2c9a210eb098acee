"""Segmentation utility: Dice is Dice, good pairs teach, masks that mean nothing do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_sets import CLASSES, with_images

from synth_common.errors import DataError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.segmentation import (
    dice_scores,
    evaluate_segmentation,
    resampled_means,
)
from synth_common.evaluation.segmenter import train_segmenter
from synth_common.images.imageset import ImageSet

CONFIG = EvaluationConfig(segmenter_steps=40, segmenter_batch=4, utility_seeds=1, bootstrap=100)


def _discs(patients: int, seed: int, channels: int = 1, per_patient: int = 1) -> ImageSet:
    """Bright discs on grey noise, their masks, one in eight without a disc."""
    rng = np.random.default_rng(seed)
    n, size = patients * per_patient, 28
    y, x = np.mgrid[:size, :size]
    cy, cx, radius = rng.uniform(8, 20, n), rng.uniform(8, 20, n), rng.uniform(3, 6, n)
    masks = np.hypot(y - cy[:, None, None], x - cx[:, None, None]) < radius[:, None, None]
    masks[::8] = False
    images = 0.3 + 0.4 * masks + rng.normal(0, 0.05, masks.shape)
    return ImageSet(
        images=np.repeat(np.clip(images, 0, 1)[:, None], channels, axis=1).astype(np.float32),
        labels=np.arange(n, dtype=np.int64) % 2,
        class_names=CLASSES,
        patient_ids=np.array([f"{seed}-{i // per_patient}" for i in range(n)]),
        masks=masks.astype(np.uint8),
    )


def test_dice_by_hand_and_of_empty_masks() -> None:
    empty, left, all_of_it = np.zeros((4, 4)), np.zeros((4, 4)), np.ones((4, 4))
    left[:, :2] = 1
    predicted = np.stack([left, left, empty, empty, all_of_it]).astype(np.uint8)
    real = np.stack([left, all_of_it, empty, left, empty]).astype(np.uint8)
    # 2 * 8 / (8 + 16); both empty agree; one empty of two shares nothing.
    np.testing.assert_allclose(dice_scores(predicted, real), [1, 2 / 3, 1, 0, 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_good_pairs_teach_and_shuffled_masks_do_not(channels: int) -> None:
    train, holdout, fresh = (_discs(60, seed, channels) for seed in (1, 2, 3))
    assert fresh.masks is not None
    order = np.random.default_rng(0).permutation(60)
    shuffled = replace(with_images(fresh, fresh.images), masks=fresh.masks[order])
    facts = evaluate_segmentation(train, holdout, shuffled, CONFIG, 0)
    found = {f.detail["trained_on"]: f for f in facts}
    assert list(found) == ["synthetic", "real", "both"]
    assert all(f.scope == "site-local" and f.site is None for f in facts)
    real, fake = found["real"], found["synthetic"]
    assert real.value["dice"] > 0.9
    assert real.value["ratio_to_real"] == 1.0
    assert real.detail["ratio_interval"] == [1.0, 1.0]
    assert fake.value["dice"] < 0.5
    assert fake.value["ratio_to_real"] == fake.value["dice"] / real.value["dice"]
    assert fake.detail["ratio_interval"][0] <= fake.value["ratio_to_real"]
    assert fake.value["ratio_to_real"] <= fake.detail["ratio_interval"][1] < 0.7
    assert real.detail["interval"][0] <= real.value["dice"] <= real.detail["interval"][1]
    assert (real.detail["n_train"], found["both"].detail["n_train"]) == (60, 120)
    assert (real.detail["n_test"], real.detail["n_nonempty"]) == (60, 52)
    assert real.detail["test_patients"] == 60
    assert set(real.detail["per_class"]) == set(CLASSES)
    assert "U-Net" in real.detail["segmenter"]


def test_dice_without_the_empty_masks_is_told_apart() -> None:
    """Segmenters that answer "nothing" are right on empty masks, and only there."""
    train, holdout = _discs(16, 1), _discs(16, 2)
    nothing = replace(train, masks=np.zeros_like(train.masks), patient_ids=None)
    config = CONFIG.model_copy(update={"segmenter_steps": 30, "utility_seeds": 1})
    fact = evaluate_segmentation(train, holdout, nothing, config, 0)[0]
    assert fact.value["dice_nonempty"] < 0.05
    assert fact.value["dice"] == pytest.approx(2 / 16, abs=0.05)
    bare = replace(holdout, masks=np.zeros_like(holdout.masks))
    assert evaluate_segmentation(train, bare, nothing, config, 0)[0].value["dice_nonempty"] is None


def test_sites_get_facts_of_their_own() -> None:
    train, holdout = _discs(20, 1), _discs(20, 2, per_patient=2)
    sites = np.where(np.arange(40) < 30, "north", "south")
    config = EvaluationConfig(segmenter_steps=3, utility_seeds=1, bootstrap=20)
    facts = evaluate_segmentation(train, replace(holdout, sites=sites), train, config, 0)
    assert [f.site for f in facts] == [None, "north", "south"] * 3
    whole, north, south = facts[:3]
    assert (north.detail["test_patients"], south.detail["test_patients"]) == (15, 5)
    mean = (north.value["dice"] * 30 + south.value["dice"] * 10) / 40
    assert whole.value["dice"] == pytest.approx(mean)


def test_training_is_repeatable() -> None:
    train = _discs(16, 1)
    first, second, other = (train_segmenter(train, 4, 4, seed) for seed in (3, 3, 4))
    assert first.sha256 == second.sha256 != other.sha256
    masks = first.masks(train.images)
    assert masks.dtype == np.uint8
    assert set(np.unique(masks)) <= {0, 1}


def test_the_interval_counts_patients_and_seeds() -> None:
    rng = np.random.default_rng(0)
    scores = np.repeat(rng.random(50), 8)[None, None]

    def width(rows: np.ndarray, units: np.ndarray) -> float:
        return float(resampled_means(rows, units, 400, np.random.default_rng(1)).std())

    by_patient, by_image = width(scores, np.repeat(np.arange(50), 8)), width(scores, np.arange(400))
    assert by_patient == pytest.approx(by_image * 8**0.5, rel=0.25)
    seeds = np.stack([np.full(400, 0.4), np.full(400, 0.8)])[None]
    assert width(seeds, np.arange(400)) == pytest.approx(0.2 / 2**0.5, rel=0.2)


def test_sets_without_images_or_masks_are_refused_by_name() -> None:
    pairs = _discs(8, 1)
    with pytest.raises(DataError, match="synthetic has 0 images"):
        evaluate_segmentation(pairs, pairs, pairs.subset(np.arange(0)), CONFIG, 0)
    with pytest.raises(DataError, match="holdout has 8 images, masks: False"):
        evaluate_segmentation(pairs, replace(pairs, masks=None), pairs, CONFIG, 0)
