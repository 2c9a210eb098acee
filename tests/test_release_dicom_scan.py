"""What a DICOM file can hide is found: behind the pixels, in bytes, codes, depths and numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from synth_common.release.dicom import DicomWriter, Origin
from synth_common.release.metadata import scan
from synth_common.release.picture import Picture

PIXELS = np.random.default_rng(0).integers(100, 140, (1, 64, 64), dtype=np.uint8)
SAID = "Patient Anna Mueller 1960-01-01 "


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """A synthetic object of our own, with nothing to be found."""
    origin = Origin(
        "12ab34cd",
        "Trained under differential privacy: epsilon 2.00, delta 1e-05 per patient at each site; "
        "run 0a1b",
    )
    DicomWriter(tmp_path, ["lesion"], origin).add(Picture(3, "train", 0, 1, PIXELS, None))
    path = tmp_path / "dicom" / "train" / "000003.dcm"
    assert _found(path) == set()
    return path


def _found(path: Path) -> set[tuple[str, str]]:
    return {(finding.kind, finding.place) for finding in scan(path, pixels=False).findings}


def _planted(path: Path, plant: Callable[[Dataset], object]) -> set[tuple[str, str]]:
    """Findings after a change of the data set."""
    data = dcmread(path)
    plant(data)
    data.save_as(path)
    return _found(path)


def _append(path: Path, content: bytes) -> set[tuple[str, str]]:
    path.write_bytes(path.read_bytes() + content)
    return _found(path)


def _element(group: int, number: int, vr: bytes, content: bytes) -> bytes:
    """An element in explicit VR, little endian (PS3.5, 7.1.2), with a length of two bytes."""
    tag = group.to_bytes(2, "little") + number.to_bytes(2, "little")
    return tag + vr + len(content).to_bytes(2, "little") + content


# ------------------------------------------------------------------- behind the pixels


def test_private_text_behind_the_pixels_is_found(synthetic: Path) -> None:
    hidden = _element(0x7FE1, 0x1001, b"LT", SAID.encode())
    place = "private element (7FE1,1001)"
    assert _append(synthetic, hidden) == {("hidden data", place)}


def test_padding_that_says_something_is_found_and_zeros_are_not(synthetic: Path) -> None:
    padding = b"\xfc\xff\xfc\xffOB\0\0" + len(SAID).to_bytes(4, "little")
    plain = synthetic.read_bytes()
    assert _append(synthetic, padding + bytes(len(SAID))) == set()
    synthetic.write_bytes(plain)
    found = _append(synthetic, padding + SAID.encode())
    assert found == {("hidden data", "DataSetTrailingPadding")}


@pytest.mark.parametrize(
    "content",
    [b"Mueller", b"\xfe\xff\x0d\xe0\0\0\0\0" + SAID.encode()],
    ids=["too short for an element", "behind a stray delimiter"],
)
def test_bytes_behind_the_data_set_are_found(synthetic: Path, content: bytes) -> None:
    assert _append(synthetic, content) == {("hidden data", "after the data set")}


def test_bytes_that_are_no_element_are_found(synthetic: Path) -> None:
    assert _append(synthetic, SAID.encode()) != set()


def test_text_behind_the_last_pixel_is_found(synthetic: Path) -> None:
    more = SAID.encode()
    found = _planted(synthetic, lambda d: setattr(d, "PixelData", d.PixelData + more))
    assert found == {("hidden data", "after the last pixel")}


def test_an_element_that_stands_twice_is_found(synthetic: Path) -> None:
    content = synthetic.read_bytes()
    name = _element(0x0010, 0x0010, b"PN", b"SYN-12ab34cd-000003 ")
    twice = content.replace(name[:8], _element(0x0010, 0x0010, b"PN", b"Mueller^Anna") + name[:8])
    assert len(twice) > len(content)
    synthetic.write_bytes(twice)
    assert _found(synthetic) == {("hidden data", "element (0010,0010)")}


def test_a_file_that_ends_within_an_element_is_unreadable(synthetic: Path) -> None:
    synthetic.write_bytes(synthetic.read_bytes()[:-100])
    assert _found(synthetic) == {("unreadable", "data set")}


def test_what_stands_before_a_broken_sequence_is_looked_at(synthetic: Path) -> None:
    content = synthetic.read_bytes()
    endless = b"\xe1\x7f\x10\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    named = content.replace(b"SYN-12ab34cd-000003 ", b"Mueller^Anna Sabrina", 1)
    assert named != content
    synthetic.write_bytes(named + endless)
    assert _found(synthetic) == {("unreadable", "data set"), ("name", "PatientName")}
