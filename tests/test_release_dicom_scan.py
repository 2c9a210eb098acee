"""What a DICOM file can hide is found: behind the pixels, in bytes, codes, depths and numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from synth_common.release import dicom_file, metadata
from synth_common.release.burned_in import text_like
from synth_common.release.dicom import DicomWriter, Origin, unmarked
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


@pytest.mark.parametrize("undefined", [False, True])
def test_what_stands_twice_in_an_item_is_found(synthetic: Path, undefined: bool) -> None:
    words = _element(0x0020, 0x4000, b"LT", SAID.encode())
    inner = words + _element(0x0020, 0x4000, b"LT", b"")
    length = b"\xff\xff\xff\xff" if undefined else len(inner).to_bytes(4, "little")
    item = b"\xfe\xff\x00\xe0" + length + inner + b"\xfe\xff\x0d\xe0\0\0\0\0" * undefined
    length = b"\xff\xff\xff\xff" if undefined else len(item).to_bytes(4, "little")
    end = b"\xfe\xff\xdd\xe0\0\0\0\0" * undefined
    sequence = b"\x08\x00\x40\x11SQ\0\0" + length + item + end
    content = synthetic.read_bytes()
    at = content.index(b"\x10\x00\x10\x00PN")
    synthetic.write_bytes(content[:at] + sequence + content[at:])
    assert _found(synthetic) == {("hidden data", "sequence (0008,1140)")}


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


# ------------------------------------------------------------------ bytes beside pixels


def _icon(data: Dataset) -> None:
    item = Dataset()
    item.add_new(0x7FE00010, "OB", SAID.encode())
    data.IconImageSequence = [item]


def _information(data: Dataset) -> None:
    data.file_meta.PrivateInformationCreatorUID = "1.2.840.10008.1.1"
    data.file_meta.PrivateInformation = SAID.encode()


def _encrypted(data: Dataset) -> None:
    item = Dataset()
    item.EncryptedContentTransferSyntaxUID = "1.2.840.10008.1.2.1"
    item.EncryptedContent = SAID.encode()
    data.EncryptedAttributesSequence = [item]


def _table(data: Dataset) -> None:
    item = Dataset()
    item.add_new(0x00283006, "OW", SAID.encode())
    data.ModalityLUTSequence = [item]


def _numbers(data: Dataset) -> None:
    item = Dataset()
    item.add_new(0x00283006, "US", [*SAID.encode(), *SAID.encode(), *SAID.encode()])
    data.VOILUTSequence = [item]


HIDDEN: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "a document": (
        lambda d: d.add_new(0x00420011, "OB", b"%PDF-1.7 " + SAID.encode() + b" "),
        "EncapsulatedDocument",
    ),
    "pixels of an icon": (_icon, "IconImageSequence/PixelData"),
    "a curve": (lambda d: d.add_new(0x50003000, "OW", SAID.encode()), "curve (5000,3000)"),
    "a curve of numbers": (lambda d: d.add_new(0x50003000, "US", [77, 85]), "curve (5000,3000)"),
    "private information": (_information, "PrivateInformation"),
    "encrypted content": (_encrypted, "EncryptedAttributesSequence/EncryptedContent"),
    "a table of words": (_table, "ModalityLUTSequence/LUTData"),
    "a table of numbers": (_numbers, "VOILUTSequence/LUTData"),
    "doubles": (lambda d: d.add_new(0x00720073, "OD", SAID.encode()), "SelectorODValue"),
    "an unknown element": (lambda d: d.add_new(0x00101313, "UN", SAID.encode()), "(0010,1313)"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_bytes_beside_the_pixels_are_found(synthetic: Path, name: str) -> None:
    plant, place = HIDDEN[name]
    assert _planted(synthetic, plant) == {("hidden data", place)}


# ----------------------------------------------------------------- code strings, numbers


@pytest.mark.parametrize(
    ("keyword", "value", "kind"),
    [
        ("ContentQualification", "MUELLER_ANNA", "free text"),
        ("Modality", "MUELLER", "free text"),
        ("ImageType", ["DERIVED", "SECONDARY", "MUELLER"], "free text"),
        ("ScanOptions", "19600101", "date"),
        ("PatientOrientation", ["MUELLER", "L"], "patient data"),
        ("PatientPosition", "MUELLER", "patient data"),
        ("SpecificCharacterSet", ["ISO_IR 192", "MUELLER"], "free text"),
        ("InstanceNumber", "19600101", "date"),
        ("SeriesNumber", "4711081", "id"),
        ("SliceThickness", "19600101", "date"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # pydicom warns of such values
def test_code_strings_and_numbers_are_searched(
    synthetic: Path, keyword: str, value: object, kind: str
) -> None:
    assert _planted(synthetic, lambda d: setattr(d, keyword, value)) == {(kind, keyword)}


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("Modality", "MR"),
        ("BodyPartExamined", "WHOLE BODY"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        ("ScanOptions", ["FC", "SP"]),
        ("PatientPosition", "HFDR"),
        ("PatientOrientation", ["L", "PF"]),
        ("LossyImageCompressionMethod", "ISO_10918_1"),
        ("WindowCenter", ["40.5", "-600"]),
        ("PixelSpacing", ["0.98765432", "0.15643446"]),
    ],
)
def test_defined_terms_and_measures_are_left_alone(
    synthetic: Path, keyword: str, value: object
) -> None:
    assert _planted(synthetic, lambda d: setattr(d, keyword, value)) == set()


# --------------------------------------------------------------------------------- codes


def _coded(sequence: str, scheme: str, value: str, meaning: str) -> Callable[[Dataset], None]:
    def plant(data: Dataset) -> None:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        setattr(data, sequence, [item])

    return plant


@pytest.mark.parametrize(
    ("sequence", "code", "expected"),
    [
        ("AnatomicRegionSequence", ("SCT", "39607008", "Lung"), {}),
        ("AnatomicRegionSequence", ("SRT", "T-28000", "Lung"), {}),
        ("MeasurementUnitsCodeSequence", ("UCUM", "mm[Hg]", "mm Hg"), {}),
        ("ConceptNameCodeSequence", ("LN", "18748-4", "Diagnostic imaging report"), {}),
        (
            "AnatomicRegionSequence",
            ("99WARD", "4711", "Mueller"),
            {
                "CodeValue": "free text",
                "CodingSchemeDesignator": "free text",
                "CodeMeaning": "free text",
            },
        ),
        ("AnatomicRegionSequence", ("SCT", "39607008", "Dr. Mueller"), {"CodeMeaning": "name"}),
        ("AnatomicRegionSequence", ("DCM", "MUELLER", "Lung"), {"CodeValue": "id"}),
        ("MeasurementUnitsCodeSequence", ("UCUM", "MUELLER", "mm"), {"CodeValue": "id"}),
        (
            "PersonIdentificationCodeSequence",
            ("DCM", "121024", "Mueller"),
            {"CodeValue": "name", "CodingSchemeDesignator": "name", "CodeMeaning": "name"},
        ),
        (
            "InstitutionCodeSequence",
            ("SCT", "39607008", "Ward"),
            {
                "CodeValue": "institution",
                "CodingSchemeDesignator": "institution",
                "CodeMeaning": "institution",
            },
        ),
    ],
)
def test_codes_pass_in_public_schemes_only_and_never_for_persons(
    synthetic: Path, sequence: str, code: tuple[str, str, str], expected: dict[str, str]
) -> None:
    found = _planted(synthetic, _coded(sequence, *code))
    assert found == {(kind, f"{sequence}/{part}") for part, kind in expected.items()}


def test_codes_deep_below_a_person_are_found(synthetic: Path) -> None:
    item, code = Dataset(), Dataset()
    _coded("PersonIdentificationCodeSequence", "DCM", "121024", "Mueller")(item)
    _coded("EquivalentCodeSequence", "DCM", "121024", "Mueller")(code)
    item.PersonIdentificationCodeSequence[0].update(code)
    found = _planted(synthetic, lambda d: setattr(d, "OperatorIdentificationSequence", [item]))
    place = "OperatorIdentificationSequence/PersonIdentificationCodeSequence"
    assert ("name", f"{place}/EquivalentCodeSequence/CodeMeaning") in found


# --------------------------------------------------------------------------------- depth


@pytest.mark.parametrize("depth", [1, 12, 13, 40])
def test_names_are_found_at_every_depth_or_the_depth_is_told(synthetic: Path, depth: int) -> None:
    inner = Dataset()
    inner.ImageComments = "Patient Mueller"
    for _ in range(depth):
        outer = Dataset()
        outer.ReferencedSeriesSequence = [inner]
        inner = outer
    found = _planted(synthetic, lambda d: d.update(inner))
    name = "ReferencedSeriesSequence"
    if depth <= 12:
        assert found == {("name", "/".join([name] * depth + ["ImageComments"]))}
    else:
        assert found == {("hidden data", "/".join([name] * 13))}


# ---------------------------------------------------------------------------- our own marks


@pytest.mark.parametrize(
    ("keyword", "value", "kind"),
    [
        ("PatientName", "SYN-Mueller^Anna", "name"),
        ("PatientName", "SYN-12ab34cd-000003^Anna", "name"),
        ("PatientID", "SYN-4711", "id"),
        ("StudyInstanceUID", "2.25.19600101.4711", "id"),
        ("StudyInstanceUID", "2.25.19600101", "id"),
        ("StudyInstanceUID", f"2.25.{2**128}", "id"),
        ("StudyInstanceUID", "1.2.840.10008.19600101", "id"),
        ("ReferencedSOPInstanceUID", ["1.2.840.10008.1.2", "1.2.276.4711"], "id"),
        ("SoftwareVersions", "Synthward AnnaMueller", "device"),
        ("SeriesDescription", "Synthetic 1960", "free text"),
        ("DerivationDescription", "Drawn by a trained generator; shows no patient Anna", "name"),
    ],
)
def test_what_only_begins_like_our_own_is_found(
    synthetic: Path, keyword: str, value: object, kind: str
) -> None:
    assert _planted(synthetic, lambda d: setattr(d, keyword, value)) == {(kind, keyword)}


@pytest.mark.parametrize(
    ("keyword", "value", "kind"),
    [
        ("ImplementationVersionName", "MUELLER ANNA", "device"),
        ("ImplementationVersionName", "PYDICOM 19600101", "device"),
        ("ImplementationClassUID", "1.2.276.0.7230010.3.0.3.19600101", "id"),
    ],
)
def test_the_program_that_wrote_a_file_is_known_or_a_finding(
    synthetic: Path, keyword: str, value: str, kind: str
) -> None:
    plant = _planted(synthetic, lambda d: setattr(d.file_meta, keyword, value))
    assert plant == {(kind, keyword)}


def test_registered_and_random_uids_are_left_alone(synthetic: Path) -> None:
    uids = ["1.2.840.10008.1.2", f"2.25.{UUID('1b4e28ba-2fa1-4d2c-883f-0016d3cca427').int}"]
    assert _planted(synthetic, lambda d: setattr(d, "ReferencedSOPInstanceUID", uids)) == set()


# ------------------------------------------------------------------------------ deflated


def _deflated(path: Path) -> None:
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)


def test_deflated_files_are_looked_into_like_others(synthetic: Path) -> None:
    _deflated(synthetic)
    assert list(scan(synthetic).findings) == []
    comment = ("name", "ImageComments")
    assert _planted(synthetic, lambda d: setattr(d, "ImageComments", "Herr Mueller")) == {comment}
    behind = _append(synthetic, SAID.encode())
    assert behind == {comment, ("hidden data", "after the deflated data set")}


def test_a_name_in_another_alphabet_is_shown_as_it_is_written(synthetic: Path) -> None:
    def plant(data: Dataset) -> None:
        data.SpecificCharacterSet = "ISO_IR 192"
        data.PatientName = "Мюллер^Анна"

    for change in (lambda path: None, _deflated):
        _planted(synthetic, plant)
        change(synthetic)
        assert [finding.value for finding in scan(synthetic).findings] == ["Мюллер^Анна"]


def test_deflated_files_are_inflated_within_bounds(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dcmread(synthetic)
    data.PixelData = bytes(4_000_000)
    data.Rows, data.Columns = 2000, 2000
    data.save_as(synthetic)
    _deflated(synthetic)
    assert synthetic.stat().st_size < 10_000
    assert _found(synthetic) == set()
    monkeypatch.setattr(dicom_file, "_MOST_INFLATED", 1_000_000)
    assert _found(synthetic) == {("unreadable", "header")}
    assert unmarked(synthetic) == ["it cannot be read as DICOM"]


# -------------------------------------------------------------------------------- pixels


def test_one_value_that_is_no_number_does_not_hide_text() -> None:
    picture = Image.fromarray(np.full((128, 128), 90, dtype=np.uint8))
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(picture).text((3, 2), "MUELLER^ANNA 1960", fill=255, font=font)
    pixels = np.asarray(picture, dtype=np.float32).copy()
    for odd in (np.nan, np.inf, -np.inf):
        pixels[100, 100] = odd
        assert text_like(pixels.astype(np.float64))
    assert text_like(np.full((128, 128), np.nan)) == []


def test_pixels_that_cannot_be_searched_are_a_finding(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(image: np.ndarray) -> list[tuple[int, int, int, int]]:
        raise MemoryError

    monkeypatch.setattr(metadata, "text_like", fails)
    found = {(finding.kind, finding.place) for finding in scan(synthetic).findings}
    assert found == {("unreadable", "pixels")}


def test_a_file_in_no_known_syntax_is_looked_into_all_the_same(synthetic: Path) -> None:
    def plant(data: Dataset) -> None:
        data.ImageComments = "Herr Mueller"

    _planted(synthetic, plant)
    content = synthetic.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.276.19600101.47\0")
    synthetic.write_bytes(content)
    assert _found(synthetic) == {
        ("id", "TransferSyntaxUID"),
        ("name", "ImageComments"),
        ("unreadable", "PixelData"),
    }
