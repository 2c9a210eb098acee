"""Few large images with masks beside them, ``Image_01L.jpg`` and ``Image_01L_1stHO.png``, in tiles.

Segmentation sets with a handful of patients come like this (CHASE_DB1, DRIVE, STARE). Every
tile of a patient carries the patient's id, so that splits and intervals stay with people.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from pydantic import Field, field_validator

from synth_common.errors import DataError
from synth_common.images.imageset import ImageSet
from synth_common.images.preprocess import (
    Collected,
    Reason,
    Spacing,
    Target,
    preprocess_images,
    text_column,
)
from synth_common.plan import StrictModel

_FORMATS = ("PNG", "JPEG")
_DARK = 0.06  # of white; darker is the black frame around a round field of view
_FIELD = 0.75  # a tile of which less is brighter than the frame shows mostly nothing


class TilesSource(StrictModel):
    """Images of one class with masks beside them, cut into tiles of the target's size.

    Attributes:
        name: How sites and reports call the source.
        path: The folder; a relative path starts at ``data.root``.
        licence: Licence and attribution as the owner states them.
        single_class: The class of every tile.
        image_suffix: How the name of an image ends; what stands before it is its stem.
        mask_suffix: What follows the stem in the name of its mask.
        second_mask_suffix: The same for a second observer's mask; none without one.
        patient_pattern: Regular expression on the stem, whose one group is the patient.
        reduce: Images and masks are made smaller by this factor before they are cut.
        pixel_spacing_mm: Millimetres along a side of a pixel of the stored images, before
            they are reduced, as the owner states it; None: distances are in pixels only.
    """

    kind: Literal["tiles"] = "tiles"
    name: Annotated[str, Field(min_length=1)]
    path: Path
    licence: str = "NOT RECORDED"
    single_class: str
    image_suffix: str = ".jpg"
    mask_suffix: str
    second_mask_suffix: str | None = None
    patient_pattern: str
    reduce: Annotated[int, Field(ge=1, le=16)] = 1
    pixel_spacing_mm: Spacing | None = None

    @field_validator("patient_pattern")
    @classmethod
    def _one_group(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as err:
            raise ValueError(f"not a regular expression: {err}") from err
        if groups != 1:
            raise ValueError(f"has {groups} groups; expected one, around what names the patient")
        return value


def load_tiles(source: TilesSource, target: Target, path: Path) -> Collected:
    """Read the images of a folder in the order of their names and cut each into tiles.

    Tiles lie side by side from the upper left corner; what remains at the right and lower
    edge is left out. A tile of which less than three quarters is brighter than a fixed dark
    grey is set aside as ``constant``: it shows the frame around a round field of view.

    Args:
        source: What lies where.
        target: The picture to reach; its size is the side of a tile.
        path: The folder, resolved.

    Raises:
        DataError: The folder or a file is missing, a mask has another size than its image,
            a stem does not name a patient, or the class is not one of the target's.
    """
    where = f"source {source.name!r} ({path})"
    if source.single_class not in target.classes:
        raise DataError(
            f"{where}: single_class = {source.single_class!r} is none of generator.classes "
            f"{', '.join(target.classes)}"
        )
    files = sorted(path.glob(f"*{source.image_suffix}")) if path.is_dir() else []
    if not files:
        raise DataError(f"{where}: no file ends in image_suffix = {source.image_suffix!r}")
    parts = [_cut(source, target, file, where) for file in files]
    columns = {k: [row for part in parts for row in part[k]] for k in parts[0]}
    offered = sum(len(part["images"]) for part in parts)
    shown = np.array(columns.pop("shown"), dtype=bool)
    good = {
        k: [row for row, keep in zip(v, shown, strict=True) if keep] for k, v in columns.items()
    }
    dark: Reason = "constant"
    set_aside = (dark,) * int((~shown).sum())
    return Collected(_image_set(good, target, source), offered, set_aside)


def _image_set(columns: dict[str, list[Any]], target: Target, source: TilesSource) -> ImageSet:
    """The tiles that were kept."""
    n, side = len(columns["images"]), target.size
    masks = np.array(columns["masks"], dtype=np.uint8).reshape(n, side, side)
    second = None
    if source.second_mask_suffix is not None:
        second = np.array(columns["second_masks"], dtype=np.uint8).reshape(n, side, side)
    mm = source.pixel_spacing_mm
    shape = (n, target.channels, side, side)
    return ImageSet(
        images=np.array(columns["images"], dtype=np.float32).reshape(shape),
        labels=np.full(n, target.classes.index(source.single_class), dtype=np.int64),
        class_names=target.classes,
        patient_ids=text_column(columns["patients"]),
        masks=masks if target.with_mask else None,
        second_masks=second if target.with_mask else None,
        spacings=None if mm is None else np.full(n, mm * source.reduce),
    )


def _cut(source: TilesSource, target: Target, file: Path, where: str) -> dict[str, list[Any]]:
    """The tiles of one image: pictures, masks, patient, and whether each shows enough."""
    stem = file.name.removesuffix(source.image_suffix)
    found = re.search(source.patient_pattern, stem)
    if found is None:
        raise DataError(
            f"{where}: patient_pattern = {source.patient_pattern!r} does not match the name "
            f"{stem!r}, so that nobody knows whose image it is"
        )
    picture = _open(file, where)
    small = _reduced(picture, source.reduce)
    masks = [
        _mask(file, stem, suffix, picture, source, where)
        for suffix in (source.mask_suffix, source.second_mask_suffix)
    ]
    raw = np.asarray(small)
    side = target.size
    corners = [
        (top, left)
        for top in range(0, raw.shape[0] - side + 1, side)
        for left in range(0, raw.shape[1] - side + 1, side)
    ]

    def tiles(plane: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        return [plane[top : top + side, left : left + side] for top, left in corners]

    cut = tiles(raw)
    images = list(preprocess_images(np.stack(cut), target, where)) if cut else []
    first, second = (tiles(mask) if mask is not None else [] for mask in masks)
    bright = [float((image.mean(axis=0) > _DARK).mean()) for image in images]
    return {
        "images": images,
        "masks": first,
        "second_masks": [*second] or [None] * len(cut),
        "patients": [found[1]] * len(cut),
        "shown": [share >= _FIELD for share in bright],
    }


def _mask(
    file: Path, stem: str, suffix: str | None, picture: Image.Image, source: TilesSource, where: str
) -> npt.NDArray[np.uint8] | None:
    """A mask, reduced: inside where at least half of the pixels were."""
    if suffix is None:
        return None
    drawn = _open(file.with_name(stem + suffix), where)
    if drawn.size != picture.size:
        raise DataError(
            f"{where}: {stem + suffix} is {drawn.size[0]} x {drawn.size[1]} pixels, its image "
            f"{picture.size[0]} x {picture.size[1]}"
        )
    inside = Image.fromarray(np.where(np.asarray(drawn.convert("L")) > 0, 255, 0).astype(np.uint8))
    return (np.asarray(_reduced(inside, source.reduce)) >= 128).astype(np.uint8)


def _open(file: Path, where: str) -> Image.Image:
    """A decoded picture, 8-bit grey or colour."""
    try:
        with Image.open(file, formats=_FORMATS) as picture:
            return picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    except FileNotFoundError as err:
        raise DataError(f"{where}: {file.name} is missing") from err
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as err:
        raise DataError(f"{where}: {file.name} cannot be read: {err}") from err


def _reduced(picture: Image.Image, factor: int) -> Image.Image:
    """Every ``factor`` x ``factor`` pixels averaged into one; incomplete ones are cut off."""
    width, height = (side // factor * factor for side in picture.size)
    return picture.crop((0, 0, width, height)).reduce(factor)
