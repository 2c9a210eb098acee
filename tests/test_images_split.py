"""Duplicates are found, and nobody stands on both sides of a split."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from synth_common.errors import ConfigError, DataError
from synth_common.images.duplicates import find_exact, linked_units, majority_labels, pixel_codes
from synth_common.images.imageset import ImageSet
from synth_common.images.split import own_split, split_patients


def _set(
    pictures: list[int], patients: list[int] | None = None, labels: list[int] | None = None
) -> ImageSet:
    """One image per entry; equal numbers in ``pictures`` are equal pixels."""
    kinds = {
        k: np.random.default_rng(k).random((1, 28, 28), dtype=np.float32) for k in set(pictures)
    }
    return ImageSet(
        images=np.stack([kinds[k] for k in pictures]),
        labels=np.array(labels or [0] * len(pictures), dtype=np.int64),
        class_names=("a", "b", "c"),
        patient_ids=None if patients is None else np.array([f"p{k}" for k in patients]),
    )


def _slow_links(pictures: list[int], patients: list[int]) -> set[frozenset[int]]:
    """Images joined by a patient or a picture, merged until nothing changes."""
    parts = [{i} for i in range(len(pictures))]
    changed = True
    while changed:
        changed = False
        for a, b in itertools.combinations(parts, 2):
            if any(pictures[i] == pictures[j] or patients[i] == patients[j] for i in a for j in b):
                a |= b
                parts.remove(b)
                changed = True
                break
    return {frozenset(p) for p in parts}


@st.composite
def _sets(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    n = draw(st.integers(1, 24))
    column = lambda top: draw(st.lists(st.integers(0, top), min_size=n, max_size=n))  # noqa: E731
    return column(20), column(12), column(2)


def test_duplicates_are_counted_in_images_groups_and_patients() -> None:
    images = _set([1, 1, 1, 2, 2, 3, 4], [0, 0, 1, 2, 2, 3, 4])
    found = find_exact(images)
    assert (found.groups, found.images, found.across_patients) == (2, 5, 1)
    without_ids = find_exact(_set([1, 1, 2]))
    assert (without_ids.groups, without_ids.images, without_ids.across_patients) == (1, 2, None)
    none = find_exact(_set([1, 2], [0, 0]))
    assert (none.groups, none.images, none.across_patients) == (0, 0, 0)


def test_one_pixel_makes_another_picture_and_signed_zero_does_not() -> None:
    images = _set([1, 1, 1])
    images.images[:, 0, 0, 0] = 0.0
    images.images[1, 0, 0, 0] = -0.0
    images.images[2, 0, 27, 27] += np.float32(1e-6)
    assert pixel_codes(images).tolist() == [0, 0, 1]


@given(_sets())
@settings(max_examples=40, deadline=None)
def test_links_agree_with_the_slow_way(drawn: tuple[list[int], list[int], list[int]]) -> None:
    pictures, patients, _ = drawn
    linked = linked_units(_set(pictures, patients))
    groups = {frozenset(np.flatnonzero(linked == g).tolist()) for g in np.unique(linked)}
    assert groups == _slow_links(pictures, patients)
    assert linked.max() + 1 == len(groups)


def test_majority_label() -> None:
    labels = majority_labels(np.array([0, 0, 0, 1, 1, 2]), np.array([2, 2, 0, 1, 0, 1]), 3)
    assert labels.tolist() == [2, 0, 1]


@given(_sets(), st.floats(0.05, 0.95), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_patient_and_no_picture_stands_on_both_sides(
    drawn: tuple[list[int], list[int], list[int]], share: float, seed: int
) -> None:
    images = _set(*drawn)
    groups = len(np.unique(linked_units(images)))
    if groups < 3:
        with pytest.raises(DataError, match=f"^{groups} patients"):
            split_patients(images, share, seed)
        return
    train, holdout = split_patients(images, share, seed)
    assert len(train) + len(holdout) == len(images)
    assert train.patient_ids is not None
    assert holdout.patient_ids is not None
    assert not set(train.patient_ids) & set(holdout.patient_ids)
    pixels = [{image.tobytes() for image in side.images} for side in (train, holdout)]
    assert not pixels[0] & pixels[1]
    held = len(np.unique(linked_units(holdout)))
    assert held == min(max(round(share * groups), 2), groups - 1)


@given(st.lists(st.integers(1, 40), min_size=3, max_size=3), st.floats(0.1, 0.6))
@example([1, 5, 5], 0.6)  # the largest remainder is the only patient of a class
@settings(max_examples=40, deadline=None)
def test_the_split_is_stratified(sizes: list[int], share: float) -> None:
    labels = np.repeat([0, 1, 2], sizes).tolist()
    total = len(labels)
    assume(round(share * total) >= 2)
    _, holdout = split_patients(_set(list(range(total)), list(range(total)), labels), share, 1)
    for label, size in enumerate(sizes):
        held = int((holdout.labels == label).sum())
        assert abs(held - share * size) < 2
        if round(share * total) <= total - 3:
            assert held < size  # train keeps every class


def test_the_split_is_by_seed_and_not_by_order() -> None:
    images = _set(list(range(30)), list(range(30)), [k % 3 for k in range(30)])
    first, again, other = (split_patients(images, 0.3, s)[1] for s in (1, 1, 2))
    assert first.patient_ids is not None
    assert again.patient_ids is not None
    assert other.patient_ids is not None
    assert first.patient_ids.tolist() == again.patient_ids.tolist()
    assert first.patient_ids.tolist() != other.patient_ids.tolist()
    shuffled = images.subset(np.random.default_rng(0).permutation(30))
    held = split_patients(shuffled, 0.3, 1)[1].patient_ids
    assert held is not None
    assert set(held) == set(first.patient_ids)


def test_a_unit_without_ids_is_the_image() -> None:
    train, holdout = split_patients(_set([1, 1, 2, 3, 4, 5, 6, 7]), 0.4, 0)
    assert len(train) + len(holdout) == 8
    copies = [
        (side.images == _set([1]).images).all(axis=(1, 2, 3)).sum() for side in (train, holdout)
    ]
    assert sorted(copies) == [0, 2]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, float("nan")])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="holdout_share"):
        split_patients(_set([1, 2, 3, 4]), share, 0)


def _with_splits(images: ImageSet, splits: list[str]) -> ImageSet:
    return replace(images, splits=np.array(splits))


def test_a_sources_own_split_holds_out_its_test_part() -> None:
    images = _with_splits(
        _set([0, 1, 2, 3, 4, 4], [0, 0, 1, 2, 3, 3]),
        ["train", "train", "val", "test", "test", "test"],
    )
    train, holdout = own_split(images, "source 's'")
    assert train.patient_ids is not None
    assert holdout.patient_ids is not None
    assert train.patient_ids.tolist() == ["p0", "p0", "p1"]
    assert holdout.patient_ids.tolist() == ["p2", "p3", "p3"]


@pytest.mark.parametrize("patients", [[0, 1, 2, 3, 0], None])
def test_nobody_and_no_picture_crosses_a_sources_own_split(patients: list[int] | None) -> None:
    pictures = [0, 1, 2, 3, 4 if patients else 0]
    images = _with_splits(_set(pictures, patients), ["train", "train", "test", "test", "test"])
    with pytest.raises(DataError, match=r"source 's': 1 patients \(or pictures\) are both in"):
        own_split(images, "source 's'")


def test_an_own_split_that_is_none_is_refused() -> None:
    images = _set([0, 1, 2, 3])
    with pytest.raises(DataError, match="has no split of its own"):
        own_split(images, "source 's'")
    for splits in (["train"] * 4, ["test"] * 4, ["train", "train", "val", "test"]):
        with pytest.raises(DataError, match=r"at least 1 and 2 are needed"):
            own_split(_with_splits(images, splits), "source 's'")
