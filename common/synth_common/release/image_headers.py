"""Identifiers beside the pixels of PNG, JPEG and TIFF: text chunks, EXIF, XMP, what is hidden."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from typing import Any, Final

from synth_common.errors import DataError
from synth_common.release import png
from synth_common.release.identifiers import Kind, in_text
from synth_common.release.marking import XMP_KEYWORD, is_only_mark

Found = tuple[Kind, str, str]
"""Kind, place within the file, and what stands there."""

# Chunks that hold pixels or say how to show them (PNG, third edition, 4.9, and APNG).
_PLAIN: Final = frozenset(
    re.findall(
        r"\w{4}",
        "IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP bKGD hIST pHYs sBIT sPLT cICP mDCV cLLI acTL "
        "fcTL fdAT",
    )
)
_TEXTS: Final = frozenset(("tEXt", "zTXt", "iTXt"))
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
# EXIF 3.0 by the beginning of a tag's name.
_TAGS: Final[tuple[tuple[str, Kind], ...]] = (
    ("DateTime", "date"),
    ("GPS", "position"),
    ("PreviewDateTime", "date"),
    ("BodySerialNumber", "device"),
    ("LensSerialNumber", "device"),
    ("CameraSerialNumber", "device"),
    ("Make", "device"),
    ("Model", "device"),
    ("HostComputer", "device"),
    ("Software", "device"),
    ("Artist", "name"),
    ("CameraOwnerName", "name"),
    ("XPAuthor", "name"),
    ("Photographer", "name"),
    ("ImageUniqueID", "id"),
)
# Numbers that only say how to read the pixels of a TIFF, or show an image.
_TECHNICAL: Final = frozenset(("ExifVersion", "FlashPixVersion", "ComponentsConfiguration"))


def in_png(content: bytes) -> Iterator[Found]:
    """What a PNG says beside its pixels."""
    try:
        for chunk in png.chunks(content):
            yield from _in_chunk(chunk)
    except DataError as err:
        yield "unreadable", "PNG", str(err)


def _in_chunk(chunk: png.Chunk) -> Iterator[Found]:
    if chunk.kind in _PLAIN:
        return
    if chunk.kind in _TEXTS:
        keyword, text = png.text_of(chunk)
        place = f"{chunk.kind} {keyword}"
        yield from (
            _in_packet(place, text)
            if keyword == XMP_KEYWORD
            else _words(place, text, f"{keyword}: {text}")
        )
    elif chunk.kind == "eXIf":
        yield from _in_exif_bytes(chunk.data)
    elif chunk.kind == "tIME" and len(chunk.data) == 7:
        year, month, day = struct.unpack(">HBB", chunk.data[:4])
        yield "date", "tIME", f"{year:04d}-{month:02d}-{day:02d}"
    else:
        where = "after the end of the picture" if chunk.kind == "trailing" else "chunk"
        name = "" if chunk.kind == "trailing" else f" {chunk.kind}"
        yield "hidden data", f"{where}{name}", f"{len(chunk.data)} bytes"


def in_picture(content: bytes) -> Iterator[Found]:
    """What a JPEG or TIFF says beside its pixels."""
    from PIL import Image

    Image.init()  # Pillow knows TIFF only when all its formats are loaded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF, and of size: nothing is decoded
            with Image.open(io.BytesIO(content), formats=("JPEG", "TIFF")) as picture:
                exif, info = picture.getexif(), dict(picture.info)
                segments = list(getattr(picture, "applist", []))
                yield from _in_exif(exif)
    except Exception as err:  # decoders meet hostile bytes with a dozen exception types
        yield "unreadable", "picture", type(err).__name__
        return
    for key in ("xmp", "comment"):
        if key in info:
            text = info[key] if isinstance(info[key], str) else info[key].decode("utf-8", "replace")
            yield from _in_packet(key, text) if key == "xmp" else _words(key, text)
    for name, data in segments:
        known = name in ("APP0", "APP14", "COM") or data[:4] in (b"Exif", b"http", b"ICC_")
        if not known:
            yield from _words(f"segment {name}", data.decode("latin-1"), least="hidden data")


def _in_exif_bytes(content: bytes) -> Iterator[Found]:
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(content)
        yield from _in_exif(exif)
    except Exception as err:  # as above
        yield "unreadable", "EXIF", type(err).__name__


def _in_exif(exif: Any) -> Iterator[Found]:
    """Every tag of all directories."""
    from PIL import ExifTags

    for tag, value in exif.items():
        if tag not in (_EXIF_IFD, _GPS_IFD):
            yield from _in_tag(ExifTags.TAGS.get(tag, f"tag {tag}"), value)
    for tag, value in exif.get_ifd(_EXIF_IFD).items():
        yield from _in_tag(ExifTags.TAGS.get(tag, f"tag {tag}"), value)
    for tag, value in exif.get_ifd(_GPS_IFD).items():
        yield from _in_tag(ExifTags.GPSTAGS.get(tag, f"GPS {tag}"), value)


def _in_tag(name: str, value: Any) -> Iterator[Found]:
    """One tag: by what it is called, else by its words; bare numbers only say how to show it."""
    kind = next((kind for begin, kind in _TAGS if name.startswith(begin)), None)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace").strip("\0 ")
    if kind is not None:
        yield kind, f"EXIF {name}", str(value)
    elif isinstance(value, str) and value.strip() and name not in _TECHNICAL:
        yield from _words(f"EXIF {name}", value)


def _in_packet(place: str, packet: str) -> Iterator[Found]:
    """An XMP packet that is more than the mark of a synthetic picture."""
    if not is_only_mark(packet):
        yield from _words(f"XMP in {place}" if place != "xmp" else "XMP", packet)


def _words(
    place: str, text: str, searched: str | None = None, least: Kind = "free text"
) -> Iterator[Found]:
    """What patterns find in a text, or the text itself, which somebody has to read."""
    found = list(in_text(text if searched is None else searched))
    if not found:
        yield least, place, text
    for kind, part in found:
        yield kind, place, part
