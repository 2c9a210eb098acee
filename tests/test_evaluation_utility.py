"""Utility: classes that can be learnt are, labels that mean nothing are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_sets import blob_set, with_images

from synth_common.errors import DataError
from synth_common.evaluation.classifier import train_classifier
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.utility import (
    balanced_accuracy_interval,
    evaluate_utility,
    macro_auc,
)
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet

CONFIG = EvaluationConfig(classifier_steps=60, classifier_batch=32, utility_seeds=2, bootstrap=200)


def _utility(
    train: ImageSet, holdout: ImageSet, synthetic: ImageSet, config: EvaluationConfig
) -> list[Fact]:
    facts = evaluate_utility(train, holdout, synthetic, config, 0)
    return [f for f in facts if f.name == "utility.classification"]


def test_good_images_teach_and_shuffled_labels_do_not() -> None:
    train, holdout, fresh = blob_set(120, 1), blob_set(100, 2), blob_set(120, 3)
    rng = np.random.default_rng(0)
    shuffled = replace(with_images(fresh, fresh.images), labels=rng.permutation(fresh.labels))
    facts = _utility(train, holdout, shuffled, CONFIG)
    by_setting = {f.detail["trained_on"]: f for f in facts}
    assert list(by_setting) == ["synthetic", "real", "both"]
    assert by_setting["real"].value["balanced_accuracy"] > 0.9
    assert by_setting["real"].value["auc"] > 0.95
    assert 0.25 < by_setting["synthetic"].value["balanced_accuracy"] < 0.75
    real, fake = by_setting["real"].detail, by_setting["synthetic"].detail
    assert real["interval"][0] > fake["interval"][1]
    assert (
        real["interval"][0] <= by_setting["real"].value["balanced_accuracy"] <= real["interval"][1]
    )
    assert (real["n_train"], fake["n_train"], by_setting["both"].detail["n_train"]) == (
        120,
        120,
        240,
    )
    assert real["test_patients"] == 100
    assert set(real["per_class"]) == {"normal", "lesion"}
    assert "CNN" in real["classifier"]


def test_sites_get_facts_of_their_own() -> None:
    train, holdout = blob_set(40, 1), blob_set(41, 2, images_per_patient=2)
    sites = np.where(holdout.units() < 30, "north", "south")
    config = EvaluationConfig(classifier_steps=5, utility_seeds=1, bootstrap=20)
    facts = _utility(train, replace(holdout, sites=sites), train, config)
    assert [f.site for f in facts] == [None, "north", "south"] * 3
    whole, north, south = facts[:3]
    assert north.detail["n_test"] + south.detail["n_test"] == whole.detail["n_test"] == 82
    assert (north.detail["test_patients"], south.detail["test_patients"]) == (30, 11)
    mean = (north.value["accuracy"] * 60 + south.value["accuracy"] * 22) / 82
    assert whole.value["accuracy"] == pytest.approx(mean)


def test_the_recall_of_a_few_patients_is_not_shown() -> None:
    train, holdout = blob_set(20, 1), blob_set(20, 2)
    few = holdout.subset((holdout.labels == 0) | (holdout.units() < 12))
    lesions = len(np.unique(few.units()[few.labels == 1]))
    assert 0 < lesions < 10
    for least, shown in ((lesions, True), (lesions + 1, False)):
        config = EvaluationConfig(
            classifier_steps=2, utility_seeds=1, bootstrap=20, group_minimum=least
        )
        recalls = evaluate_utility(train, few, train, config, 0)[0].detail["per_class"]
        assert list(recalls) == ["normal", "lesion"]
        assert (recalls["lesion"] is not None) is shown


def test_a_site_with_one_class_has_no_auc() -> None:
    train, holdout = blob_set(20, 1), blob_set(20, 2)
    config = EvaluationConfig(classifier_steps=2, utility_seeds=1, bootstrap=20)
    fact = evaluate_utility(train, holdout.subset(holdout.labels == 0), train, config, 0)[0]
    assert fact.value["auc"] is None
    assert list(fact.detail["per_class"]) == ["normal"]


def test_an_empty_set_is_refused_by_name() -> None:
    images = blob_set(4, 1)
    with pytest.raises(DataError, match="synthetic has no images"):
        evaluate_utility(images, images, images.subset(np.arange(0)), CONFIG, 0)


def test_training_is_repeatable_and_counts_rare_classes_as_much() -> None:
    # One picture under both labels, one in eleven rare: only the class shares can be learnt.
    same = np.repeat(blob_set(1, 1).images, 220, axis=0)
    labels = (np.arange(220) % 11 == 0).astype(np.int64)
    train = ImageSet(same, labels, ("common", "rare"))
    first, second = (train_classifier(train, 60, 32, 3) for _ in range(2))
    assert first.sha256 == second.sha256
    assert train_classifier(train, 60, 32, 4).sha256 != first.sha256
    rare = first.probabilities(same[:1])[0, 1]
    assert 0.35 < rare < 0.65  # without balancing: 0.09


def test_the_interval_counts_patients_not_images() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40) % 2, 10)
    correct = np.repeat(rng.random(40) < 0.7, 10).astype(float)[None]

    def width(units: np.ndarray) -> float:
        low, high = balanced_accuracy_interval(
            correct, labels, units, 400, np.random.default_rng(1)
        )
        return high - low

    by_patient, by_image = width(np.repeat(np.arange(40), 10)), width(np.arange(400))
    # Ten copies of 40 answers tell as much as 40 answers: sqrt(10) times the width.
    assert by_patient == pytest.approx(by_image * 10**0.5, rel=0.25)
    assert by_patient == pytest.approx(2 * 1.96 * (0.7 * 0.3 / 40) ** 0.5, rel=0.3)


def test_the_interval_counts_seeds() -> None:
    labels, units = np.arange(4000) % 2, np.arange(4000)
    rng = np.random.default_rng(0)
    correct = np.stack([rng.random(4000) < p for p in (0.6, 0.8)]).astype(float)
    low, high = balanced_accuracy_interval(correct, labels, units, 200, rng)
    assert low < 0.62
    assert high > 0.78


def test_macro_auc_of_a_perfect_and_of_a_reversed_classifier() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    assert macro_auc(np.eye(3)[labels][None], labels) == 1.0
    assert macro_auc(1 - np.eye(3)[labels][None], labels) == 0.0
