"""From whatever a source holds to the picture a generator trains on.

Every number used here is a fixed public constant: the largest value of an integer type,
luma weights, black for padding. Nothing is measured on the images, so preprocessing
spends no privacy, and a patient's picture does not depend on who else is in the set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, field_validator

from synth_common.errors import DataError
from synth_common.images.imageset import ImageSet
from synth_common.plan import StrictModel

Reason = Literal[
    "class-left-out",
    "constant",
    "empty",
    "file-missing",
    "mask-missing",
    "mask-shape",
    "mask-unreadable",
    "no-patient-id",
    "not-an-image",
    "not-in-metadata",
    "too-large",
    "unreadable",
    "wrong-shape",
]
"""Why an image was set aside. The meaning of each is in ``docs/reference/data.md``."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

FULL_SCALE: Mapping[str, float] = {"bool": 1.0, "uint8": 255.0, "uint16": 65535.0}
"""What counts as white, by the type a source stores. Other types are refused."""


class Target(StrictModel):
    """The picture every source is brought to.

    Attributes:
        size: Height and width in pixels, 28 to 128, a multiple of 4.
        channels: 1 (grey) or 3 (red, green, blue).
        classes: Canonical class names in label order.
        with_mask: Whether masks are wanted; a source without them is then refused.
    """

    size: Annotated[int, Field(ge=28, le=128, multiple_of=4)]
    channels: Literal[1, 3]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    with_mask: bool = False

    @field_validator("classes")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("class names must differ")
        return value


Spacing = Annotated[float, Field(gt=0.0, le=100.0, allow_inf_nan=False)]
"""Millimetres along a side of a stored pixel, which is a square."""


@dataclass(frozen=True)
class Collected:
    """What a loader hands on: the usable images, and a reason for each that is not.

    Attributes:
        images: The accepted images.
        offered: How many images the source offered.
        set_aside: Reason of each image that was not accepted; no file names, because
            a name may hold a patient's.
    """

    images: ImageSet
    offered: int
    set_aside: tuple[Reason, ...]


def full_scale(dtype: np.dtype[np.generic], where: str) -> float:
    """The value of white for a stored type. Raises DataError for a type without one."""
    try:
        return FULL_SCALE[dtype.name]
    except KeyError:
        raise DataError(
            f"{where} are {dtype}; expected one of {', '.join(FULL_SCALE)}. Scale other types "
            "by a constant of the modality (never by the image's own range) and store uint16"
        ) from None


def minimised(target: Target) -> dict[str, list[str]]:
    """What is kept of an image and its file, and what no code copies: for the record, in words."""
    channels = {1: "grey", 3: "red, green and blue"}[target.channels]
    kept = [
        f"pixels, {target.size} x {target.size}, {channels}, scaled by constants",
        "class",
        "patient key, to draw and count by patient; stays at the site",
        "columns that the site names, such as site, split and pixel spacing; stay at the site",
    ]
    if target.with_mask:
        kept.append("mask")
    dropped = [
        "file names and folders",
        "headers and metadata of the file (DICOM attributes, EXIF)",
        "overlays and annotations beside the pixels",
        "the original resolution",
    ]
    return {"kept": kept, "dropped": dropped}


