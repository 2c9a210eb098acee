"""Image sets in folders: one sub-folder per class, and perhaps a ``metadata.csv``."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from synth_common.errors import DataError
from synth_common.images.imageset import ImageSet
from synth_common.images.labels import LEFT_OUT, LabelRule
from synth_common.images.people import age_column, sex_column
from synth_common.images.preprocess import (
    Collected,
    Reason,
    Spacing,
    Target,
    constant_images,
    preprocess_images,
    preprocess_masks,
    resized_spacing,
    text_column,
)
from synth_common.plan import StrictModel

_FORMATS = ("PNG", "JPEG")
_METADATA = "metadata.csv"
_KNOWN_COLUMNS = (
    "file_name",
    "label",
    "patient_id",
    "mask",
    "second_mask",
    "site",
    "split",
    "sex",
    "age",
)
_MAX_PIXELS = 64_000_000
_MIN_SIDE = 8  # pixels; below, there is nothing to see
_MAX_ASPECT = 5  # longer side over shorter; beyond, it is a strip and not an image


class FolderSource(StrictModel):
    """PNG and JPEG files, one sub-folder per class.

    An optional ``metadata.csv`` in the folder has the column ``file_name`` (relative to
    the folder) and any of ``label``, ``patient_id``, ``mask``, ``second_mask``, ``site``,
    ``split``, ``sex`` and ``age``; with it, only the files it lists are taken.

    Attributes:
        name: How sites and reports call the source.
        path: The folder; a relative path starts at ``data.root``.
        licence: Licence and attribution as the owner states them.
        label_map: Source class -> canonical class, for names that differ.
        leave_out: Source classes whose images are set aside.
        single_class: Every image has this class; files may then lie in the folder itself.
        pixel_spacing_mm: Millimetres along a side of a pixel of the stored images, as the owner
            states it; None: distances are in pixels only.
    """

    kind: Literal["folder"] = "folder"
    name: Annotated[str, Field(min_length=1)]
    path: Path
    licence: str = "NOT RECORDED"
    label_map: dict[str, str] = Field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    single_class: str | None = None
    pixel_spacing_mm: Spacing | None = None


class _SetAsideError(Exception):
    """One file cannot be used; carries the reason, never the file's name."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True)
class _Entry:
    """An offered file, with what is known of it before it is opened."""

    file: Path
    label: str
    patient_id: str | None = None
    mask: Path | None = None
    site: str | None = None
    split: str | None = None
    second_mask: Path | None = None
    sex: str | None = None
    age: str | None = None
    reason: Reason | None = None


@dataclass
class _Accepted:
    """Preprocessed images, their stored heights and widths, and their entries, in step."""

    images: list[npt.NDArray[np.float32]] = field(default_factory=list)
    masks: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    second_masks: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    entries: list[_Entry] = field(default_factory=list)


def load_folder(source: FolderSource, target: Target, path: Path) -> Collected:
    """Read and preprocess the files of a folder, in the order of their names.

    A file that is empty, truncated, not an image, of one colour throughout, or without
    the mask or patient id that the others have is set aside with its reason.

    Args:
        source: How to read class names.
        target: The picture to reach.
        path: The folder, resolved.

    Returns:
        The accepted images, and a reason for each one set aside.

    Raises:
        DataError: The folder is missing or holds no images; ``metadata.csv`` lacks a
            column, lists a file twice or leads out of the folder; a class is unknown.
        ConfigError: The label map does not fit.
    """
    where = f"source {source.name!r} ({path})"
    if not path.is_dir():
        raise DataError(f"{where}: no such folder")
    metadata = path / _METADATA
    entries = (
        _from_metadata(path, metadata, where, source.single_class)
        if metadata.is_file()
        else _from_folders(path, where, source.single_class)
    )
    if source.single_class is not None:
        entries = [replace(entry, label=source.single_class) for entry in entries]
    if not entries:
        raise DataError(f"{where}: holds no images; expected class sub-folders of PNG or JPEG")
    if target.with_mask and all(e.mask is None for e in entries):
        raise DataError(f"{where}: no mask column in {_METADATA}, but generator.with_mask is true")
    rule = LabelRule(where, source.label_map, source.leave_out, target.classes)
    codes = rule.encode(text_column(e.label for e in entries))
    accepted, set_aside = _Accepted(), list[Reason]()
    for entry, code in zip(entries, codes, strict=True):
        try:
            _accept(accepted, entry, int(code), target)
        except _SetAsideError as refusal:
            set_aside.append(refusal.reason)
    images = _image_set(accepted, target, where)
    if source.pixel_spacing_mm is not None:
        # Images of different sizes are brought to one: each has a factor of its own.
        mm = [resized_spacing(source.pixel_spacing_mm, *s, target.size) for s in accepted.shapes]
        images = replace(images, spacings=np.array(mm, dtype=np.float64))
    return Collected(images, len(entries), tuple(set_aside))


