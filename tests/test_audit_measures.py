"""Statistics and distances of audits against slow, obvious versions and known cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_common.audit import near_copies
from synth_common.audit.attacks import attribute_confidence, monte_carlo, synthetic_likeness
from synth_common.audit.copying import authenticity, data_copying, find_neighbours
from synth_common.audit.distances import nearest, share_within
from synth_common.audit.gaussian import dp_tpr
from synth_common.audit.linkage import link_studies, reidentify
from synth_common.audit.near_copies import FLIPS, best_matches
from synth_common.audit.statistics import (
    auc_chance,
    detectable_auc,
    holm,
    roc_points,
    share_difference,
    top_chance,
)
from synth_common.errors import DataError

RNG = np.random.default_rng(5)


def test_nearest_and_shares_are_those_of_all_pairs() -> None:
    points, targets = RNG.normal(size=(700, 9)), RNG.normal(size=(600, 9))
    pairs = np.linalg.norm(points[:, None] - targets[None], axis=2)
    distance, index = nearest(points, targets, 3)
    np.testing.assert_allclose(distance, np.sort(pairs, axis=1)[:, :3], rtol=1e-12)
    np.testing.assert_array_equal(index[:, 0], pairs.argmin(axis=1))
    scale = RNG.uniform(0.5, 2.0, size=len(targets))
    distance, index = nearest(points, targets, 3, scale)
    np.testing.assert_allclose(distance, np.sort(pairs / scale, axis=1)[:, :3], rtol=1e-12)
    np.testing.assert_array_equal(index[:, 0], (pairs / scale).argmin(axis=1))
    np.testing.assert_allclose(share_within(points, targets, 3.0), (pairs <= 3).mean(axis=1))
    assert nearest(points, targets[:2], 5)[0].shape == (700, 2)
    with pytest.raises(DataError, match="no images"):
        nearest(points, targets[:0])


def test_holm_is_the_textbook_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_falls_below_what_it_corrects_and_keeps_the_order(chances: list[float]) -> None:
    adjusted = holm(chances)
    assert all(a >= p for a, p in zip(adjusted, chances, strict=True))
    order = np.argsort(chances, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_chances_are_uniform_where_membership_tells_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chances = [auc_chance(*rng.normal(size=(2, 40))) for _ in range(60)]
    assert 0.25 < np.mean(chances) < 0.75


def test_a_few_members_on_top_are_no_chance() -> None:
    members, others = RNG.normal(size=(2, 1000))
    assert auc_chance(members, others) > 0.001
    assert top_chance(members, others) > 0.001
    members[:20] += 8
    assert top_chance(members, others) < 0.01
    assert auc_chance(np.ones(5), np.ones(5)) == top_chance(np.ones(5), np.ones(5)) == 1.0


def test_a_curve_of_rates_rises_to_one() -> None:
    points = np.array(roc_points(RNG.normal(1, 1, 500), RNG.normal(0, 1, 400)))
    assert len(points) <= 41
    assert (np.diff(points, axis=0) >= 0).all()
    assert points[0, 0] == 0.0
    assert points[-1].tolist() == [1.0, 1.0]


def test_share_difference_is_newcombes_example() -> None:
    # Newcombe 1998, table II, case (a), method 10: 56/70 against 48/80.
    found = share_difference((56, 70), (48, 80))
    assert found.value == pytest.approx(0.2)
    assert found.interval == pytest.approx([0.0524, 0.3339], abs=5e-5)
    assert found.chance < 0.01
    with pytest.raises(DataError):
        share_difference((3, 2), (1, 2))


@pytest.mark.parametrize(("epsilon", "most"), [(1, 0.0272), (2, 0.0739), (4, 0.546), (8, 0.9997)])
def test_what_epsilon_allows_at_one_percent(epsilon: float, most: float) -> None:
    assert dp_tpr(epsilon, 1e-5, 0.01) == pytest.approx(most, abs=2e-4)


def test_no_epsilon_allows_everything_and_none_allows_nothing() -> None:
    assert dp_tpr(np.inf, 1e-5, 0.001) == 1.0
    assert dp_tpr(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert dp_tpr(800.0, 1e-5, 0.0) == 1e-5
    assert dp_tpr(800.0, 1e-5, 0.01) == 1.0
    for wrong in (-1.0, np.nan):
        with pytest.raises(DataError, match="epsilon"):
            dp_tpr(wrong, 1e-5, 0.01)


def test_power_falls_with_correction() -> None:
    assert detectable_auc(1000, 1000) < detectable_auc(1000, 1000, level=0.001) < 0.56


def test_monte_carlo_and_the_classifier_know_what_was_remembered() -> None:
    members, others, reference = RNG.normal(size=(3, 150, 6))
    both = np.concatenate([members, others])
    for scores in (monte_carlo(both, members), synthetic_likeness(both, members, reference)):
        assert scores[:150].mean() > scores[150:].mean()
        assert ((scores >= 0) & (scores <= 1)).all()


def test_an_attribute_is_inferred_from_synthetic_images_alone() -> None:
    code = np.arange(200) % 2
    drawn = RNG.normal(size=(200, 5)) + 3 * code[:, None]
    confidence, right = attribute_confidence(drawn, code, drawn, code)
    assert right.mean() > 0.95
    assert confidence[right].min() >= 0.5
    unknown, guessed = attribute_confidence(drawn, np.full(200, 4), drawn, code)
    assert (unknown == 0).all()
    assert not guessed.any()


def _real() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """600 images of 400 patients, half of them members."""
    patients = np.concatenate([np.arange(400), np.arange(0, 400, 2)])
    return RNG.normal(size=(600, 4)), patients < 200, patients


def test_copying_shows_against_membership_dealt_anew_and_typical_images_do_not() -> None:
    real, member, patients = _real()
    copied = real[member] + RNG.normal(0, 0.02, real[member].shape)
    typical = RNG.normal(0, 0.3, (300, 4))  # nearer to everyone than people are to each other
    for test in (authenticity, data_copying):
        found = test(find_neighbours(copied, real, member, patients), np.random.default_rng(0))
        assert found.value < found.control_interval[0]
        assert found.chance < 1e-4
        fair = test(find_neighbours(typical, real, member, patients), np.random.default_rng(0))
        assert fair.chance > 0.001
    assert fair.value < -2  # C_T by itself cries wolf


def test_c_t_says_nothing_where_no_cell_can_be_tested() -> None:
    real, member, patients = _real()
    few = RNG.normal(size=(9, 4))  # fewer than ten in any cell
    assert data_copying(find_neighbours(few, real, member, patients), RNG) is None


def test_reidentification_counts_members_above_their_share() -> None:
    real, member, patients = _real()
    copied = reidentify(real[member], real, member, patients)
    assert copied.member_share == 1.0
    assert copied.control_share == 0.5
    assert copied.chance < 1e-6
    assert copied.singled_out == 200
    fresh = reidentify(RNG.normal(size=(400, 4)), real, member, patients)
    assert abs(fresh.advantage) < 4 * fresh.error


def test_a_hub_is_one_patient_however_many_images_are_near_it() -> None:
    real, member, patients = _real()
    real[0] = 0.0  # a member in the middle of many alike synthetic images
    alike = RNG.normal(0, 0.05, (300, 4))
    found = reidentify(alike, real, member, patients)
    assert found.singled_out > 3
    assert found.chance > 0.01


def test_few_copies_among_many_images_single_out_their_patients() -> None:
    real, member, patients = _real()
    images = RNG.normal(size=(400, 4))
    images[::4] = real[:100] + RNG.normal(0, 0.01, (100, 4))
    found = reidentify(images, real, member, patients)
    assert found.chance < 1e-4
    assert found.advantage > 3 * found.error


def test_a_gallery_smaller_than_the_set_is_not_matched_whole() -> None:
    """If every patient were matched, nothing could be seen, and nothing would be found."""
    real, member, patients = _real()
    found = reidentify(RNG.normal(size=(4000, 4)), real, member, patients)
    assert found.singled_out < 0.75 * found.gallery


def test_linking_goes_by_way_of_the_synthetic_images() -> None:
    centre = RNG.normal(size=(200, 6))
    real = np.concatenate([centre, centre]) + RNG.normal(0, 0.02, (400, 6))
    patients = np.tile(np.arange(200), 2)
    member = patients < 100
    found = link_studies(centre[:100], real, member, patients, np.random.default_rng(0))
    assert found is not None
    assert found.direct == (200, 200)
    assert found.linked.member == (100, 100)
    assert found.linked.control[0] < 10
    assert link_studies(centre, real[:200], member[:200], patients[:200], RNG) is None


def test_copies_are_the_same_however_many_real_images_are_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = RNG.random((90, 1, 32, 32), dtype=np.float32)
    copies = np.roll(real[::-1][:40], (2, -1), axis=(2, 3))
    whole = best_matches(copies, real)
    np.testing.assert_array_equal(whole.index, 89 - np.arange(40))
    monkeypatch.setattr(near_copies, "_REAL_BLOCK", 20)
    monkeypatch.setattr(near_copies, "_BLOCK", 7)
    parts = best_matches(copies, real)
    np.testing.assert_array_equal(parts.index, whole.index)
    np.testing.assert_array_equal(parts.flip, whole.flip)
    np.testing.assert_allclose(parts.similarity, whole.similarity, atol=1e-6)


def test_copies_are_found_flipped_moved_and_relit_at_any_size() -> None:
    for size, channels in ((28, 1), (64, 3)):
        real = RNG.random((30, channels, size, size), dtype=np.float32)
        shift = size // 16
        moved = np.zeros_like(real)
        moved[:, :, shift:, : size - shift] = real[:, :, : size - shift, shift:]
        turned = [real, real[..., ::-1], real[:, :, ::-1], real[:, :, ::-1, ::-1]]
        for flip, copy in enumerate(turned):
            found = best_matches(np.ascontiguousarray(0.5 * copy + 0.3), real)
            np.testing.assert_array_equal(found.index, np.arange(30))
            assert (found.flip == flip).all(), FLIPS[flip]
            assert found.similarity.min() > 0.99
        assert best_matches(moved, real).similarity.min() > 0.9
        others = RNG.random((20, channels, size, size), dtype=np.float32)
        assert best_matches(others, real).similarity.max() < 0.5
    blank = np.full((2, 1, 28, 28), 0.5, dtype=np.float32)
    assert best_matches(blank, real[:, :1, :28, :28]).similarity.max() == 0.0
