"""Identifiers that were planted are found, of every kind and in every place; clean files pass."""

from __future__ import annotations

import importlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFont, PngImagePlugin, TiffImagePlugin
from pydicom import dcmread
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from synth_common.errors import ConfigError, IdentifierError
from synth_common.release import identifiers, metadata
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


def _jpeg(path: Path, *parts: tuple[int, bytes], tail: bytes = b"") -> None:
    """Put segments behind the first one, and bytes behind the end."""
    _picture().save(path)
    content = path.read_bytes()
    made = [bytes([0xFF, m]) + struct.pack(">H", len(data) + 2) + data for m, data in parts]
    path.write_bytes(content[:20] + b"".join(made) + content[20:] + tail)


def _exif_bytes(*pages: dict[int, str]) -> bytes:
    """EXIF with a directory for each page."""
    content = b"II*\0\x08\0\0\0"
    for number, page in enumerate(pages):
        at, head, rest = len(content) + 2 + 12 * len(page) + 4, b"", b""
        for tag, text in page.items():
            value = text.encode() + b"\0"
            head += struct.pack("<HHII", tag, 2, len(value), at + len(rest))
            rest += value.ljust(max(5, len(value)), b"\0")
        following = at + len(rest) if number + 1 < len(pages) else 0
        content += struct.pack("<H", len(page)) + head + struct.pack("<I", following) + rest
    return content


JFIF_THUMBNAIL = b"JFIF\0\1\1\0\0\1\0\1\1\1abc"
XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0" + b"F" * 40 + b"<dc:creator>Dr. Weber"

PLANTED_IN_JPEG: dict[str, tuple[list[tuple[int, bytes]], set[tuple[str, str]]]] = {
    "two comments": (
        [(0xFE, b"Dr. Weber"), (0xFE, b"knee")],
        {("name", "comment"), ("free text", "comment")},
    ),
    "a comment in Latin-1": ([(0xFE, "Dr. Müller".encode("latin-1"))], {("name", "comment")}),
    "extended XMP": ([(0xE1, XMP_EXTENSION)], {("name", "extended XMP")}),
    "two XMP packets": (
        [(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text) for text in (b"Dr. Weber", b"knee")],
        {("name", "XMP"), ("free text", "XMP")},
    ),
    "what is no profile": (
        [(0xE2, b"ICC_PROFILE\0\1\1 of Dr. Weber")],
        {("hidden data", "ICC profile")},
    ),
    "what says it is a profile": ([(0xE2, b"ICC_asthma of")], {("hidden data", "segment APP2")}),
    "a thumbnail": ([(0xE0, JFIF_THUMBNAIL)], {("hidden data", "segment APP0")}),
    "an extension of JFIF": ([(0xE0, b"JFXX\0\x10abc")], {("hidden data", "segment APP0")}),
    "a second JFIF": ([(0xE0, b"JFIF\0asthmaab\0\0")], {("hidden data", "segment APP0")}),
    "more than Adobe's": ([(0xEE, b"Adobe asthma of")], {("hidden data", "segment APP14")}),
    "a reserved segment": ([(0xF0, b"asthma of")], {("hidden data", "segment F0")}),
    "a second EXIF": (
        [
            (0xE1, b"Exif\0\0" + _exif_bytes({0x010E: text}))
            for text in ("knee of a teacher", "Dr. Weber")
        ],
        {("free text", "EXIF ImageDescription"), ("name", "EXIF ImageDescription")},
    ),
    "EXIF of a thumbnail": (
        [(0xE1, b"Exif\0\0" + _exif_bytes({0x010E: "knee"}, {0x010E: "Dr. Weber"}))],
        {("free text", "EXIF ImageDescription"), ("name", "EXIF ImageDescription of page 2")},
    ),
    "bytes of no directory": (
        [(0xE1, b"Exif\0\0" + _exif_bytes({}) + b"asthma")],
        {("hidden data", "EXIF, in no directory")},
    ),
    "damaged EXIF": ([(0xE1, b"Exif\0\0II*\0\xff\0\0\0")], {("unreadable", "EXIF")}),
}


