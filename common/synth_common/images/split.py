"""Train and holdout, by patient: drawn at random, or as the source itself splits them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from synth_common.errors import ConfigError, DataError
from synth_common.images.duplicates import linked_units, majority_labels
from synth_common.images.imageset import ImageSet
from synth_common.randomness import numpy_stream

MIN_TRAIN = 1
MIN_HOLDOUT = 2

HELD_OUT = "test"
"""The part of a source's own split that is its holdout; every other part is for training."""


def split_patients(images: ImageSet, holdout_share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Deal the patients of a site into train and holdout, label-stratified.

    A patient is never on both sides. Patients who share a picture count as one here and
    stay together. About ``holdout_share`` of the patients of each class (by a patient's
    most frequent label) go to the holdout; at least two do, and a class keeps a patient
    in train as long as there is another way.

    Args:
        images: A site's images. Without patient ids each image is its own patient.
        holdout_share: Share of patients to hold out, above 0 and below 1.
        seed: Names the draw; the same seed gives the same split.

    Returns:
        Train and holdout, each in the order of ``images``.

    Raises:
        ConfigError: ``holdout_share`` is outside (0, 1).
        DataError: Fewer patients than one in train and two in the holdout.
    """
    if not 0.0 < holdout_share < 1.0:
        raise ConfigError(f"holdout_share = {holdout_share}: must lie above 0 and below 1")
    groups = linked_units(images)
    n = int(groups.max()) + 1 if len(groups) else 0
    if n < MIN_TRAIN + MIN_HOLDOUT:
        raise DataError(
            f"{n} patients (after joining those with identical images) cannot be split: train "
            f"needs at least {MIN_TRAIN} and the holdout at least {MIN_HOLDOUT}; "
            "give the site more patients"
        )
    wanted = min(max(round(holdout_share * n), MIN_HOLDOUT), n - MIN_TRAIN)
    strata = majority_labels(groups, images.labels, len(images.class_names))
    sizes = np.bincount(strata, minlength=len(images.class_names))
    rng = numpy_stream(seed, "split")
    held = np.zeros(n, dtype=np.bool_)
    for label, quota in enumerate(_quotas(sizes, wanted)):
        held[rng.permutation(np.flatnonzero(strata == label))[:quota]] = True
    inside = held[groups]
    return images.subset(~inside), images.subset(inside)


def own_split(images: ImageSet, where: str) -> tuple[ImageSet, ImageSet]:
    """Train and holdout as the source splits them: what it calls ``test`` is held out.

    For figures that others published on the same test images.

    Args:
        images: Images with the source's own split.
        where: Names them in a refusal.

    Returns:
        Train (``train``, ``val`` and whatever else there is) and holdout, each in the order
        of ``images``.

    Raises:
        DataError: No own split, fewer patients than one in train and two in the holdout, or a
            patient, or a picture, on both sides.
    """
    if images.splits is None:
        raise DataError(f"{where}: has no split of its own; use data.holdout = 'share'")
    inside = images.splits == HELD_OUT
    groups = linked_units(images)
    sides = np.unique(np.stack([groups, inside]), axis=1)
    crossing = int((np.bincount(sides[0]) > 1).sum()) if sides.size else 0
    if crossing:
        raise DataError(
            f"{where}: {crossing} patients (or pictures) are both in {HELD_OUT!r} and outside of "
            "it in the source's own split; use data.holdout = 'share', which splits by patient"
        )
    train, holdout = images.subset(~inside), images.subset(inside)
    if train.unit_count() < MIN_TRAIN or holdout.unit_count() < MIN_HOLDOUT:
        raise DataError(
            f"{where}: the source's own split leaves {train.unit_count()} patients to train on and "
            f"{holdout.unit_count()} in {HELD_OUT!r}; at least {MIN_TRAIN} and {MIN_HOLDOUT} are "
            "needed. Use data.holdout = 'share' or other sites"
        )
    return train, holdout


def _quotas(sizes: npt.NDArray[np.int64], wanted: int) -> npt.NDArray[np.int64]:
    """How many of each class to hold out: ``wanted`` in all, by largest remainder."""
    exact = sizes * (wanted / sizes.sum())
    quotas: npt.NDArray[np.int64] = np.minimum(
        np.floor(exact).astype(np.int64), np.maximum(sizes - 1, 0)
    )
    for capacity in (sizes - 1, sizes):  # the last patient of a class only if all else is dealt
        while quotas.sum() < wanted and (quotas < capacity).any():
            need = np.where(quotas < capacity, exact - quotas, -np.inf)
            quotas[int(need.argmax())] += 1
    return quotas
