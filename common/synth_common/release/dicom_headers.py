"""Identifiers in the header of a DICOM file.

An allow-list, as PS3.15, Annex E, and every study of de-identification advise: what is not known
to be harmless is a finding. Known are pixels, few numbers, defined terms, codes of public schemes
and what this program writes; names, dates, ids, devices, places, private elements, every text, and
bytes of whatever kind beside the pixels are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import ExplicitVRLittleEndian

from synth_common.errors import DataError
from synth_common.release.dicom_file import read
from synth_common.release.dicom_values import CODES, identifies, in_code, in_element, shown
from synth_common.release.identifiers import Kind
from synth_common.release.image_headers import Found

_OVERLAYS: Final = range(0x6000, 0x6100, 2)
_CURVES: Final = range(0x5000, 0x5100, 2)
_DEEPEST: Final = 12
_PIXELS: Final = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))


def in_dicom(path: Path) -> Iterator[Found]:
    """What a DICOM file says beside its pixels, to its last byte. Raises OSError."""
    with path.open("rb") as handle:
        preamble = handle.read(128)
    if preamble.strip(b"\0"):
        yield "hidden data", "preamble", f"{len(preamble.strip(bytes(1)))} bytes"
    try:
        file = read(path)
    except DataError as err:
        yield "unreadable", "header", str(err)
        return
    yield from (("hidden data", left.place, left.text) for left in file.leftovers)
    if file.cut:
        yield "unreadable", "data set", "the file ends within an element, or is damaged from one on"
    data = file.data
    yield from _in_dataset(data.file_meta, 0)
    yield from _in_dataset(data, 0)
    yield from _after_pixels(data)
    yield from _annotation(data)


def _annotation(data: Dataset) -> Iterator[Found]:
    """What is said of burned-in text (PS3.3, C.7.6.1)."""
    try:
        burned = str(data.get("BurnedInAnnotation", "is missing"))
    except Exception:  # of a value; it is a finding already
        burned = "cannot be read"
    if burned != "NO":
        yield "burned-in text", "BurnedInAnnotation", f"{burned}; NO would say that there is none"


def _after_pixels(data: FileDataset) -> Iterator[Found]:
    """Bytes of the pixel data behind the last pixel, where these are not compressed."""
    try:
        syntax = data.file_meta.get("TransferSyntaxUID", ExplicitVRLittleEndian)
        if "PixelData" not in data or syntax.is_encapsulated:
            return
        expected = get_expected_length(data)
        raw = data.get_item("PixelData")
        if getattr(raw, "length", expected) <= expected + expected % 2:
            return
        after = bytes(data["PixelData"].value)[expected:]
    except Exception as err:  # the elements that say how large it is can be damaged or missing
        yield "unreadable", "PixelData", f"its size is not known: {type(err).__name__}"
        return
    if after.strip(b"\0"):
        yield "hidden data", "after the last pixel", f"{len(after)} bytes"


def _in_dataset(data: Dataset, depth: int, below: Kind | None = None) -> Iterator[Found]:
    """Every element, sequences included; one that cannot be read is a finding of its own.

    ``below`` is what the sequences around it say that codes are about.
    """
    for tag in sorted(data.keys()):
        if depth == 0 and tag in _PIXELS:
            continue
        try:
            element = data[tag]
            if element.VR == "SQ" and not element.tag.is_private:
                yield from _in_sequence(element, depth, below)
            else:
                yield from _in_plain(element, str(data.get("CodingSchemeDesignator", "")), below)
        except Exception as err:  # of one element; the others are looked at all the same
            yield "unreadable", f"element {tag}", type(err).__name__


def _in_sequence(element: DataElement, depth: int, below: Kind | None) -> Iterator[Found]:
    """Every item of a sequence."""
    name = element.keyword or str(element.tag)
    if depth >= _DEEPEST and element.value:
        yield "hidden data", name, f"nested too deep: {len(element.value)} items not looked at"
        return
    below = below or identifies(name)
    for item in element.value:
        yield from ((k, f"{name}/{p}", v) for k, p, v in _in_dataset(item, depth + 1, below))


def _in_plain(element: DataElement, scheme: str, below: Kind | None) -> Iterator[Found]:
    """An element that is no sequence, or a private one."""
    tag, name = element.tag, element.keyword or str(element.tag)
    if tag.is_private:
        yield "hidden data", f"private element {tag}", shown(element.value)
    elif tag.group in _OVERLAYS and tag.element == 0x3000:
        yield "hidden data", f"overlay {tag}", "may hold text"
    elif tag.group in _CURVES:
        yield "hidden data", f"curve {tag}", "may hold text"
    elif name in CODES:
        yield from in_code(name, element.value, scheme, below)
    else:
        yield from in_element(name, element.VR, element.value)


def grey_frame(path: Path) -> npt.NDArray[np.float64]:
    """The first frame of a DICOM file as (H, W) grey values, as they are stored.

    One that holds no image gives a single pixel.

    Raises:
        Exception: Whatever the decoder meets.
    """
    data = read(path).data
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return np.zeros((1, 1))
    pixels = np.asarray(data.pixel_array, dtype=np.float64)
    if int(data.get("NumberOfFrames", 1) or 1) > 1:
        pixels = pixels[0]
    return pixels.mean(axis=-1) if pixels.ndim == 3 else pixels
