"""Identifiers in ICC profiles, and other data that says it is one.

ICC.1:2022, sections 7.2 (header), 7.3 (tag table), 10.15 and 10.24 (texts).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from synth_common.release.identifiers import Found, in_text

_HEADER = 128
_MOST_TAGS = 1_000


def in_profile(place: str, content: bytes) -> Iterator[Found]:
    """What the texts of a profile say; that it has some is usual. What is no profile is hidden."""
    if not _is_profile(content):
        yield "hidden data", place, f"{len(content)} bytes that are no ICC profile"
        return
    (count,) = struct.unpack_from(">I", content, _HEADER)
    seen: set[tuple[str, str]] = set()
    for at in range(_HEADER + 4, _HEADER + 4 + 12 * min(count, _MOST_TAGS), 12):
        begin, size = struct.unpack_from(">II", content, at + 4)
        value = content[begin : begin + size]
        coding = {b"text": "latin-1", b"desc": "latin-1", b"mluc": "utf-16-be"}.get(value[:4])
        for kind, part in in_text(value[8:].decode(coding, "replace") if coding else ""):
            if (kind, part) not in seen:
                seen.add((kind, part))
                yield kind, f"{place}, text", part


def _is_profile(content: bytes) -> bool:
    """Whether the header fits, and all tags lie within."""
    if len(content) < _HEADER + 4 or content[36:40] != b"acsp":
        return False
    size = int.from_bytes(content[:4], "big")
    count = int.from_bytes(content[_HEADER : _HEADER + 4], "big")
    return size == len(content) and _HEADER + 4 + 12 * count <= size
