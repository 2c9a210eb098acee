"""Identifiers beside the pixels of PNG, JPEG and TIFF: text chunks, EXIF, XMP, what is hidden."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from typing import Any, Final

from synth_common.errors import DataError
from synth_common.release import jpeg, png
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
_NAMED: Final = frozenset(("iCCP", "sPLT"))
_TEXTS: Final = frozenset(("tEXt", "zTXt", "iTXt"))
_EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 0x8769, 0x8825, 0xA005
_THUMBNAIL, _PACKET = 0x0201, 700
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
# Tags of a TIFF whose long lists of numbers say where the pixels are and what they mean.
_TABLES: Final = frozenset(
    (258, 273, 277, 279, 301, 320, 324, 325, 338, 339, 519, 520, 521, 529, 532)
)
_BLOCKS: Final = frozenset((33723, 34377))  # IPTC and Photoshop's resources
_LONG_LIST = 16
_MOST_PAGES = 1000
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
    if chunk.kind in _NAMED:
        yield from ((k, f"name in {chunk.kind}", v) for k, v in in_text(png.beside_text(chunk)))
        return
    if chunk.kind in _PLAIN:
        return
    if chunk.kind in _TEXTS:
        keyword, text = png.text_of(chunk)
        place = f"{chunk.kind} {keyword}"
        if chunk.kind == "iTXt" and (beside := png.beside_text(chunk)):
            yield from _words(f"translated keyword in {place}", beside)
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


def in_jpeg(content: bytes) -> Iterator[Found]:
    """What a JPEG says beside its pixels."""
    try:
        for segment in jpeg.segments(content):
            yield from _in_segment(segment.name, segment.data)
    except DataError as err:
        yield "unreadable", "JPEG", str(err)


def _in_segment(name: str, data: bytes) -> Iterator[Found]:
    """One segment; of those for programs only those that are known to the byte are passed over."""
    text = data.decode("utf-8", "replace")
    if name == "trailing":
        yield "hidden data", "after the end of the picture", f"{len(data)} bytes"
    elif name == "COM":
        yield from _words("comment", text)
    elif name == "APP1" and data.startswith(b"Exif\0"):
        yield from _in_exif_bytes(data)
    elif name == "APP1" and data.startswith(_XMP):
        yield from _in_packet("xmp", data[len(_XMP) :].decode("utf-8", "replace"))
    elif name.startswith("APP"):
        plain = (
            (name == "APP0" and data.startswith(b"JFIF\0") and len(data) == 14)
            or (name == "APP2" and data.startswith(b"ICC_PROFILE\0"))
            or (name == "APP14" and data.startswith(b"Adobe") and len(data) == 12)
        )
        if not plain:
            yield from _words(f"segment {name}", data.decode("latin-1"), least="hidden data")


def in_tiff(content: bytes) -> Iterator[Found]:
    """What a TIFF says beside its pixels, on all its pages."""
    from PIL import Image

    Image.init()  # Pillow knows TIFF only when all its formats are loaded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF, and of size: nothing is decoded
            with Image.open(io.BytesIO(content), formats=("TIFF",)) as picture:
                yield from _in_exif(picture.getexif())
                pages = int(getattr(picture, "n_frames", 1))
                for page in range(min(pages, _MOST_PAGES)):
                    picture.seek(page)
                    yield from _in_page(page, dict(getattr(picture, "tag_v2", {})))
    except Exception as err:  # decoders meet hostile bytes with a dozen exception types
        yield "unreadable", "picture", type(err).__name__
        return
    if pages > _MOST_PAGES:
        yield "hidden data", "pages", f"{pages} pages, of which {_MOST_PAGES} were looked at"


def _in_page(page: int, tags: dict[int, Any]) -> Iterator[Found]:
    """One page: texts of all but the first, whose EXIF was read, and what no table of pixels is."""
    from PIL import ExifTags

    for tag, value in tags.items():
        name = ExifTags.TAGS.get(tag, f"tag {tag}")
        many = isinstance(value, tuple) and len(value) > _LONG_LIST and tag not in _TABLES
        if tag in _BLOCKS or many:
            yield "hidden data", f"EXIF {name}", f"{len(value)} values"
        elif tag == _PACKET:
            packet = value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")
            yield from _in_packet("xmp", packet)
        elif page and isinstance(value, str):
            yield from _in_tag(name, value)


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
        if tag not in (_EXIF_IFD, _GPS_IFD, _INTEROP_IFD, _PACKET):
            yield from _in_tag(ExifTags.TAGS.get(tag, f"tag {tag}"), value)
    for tag, value in exif.get_ifd(_EXIF_IFD).items():
        yield from _in_tag(ExifTags.TAGS.get(tag, f"tag {tag}"), value)
    for tag, value in exif.get_ifd(_GPS_IFD).items():
        yield from _in_tag(ExifTags.GPSTAGS.get(tag, f"GPS {tag}"), value)
    for tag, value in exif.get_ifd(_INTEROP_IFD).items():
        yield from _in_tag(f"interoperability {tag}", value)
    small = exif.get_ifd(ExifTags.IFD.IFD1)
    if _THUMBNAIL in small:
        yield "hidden data", "EXIF thumbnail", "a picture of the picture as it was"
    for tag, value in small.items():
        yield from _in_tag(ExifTags.TAGS.get(tag, f"tag {tag}"), value)


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
