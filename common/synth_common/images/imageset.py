"""The one shape in which images travel inside a site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from synth_common.errors import DataError

_COLUMNS = (
    "patient_ids",
    "masks",
    "second_masks",
    "sites",
    "splits",
    "sexes",
    "ages",
    "spacings",
)


@dataclass(frozen=True)
class ImageSet:
    """Preprocessed images with what is known of each. SENSITIVE: never leaves a site.

    Attributes:
        images: float32, (N, C, H, W), C in {1, 3}, H = W, values in [0, 1].
        labels: int64, (N,), index into ``class_names``.
        class_names: The classes in label order; public.
        patient_ids: str, (N,): who is in the picture; None where the source has no
            ids, and then the unit of privacy can only be the image.
        masks: uint8, (N, H, W), values {0, 1}; None where the source has none.
        sites: str, (N,): the hospital column of the source; None where it has none.
        splits: str, (N,): the source's own split ("train", "val", "test"); None
            where it has none.
        second_masks: uint8, (N, H, W), values {0, 1}: what a second observer drew; None
            where there was none. Only the evaluation looks at it, as a human ceiling.
        sexes: str, (N,), ``female``, ``male``, ``other`` or ``unknown``; None where the
            source does not record it. Only the fairness of the evaluation looks at it.
        ages: float64, (N,), years, nan where unknown; likewise.
        spacings: float64, (N,), millimetres along a side of a pixel of ``images``; None where
            the source does not state it. Only the distances of the evaluation look at it.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    patient_ids: npt.NDArray[np.str_] | None = None
    masks: npt.NDArray[np.uint8] | None = None
    sites: npt.NDArray[np.str_] | None = None
    splits: npt.NDArray[np.str_] | None = None
    second_masks: npt.NDArray[np.uint8] | None = None
    sexes: npt.NDArray[np.str_] | None = None
    ages: npt.NDArray[np.float64] | None = None
    spacings: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Refuse shapes, types and ranges other than the documented ones (DataError)."""
        shape = self.images.shape
        if len(shape) != 4 or shape[1] not in (1, 3) or shape[2] != shape[3]:
            raise DataError(f"images have shape {shape}; expected (N, 1 or 3, size, size)")
        if self.images.dtype != np.float32:
            raise DataError(f"images are {self.images.dtype}; expected float32 in [0, 1]")
        n = shape[0]
        if n and not (self.images.min() >= 0.0 and self.images.max() <= 1.0):
            raise DataError("image values leave [0, 1] or are not numbers")
        if self.labels.shape != (n,) or self.labels.dtype != np.int64:
            raise DataError(
                f"labels are {self.labels.dtype} {self.labels.shape}; expected int64 ({n},)"
            )
        if n and not (self.labels.min() >= 0 and self.labels.max() < len(self.class_names)):
            raise DataError(
                f"labels run from {self.labels.min()} to {self.labels.max()}; "
                f"{len(self.class_names)} classes allow 0 to {len(self.class_names) - 1}"
            )
        for name in _COLUMNS:
            column = getattr(self, name)
            expected = (n, *shape[2:]) if name.endswith("masks") else (n,)
            if column is not None and column.shape != expected:
                raise DataError(f"{name} has shape {column.shape}; expected {expected}")

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return int(self.images.shape[2])

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.images.shape[1])

    def units(self) -> npt.NDArray[np.int64]:
        """The privacy unit of each image as a number 0..U-1: the patient, else the image."""
        if self.patient_ids is None:
            return np.arange(len(self), dtype=np.int64)
        return np.unique(self.patient_ids, return_inverse=True)[1].astype(np.int64)

    def unit_count(self) -> int:
        """How many privacy units there are."""
        units = self.units()
        return int(units.max()) + 1 if len(units) else 0

    def subset(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> ImageSet:
        """The images at ``index`` (positions or a mask), in that order."""
        there = {name: getattr(self, name) for name in _COLUMNS}
        columns = {name: column[index] for name, column in there.items() if column is not None}
        return replace(self, images=self.images[index], labels=self.labels[index], **columns)


def concatenate(sets: Sequence[ImageSet]) -> ImageSet:
    """Join sets of equal shape and classes. An optional column survives if all sets have it.

    Raises:
        DataError: No sets, or different classes, sizes or channels.
    """
    if not sets:
        raise DataError("nothing to join: no image sets given")
    first = sets[0]
    for other in sets[1:]:
        if (other.class_names, other.size, other.channels) != (
            first.class_names,
            first.size,
            first.channels,
        ):
            raise DataError(
                f"cannot join {first.class_names} at {first.channels}x{first.size} px "
                f"with {other.class_names} at {other.channels}x{other.size} px"
            )

    def join(name: str) -> Any:
        columns = [getattr(s, name) for s in sets]
        return None if any(c is None for c in columns) else np.concatenate(columns)

    return ImageSet(
        images=np.concatenate([s.images for s in sets]),
        labels=np.concatenate([s.labels for s in sets]),
        class_names=first.class_names,
        **{name: join(name) for name in _COLUMNS},
    )