@pytest.mark.parametrize("name", PLANTED_IN_JPEG)
def test_what_is_planted_in_a_segment_is_found(tmp_path: Path, name: str) -> None:
    parts, expected = PLANTED_IN_JPEG[name]
    _jpeg(tmp_path / "a.jpg", *parts)
    assert _found(tmp_path) == expected


def test_bytes_outside_of_the_segments_of_a_jpeg_are_found(tmp_path: Path) -> None:
    _jpeg(tmp_path / "a.jpg", tail=b"Patient: Hans")
    assert _found(tmp_path) == {("hidden data", "outside of the picture")}
    _jpeg(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[:20] + b"asthma" + content[20:])
    assert _found(tmp_path) == {("hidden data", "outside of the picture")}
    (tmp_path / "a.jpg").write_bytes(content[:-2])
    assert _found(tmp_path) == {("unreadable", "JPEG")}


def test_jpegs_as_programs_write_them_are_clean(tmp_path: Path) -> None:
    _picture().save(tmp_path / "a.jpg")
    colour = _picture().convert("RGB")
    colour.save(tmp_path / "b.jpg", progressive=True, restart_marker_blocks=1)
    _picture().convert("CMYK").save(tmp_path / "c.jpg")  # with Adobe's segment
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    colour.save(tmp_path / "d.jpg", icc_profile=profile)
    colour.save(tmp_path / "e.tif", icc_profile=profile, compression="tiff_lzw")
    assert _found(tmp_path) == set()


