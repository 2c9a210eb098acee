"""Exact duplicates: the same pixels more than once, under one patient id or several.

Pixels are compared after preprocessing, because that is what a generator trains on and
what a membership test compares: two files that become the same picture are duplicates
here, whatever their bytes were.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synth_common.images.imageset import ImageSet


@dataclass(frozen=True)
class Duplicates:
    """Exact duplicates of a set. SENSITIVE: counted from private images.

    Attributes:
        groups: Pictures that occur more than once.
        images: Images in these groups, every copy counted.
        across_patients: Groups that occur under more than one patient id; None where
            the set has no ids. Each one weakens the patient as a unit of privacy:
            hiding one id does not hide the picture.
    """

    groups: int
    images: int
    across_patients: int | None


def pixel_codes(images: ImageSet) -> npt.NDArray[np.int64]:
    """A number per image, equal exactly for equal pixels, (N,), from 0 upwards."""
    digests = [hashlib.blake2b(image, digest_size=16).digest() for image in _rows(images)]
    codes: dict[bytes, int] = {}
    return np.array([codes.setdefault(d, len(codes)) for d in digests], dtype=np.int64)


def _rows(images: ImageSet) -> npt.NDArray[np.float32]:
    """One contiguous row of pixels per image; adding 0 makes -0 and 0 the same bytes."""
    return np.ascontiguousarray(images.images.reshape(len(images), -1) + np.float32(0.0))


def find_exact(images: ImageSet) -> Duplicates:
    """Count exact duplicates (see :class:`Duplicates`)."""
    codes = pixel_codes(images)
    counts = np.bincount(codes) if len(codes) else np.zeros(0, dtype=np.int64)
    repeated = counts > 1
    across: int | None = None
    if images.patient_ids is not None:
        pairs = np.unique(np.stack([codes, images.units()]), axis=1)
        across = int((np.bincount(pairs[0]) > 1).sum()) if pairs.size else 0
    return Duplicates(
        groups=int(repeated.sum()), images=int(counts[repeated].sum()), across_patients=across
    )


def linked_units(images: ImageSet) -> npt.NDArray[np.int64]:
    """Units that share a picture as one number 0..G-1 per image, (N,).

    Two patients (or, without ids, two images) stand together if a chain of equal
    pictures joins them. Whoever deals patients out deals these, so that no picture
    stands on two sides.
    """
    if not len(images):
        return np.zeros(0, dtype=np.int64)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    units, codes = images.units(), pixel_codes(images)
    n_units, n_codes = int(units.max()) + 1, int(codes.max()) + 1
    # Bipartite graph: units on one side, pictures on the other.
    edges = coo_array(
        (np.ones(len(units), dtype=np.int8), (units, codes + n_units)),
        shape=(n_units + n_codes, n_units + n_codes),
    )
    component = connected_components(edges, directed=False)[1]
    linked: npt.NDArray[np.int64] = np.unique(component[units], return_inverse=True)[1]
    return linked.astype(np.int64)


def majority_labels(
    groups: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], n_classes: int
) -> npt.NDArray[np.int64]:
    """Most frequent label of each group 0..G-1 (the lower label where two are level), (G,)."""
    table = np.zeros((int(groups.max()) + 1, n_classes), dtype=np.int64)
    np.add.at(table, (groups, labels), 1)
    return np.asarray(table.argmax(axis=1), dtype=np.int64)
