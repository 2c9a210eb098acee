"""Image sets in ``.npz`` files: MedMNIST keys, MNIST keys, and our own."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
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

_LAYOUTS = (
    "images, labels [, patient_ids, masks, second_masks, split, sex, age]",
    "train_images, train_labels [, val_images, val_labels, test_images, test_labels]",
    "x_train, y_train [, x_test, y_test]",
)
_SPLITS = ("train", "val", "test")


class NpzSource(StrictModel):
    """A set in one ``.npz`` file. Three layouts are recognised by their keys.

    Attributes:
        name: How sites and reports call the source.
        path: The file; a relative path starts at ``data.root``.
        licence: Licence and attribution as the owner states them.
        labels: Class names in the order of the file's integer labels. Left empty, the
            file's own ``class_names`` are used, or its labels are text already.
        label_map: Source class -> canonical class, for names that differ.
        leave_out: Source classes whose images are set aside.
        splits: Which of the file's own splits to take; None takes all.
        image_key, mask_key, second_mask_key, patient_key, split_key, label_key, sex_key, age_key:
            Keys of the columns, where the file calls them otherwise (own layout only).
        single_class: Every image has this class; the file needs no labels.
        site_key: Key of a hospital column (own layout only). A row of several numbers, such
            as an image's original height and width, is read as one text: ``256x320``.
        site_names: Names of the hospitals in the order of the column's integers.
        pixel_spacing_mm: Millimetres along a side of a pixel of the stored images, as the owner
            states it; None: distances are in pixels only.
    """

    kind: Literal["npz"] = "npz"
    name: Annotated[str, Field(min_length=1)]
    path: Path
    licence: str = "NOT RECORDED"
    labels: tuple[str, ...] = ()
    label_map: dict[str, str] = Field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    splits: tuple[str, ...] | None = None
    image_key: str = "images"
    mask_key: str = "masks"
    second_mask_key: str = "second_masks"
    patient_key: str = "patient_ids"
    split_key: str = "split"
    label_key: str = "labels"
    sex_key: str = "sex"
    age_key: str = "age"
    single_class: str | None = None
    site_key: str | None = None
    site_names: tuple[str, ...] = ()
    pixel_spacing_mm: Spacing | None = None


@dataclass(frozen=True)
class _Columns:
    """The arrays of a file as they are stored, one row per offered image."""

    images: npt.NDArray[Any]
    labels: npt.NDArray[Any] | None
    class_names: tuple[str, ...]
    patient_ids: npt.NDArray[Any] | None = None
    masks: npt.NDArray[Any] | None = None
    sites: npt.NDArray[Any] | None = None
    splits: npt.NDArray[Any] | None = None
    second_masks: npt.NDArray[Any] | None = None
    sexes: npt.NDArray[Any] | None = None
    ages: npt.NDArray[Any] | None = None

    def rows(self, index: npt.NDArray[np.bool_]) -> _Columns:
        """The rows at ``index``."""
        if index.all():
            return self
        columns: dict[str, Any] = {
            k: v[index] for k, v in vars(self).items() if isinstance(v, np.ndarray)
        }
        return replace(self, **columns)


def load_npz(source: NpzSource, target: Target, path: Path) -> Collected:
    """Read and preprocess the file of a source.

    Args:
        source: What to take from the file, and how to read its labels.
        target: The picture to reach.
        path: The file, resolved.

    Returns:
        The accepted images, and a reason for each one set aside.

    Raises:
        DataError: The file is missing, damaged or needs pickle; keys, dtypes, shapes or
            labels are other than documented. Names the path and what was found.
        ConfigError: The label map does not fit.
    """
    where = f"source {source.name!r} ({path})"
    columns = _pick_splits(_read(source, path, where), source, where)
    _check_lengths(columns, where)
    n = len(columns.images)
    if n == 0:
        raise DataError(f"{where}: holds no images")
    codes = _codes(source, columns, target, where)
    reasons = np.full(n, "", dtype=object)
    reasons[constant_images(_shaped(columns.images, where))] = "constant"
    if columns.patient_ids is not None:
        reasons[text_column(columns.patient_ids) == ""] = "no-patient-id"
    reasons[codes == LEFT_OUT] = "class-left-out"
    good = reasons == ""
    images = _image_set(columns.rows(good), codes[good], source, target, where)
    set_aside: tuple[Reason, ...] = tuple(reasons[~good])
    return Collected(images=images, offered=n, set_aside=set_aside)


def _image_set(
    columns: _Columns,
    codes: npt.NDArray[np.int64],
    source: NpzSource,
    target: Target,
    where: str,
) -> ImageSet:
    """Preprocess accepted rows."""
    masks = second = None
    if target.with_mask:
        if columns.masks is None:
            raise DataError(
                f"{where}: has no key {source.mask_key!r}, but generator.with_mask is true"
            )
        masks = preprocess_masks(columns.masks, target.size)
        if columns.second_masks is not None:
            second = preprocess_masks(columns.second_masks, target.size)
    spacings = None
    if source.pixel_spacing_mm is not None:
        height, width = columns.images.shape[1:3]
        spacing = resized_spacing(source.pixel_spacing_mm, height, width, target.size)
        spacings = np.full(len(codes), spacing)
    return ImageSet(
        images=preprocess_images(columns.images, target, f"{where}: images"),
        labels=codes,
        class_names=target.classes,
        patient_ids=None if columns.patient_ids is None else text_column(columns.patient_ids),
        masks=masks,
        sites=None
        if columns.sites is None
        else _named(columns.sites, source.site_names, f"{where}: {source.site_key}", "site_names"),
        splits=None if columns.splits is None else text_column(columns.splits),
        second_masks=second,
        sexes=None if columns.sexes is None else sex_column(columns.sexes, where),
        ages=None if columns.ages is None else age_column(columns.ages, where),
        spacings=spacings,
    )


def _read(source: NpzSource, path: Path, where: str) -> _Columns:
    """Open the file and read the layout that its keys announce."""
    if not path.is_file():
        raise DataError(f"{where}: no such file")
    try:
        with path.open("rb") as handle:
            # Pickles can run code: allow_pickle stays off whatever the file asks for.
            archive = np.load(handle, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{where}: holds one bare array; expected an .npz archive")
            with archive:
                return _read_layout(_Archive(archive, where), source)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise DataError(f"{where}: not a readable .npz file: {err}") from err


class _Archive:
    """A lazily read archive whose refusals name the file and the key."""

    def __init__(self, archive: np.lib.npyio.NpzFile, where: str) -> None:
        self._archive = archive
        self.keys = tuple(archive.files)
        self.where = where

    def get(self, key: str) -> npt.NDArray[Any]:
        """The array under ``key``."""
        if key not in self.keys:
            raise DataError(
                f"{self.where}: key {key!r} is missing; found {', '.join(self.keys) or 'none'}; "
                f"expected {' or '.join(_LAYOUTS)}"
            )
        try:
            array: npt.NDArray[Any] = self._archive[key]
        except ValueError as err:  # NumPy's refusal of object arrays
            raise DataError(
                f"{self.where}: key {key!r} cannot be read without pickle (an object array, "
                f"perhaps of images of unequal size): {err}"
            ) from err
        return array

    def find(self, key: str) -> npt.NDArray[Any] | None:
        """The array under ``key``, or None."""
        return self.get(key) if key in self.keys else None


def _read_layout(archive: _Archive, source: NpzSource) -> _Columns:
    """The columns of whichever layout the keys belong to."""
    foreign = source.image_key == "images" and any(
        key in archive.keys for key in ("train_images", "x_train")
    )
    if not foreign:
        return _read_own(archive, source)
    if source.site_key is not None:
        raise DataError(
            f"{archive.where}: site_key = {source.site_key!r} needs the layout {_LAYOUTS[0]}"
        )
    medmnist = "train_images" in archive.keys
    pattern = ("{}_images", "{}_labels") if medmnist else ("x_{}", "y_{}")
    there = [s for s in _SPLITS if pattern[0].format(s) in archive.keys]
    chosen = _known_splits(source.splits, there, archive.where)
    pictures = [archive.get(pattern[0].format(s)) for s in chosen]
    if len({(p.shape[1:], p.dtype) for p in pictures}) > 1:
        raise DataError(
            f"{archive.where}: the splits {chosen} hold images of unequal shape or type"
        )
    labels = (
        None
        if source.single_class is not None
        else np.concatenate(
            [_flat(archive.get(pattern[1].format(s)), archive.where) for s in chosen]
        )
    )
    return _Columns(
        images=np.concatenate(pictures),
        labels=labels,
        class_names=_class_names(archive, source),
        splits=np.repeat(np.array(chosen), [len(p) for p in pictures]),
    )


def _read_own(archive: _Archive, source: NpzSource) -> _Columns:
    """The layout ``images, labels [, patient_ids, masks, split]``."""
    single = source.single_class is not None
    return _Columns(
        images=archive.get(source.image_key),
        labels=None if single else _flat(archive.get(source.label_key), archive.where),
        class_names=_class_names(archive, source),
        patient_ids=_column(archive, source, "patient_key"),
        masks=_column(archive, source, "mask_key"),
        sites=None if source.site_key is None else _joined(archive.get(source.site_key)),
        splits=_column(archive, source, "split_key"),
        second_masks=_column(archive, source, "second_mask_key"),
        sexes=_column(archive, source, "sex_key"),
        ages=_column(archive, source, "age_key"),
    )


def _column(archive: _Archive, source: NpzSource, option: str) -> npt.NDArray[Any] | None:
    """An optional column under its usual key; one that the source renames must be there."""
    key = getattr(source, option)
    usual = key == NpzSource.model_fields[option].default
    return archive.find(key) if usual else archive.get(key)


def _joined(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A column whose rows are several numbers, (N, k), as text: ``256x320``."""
    if column.ndim != 2:
        return column
    return np.array(["x".join(map(str, row)) for row in column.tolist()], dtype=np.str_)


