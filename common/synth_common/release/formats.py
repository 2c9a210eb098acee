"""The forms that the images of a release come in; each takes one picture at a time."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from synth_common.release.names import IMAGES, METADATA, SPLITS
from synth_common.release.picture import Picture
from synth_common.release.png import encode

Format = Literal["png", "npz", "dicom"]
FORMATS: tuple[Format, ...] = ("png", "npz", "dicom")


class Writer(Protocol):
    """Writes every picture of a release in one form."""

    def add(self, picture: Picture) -> None:
        """Take one picture. Raises OSError."""
        ...

    def close(self) -> None:
        """Write what can only be written at the end. Raises OSError."""
        ...


class PngWriter:
    """``images/SPLIT/NNNNNN.png``, marked as synthetic, and the table ``images/metadata.csv``.

    The table's ``file_name`` is relative to its own folder, as image folders have it, so that the
    folder is a source for another run, too.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._folder, self._classes = folder, classes
        self._rows: list[dict[str, str]] = []
        for split in SPLITS:
            (folder / IMAGES / split).mkdir(parents=True)

    def add(self, picture: Picture) -> None:
        """See :class:`Writer`."""
        name = f"{picture.split}/{picture.stem}.png"
        row = {
            "file_name": name,
            "label": self._classes[picture.label],
            "split": picture.split,
            "seed": str(picture.seed),
        }
        (self._folder / IMAGES / name).write_bytes(encode(picture.pixels))
        if picture.mask is not None:
            row["mask"] = f"{picture.split}/mask-{picture.stem}.png"
            mask = encode(picture.mask[None] * np.uint8(255))
            (self._folder / IMAGES / row["mask"]).write_bytes(mask)
        self._rows.append(row)

    def close(self) -> None:
        """See :class:`Writer`."""
        with (self._folder / METADATA).open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(self._rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)
        for split in SPLITS:
            folder = self._folder / IMAGES / split
            if not any(folder.iterdir()):
                folder.rmdir()


class NpzWriter:
    """``NAME.npz`` as MedMNIST has it: ``train_images``, ``train_labels`` and so on.

    Images are uint8 (N, H, W) or (N, H, W, 3), labels uint16 (N, 1) into ``class_names``, masks
    uint8 {0, 1} (N, H, W).
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self._path, self._classes = path, classes
        self._pictures: dict[str, list[Picture]] = {split: [] for split in SPLITS}
        self._shape: tuple[int, ...] = ()

    def add(self, picture: Picture) -> None:
        """See :class:`Writer`."""
        self._pictures[picture.split].append(picture)
        self._shape = _flat(picture).shape

    def close(self) -> None:
        """See :class:`Writer`."""
        arrays: dict[str, Any] = {"class_names": np.array(self._classes, dtype=np.str_)}
        for split, found in self._pictures.items():
            images = [_flat(picture) for picture in found]
            none = np.zeros((0, *self._shape), dtype=np.uint8)
            labels = np.array([p.label for p in found], dtype=np.uint16)
            arrays[f"{split}_images"] = np.stack(images) if images else none
            arrays[f"{split}_labels"] = labels.reshape(-1, 1)
            masks = [picture.mask for picture in found if picture.mask is not None]
            if masks:
                arrays[f"{split}_masks"] = np.stack(masks)
        np.savez_compressed(self._path, **arrays)


def _flat(picture: Picture) -> np.ndarray:
    """Pixels as (H, W) or (H, W, 3)."""
    pixels = picture.pixels
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
