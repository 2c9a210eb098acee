"""Whom an attack is judged on: candidates by patient, drawn and freed of what is on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synth_common.errors import DataError
from synth_common.images.duplicates import pixel_codes
from synth_common.images.imageset import ImageSet

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """What an attack is judged on. SENSITIVE: says who is a member.

    Attributes:
        candidates: (N, D) standardised features of members, then non-members.
        member: (N,) True for images of members.
        patients: (N,) patient of each candidate, 0..P-1, members before non-members.
        synthetic: (S, D) features of the synthetic images.
        reference: (R, D) features of the adversary's reference images.
    """

    candidates: Array
    member: npt.NDArray[np.bool_]
    patients: npt.NDArray[np.int64]
    synthetic: Array
    reference: Array

    def by_patient(self, scores: Array) -> tuple[Array, Array]:
        """Largest score of each patient: those of members (M,), those of non-members (N,)."""
        largest = np.full(int(self.patients.max()) + 1, -np.inf)
        np.maximum.at(largest, self.patients, scores)
        members = len(np.unique(self.patients[self.member]))
        return largest[:members], largest[members:]


def refuse_shared_patients(train: ImageSet, holdout: ImageSet) -> None:
    """A patient on both sides is member and non-member at once."""
    if train.patient_ids is None or holdout.patient_ids is None:
        return
    shared = np.intersect1d(train.patient_ids, holdout.patient_ids)
    if len(shared):
        raise DataError(
            f"{len(shared)} patients are in train and in holdout; split by patient before an audit"
        )


def absent_from(images: ImageSet, others: Sequence[ImageSet]) -> ImageSet:
    """The images of which no exact copy is in the other sets."""
    return images.subset(~copied_in(images, others))


def copied_in(images: ImageSet, others: Sequence[ImageSet]) -> npt.NDArray[np.bool_]:
    """(N,) whether an exact copy of each image is in one of the other sets."""
    pixels = np.concatenate([s.images for s in (images, *others)])
    codes = pixel_codes(ImageSet(pixels, np.zeros(len(pixels), dtype=np.int64), ("any",)))
    return np.isin(codes[: len(images)], codes[len(images) :])


def split_units(images: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, ImageSet]:
    """Two halves of the units, drawn at random."""
    count = images.unit_count()
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[: count // 2]] = True
    mask = chosen[images.units()]
    return images.subset(mask), images.subset(~mask)


def some_units(images: ImageSet, most: int, rng: np.random.Generator) -> ImageSet:
    """All units, or ``most`` of them drawn at random, each with all its images."""
    count = images.unit_count()
    if count <= most:
        return images
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[:most]] = True
    return images.subset(chosen[images.units()])


def at_most_each(images: ImageSet, most: int, rng: np.random.Generator) -> ImageSet:
    """At most ``most`` images of each unit, drawn at random: more images, more chances."""
    units = images.units()
    order = rng.permutation(len(images))
    ranked = order[np.argsort(units[order], kind="stable")]
    starts = np.searchsorted(units[ranked], units[ranked])
    return images.subset(np.sort(ranked[np.arange(len(ranked)) - starts < most]))