def _class_names(archive: _Archive, source: NpzSource) -> tuple[str, ...]:
    """Class names in label order: the configured ones, else the file's."""
    if source.labels or source.label_key != "labels":
        return source.labels
    names = archive.find("class_names")
    return () if names is None else tuple(str(name) for name in names)


def _flat(labels: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """MedMNIST's (N, 1) labels as (N,)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"{where}: labels have shape {labels.shape}; expected (N,) or (N, 1)")
    return labels


def _shaped(images: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """The image array, refused unless its shape is documented."""
    plain = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if plain and 0 not in images.shape[1:]:
        return images
    raise DataError(
        f"{where}: images have shape {images.shape}; expected (N, H, W) or (N, H, W, 1 or 3)"
    )


def _check_lengths(columns: _Columns, where: str) -> None:
    """Every column has one row per image."""
    n = len(_shaped(columns.images, where))
    for name in (
        "labels",
        "patient_ids",
        "masks",
        "second_masks",
        "sites",
        "splits",
        "sexes",
        "ages",
    ):
        column = getattr(columns, name)
        if column is not None and len(column) != n:
            raise DataError(f"{where}: {name} has {len(column)} rows for {n} images")


def _known_splits(wanted: Sequence[str] | None, there: Sequence[str], where: str) -> list[str]:
    """The chosen splits, refused if the file lacks one."""
    if wanted is None:
        return list(there)
    missing = [s for s in wanted if s not in there]
    if missing:
        raise DataError(f"{where}: splits {missing} are not there; found {list(there) or 'none'}")
    return list(wanted)


def _pick_splits(columns: _Columns, source: NpzSource, where: str) -> _Columns:
    """Rows of the chosen splits (the other layouts have chosen while reading)."""
    wanted = source.splits
    if wanted is None:
        return columns
    if columns.splits is None:
        raise DataError(
            f"{where}: splits = {list(wanted)}, but the file has no key {source.split_key!r}"
        )
    there = text_column(columns.splits)
    chosen = _known_splits(wanted, sorted({str(s) for s in there}), where)
    return columns.rows(np.isin(there, chosen))


def _codes(
    source: NpzSource, columns: _Columns, target: Target, where: str
) -> npt.NDArray[np.int64]:
    """Canonical label of every offered image."""
    rule = LabelRule(where, source.label_map, source.leave_out, target.classes)
    n = len(columns.images)
    if columns.labels is None:
        name = source.single_class or ""
        return np.repeat(rule.codes([name]), n)
    if columns.labels.dtype.kind in "US":
        return rule.encode(text_column(columns.labels))
    values = _integers(columns.labels, len(columns.class_names), f"{where}: labels", "labels")
    return rule.codes(columns.class_names)[values]


def _integers(
    values: npt.NDArray[Any], n_names: int, where: str, option: str
) -> npt.NDArray[np.int64]:
    """Integer codes, refused outside 0..n_names-1."""
    if values.dtype.kind not in "iu":
        raise DataError(f"{where} are {values.dtype}; expected integers or text")
    if not n_names:
        raise DataError(f"{where} are integers without names; list them in {option}")
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high >= n_names:
        raise DataError(
            f"{where} run from {low} to {high}; {n_names} names allow 0 to {n_names - 1}"
        )
    return values.astype(np.int64)


def _named(
    column: npt.NDArray[Any], names: Sequence[str], where: str, option: str
) -> npt.NDArray[np.str_]:
    """A column of names: text as it is, integers through ``names`` if there are any."""
    if column.dtype.kind in "US" or not names:
        return text_column(column)
    return text_column(np.array(names)[_integers(column, len(names), where, option)])
