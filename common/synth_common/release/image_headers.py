"""Identifiers beside the pixels of PNG and JPEG: texts, EXIF, XMP, what is hidden."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final

from synth_common.errors import DataError
from synth_common.release import jpeg, png
from synth_common.release.exif import in_exif, in_packet
from synth_common.release.identifiers import Found as Found
from synth_common.release.identifiers import decoded, in_name, in_words
from synth_common.release.marking import XMP_KEYWORD
from synth_common.release.profiles import in_profile

# Chunks that hold pixels or say how to show them (PNG, third edition, 4.9, and APNG).
_PLAIN: Final = frozenset(
    re.findall(
        r"\w{4}",
        "IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP bKGD hIST pHYs sBIT sPLT cICP mDCV cLLI acTL "
        "fcTL fdAT",
    )
)
# Lengths of those that have one only; IDAT is what the decoder reads.
_LENGTHS: Final = {
    **{"IHDR": 13, "IEND": 0, "gAMA": 4, "cHRM": 32, "sRGB": 1, "pHYs": 9, "cICP": 4},
    **{"mDCV": 24, "cLLI": 8, "acTL": 8, "fcTL": 26},
}
_TEXTS: Final = frozenset(("tEXt", "zTXt", "iTXt"))
# Segments that hold pixels or tables to decode them: SOF, DHT, DAC, DQT, DNL, DRI, DHP, EXP, SOS.
_CODING: Final = frozenset((*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDA, 0xE0)))
_COM, _APP0, _APP1, _APP2, _APP14 = 0xFE, 0xE0, 0xE1, 0xE2, 0xEE
_EXIF, _ICC = b"Exif\0\0", b"ICC_PROFILE\0"
_XMP, _MORE_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"


def in_png(content: bytes) -> Iterator[Found]:
    """What a PNG says beside its pixels."""
    try:
        for chunk in png.chunks(content):
            yield from _in_chunk(chunk)
    except DataError as err:
        yield "unreadable", "PNG", str(err)


def _in_chunk(chunk: png.Chunk) -> Iterator[Found]:
    length = _LENGTHS.get(chunk.kind, len(chunk.data))
    if chunk.kind in ("iCCP", "sPLT"):
        yield from _in_named(chunk)
    elif chunk.kind in _PLAIN and len(chunk.data) == length:
        return
    elif chunk.kind in _TEXTS:
        yield from _in_text_chunk(chunk)
    elif chunk.kind == "eXIf":
        yield from in_exif(chunk.data)
    elif chunk.kind == "tIME" and len(chunk.data) == 7:
        year, month, day = struct.unpack(">HBB", chunk.data[:4])
        yield "date", "tIME", f"{year:04d}-{month:02d}-{day:02d}"
    else:
        where = "after the end of the picture" if chunk.kind == "trailing" else "chunk"
        name = "" if chunk.kind == "trailing" else f" {chunk.kind}"
        yield "hidden data", f"{where}{name}", f"{len(chunk.data)} bytes"


def _in_text_chunk(chunk: png.Chunk) -> Iterator[Found]:
    found = png.whole_text(chunk)
    place = f"{chunk.kind} {found.keyword}"
    if found.keyword == XMP_KEYWORD:
        yield from in_packet(place, found.text)
    else:
        yield from in_words(place, found.text, f"{found.keyword}: {found.text}")
    if found.also:
        yield from in_words(f"{place}, translated keyword", found.also)
    if found.hidden:
        yield "hidden data", f"{place}, after the end of the text", f"{len(found.hidden)} bytes"


def _in_named(chunk: png.Chunk) -> Iterator[Found]:
    """A colour profile or suggested palette: its name, and what a profile says."""
    raw, _, rest = chunk.data.partition(b"\0")
    for kind, part in in_name(raw.decode("latin-1")):
        yield kind, f"{chunk.kind}, name", part
    if chunk.kind == "iCCP":
        try:
            profile, hidden = png.unfold(rest[1:])
        except zlib.error as err:
            raise DataError(f"the profile cannot be read: {err}") from err
        yield from in_profile("iCCP", profile)
        if hidden:
            yield "hidden data", "iCCP, after the end of the profile", f"{len(hidden)} bytes"


def in_jpeg(content: bytes) -> Iterator[Found]:
    """What a JPEG says beside its pixels."""
    profile, plain = b"", set[int]()
    try:
        for segment in jpeg.segments(content):
            if segment.marker == _APP2 and segment.data.startswith(_ICC):
                profile += segment.data[len(_ICC) + 2 :]  # after its number and how many there are
            elif segment.marker not in plain and _is_header(segment):
                plain.add(segment.marker)  # the same once more is none
            else:
                yield from _in_segment(segment)
    except DataError as err:
        yield "unreadable", "JPEG", str(err)
    if profile:
        yield from in_profile("ICC profile", profile)


def _is_header(segment: jpeg.Segment) -> bool:
    """Whether it is JFIF without a thumbnail (1.02, page 5), or what Adobe's decoders need."""
    begin, end, size = segment.data[:5], segment.data[12:], len(segment.data)
    if segment.marker == _APP0:
        return begin == b"JFIF\0" and size == 14 and end == b"\0\0"
    return segment.marker == _APP14 and begin == b"Adobe" and size == 12


def _in_segment(segment: jpeg.Segment) -> Iterator[Found]:
    data, name = segment.data, f"APP{segment.marker - _APP0}"
    if segment.marker in _CODING:
        return
    if segment.marker == 0:
        yield "hidden data", "outside of the picture", f"{len(data)} bytes"
    elif segment.marker == _COM:
        yield from in_words("comment", decoded(data))
    elif segment.marker == _APP1 and data.startswith(_EXIF):
        yield from in_exif(data[len(_EXIF) :])
    elif segment.marker == _APP1 and data.startswith(_XMP):
        yield from in_packet("", decoded(data[len(_XMP) :]))
    elif segment.marker == _APP1 and data.startswith(_MORE_XMP):
        yield from in_words("extended XMP", decoded(data[len(_MORE_XMP) :]), least="hidden data")
    else:
        known = _APP0 <= segment.marker < _APP0 + 16
        place = f"segment {name}" if known else f"segment {segment.marker:02X}"
        yield from in_words(place, data.decode("latin-1"), least="hidden data")