def test_texts_of_a_profile_are_searched(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    named = profile.replace(
        "sRGB built-in".encode("utf-16-be"), "Dr. Weber    ".encode("utf-16-be")
    )
    _picture().convert("RGB").save(tmp_path / "a.jpg", icc_profile=named)
    assert _found(tmp_path) == {("name", "ICC profile, text")}


def _tagged(path: Path, tag: int, value: object, form: int) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info.tagtype[tag] = form
    info[tag] = value
    _picture().save(path, tiffinfo=info)


def _second_page(path: Path) -> None:
    with TiffImagePlugin.AppendingTiffWriter(str(path), True) as out:
        for texts in ({}, {270: "Dr. Weber"}):
            _picture().save(out, format="TIFF", tiffinfo=texts)
            out.newFrame()


IPTC = struct.unpack("<4I", b"asthma of Miller")
LONG = tuple(range(1000, 1030))
PLANTED_IN_TIFF: dict[str, tuple[Callable[[Path], object], set[tuple[str, str]]]] = {
    "a second page": (_second_page, {("name", "EXIF ImageDescription of page 2")}),
    "IPTC as numbers": (
        lambda p: (
            _tagged(p, 65000, IPTC, 4),
            p.write_bytes(p.read_bytes().replace(b"\xe8\xfd\4\0", b"\xbb\x83\4\0")),
        ),
        {("hidden data", "EXIF IPTCNAA")},
    ),
    "Photoshop's resources": (
        lambda p: _tagged(p, 34377, b"8BIM asthma", 7),
        {("hidden data", "EXIF ImageResources")},
    ),
    "many numbers": (
        lambda p: _tagged(p, 33432 + 1, LONG, 4),
        {("hidden data", "EXIF tag 33433")},
    ),
    "many numbers of a known tag": (
        lambda p: _tagged(p, 37396, LONG, 3),
        {("hidden data", "EXIF SubjectLocation")},
    ),
    "letters as numbers": (
        lambda p: _tagged(p, 37396, tuple(b"asthma"), 3),
        {("hidden data", "EXIF SubjectLocation")},
    ),
    "a private tag": (
        lambda p: _tagged(p, 65000, (1, 2), 3),
        {("hidden data", "EXIF tag 65000")},
    ),
    "bytes of no directory": (
        lambda p: (_picture().save(p), p.write_bytes(p.read_bytes() + b"asthma")),
        {("hidden data", "TIFF, in no directory")},
    ),
    "a circle": (lambda p: p.write_bytes(_circle()), {("unreadable", "TIFF")}),
    "a big one": (
        lambda p: _picture().save(p, big_tiff=True, tiffinfo={270: "Dr. Weber"}),
        {("name", "EXIF ImageDescription")},
    ),
}


def _circle() -> bytes:
    """A directory that is its own successor."""
    return b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0"


@pytest.mark.parametrize("name", PLANTED_IN_TIFF)
def test_what_is_planted_in_a_directory_is_found(tmp_path: Path, name: str) -> None:
    plant, expected = PLANTED_IN_TIFF[name]
    plant(tmp_path / "a.tif")
    assert _found(tmp_path) == expected


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB", "P", "F"])
def test_tiffs_of_several_pages_are_clean(tmp_path: Path, mode: str) -> None:
    page = _picture().convert(mode)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    page.save(tmp_path / "b.tif", compression="tiff_deflate")
    page.save(tmp_path / "c.tif", big_tiff=True)
    assert _found(tmp_path) == set()


MARK = xmp_packet().encode()
KEYWORD = b"XML:com.adobe.xmp\0"
PROFILE = zlib.compress(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
PLANTED_IN_PNG: dict[str, tuple[bytes, bytes, set[tuple[str, str]]]] = {
    "a translated keyword beside the mark": (
        b"iTXt",
        KEYWORD + b"\0\0\0Dr. M\xc3\xbcller\0" + MARK,
        {("name", "iTXt XML:com.adobe.xmp, translated keyword")},
    ),
    "a language beside the mark": (
        b"iTXt",
        KEYWORD + b"\0\0asthma\0\0" + MARK,
        {("free text", "iTXt XML:com.adobe.xmp, translated keyword")},
    ),
    "bytes after a compressed mark": (
        b"iTXt",
        KEYWORD + b"\1\0\0\0" + zlib.compress(MARK) + b"asthma",
        {("hidden data", "iTXt XML:com.adobe.xmp, after the end of the text")},
    ),
    "bytes after a compressed text": (
        b"zTXt",
        b"Note\0\0" + zlib.compress(b"knee") + b"asthma",
        {("free text", "zTXt Note"), ("hidden data", "zTXt Note, after the end of the text")},
    ),
    "the name of a profile": (b"iCCP", b"Hans Miller\0\0" + PROFILE, {("name", "iCCP, name")}),
    "bytes after a profile": (
        b"iCCP",
        b"sRGB\0\0" + PROFILE + b"asthma",
        {("hidden data", "iCCP, after the end of the profile")},
    ),
    "no profile": (b"iCCP", b"sRGB\0\0" + zlib.compress(b"asthma"), {("hidden data", "iCCP")}),
    "a damaged profile": (b"iCCP", b"sRGB\0\0asthma", {("unreadable", "PNG")}),
    "the name of a palette": (b"sPLT", b"Hans Miller\0\x08", {("name", "sPLT, name")}),
    "a chunk that is too long": (b"pHYs", b"0123456789abc", {("hidden data", "chunk pHYs")}),
    "a profile": (b"iCCP", b"sRGB\0\0" + PROFILE, set()),
    "a compressed mark": (b"iTXt", KEYWORD + b"\1\0\0\0" + zlib.compress(MARK), set()),
}


@pytest.mark.parametrize("name", PLANTED_IN_PNG)
def test_what_is_planted_in_a_chunk_is_found(tmp_path: Path, name: str) -> None:
    kind, data, expected = PLANTED_IN_PNG[name]
    _insert(tmp_path / "a.png", kind, data)
    assert _found(tmp_path) == expected


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
    "an ending that lies": (
        "a.png",
        lambda p: p.write_bytes(b"Patient: Miller"),
        {("unreadable", "file")},
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


@pytest.mark.parametrize("name", ["a.dcm", "a.bin"])
def test_an_object_without_preamble_is_not_passed_over(synthetic: Path, name: str) -> None:
    content = synthetic.read_bytes()
    synthetic.unlink()
    synthetic.with_name(name).write_bytes(content[132:])
    assert _found(synthetic.parent) == {("unreadable", "file")}


def test_what_cannot_be_read_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(encode(PIXELS))
    (tmp_path / "a.txt").write_text("plain")
    assert _found(tmp_path) == set()
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "_MOST_BYTES", 100)
        assert _found(tmp_path) == {("unreadable", "file")}

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("open", "read_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refuse)
            assert _found(tmp_path) == {("unreadable", "file")}
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda at: _refuse_folder(str(at)))
        assert _found(tmp_path) == {("unreadable", "folder")}


def _refuse_folder(at: str) -> None:
    raise PermissionError(13, "Permission denied", at)


def test_links_to_folders_and_to_nowhere_are_findings(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode(PIXELS))
    for name, to in (("folder", "out"), ("nowhere", "gone")):
        (tmp_path / "in" / name).symlink_to(tmp_path / to)
    found = scan(tmp_path / "in", pixels=False).findings
    assert [(f.file, f.kind, f.place) for f in found] == [
        ("folder", "unreadable", "folder"),
        ("nowhere", "unreadable", "folder"),
    ]


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


def test_text_on_a_second_page_is_found(tmp_path: Path) -> None:
    background = np.full((128, 128), 90, dtype=np.uint8)
    second = Image.fromarray(_with_text(128, 14, background).astype(np.uint8))
    first = Image.fromarray(background)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    kinds = {(finding.kind, finding.place) for finding in scan(tmp_path).findings}
    assert kinds == {("burned-in text", "pixels of page 2")}


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
        ("Dr. Müller", "name"),
        ("Dr. med. Müller", "name"),
        ("Name: Jürgen", "name"),
        ("Patient Özlem", "name"),
        ("Patient O\u0308zlem", "name"),
        ("Ærø^Åse", "name"),
        ("Patient: 王伟", "name"),
        ("geb. am 12.03.1961", "date of birth"),
        ("1.2.276.0.7230010.3.1.4", "id"),
        ("CT.1.2.276.0.7230010.3.1.4", "id"),
        ("ends with 1234567.", "id"),
        ("9" * 90, "id"),
        ("a" * 900 + "@ward.org", "contact"),
        ("a" * 900 + "^Hans", "name"),
    ],
)
def test_texts_with_a_form_are_recognised(text: str, kind: str) -> None:
    assert kind in {found for found, _ in in_text(text)}


