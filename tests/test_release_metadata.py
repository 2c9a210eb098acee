"""Identifiers that were planted are found, of every kind and in every place; clean files pass."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import (
    ExifTags,
    Image,
    ImageDraw,
    ImageFont,
    PngImagePlugin,
    TiffImagePlugin,
    TiffTags,
)
from pydicom import dcmread
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from synth_common.errors import ConfigError, IdentifierError
from synth_common.release.burned_in import text_like
from synth_common.release.dicom import DicomWriter, Origin
from synth_common.release.identifiers import in_name, in_text
from synth_common.release.marking import xmp_packet
from synth_common.release.metadata import scan
from synth_common.release.picture import Picture
from synth_common.release.png import encode
from synth_sim.audit_cli import app

PIXELS = np.random.default_rng(0).integers(100, 140, (1, 64, 64), dtype=np.uint8)


def _found(path: Path) -> set[tuple[str, str]]:
    return {(finding.kind, finding.place) for finding in scan(path, pixels=False).findings}


def _picture() -> Image.Image:
    return Image.fromarray(PIXELS[0])


def _png(path: Path, **texts: str) -> None:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    _picture().save(path, pnginfo=info)


def _insert(path: Path, kind: bytes, data: bytes) -> None:
    """Put a chunk before the pixels."""
    content = encode(PIXELS)
    at = content.index(b"IDAT") - 4
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    chunk = struct.pack(">I", len(data)) + kind + data + checksum
    path.write_bytes(content[:at] + chunk + content[at:])


def _exif(path: Path, **values: object) -> None:
    exif = Image.Exif()
    for name, value in values.items():
        if name.startswith("GPS"):
            exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS[name].value] = value
        elif name in ("BodySerialNumber", "UserComment", "DateTimeOriginal"):
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base[name].value] = value
        else:
            exif[ExifTags.Base[name].value] = value
    _picture().save(path, exif=exif)


def _xmp(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta><dc:creator>Dr. Weber</dc:creator></x:xmpmeta>")
    _picture().save(path, pnginfo=info)


def _zip(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "MRN 0012345", zip=True)
    _picture().save(path, pnginfo=info)


def _tail(path: Path) -> None:
    path.write_bytes(encode(PIXELS) + b"Patient: Hans")


def _jpeg() -> bytes:
    out = io.BytesIO()
    _picture().save(out, format="JPEG")
    return out.getvalue()


def _segments(path: Path, *found: tuple[int, bytes], tail: bytes = b"") -> None:
    """A JPEG with more segments after its start, and bytes after its end."""
    plain = _jpeg()
    more = b"".join(
        bytes((0xFF, code)) + (len(data) + 2).to_bytes(2, "big") + data for code, data in found
    )
    path.write_bytes(plain[:2] + more + plain[2:] + tail)


def _exif_segment(**values: object) -> bytes:
    exif = Image.Exif()
    for name, value in values.items():
        exif[ExifTags.Base[name].value] = value
    return exif.tobytes()


def _exif_with_thumbnail() -> bytes:
    """A first directory with an orientation, and a second that says where a thumbnail lies."""
    first = struct.pack("<HHHIII", 1, 0x0112, 3, 1, 1, 26)
    second = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, 4, 0)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + second + b"\xff\xd8\xff\xd9"


def _pages(path: Path, *tags: dict[int, object]) -> None:
    """A TIFF with a page for each set of tags."""
    infos = []
    for values in tags:
        info = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in values.items():
            if isinstance(value, tuple):
                info.tagtype[tag] = TiffTags.LONG
            info[tag] = value
        infos.append(info)
    pages = [_picture() for _ in tags]
    for page, info in zip(pages, infos, strict=True):
        page.encoderinfo = {"tiffinfo": info}
    pages[0].save(path, tiffinfo=infos[0], save_all=True, append_images=pages[1:])


def _mark() -> bytes:
    return xmp_packet().encode()


PLANTED: dict[str, tuple[str, Callable[[Path], object], set[tuple[str, str]]]] = {
    "a name": ("a.png", lambda p: _png(p, Note="Patient: Miller"), {("name", "tEXt Note")}),
    "a date of birth": (
        "a.png",
        lambda p: _png(p, Note="DOB 12.03.1961"),
        {("date of birth", "tEXt Note")},
    ),
    "a date": ("a.png", lambda p: _png(p, Note="2021-05-04"), {("date", "tEXt Note")}),
    "an id": ("a.png", _zip, {("id", "zTXt Comment")}),
    "a serial number": (
        "a.png",
        lambda p: _png(p, Note="S/N AX-4711-22"),
        {("device", "tEXt Note")},
    ),
    "an address": ("a.png", lambda p: _png(p, Note="a.b@ward.org"), {("contact", "tEXt Note")}),
    "free text": (
        "a.png",
        lambda p: _png(p, Note="asthma of miller"),
        {("free text", "tEXt Note")},
    ),
    "XMP": ("a.png", _xmp, {("name", "XMP in iTXt XML:com.adobe.xmp")}),
    "a time chunk": (
        "a.png",
        lambda p: _insert(p, b"tIME", bytes([7, 229, 5, 4, 1, 2, 3])),
        {("date", "tIME")},
    ),
    "an unknown chunk": (
        "a.png",
        lambda p: _insert(p, b"prVt", b"hidden"),
        {("hidden data", "chunk prVt")},
    ),
    "bytes after the end": ("a.png", _tail, {("hidden data", "after the end of the picture")}),
    "EXIF in PNG": (
        "a.png",
        lambda p: _exif(p, Artist="Weber"),
        {("name", "EXIF Artist")},
    ),
    "a camera": (
        "a.jpg",
        lambda p: _exif(p, BodySerialNumber="123", DateTimeOriginal="2021:05:04 10:00:00"),
        {("device", "EXIF BodySerialNumber"), ("date", "EXIF DateTimeOriginal")},
    ),
    "GPS": (
        "a.jpg",
        lambda p: _exif(p, GPSLatitudeRef="N", GPSLatitude=(51.0, 30.0, 0.0)),
        {("position", "EXIF GPSLatitudeRef"), ("position", "EXIF GPSLatitude")},
    ),
    "a JPEG comment": (
        "a.jpg",
        lambda p: _picture().save(p, comment=b"knee of a teacher"),
        {("free text", "comment")},
    ),
    "the first of two comments": (
        "a.jpg",
        lambda p: _segments(p, (0xFE, b"Patient: Miller"), (0xFE, b"x")),
        {("name", "comment"), ("free text", "comment")},
    ),
    "bytes after a JPEG": (
        "a.jpg",
        lambda p: _segments(p, tail=b"Patient: Miller"),
        {("hidden data", "after the end of the picture")},
    ),
    "a second EXIF segment": (
        "a.jpg",
        lambda p: _segments(p, (0xE1, _exif_segment()), (0xE1, _exif_segment(Artist="Weber"))),
        {("name", "EXIF Artist")},
    ),
    "a thumbnail in EXIF": (
        "a.jpg",
        lambda p: _segments(p, (0xE1, _exif_with_thumbnail())),
        {("hidden data", "EXIF thumbnail")},
    ),
    "extended XMP": (
        "a.jpg",
        lambda p: _segments(p, (0xE1, b"http://ns.adobe.com/xmp/extension/\0Dr. Weber")),
        {("name", "segment APP1")},
    ),
    "what only begins as a colour profile": (
        "a.jpg",
        lambda p: _segments(p, (0xE2, b"ICC_Patient: Miller")),
        {("name", "segment APP2")},
    ),
    "a thumbnail beside JFIF": (
        "a.jpg",
        lambda p: _segments(p, (0xE0, b"JFXX\0\x13" + b"\1" * 30)),
        {("hidden data", "segment APP0")},
    ),
    "a JPEG that is cut": (
        "a.jpg",
        lambda p: p.write_bytes(_jpeg()[:-2]),
        {("unreadable", "JPEG")},
    ),
    "a translated keyword": (
        "a.png",
        lambda p: _insert(p, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0Dr. Weber\0" + _mark()),
        {("name", "translated keyword in iTXt XML:com.adobe.xmp")},
    ),
    "bytes after a compressed text": (
        "a.png",
        lambda p: _insert(p, b"zTXt", b"Comment\0\0" + zlib.compress(b"") + b"Dr. Weber"),
        {("unreadable", "PNG")},
    ),
    "the name of a colour profile": (
        "a.png",
        lambda p: _insert(p, b"iCCP", b"Dr. Weber\0\0" + zlib.compress(b"x")),
        {("name", "name in iCCP")},
    ),
    "the second page of a TIFF": (
        "a.tif",
        lambda p: _pages(p, {}, {270: "Patient Miller"}),
        {("name", "EXIF ImageDescription")},
    ),
    "IPTC in a TIFF": (
        "a.tif",
        lambda p: _pages(p, {33723: b"Patient: Miller!"}),
        {("hidden data", "EXIF IPTCNAA"), ("name", "EXIF IPTCNAA")},
    ),
    "numbers that are none": (
        "a.tif",
        lambda p: _pages(p, {65000: tuple(b"Patient: Hans Miller")}),
        {("hidden data", "EXIF tag 65000")},
    ),
    "an ending that lies": (
        "a.png",
        lambda p: p.write_bytes(b"Patient: Miller"),
        {("unreadable", "file")},
    ),
    "a DICOM file without its preamble": (
        "a.bin",
        lambda p: p.write_bytes(b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + b"\x10\0\x10\0PN\4\0Hans"),
        {("unreadable", "file")},
    ),
    "a TIFF": (
        "a.tif",
        lambda p: _exif(p, ImageDescription="Patient Miller"),
        {("name", "EXIF ImageDescription")},
    ),
    "a name in a file name": (
        "Miller_Hans.png",
        lambda p: p.write_bytes(encode(PIXELS)),
        {("name", "file name")},
    ),
    "a date in a file name": (
        "scan-20210504.png",
        lambda p: p.write_bytes(encode(PIXELS)),
        {("date", "file name")},
    ),
    "an id in a file name": (
        "pat0042.png",
        lambda p: p.write_bytes(encode(PIXELS)),
        {("id", "file name")},
    ),
    "a cut file": (
        "a.png",
        lambda p: p.write_bytes(encode(PIXELS)[:-20]),
        {("unreadable", "PNG")},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_in_a_picture_is_found(tmp_path: Path, name: str) -> None:
    file, plant, expected = PLANTED[name]
    plant(tmp_path / file)
    assert _found(tmp_path) == expected


def test_a_marked_picture_and_plain_names_are_clean(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("000012.png", "lesion_7.png", "img-3.png"):
        (tmp_path / "train" / name).write_bytes(encode(PIXELS))
    _picture().save(tmp_path / "plain.jpg")
    found = scan(tmp_path)
    assert list(found.findings) == []
    assert found.scanned == {"png": 3, "jpeg": 1}


def test_a_folder_behind_a_link_is_named_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    _png(tmp_path / "elsewhere" / "a.png", Note="Patient: Miller")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b.png").write_bytes(encode(PIXELS))
    (tmp_path / "set" / "more").symlink_to(tmp_path / "elsewhere")
    (found,) = scan(tmp_path / "set", pixels=False).findings
    assert (found.file, found.kind, found.value) == ("more", "unreadable", "a link, not followed")


def test_what_is_too_large_to_look_into_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(encode(PIXELS))
    monkeypatch.setattr("synth_common.release.metadata._MOST_BYTES", 10)
    assert _found(tmp_path) == {("unreadable", "file")}


def test_a_mark_with_more_in_it_is_no_mark(tmp_path: Path) -> None:
    content = encode(PIXELS)
    assert _found(_write(tmp_path / "a.png", content)) == set()
    info = PngImagePlugin.PngInfo()
    with Image.open(tmp_path / "a.png") as picture:
        packet = str(picture.info["XML:com.adobe.xmp"])
    info.add_itxt("XML:com.adobe.xmp", packet.replace("Synthward ", 'Synthward" o="Dr. Weber '))
    _picture().save(tmp_path / "a.png", pnginfo=info)
    assert ("name", "XMP in iTXt XML:com.adobe.xmp") in _found(tmp_path)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------------- DICOM


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """A synthetic object of our own."""
    origin = Origin(
        "12ab34cd",
        "Trained under differential privacy: epsilon 2.00, delta 1e-05 per patient at each site; "
        "run 0a1b",
    )
    DicomWriter(tmp_path, ["lesion"], origin).add(Picture(3, "train", 0, 1, PIXELS, None))
    return tmp_path / "dicom" / "train" / "000003.dcm"


def test_a_synthetic_object_is_clean(synthetic: Path) -> None:
    assert _found(synthetic) == set()


def _private(data: Dataset) -> None:
    data.private_block(0x0011, "ACME", create=True).add_new(1, "LO", "x")


def _nested(data: Dataset) -> None:
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3.4"
    data.ReferencedImageSequence = [item]


IN_DICOM: dict[str, tuple[Callable[[Dataset], object], set[tuple[str, str]]]] = {
    "name": (lambda d: setattr(d, "PatientName", "Miller^Hans"), {("name", "PatientName")}),
    "birth": (
        lambda d: setattr(d, "PatientBirthDate", "19610312"),
        {("date of birth", "PatientBirthDate")},
    ),
    "id": (lambda d: setattr(d, "PatientID", "4711"), {("id", "PatientID")}),
    "date": (lambda d: setattr(d, "StudyDate", "20210504"), {("date", "StudyDate")}),
    "serial": (
        lambda d: setattr(d, "DeviceSerialNumber", "99"),
        {("device", "DeviceSerialNumber")},
    ),
    "maker": (lambda d: setattr(d, "Manufacturer", "ACME"), {("device", "Manufacturer")}),
    "place": (
        lambda d: setattr(d, "InstitutionName", "St. Mary"),
        {("institution", "InstitutionName")},
    ),
    "age": (lambda d: setattr(d, "PatientAge", "060Y"), {("patient data", "PatientAge")}),
    "comment": (
        lambda d: setattr(d, "ImageComments", "limping teacher"),
        {("free text", "ImageComments")},
    ),
    "uid": (
        lambda d: setattr(d, "StudyInstanceUID", "1.3.6.1.4.1.9.1"),
        {("id", "StudyInstanceUID")},
    ),
    "nested": (
        _nested,
        {("id", "ReferencedImageSequence/ReferencedSOPInstanceUID")},
    ),
    "private": (
        _private,
        {
            ("hidden data", "private element (0011,0010)"),
            ("hidden data", "private element (0011,1001)"),
        },
    ),
    "burned": (
        lambda d: setattr(d, "BurnedInAnnotation", "YES"),
        {("burned-in text", "BurnedInAnnotation")},
    ),
    "near miss": (
        lambda d: setattr(d, "SeriesDescription", "Synthetic: of Dr. Weber"),
        {("name", "SeriesDescription")},
    ),
}


@pytest.mark.parametrize("name", IN_DICOM)
def test_what_is_planted_in_a_header_is_found(synthetic: Path, name: str) -> None:
    plant, expected = IN_DICOM[name]
    data = dcmread(synthetic)
    plant(data)
    data.save_as(synthetic)
    assert _found(synthetic) == expected


def test_pixels_of_objects_are_looked_at_where_there_are_some(synthetic: Path) -> None:
    background = np.full((128, 128), 90, dtype=np.uint8)
    data = dcmread(synthetic)
    data.Rows = data.Columns = 128
    data.PixelData = _with_text(128, 14, background).astype(np.uint8).tobytes()
    data.save_as(synthetic)
    found = {(f.kind, f.place) for f in scan(synthetic).findings}
    assert found == {("burned-in text", "pixels")}
    del data.PixelData
    data.save_as(synthetic)
    assert list(scan(synthetic).findings) == []


def test_a_preamble_that_hides_something_is_found(synthetic: Path) -> None:
    content = synthetic.read_bytes()
    synthetic.write_bytes(b"Patient: Hans".ljust(128, b"\0") + content[128:])
    assert _found(synthetic) == {("hidden data", "preamble")}


# ------------------------------------------------------------------------ burned-in text


def _with_text(size: int, height: int, background: np.ndarray, ink: int = 255) -> np.ndarray:
    picture = Image.fromarray(background)
    font = ImageFont.load_default(size=height)
    ImageDraw.Draw(picture).text((3, 2), "MILLER^HANS 1961", fill=ink, font=font)
    return np.asarray(picture, dtype=np.float64)


@pytest.mark.parametrize("size", [128, 256])
def test_clear_text_at_the_border_is_found_and_smooth_pictures_are_not(size: int) -> None:
    y, x = np.mgrid[:size, :size] / size
    smooth = (120 + 80 * np.sin(5 * x) * np.cos(4 * y)).astype(np.uint8)
    assert text_like(smooth.astype(np.float64)) == []
    assert text_like(_with_text(size, 14, smooth, ink=255))
    assert text_like(_with_text(size, 14, 255 - smooth, ink=0))
    middle = np.roll(_with_text(size, 14, smooth), (size // 2 - 8, 20), axis=(0, 1))
    assert text_like(middle) == []  # not near the border; see the known limits
    assert text_like(np.zeros((size, size))) == []


def test_burned_in_text_is_a_finding_of_a_scan(tmp_path: Path) -> None:
    background = np.full((128, 128), 90, dtype=np.uint8)
    Image.fromarray(_with_text(128, 14, background).astype(np.uint8)).save(tmp_path / "a.png")
    kinds = {(finding.kind, finding.place) for finding in scan(tmp_path).findings}
    assert kinds == {("burned-in text", "pixels")}


# ----------------------------------------------------------------------------- the words


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("geb. 12.03.1961", "date of birth"),
        ("20210504", "date"),
        ("04/05/2021", "date"),
        ("ID of case 12: patient id 12345", "id"),
        ("987654321", "id"),
        ("123-45-6789", "id"),
        ("Miller^Hans", "name"),
        ("52.5200, 13.4050", "position"),
        ("+49 30 1234567", "contact"),
    ],
)
def test_texts_with_a_form_are_recognised(text: str, kind: str) -> None:
    assert kind in {found for found, _ in in_text(text)}


@pytest.mark.parametrize("name", ["000123", "lesion_12", "train", "val-3", "chest-xray-1.0.0"])
def test_names_that_say_nothing_are_left_alone(name: str) -> None:
    assert list(in_name(name)) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Dr. Müller", "name"),
        ("Name: Jürgen", "name"),
        ("Patient Özlem", "name"),
        ("PATIENT: MÜLLER", "name"),
        ("Dr. med. Müller", "name"),
        ("Patient: 王伟", "name"),
        ("geb. am 12.03.1961", "date of birth"),
        ("CT.1.2.276.0.7230010.3.1.4", "id"),
        ("ends with 1234567.", "id"),
        ("Mu\u0308ller^Ju\u0308rgen", "name"),  # decomposed, as some file systems write it
        ("1.2.276.0.7230010.3.1.4.8323329", "id"),
    ],
)
def test_names_are_names_in_every_alphabet_and_uids_are_ids(text: str, kind: str) -> None:
    assert [found for found, _ in in_text(text)] == [kind]


@pytest.mark.parametrize("text", ["by the way", "2.25.1234567890123456789", "Synthward 1.2.3"])
def test_words_and_numbers_of_nobody_are_left_alone(text: str) -> None:
    assert list(in_text(text)) == []


def test_names_of_files_are_read_in_every_alphabet() -> None:
    assert list(in_name("scan_Jürgen_Müller_3")) == [("name", "Jürgen Müller")]
    assert [kind for kind, _ in in_name("1.2.276.0.7230010.3.1")] == ["id"]


@pytest.mark.parametrize("part", ["a", "a-", "sn-", "a^", "a@", "Aa "])
def test_a_long_text_of_a_stranger_is_searched_in_one_pass(part: str) -> None:
    """Ten times what took minutes; the rest of a text beyond a million characters is named."""
    found = list(in_text(part * (1_200_000 // len(part))))
    assert found[0][0] == "hidden data"
    assert "1000000 were searched" in found[0][1]


def test_the_command_prints_findings_takes_what_was_looked_at_and_ends_with_its_code(
    tmp_path: Path,
) -> None:
    run = CliRunner().invoke
    _png(tmp_path / "a.png", Software="viewer")
    found = run(app, ["metadata", str(tmp_path)])
    assert isinstance(found.exception, IdentifierError)
    assert "a.png: free text in tEXt Software: viewer" in found.output
    as_json = json.loads(run(app, ["metadata", str(tmp_path), "--json"]).output)
    assert as_json["findings"] == [
        {"file": "a.png", "kind": "free text", "place": "tEXt Software", "value": "viewer"}
    ]
    allowed = run(app, ["metadata", str(tmp_path), "--allow", "viewer"])
    assert allowed.exit_code == 0, allowed.output
    missing = run(app, ["metadata", str(tmp_path / "nothing")])
    assert isinstance(missing.exception, ConfigError)
