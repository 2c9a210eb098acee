"""Train and holdout of one site, by patient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from synth_common.errors import ConfigError, DataError
from synth_common.images.duplicates import linked_units, majority_labels
from synth_common.images.imageset import ImageSet
from synth_common.randomness import numpy_stream

MIN_TRAIN = 1
MIN_HOLDOUT = 2


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
