"""Membership attacks: they find what is there and nothing where nothing is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_sets import blob_set, with_images

from synth_common.audit.attacks import blind_baseline, domias, gan_leaks, nearest_distance
from synth_common.audit.membership import evaluate_membership
from synth_common.errors import DataError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.images.imageset import ImageSet, concatenate

CONFIG = EvaluationConfig(bootstrap=200)


@pytest.fixture(scope="module")
def sets() -> tuple[ImageSet, ImageSet, ImageSet]:
    """Members, non-members, and images of third patients."""
    return (
        blob_set(120, 1, images_per_patient=2),
        blob_set(100, 2, images_per_patient=2),
        blob_set(240, 3),
    )


def _synthetic(images: ImageSet) -> ImageSet:
    return with_images(images, images.images)


def _covers_half(interval: list[float]) -> bool:
    return interval[0] <= 0.5 <= interval[1]


def test_copies_are_found_by_both_attacks(sets: tuple[ImageSet, ...]) -> None:
    train, holdout, other = sets
    facts = evaluate_membership(train, holdout, _synthetic(train), other, CONFIG, 0, "A")
    assert [f.value["attack"] for f in facts] == ["GAN-Leaks, calibrated", "DOMIAS"]
    for fact in facts:
        assert fact.value["verdict"] == "attack found"
        assert fact.value["auc_interval"][0] > 0.6
        assert _covers_half(fact.value["control_interval"])
        assert fact.site == "A"
        assert fact.scope == "site-local"
        assert (fact.detail["n_members"], fact.detail["n_nonmembers"]) == (120, 100)
    assert facts[0].value["auc"] > 0.99
    assert facts[0].detail["leading_members"] >= 110


def test_fresh_images_are_not_found(sets: tuple[ImageSet, ...]) -> None:
    train, holdout, other = sets
    fresh = _synthetic(blob_set(240, 4))
    for fact in evaluate_membership(train, holdout, fresh, other, CONFIG, 0, None):
        value = fact.value
        assert value["verdict"] == "attack not found"
        assert _covers_half(value["auc_interval"])
        assert _covers_half(value["control_interval"])
        assert value["baseline_interval"][0] <= 0.5
        assert value["tpr_at_1pct_fpr"] == value["tpr_interval"] == "not resolvable"
        assert value["power"].startswith("at power 0.80 an AUC of 0.6")


def test_a_split_that_differs_by_itself_is_no_finding(sets: tuple[ImageSet, ...]) -> None:
    train, _, other = sets
    brighter = blob_set(100, 2)
    brighter = ImageSet(
        np.clip(brighter.images + np.float32(0.1), 0, 1),
        brighter.labels,
        brighter.class_names,
        brighter.patient_ids,
    )
    # The synthetic images know the look of the training hospital, not its patients.
    fresh = _synthetic(blob_set(240, 4))
    for fact in evaluate_membership(train, brighter, fresh, other, CONFIG, 0, None):
        assert fact.value["baseline_auc"] > 0.95
        assert fact.value["verdict"] == "attack not found"
        assert "differ without any synthetic image" in fact.value["power"]


def test_a_few_copies_show_at_the_top(sets: tuple[ImageSet, ...]) -> None:
    train, holdout, other = sets
    planted = concatenate(
        [_synthetic(train.subset(np.arange(0, 24, 2))), _synthetic(blob_set(240, 4))]
    )
    fact = evaluate_membership(train, holdout, planted, other, CONFIG, 0, None)[0]
    assert fact.detail["leading_members"] >= 10
    assert fact.value["verdict"] == "attack found"


def test_half_of_the_holdout_serves_as_reference(sets: tuple[ImageSet, ...]) -> None:
    train, holdout, _ = sets
    fact = evaluate_membership(train, holdout, _synthetic(train), None, CONFIG, 0, None)[0]
    assert fact.detail["n_nonmembers"] == 50
    assert fact.detail["n_reference"] == 100
    assert fact.detail["reference_how"] == "half of the holdout patients"
    assert fact.value["verdict"] == "attack found"


def test_copies_on_both_sides_are_left_out(sets: tuple[ImageSet, ...]) -> None:
    train, holdout, other = sets
    pixels = holdout.images.copy()
    pixels[:20] = train.images[:20]  # ten patients of each side become the same pictures
    twins = ImageSet(pixels, holdout.labels, holdout.class_names, holdout.patient_ids)
    fact = evaluate_membership(train, twins, _synthetic(train), other, CONFIG, 0, None)[0]
    assert (fact.detail["n_members"], fact.detail["n_nonmembers"]) == (110, 90)
    assert fact.value["auc"] > 0.99
    known = concatenate([other, train.subset(np.arange(30))])
    fact = evaluate_membership(train, holdout, _synthetic(train), known, CONFIG, 0, None)[0]
    assert fact.detail["n_reference"] == len(other)


def test_results_repeat_and_move_with_the_seed(sets: tuple[ImageSet, ...]) -> None:
    train, holdout, other = sets
    fresh = _synthetic(other)
    first, again, moved = (
        [f.value for f in evaluate_membership(train, holdout, fresh, None, CONFIG, s, None)]
        for s in (0, 0, 1)
    )
    assert first == again
    assert first != moved


def test_too_few_patients_are_not_tested_and_shared_ones_refused(
    sets: tuple[ImageSet, ...],
) -> None:
    train, holdout, _ = sets
    small = holdout.subset(np.arange(60))
    for fact in evaluate_membership(train, small, _synthetic(train), None, CONFIG, 0, None):
        assert fact.value["verdict"] == "not tested"
        assert fact.value["auc"] is None
        assert fact.value["power"].startswith("too few: 120 members, 15 non-members")
    with pytest.raises(DataError, match="120 patients are in train and in holdout"):
        evaluate_membership(train, train, _synthetic(train), None, CONFIG, 0, None)


def test_one_patient_with_many_images_counts_once() -> None:
    many = blob_set(40, 1, images_per_patient=9)
    holdout, other = blob_set(40, 2), blob_set(60, 3)
    fresh = _synthetic(blob_set(100, 4))
    fact = evaluate_membership(many, holdout, fresh, other, CONFIG, 0, None)[0]
    assert fact.detail["n_members"] == 40
    assert fact.detail["n_nonmembers"] == 40


def test_attack_scores_agree_with_loops() -> None:
    rng = np.random.default_rng(0)
    x, s, r = rng.normal(size=(12, 3)), rng.normal(size=(9, 3)), rng.normal(size=(7, 3))

    def nearest(point: np.ndarray, targets: np.ndarray) -> float:
        return min(float(np.linalg.norm(point - t)) for t in targets)

    np.testing.assert_allclose(nearest_distance(x, s), [nearest(p, s) for p in x])
    np.testing.assert_allclose(gan_leaks(x, s, r), [nearest(p, r) - nearest(p, s) for p in x])


def test_domias_prefers_points_where_synthetic_is_denser() -> None:
    rng = np.random.default_rng(1)
    reference, synthetic = rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) * 0.3
    scores = domias(np.stack([np.zeros(4), np.full(4, 2.5)]), synthetic, reference)
    assert scores[0] > 0 > scores[1]
    swapped = domias(np.stack([np.zeros(4), np.full(4, 2.5)]), reference, synthetic)
    np.testing.assert_allclose(swapped, -scores, rtol=1e-6)


def test_the_baseline_never_sees_a_patient_twice() -> None:
    rng = np.random.default_rng(2)
    # Each patient is a cluster of its own; without folds by patient this would be learnt.
    units = np.repeat(np.arange(60), 6)
    features = (rng.normal(size=(60, 20)) * 5)[units] + 0.01 * rng.normal(size=(360, 20))
    member = units < 30
    scores = blind_baseline(features, member, units)
    patient = np.array([scores[units == u].mean() for u in range(60)])
    assert abs((patient[:30, None] > patient[None, 30:]).mean() - 0.5) < 0.2
    learnable = features + 30.0 * member[:, None]
    scores = blind_baseline(learnable, member, units)
    assert scores[member].mean() > scores[~member].mean() + 1


@pytest.mark.data
def test_real_chest_xrays_copies_are_found_and_other_patients_are_not(data_root: Path) -> None:
    with np.load(data_root / "cxr_site_a_guangzhou" / "cxr_site_a_64.npz") as file:
        pixels, patients = file["images"][:, None].astype(np.float32) / 255, file["patient_ids"]
    images = ImageSet(pixels, np.zeros(len(pixels), dtype=np.int64), ("any",), patients)
    part = np.random.default_rng(0).integers(0, 10, images.unit_count())[images.units()]
    train, holdout, other, third = (images.subset(part == k) for k in range(4))
    for synthetic, verdict in ((train, "attack found"), (third, "attack not found")):
        facts = evaluate_membership(train, holdout, _synthetic(synthetic), other, CONFIG, 0, None)
        assert {f.value["verdict"] for f in facts} == {verdict}
        assert all(_covers_half(f.value["control_interval"]) for f in facts)
    assert facts[0].value["tpr_at_1pct_fpr"] < 0.05


def test_large_sites_are_attacked_on_a_draw_of_their_patients(
    sets: tuple[ImageSet, ImageSet, ImageSet],
) -> None:
    train, holdout, others = sets
    config = EvaluationConfig(bootstrap=20, attack_patients=30)
    fact = evaluate_membership(train, holdout, _synthetic(others), others, config, 0, "A")[0]
    assert (fact.detail["n_members"], fact.detail["n_nonmembers"]) == (30, 30)
    assert fact.detail["n_reference"] == 30
    assert isinstance(fact.value["auc"], float)