def _accept(accepted: _Accepted, entry: _Entry, code: int, target: Target) -> None:
    """Add one entry to the accepted ones, or raise :class:`_SetAsideError`."""
    if entry.reason is not None:
        raise _SetAsideError(entry.reason)
    if code == LEFT_OUT:
        raise _SetAsideError("class-left-out")
    if entry.patient_id == "":
        raise _SetAsideError("no-patient-id")
    raw = _open(entry.file)[None]
    if constant_images(raw)[0]:
        raise _SetAsideError("constant")
    if target.with_mask:
        mask = _open_mask(entry.mask, raw.shape[1:3], target.size)
        if entry.second_mask is not None:
            second = _open_mask(entry.second_mask, raw.shape[1:3], target.size)
            accepted.second_masks.append(second)
        accepted.masks.append(mask)
    accepted.images.append(preprocess_images(raw, target, "images")[0])
    accepted.shapes.append((raw.shape[1], raw.shape[2]))
    accepted.codes.append(code)
    accepted.entries.append(entry)


def _open(file: Path) -> npt.NDArray[Any]:
    """Pixels of a PNG or JPEG: bool, uint8 or uint16, (H, W) or (H, W, 3)."""
    if not file.is_file():
        raise _SetAsideError("file-missing")
    if file.stat().st_size == 0:
        raise _SetAsideError("empty")
    try:
        with warnings.catch_warnings():
            # Pillow only warns of suspiciously large files; the size is judged below.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_FORMATS) as picture:
                _check_shape(picture)
                return _pixels(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        raise _SetAsideError("not-an-image") from None
    except Image.DecompressionBombError:
        raise _SetAsideError("too-large") from None
    except _SetAsideError:
        raise
    except Exception as err:
        # Decoders meet hostile bytes with a dozen exception types (OSError, SyntaxError,
        # zlib.error, struct.error, ...): each of them means this one file is unreadable.
        raise _SetAsideError("unreadable") from err


def _check_shape(picture: Image.Image) -> None:
    """Set aside what is no single picture of sensible height and width, before decoding it."""
    short, long = sorted(picture.size)
    if short * long > _MAX_PIXELS:
        raise _SetAsideError("too-large")
    frames = getattr(picture, "n_frames", 1)
    if short < _MIN_SIDE or long > _MAX_ASPECT * short or frames > 1:
        raise _SetAsideError("wrong-shape")


def _pixels(picture: Image.Image) -> npt.NDArray[Any]:
    """An opened picture as an array; palettes, CMYK and transparency become plain colour."""
    if picture.mode.startswith("I"):  # 16-bit grey PNG; some Pillow versions widen it to 32
        return np.asarray(picture).astype(np.uint16)
    if picture.mode in ("1", "L", "RGB"):
        return np.asarray(picture)
    return np.asarray(picture.convert("L" if picture.mode == "LA" else "RGB"))


def _open_mask(file: Path | None, shape: tuple[int, ...], size: int) -> npt.NDArray[np.uint8]:
    """The mask of an image of the given height and width."""
    if file is None or not file.is_file():
        raise _SetAsideError("mask-missing")
    try:
        raw = _open(file)
    except _SetAsideError as refusal:
        raise _SetAsideError("mask-unreadable") from refusal
    if raw.ndim == 3:
        raw = raw.max(axis=2)
    if raw.shape != shape:
        raise _SetAsideError("mask-shape")
    return np.asarray(preprocess_masks(raw[None], size)[0])


def _image_set(accepted: _Accepted, target: Target, where: str) -> ImageSet:
    """Stack the accepted images; a column survives if every entry has it."""
    n, size = len(accepted.images), target.size

    def column(name: str) -> npt.NDArray[np.str_] | None:
        values = [getattr(e, name) for e in accepted.entries]
        return None if not values or any(v is None for v in values) else text_column(values)

    empty = np.empty((0, target.channels, size, size), dtype=np.float32)
    masks = None
    if target.with_mask:
        masks = np.stack(accepted.masks) if n else np.empty((0, size, size), dtype=np.uint8)
    second = accepted.second_masks
    sexes, ages = column("sex"), column("age")
    return ImageSet(
        images=np.stack(accepted.images) if n else empty,
        labels=np.array(accepted.codes, dtype=np.int64),
        class_names=target.classes,
        patient_ids=column("patient_id"),
        masks=masks,
        sites=column("site"),
        splits=column("split"),
        second_masks=np.stack(second) if n and len(second) == n else None,
        sexes=None if sexes is None else sex_column(sexes, where),
        ages=None if ages is None else age_column(ages, where),
    )


def _class_files(path: Path) -> Iterator[tuple[str, Path]]:
    """(sub-folder name, file) of every file below a class folder, sorted; hidden ones not."""
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            if not any(part.startswith(".") for part in file.relative_to(path).parts):
                yield folder.name, file


def _from_folders(path: Path, where: str, single_class: str | None) -> list[_Entry]:
    """Entries of a folder without metadata: the class is the sub-folder, or the single one."""
    loose = sorted(p for p in path.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if single_class is not None:
        below = [file for _, file in _class_files(path)]
        return [_Entry(file=file, label=single_class) for file in loose + below]
    if loose:
        raise DataError(
            f"{where}: {len(loose)} images lie beside the class sub-folders; "
            f"sort them into sub-folders or list them in {_METADATA}"
        )
    return [_Entry(file=file, label=label) for label, file in _class_files(path)]


def _from_metadata(
    path: Path, metadata: Path, where: str, single_class: str | None
) -> list[_Entry]:
    """Entries of a folder with metadata: one per row, and one per class file without a row."""
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, restval="")
            columns = tuple(reader.fieldnames or ())
            _check_columns(columns, where)
            entries = [_from_row(path, row, where, single_class) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{where}: {_METADATA} cannot be read: {err}") from err
    files = [e.file for e in entries]
    if len(set(files)) != len(files):
        twice = next(f for f in files if files.count(f) > 1)
        raise DataError(f"{where}: {_METADATA} lists {twice.relative_to(path.resolve())} twice")
    # Files nobody listed are counted, so that a forgotten row is seen in the report.
    listed = {f for e in entries for f in (e.file, e.mask, e.second_mask) if f is not None}
    label = entries[0].label if entries else ""
    for _, file in _class_files(path.resolve()):
        if file not in listed and file.suffix.lower() in (".png", ".jpg", ".jpeg"):
            entries.append(_Entry(file=file, label=label, reason="not-in-metadata"))
    return entries


def _check_columns(columns: tuple[str, ...], where: str) -> None:
    """The header has at least ``file_name``."""
    if "file_name" not in columns:
        raise DataError(
            f"{where}: {_METADATA} has the columns {list(columns)}; expected file_name and "
            f"any of {', '.join(_KNOWN_COLUMNS[1:])}"
        )


def _from_row(path: Path, row: dict[str, str], where: str, single_class: str | None) -> _Entry:
    """One row of the metadata; an absent column is None, an empty patient id stays empty."""
    file = _inside(path, row["file_name"], where)
    folder, *rest = file.relative_to(path.resolve()).parts
    label = row.get("label") or (folder if rest else "") or single_class
    if not label:
        raise DataError(f"{where}: {_METADATA} gives a file without sub-folder no label")
    mask, second = row.get("mask"), row.get("second_mask")
    return _Entry(
        file=file,
        label=label.strip(),
        patient_id=None if row.get("patient_id") is None else row["patient_id"].strip(),
        mask=_inside(path, mask, where) if mask else None,
        site=row.get("site"),
        split=row.get("split"),
        second_mask=_inside(path, second, where) if second else None,
        sex=row.get("sex"),
        age=row.get("age"),
    )


def _inside(path: Path, name: str, where: str) -> Path:
    """A file the metadata names, refused if it lies outside the folder."""
    root = path.resolve()
    file = (root / name.strip()).resolve()
    if root not in file.parents:
        raise DataError(f"{where}: {_METADATA} names {name!r}, which is not inside the folder")
    return file
