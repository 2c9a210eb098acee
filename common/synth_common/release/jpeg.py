"""The segments of a JPEG file, as they are: what a picture library passes over may hide something.

ITU-T T.81, annex B: a marker is FF and a code; most are followed by a length and so much data, a
scan by entropy-coded bytes in which FF is followed by 00 or a restart marker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from synth_common.errors import DataError

_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
_NEXT = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True)
class Segment:
    """One segment; ``name`` is ``"trailing"`` for bytes after the end of the picture."""

    name: str
    data: bytes


def segments(content: bytes) -> Iterator[Segment]:
    """Every segment between start and end, then what stands after the end, if anything does.

    Raises:
        DataError: It is no JPEG, or is cut short.
    """
    if content[:2] != bytes((0xFF, _START)):
        raise DataError("not a JPEG: it does not begin as one")
    at = 2
    while True:
        while content[at : at + 2] == b"\xff\xff":
            at += 1  # fill bytes
        if len(content) < at + 2 or content[at] != 0xFF:
            raise DataError("the JPEG is cut short, or bytes stand between its segments")
        code = content[at + 1]
        at += 2
        if code == _END:
            break
        if code in _ALONE:
            continue
        length = int.from_bytes(content[at : at + 2], "big")
        if length < 2 or len(content) < at + length:
            raise DataError("a segment of the JPEG is cut short")
        yield Segment(_name(code), content[at + 2 : at + length])
        at += length
        if code == _SCAN:
            following = _NEXT.search(content, at)
            if following is None:
                raise DataError("the JPEG is cut short in a scan")
            at = following.start()
    if at < len(content):
        yield Segment("trailing", content[at:])


def _name(code: int) -> str:
    if 0xE0 <= code <= 0xEF:
        return f"APP{code - 0xE0}"
    return "COM" if code == 0xFE else f"{code:02X}"
