"""Anomaly detection: synthetic normals that look normal find the others, others do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from small_sets import blob_set, with_images

from synth_common.errors import DataError
from synth_common.evaluation.anomaly import anomaly_scores, evaluate_anomaly, weighted_auroc
from synth_common.evaluation.config import EvaluationConfig
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet

CONFIG = EvaluationConfig(
    anomaly_normal="normal", anomaly_neighbours=3, utility_seeds=2, bootstrap=100
)


def _run(train: ImageSet, holdout: ImageSet, synthetic: ImageSet) -> dict[str, Fact]:
    facts = evaluate_anomaly(train, holdout, synthetic, CONFIG, 0)
    assert {f.name for f in facts} == {"utility.anomaly"}
    assert all(f.scope == "site-local" and f.site is None for f in facts)
    return {f.detail["trained_on"]: f for f in facts}


def test_good_normals_find_lesions_and_swapped_labels_do_not() -> None:
    train, holdout, fresh = blob_set(120, 1), blob_set(80, 2, images_per_patient=2), blob_set(60, 3)
    good = _run(train, holdout, with_images(fresh, fresh.images))
    assert list(good) == ["synthetic", "real", "both"]
    swapped = replace(with_images(fresh, fresh.images), labels=1 - fresh.labels)
    bad = _run(train, holdout, swapped)
    assert good["real"].value["auroc"] > 0.7
    assert good["synthetic"].value["auroc"] > 0.7
    assert bad["synthetic"].value["auroc"] < 0.6
    assert bad["real"].value["auroc"] == good["real"].value["auroc"]  # the same draws
    detail = good["synthetic"].detail
    low, high = detail["interval"]
    assert low < good["synthetic"].value["auroc"] < high
    assert good["synthetic"].value["per_class"] == {
        "lesion": pytest.approx(good["synthetic"].value["auroc"])
    }
    # Equal numbers: as many real normals as there are synthetic ones.
    assert (detail["n_train"], good["real"].detail["n_train"]) == (30, 30)
    assert good["both"].detail["n_train"] == 60
    assert (detail["n_normal"], detail["n_other"], detail["test_patients"]) == (80, 80, 80)
    assert "nearest normal" in detail["detector"]


def test_too_few_or_one_sided_images_give_a_reason_and_a_wrong_class_is_refused() -> None:
    train, holdout = blob_set(40, 1), blob_set(20, 2)
    few = _run(train, holdout, train.subset(np.arange(5)))
    assert few["real"].value["auroc"] is None
    assert few["real"].detail["reason"] == "3 normal images of a kind to remember, 4 needed"
    normal = _run(train, holdout.subset(holdout.labels == 0), train)
    assert "all normal" in normal["both"].detail["reason"]
    config = CONFIG.model_copy(update={"anomaly_normal": "healthy"})
    with pytest.raises(DataError, match=r"anomaly_normal = 'healthy'.*normal, lesion"):
        evaluate_anomaly(train, holdout, train, config, 0)


def test_the_score_is_the_mean_distance_to_the_nearest_in_units_of_the_normals() -> None:
    normal = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 20.0], [2.0, 20.0]])
    tested = np.array([[1.0, 10.0], [0.0, 0.0]])
    # Mean (1, 10), spread (1, 10): the centre is sqrt(2) from each of them.
    np.testing.assert_allclose(anomaly_scores(normal, tested, 2), [2**0.5, 1.0])


def test_the_weighted_auroc_is_that_of_repeated_images() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, 40).astype(float)  # ties
    odd = rng.random(40) < 0.4
    weights = rng.integers(0, 4, (5, 40)).astype(float)
    got = weighted_auroc(scores, odd, weights)
    for row, value in zip(weights.astype(int), got, strict=True):
        assert value == pytest.approx(roc_auc_score(np.repeat(odd, row), np.repeat(scores, row)))
    assert np.isnan(weighted_auroc(scores, odd, np.where(odd, 1.0, 0.0)[None])[0])
