"""Sets to audit, from wherever they lie: what they hold is looked at before it is read.

The picture that all sets are brought to is that of the synthetic images, so that no real
image is compared at a resolution nobody releases.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from synth_common.errors import ConfigError, DataError
from synth_common.images.imageset import ImageSet
from synth_common.images.preprocess import Target, text_column
from synth_common.images.sources import FolderSource, IntakeReport, NpzSource, load_source

Column = npt.NDArray[np.str_]

UNLABELLED = "unlabelled"
"""Class of all images where a set has no classes."""

_SUFFIXES = (".png", ".jpg", ".jpeg")
_KNOWN = ("file_name", "label", "patient_id", "mask", "site", "split")
_NPZ_KNOWN = ("images", "labels", "patient_ids", "masks", "split", "class_names")
_DATES = ("date", "study_date", "acquisition_date")
# Of a release bundle; its names live in synth_common.release, which stands above this room.
_SIGNATURE, _IMAGES = "release.intoto.jsonl", "images"
_LOOKED_AT = 16
_SMALLEST, _LARGEST = 28, 128


@dataclass(frozen=True)
class Outline:
    """What a source holds, before its pixels are read.

    Attributes:
        path: The folder or file.
        splits: Splits to take of a file; None takes all.
        classes: Class names found; empty where images have none.
        sides: (N, 2) stored height and width of the images.
        colour: Whether colours were seen in the images that were looked at.
        columns: Further columns by name, a text per row.
        patients: Patient id per row, where there are ids.
    """

    path: Path
    splits: tuple[str, ...] | None
    classes: tuple[str, ...]
    sides: npt.NDArray[np.int64]
    colour: bool
    columns: Mapping[str, Column] = field(default_factory=dict)
    patients: Column | None = None


@dataclass(frozen=True)
class AuditSet:
    """A set as it is audited. SENSITIVE unless synthetic.

    Attributes:
        images: The images.
        outline: What the source holds.
        report: What became of the images offered.
        attributes: Further columns by name, (N,) a text per image.
        dates: Days since year 1 of the rows that have a date; empty where none is recorded.
    """

    images: ImageSet
    outline: Outline
    report: IntakeReport
    attributes: Mapping[str, Column] = field(default_factory=dict)
    dates: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def outline(text: str, option: str) -> Outline:
    """Look at a source: a folder of PNG or JPEG, an ``.npz`` file, or ``FILE.npz:SPLIT``.

    Raises:
        DataError: It does not exist, is neither, holds no images, or is the root of a release,
            whose images lie in ``images``.
    """
    path, splits = Path(text).expanduser(), None
    if not path.exists() and ".npz:" in text:
        name, _, split = text.rpartition(":")
        path, splits = Path(name).expanduser(), (split,)
    if (path / _SIGNATURE).is_file() and (path / _IMAGES).is_dir():
        # Read as a folder of classes, a release would be one class called "images".
        raise DataError(
            f"{option} {text}: is a release; name its images: {option} {path / _IMAGES}"
        )
    if path.is_dir():
        return _folder_outline(path, option)
    if path.is_file() and path.suffix == ".npz":
        return _npz_outline(path, splits, option)
    raise DataError(f"{option} {text}: neither a folder of PNG or JPEG files nor an .npz file")


def common_target(outlines: list[Outline], size: int | None) -> Target:
    """The picture that all sets are brought to: that of the first, the synthetic one.

    Args:
        outlines: Of all sets, the synthetic one first.
        size: Height and width to use instead of the synthetic images' own.

    Raises:
        ConfigError: ``size`` is not 28 to 128 and a multiple of 4.
    """
    if size is not None and not (_SMALLEST <= size <= _LARGEST and size % 4 == 0):
        raise ConfigError(f"--size {size}: must be {_SMALLEST} to {_LARGEST} and a multiple of 4")
    side = int(np.median(outlines[0].sides.max(axis=1)))
    side = min(_LARGEST, max(_SMALLEST, 4 * round(side / 4)))
    labelled = all(o.classes for o in outlines)
    classes = sorted({name for o in outlines for name in o.classes}) if labelled else [UNLABELLED]
    return Target(
        size=size or side, channels=3 if outlines[0].colour else 1, classes=tuple(classes)
    )


def load_set(found: Outline, target: Target, name: str) -> AuditSet:
    """Read a set and bring it to the target. Errors as :func:`load_source`."""
    single = UNLABELLED if target.classes == (UNLABELLED,) else None
    config: NpzSource | FolderSource
    path = found.path.resolve()
    if path.is_dir():
        config = FolderSource(name=name, path=path, single_class=single)
    else:
        labels = () if single else _codes_as_names(found)
        config = NpzSource(
            name=name,
            path=path,
            labels=labels,
            splits=found.splits,
            single_class=single,
        )
    intake = load_source(config, target, None)
    aligned = _aligned(found, intake.images)
    sites = intake.images.sites
    if sites is not None:
        aligned["site"] = sites
    return AuditSet(intake.images, found, intake.report, aligned, _days(found))


def _codes_as_names(found: Outline) -> tuple[str, ...]:
    """Names for a file whose labels are plain numbers; empty where it has names itself."""
    plain = all(name.isdecimal() for name in found.classes)
    return tuple(map(str, range(1 + max(map(int, found.classes))))) if plain else ()


def _aligned(found: Outline, images: ImageSet) -> dict[str, Column]:
    """Further columns in the order of the accepted images.

    By patient, where ids are known and a patient has one value; else row by row, if no row
    was set aside. A column that can be placed neither way is left out.
    """
    placed: dict[str, Column] = {}
    for name, values in found.columns.items():
        if name.lower() in _DATES:
            continue
        if len(values) == len(images):
            placed[name] = values
        elif found.patients is not None and images.patient_ids is not None:
            pairs = sorted(set(zip(found.patients.tolist(), values.tolist(), strict=True)))
            whose = [patient for patient, _ in pairs]
            if len(set(whose)) == len(whose):
                known = dict(pairs)
                placed[name] = text_column(known[p] for p in images.patient_ids.tolist())
    return placed


def _days(found: Outline) -> npt.NDArray[np.float64]:
    """Dates of the rows as days; what is no date is left out."""
    values = next((v for k, v in found.columns.items() if k.lower() in _DATES), None)
    if values is None:
        return np.zeros(0)
    days = []
    for text in values.tolist():
        try:
            days.append(float(date.fromisoformat(text.strip()).toordinal()))
        except ValueError:
            continue
    return np.array(days)


def _folder_outline(path: Path, option: str) -> Outline:
    """Classes, sizes and columns of a folder; only headers of images are read."""
    rows = _rows(path)
    if rows is None:
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _SUFFIXES)
        files = [f for f in files if not any(p.startswith(".") for p in f.relative_to(path).parts)]
        inside = [f.relative_to(path).parts for f in files]
        labelled = all(len(parts) > 1 for parts in inside)
        classes = {parts[0] for parts in inside} if labelled else set()
        columns: dict[str, Column] = {}
        patients = None
    else:
        files = [path / row.get("file_name", "").strip() for row in rows]
        labels = [row.get("label", "").strip() or _folder_of(row) for row in rows]
        classes = set(labels) if all(labels) else set()
        names = [key for key in (rows[0] if rows else {}) if key and key not in _KNOWN]
        columns = {key: text_column((row.get(key) or "").strip() for row in rows) for key in names}
        known = rows and "patient_id" in rows[0]
        patients = text_column(row["patient_id"].strip() for row in rows) if known else None
    if not files:
        raise DataError(f"{option} {path}: holds no PNG or JPEG files")
    sides, colour = _headers(files)
    if not len(sides):
        raise DataError(f"{option} {path}: none of its {len(files)} files can be opened")
    return Outline(path, None, tuple(sorted(classes)), sides, colour, columns, patients)


def _rows(path: Path) -> list[dict[str, str]] | None:
    """Rows of the folder's metadata; None without it."""
    table = path / "metadata.csv"
    if not table.is_file():
        return None
    try:
        with table.open(encoding="utf-8-sig", newline="") as handle:
            return list(csv.DictReader(handle, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{table} cannot be read: {err}") from err


def _folder_of(row: Mapping[str, str]) -> str:
    """The sub-folder of a row's file, which is its class where no label is given."""
    parts = Path(row.get("file_name", "").strip()).parts
    return parts[0] if len(parts) > 1 else ""


def _headers(files: list[Path]) -> tuple[npt.NDArray[np.int64], bool]:
    """(N, 2) height and width of the files that open, and whether some are coloured."""
    from PIL import Image, UnidentifiedImageError

    sides, colour = [], False
    step = max(1, len(files) // _LOOKED_AT)
    for number, file in enumerate(files):
        try:
            with Image.open(file, formats=("PNG", "JPEG")) as picture:
                sides.append((picture.height, picture.width))
                if number % step == 0 and picture.mode not in ("1", "L", "LA", "I", "I;16"):
                    colour |= _coloured(np.asarray(picture.convert("RGB")))
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
            continue  # the loader sets it aside and counts it
        except Image.DecompressionBombError:
            continue
    return np.array(sides, dtype=np.int64).reshape(-1, 2), colour


def _coloured(pixels: npt.NDArray[Any]) -> bool:
    """Whether (..., 3) pixels differ between channels."""
    return bool((pixels != pixels[..., :1]).any())


def _npz_outline(path: Path, splits: tuple[str, ...] | None, option: str) -> Outline:
    """Classes, sizes and columns of a file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            pictures = list(_parts(archive, "images", splits))
            if not pictures:
                raise DataError(
                    f"{option} {path}: found no images under the keys {', '.join(archive.files)}"
                )
            labels = list(_parts(archive, "labels", splits))
            names = [str(n) for n in archive["class_names"]] if "class_names" in archive else []
            own = _rows_taken(archive, splits)
            columns = {} if own is None else dict(_npz_columns(archive, own))
            known = own is not None and "patient_ids" in archive
            patients = archive["patient_ids"][own] if known else None
    except (OSError, ValueError, EOFError) as err:
        raise DataError(f"{option} {path}: not a readable .npz file: {err}") from err
    if any(part.ndim not in (3, 4) for part in pictures):
        shapes = [part.shape for part in pictures]
        raise DataError(f"{option} {path}: images have the shapes {shapes}")
    codes = [part.ravel() for part in labels if part.size == len(part)]
    found = sorted({str(v) for part in codes for v in np.unique(part)})
    sides = np.concatenate([np.tile(part.shape[1:3], (len(part), 1)) for part in pictures])
    colour = any(
        part.ndim == 4 and part.shape[3] == 3 and _coloured(part[:: max(1, len(part) // 16)])
        for part in pictures
    )
    return Outline(
        path,
        splits,
        tuple(names or found),
        sides,
        colour,
        columns,
        None if patients is None else text_column(patients),
    )


def _parts(
    archive: Mapping[str, npt.NDArray[Any]], what: str, splits: tuple[str, ...] | None
) -> Iterator[npt.NDArray[Any]]:
    """Arrays of images or of labels of the splits taken, in any of the three layouts."""
    short = {"images": "x", "labels": "y"}[what]
    if "train_images" in archive or "x_train" in archive:
        for split in splits or ("train", "val", "test"):
            for key in (f"{split}_{what}", f"{short}_{split}"):
                if key in archive:
                    yield archive[key]
    elif what in archive:
        yield archive[what] if splits is None else archive[what][_rows_taken(archive, splits)]


def _rows_taken(
    archive: Mapping[str, npt.NDArray[Any]], splits: tuple[str, ...] | None
) -> npt.NDArray[np.bool_] | None:
    """Rows of the own layout that the splits take; None in the layouts without further columns."""
    if "images" not in archive or "train_images" in archive or "x_train" in archive:
        return None
    if splits is None or "split" not in archive:
        return np.ones(len(archive["images"]), dtype=bool)
    return np.isin(text_column(archive["split"]), splits)


def _npz_columns(
    archive: Mapping[str, npt.NDArray[Any]], rows: npt.NDArray[np.bool_]
) -> Iterator[tuple[str, Column]]:
    """Further columns, one value per image: those of the rows taken."""
    for key in archive:
        if key not in _NPZ_KNOWN:
            array = archive[key]
            if array.shape == rows.shape and array.dtype.kind in "USiufb":
                yield key, text_column(array[rows])