def constant_images(raw: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Which of (N, H, W[, C]) images have one value per channel everywhere, bool (N,)."""
    flat = raw.reshape(raw.shape[0], -1, raw.shape[3] if raw.ndim == 4 else 1)
    same: npt.NDArray[np.bool_] = (flat == flat[:, :1]).all(axis=(1, 2))
    return same


def preprocess_images(
    raw: npt.NDArray[np.generic], target: Target, where: str
) -> npt.NDArray[np.float32]:
    """Scale, colour, pad and resize images of one shape.

    Args:
        raw: bool, uint8 or uint16, (N, H, W) or (N, H, W, C) with C 1 or 3; 0 is black.
        target: Size and channels to reach.
        where: How an error names the array.

    Returns:
        float32 (N, C, size, size) in [0, 1]. The shorter side is padded with black, so
        that shapes keep their proportions; reduction is anti-aliased (Pillow, bicubic).

    Raises:
        DataError: Another dtype or shape.
    """
    scale = np.float32(1.0 / full_scale(raw.dtype, where))
    if raw.ndim == 3:
        raw = raw[..., None]
    if raw.ndim != 4 or raw.shape[3] not in (1, 3) or 0 in raw.shape[1:]:
        raise DataError(f"{where} have shape {raw.shape}; expected (N, H, W) or (N, H, W, 1 or 3)")
    size, n = target.size, raw.shape[0]
    out = np.empty((n, target.channels, size, size), dtype=np.float32)
    right_size = raw.shape[1:3] == (size, size)
    # In blocks: a whole set as float at its own size would double the memory.
    for start in range(0, n, _BLOCK):
        block = _recolour(
            np.multiply(raw[start : start + _BLOCK], scale, dtype=np.float32), target.channels
        )
        channels_first = np.moveaxis(block, 3, 1)
        out[start : start + _BLOCK] = (
            channels_first if right_size else _resize(channels_first, size)
        )
    return np.clip(out, 0.0, 1.0, out=out)


_BLOCK = 1024


def _recolour(images: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    """(N, H, W, 1 or 3) to the wanted number of channels."""
    if images.shape[3] == channels:
        return images
    if channels == 1:
        return (images @ LUMA)[..., None]
    return np.repeat(images, 3, axis=3)


def _square(height: int, width: int) -> tuple[int, int, int]:
    """Side of the padded square, and the row and column at which the image starts in it."""
    side = max(height, width)
    return side, (side - height) // 2, (side - width) // 2


def _resize(images: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Pad (N, C, H, W) to squares with black and resize each plane with anti-aliasing."""
    n, channels, height, width = images.shape
    side, top, left = _square(height, width)
    plane = np.zeros((side, side), dtype=np.float32)
    out = np.empty((n, channels, size, size), dtype=np.float32)
    for i in range(n):
        for c in range(channels):
            plane[top : top + height, left : left + width] = images[i, c]
            picture = Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC)
            out[i, c] = np.asarray(picture)
    return out


def resized_spacing(spacing: float, height: int, width: int, size: int) -> float:
    """Millimetres of a pixel of a padded and resized image, from those of a stored pixel.

    Args:
        spacing: Millimetres along a side of a stored pixel.
        height: Of the stored image, in pixels.
        width: Likewise.
        size: Height and width after resizing.
    """
    return spacing * _square(height, width)[0] / size


def preprocess_masks(raw: npt.NDArray[np.generic], size: int) -> npt.NDArray[np.uint8]:
    """Masks (N, H, W), any number type, to uint8 (N, size, size) in {0, 1}.

    Whatever is not zero is inside. Padded like the images, resized to the nearest pixel.
    """
    if raw.ndim != 3 or 0 in raw.shape[1:]:
        raise DataError(f"masks have shape {raw.shape}; expected (N, H, W)")
    inside: npt.NDArray[np.uint8] = (raw != 0).astype(np.uint8)
    if raw.shape[1:] == (size, size):
        return inside
    n, height, width = raw.shape
    side, top, left = _square(height, width)
    plane = np.zeros((side, side), dtype=np.uint8)
    out = np.empty((n, size, size), dtype=np.uint8)
    for i in range(n):
        plane[top : top + height, left : left + width] = inside[i]
        picture = Image.fromarray(plane).resize((size, size), Image.Resampling.NEAREST)
        out[i] = np.asarray(picture)
    return out


def text_column(values: Iterable[object]) -> npt.NDArray[np.str_]:
    """A column of ids or names as NumPy strings (bytes are read as UTF-8)."""
    texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
    return np.array(texts, dtype=np.str_)