def test_one_place_counts_once_and_all_places_count() -> None:
    text = "Patient: Müller, geb. 12.03.1961, MRN 0012345, seen 2021-05-04; Dr. Weber"
    assert list(in_text(text)) == [
        ("date of birth", "geb. 12.03.1961"),
        ("date", "2021-05-04"),
        ("id", "MRN 0012345"),
        ("name", "Patient: Müller"),
        ("name", "Dr. Weber"),
    ]


def test_a_text_of_any_length_is_searched_in_time_that_grows_with_it() -> None:
    parser = importlib.import_module("re._parser")
    for pattern in (*(pattern for _, pattern in identifiers._PATTERNS), identifiers._TWO_NAMES):
        assert "MAXREPEAT" not in repr(parser.parse(pattern.pattern)), pattern.pattern


def test_what_is_beyond_the_searched_beginning_is_a_finding() -> None:
    text = " " * (identifiers.MOST_SEARCHED - 10) + "2021-05-04" + " Dr. Weber"
    assert [kind for kind, _ in in_text(text)] == ["date", "unreadable"]
    assert [kind for kind, _ in in_text(text[:-10])] == ["date"]


@pytest.mark.parametrize(
    "name",
    [
        *("Jürgen_Müller", "Ju\u0308rgen Mu\u0308ller", "Łukasz-Żak", "1.2.276.0.7230010.3.1.4"),
        *("scan.1234567", "Dr_Çelik"),
    ],
)
def test_names_of_files_that_say_who_it_is_are_found(name: str) -> None:
    assert list(in_name(name))


@pytest.mark.parametrize(
    "name",
    [
        *("000123", "lesion_12", "train", "val-3", "chest-xray-1.0.0", "größe_12", "1.2.3.4"),
        "2.25.329800735698586629295641978511506172918",
    ],
)
def test_names_that_say_nothing_are_left_alone(name: str) -> None:
    assert list(in_name(name)) == []


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
