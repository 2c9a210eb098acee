"""The segments of a JPEG file, as they are.

They are read here and not by Pillow because what a picture library passes over (a second comment,
a thumbnail, bytes after the end) is what may hide an identifier.
JPEG: ITU-T T.81, annex B.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from synth_common.errors import DataError

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers that no segment follows (table B.1)."""
_NEXT = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends the coded pixels: a marker but a restart, and no stuffed byte (B.1.1.5)."""


@dataclass(frozen=True)
class Segment:
    """One segment: its marker's second byte, or 0 for bytes that stand outside of all, and data."""

    marker: int
    data: bytes


def segments(content: bytes) -> Iterator[Segment]:
    """Every segment of a JPEG in order, then what stands after its end, if anything does.

    Raises:
        DataError: It is no JPEG, or is cut short.
    """
    if content[:2] != b"\xff\xd8":
        raise DataError("not a JPEG: it does not begin as one")
    at = 2
    while True:
        begin = content.find(b"\xff", at)
        if begin < 0 or begin + 1 >= len(content):
            raise DataError("the JPEG is cut short: it has no end marker")
        if begin > at:
            yield Segment(0, content[at:begin])
        at, marker = begin + 2, content[begin + 1]
        if marker == 0xFF:  # fill bytes may stand before any marker (B.1.1.2)
            at -= 1
        elif marker == _EOI:
            break
        elif marker in (0, _SOI):
            yield Segment(0, content[begin:at])
        elif marker not in _ALONE:
            data = _data(content, at)
            yield Segment(marker, data)
            at += 2 + len(data)
            if marker == _SOS:
                end = _NEXT.search(content, at)
                at = end.start() if end else len(content)
    if at < len(content):
        yield Segment(0, content[at:])


def _data(content: bytes, at: int) -> bytes:
    """What a segment holds whose length stands at ``at``."""
    length = struct.unpack_from(">H", content, at)[0] if at + 2 <= len(content) else 0
    if length < 2 or at + length > len(content):
        raise DataError(f"the JPEG is cut short: a segment at byte {at}")
    return content[at + 2 : at + length]
