"""The directories of TIFF data, be it a file or the EXIF of a picture, as they are.

They are read here and not by Pillow because what a picture library passes over (second pages,
directories of thumbnails, bytes that no directory mentions) is what may hide an identifier.
TIFF 6.0, section 2; BigTIFF as libtiff defines it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from synth_common.errors import DataError

EXIF, GPS = 0x8769, 0x8825
# Tags that point to further directories: SubIFDs, EXIF, GPS, interoperability (EXIF 3.0, 4.6.3).
_POINTERS: Final = frozenset((330, EXIF, GPS, 0xA005))
_PIXELS: Final = ((273, 279), (324, 325), (513, 514))
"""Tags of offsets and byte counts of strips, tiles and a JPEG within."""
_FORMS: Final[Mapping[int, str]] = {
    **{1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii"},
    **{11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"},
}
_HEADERS: Final = frozenset(
    (b"", b"II*\0\x08", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0\x10", b"MM\0+\0\x08")
)
"""What a program that appends whole files as pages leaves between them."""
_MOST_DIRECTORIES = 10_000
_MOST_NUMBERS = 16_000_000
"""Bytes of a field that is read as numbers."""


@dataclass(frozen=True)
class Entry:
    """One field of a directory.

    Attributes:
        page: Number of the directory it belongs to in the chain, from 0.
        parent: Tag that points to its directory; 0 for one of the chain.
        tag: Its number.
        form: Its field type; 2 is text, 7 undefined bytes.
        raw: Its value as it is stored.
        numbers: The same as numbers; none for text, undefined bytes and what is too long.
    """

    page: int
    parent: int
    tag: int
    form: int
    raw: bytes
    numbers: tuple[float, ...]


def read(content: bytes) -> tuple[list[Entry], bytes]:
    """Every field of all directories, and the bytes that belong to none.

    Raises:
        DataError: It is no TIFF, something is cut short, or they go in a circle.
    """
    reader = _Reader(content)
    found = list(reader.chain())
    reader.claim_pixels(found)
    return found, reader.unclaimed()


class _Reader:
    """Reads directories and notes which bytes they account for."""

    def __init__(self, content: bytes) -> None:
        orders = {b"II": "<", b"MM": ">"}
        if content[:2] not in orders or len(content) < 8:
            raise DataError("not a TIFF: it does not begin as one")
        self.content, self.order = content, orders[content[:2]]
        self.seen: set[int] = set()
        self.following = 0
        self.left = 2 * len(content)  # no honest file has its fields share what they hold
        version = self._one("H", 2)
        if version not in (42, 43):
            raise DataError(f"not a TIFF: its version is {version}")
        self.count, self.offset = ("Q", "Q") if version == 43 else ("H", "I")
        self.first = 8 if version == 43 else 4
        self.spans = [(0, self.first + self.width)]

    @property
    def width(self) -> int:
        """Bytes of an offset."""
        return struct.calcsize("<" + self.offset)

    def chain(self) -> Iterator[Entry]:
        """The fields of all pages, and of the directories they point to."""
        following, page = self._one(self.offset, self.first), 0
        while following:
            at, following = following, 0
            todo = [(at, 0)]
            while todo:
                at, parent = todo.pop()
                for entry in self._directory(at, page, parent):
                    yield entry
                    if entry.tag in _POINTERS or entry.form in (13, 18):
                        todo += [(n, entry.tag) for n in entry.numbers if isinstance(n, int)]
                following = following if parent else self.following
            page += 1

    def _directory(self, at: int, page: int, parent: int) -> Iterator[Entry]:
        """The fields of one directory; notes where the next one is."""
        if at in self.seen or len(self.seen) >= _MOST_DIRECTORIES:
            raise DataError(
                f"directories of the TIFF go in a circle, or are too many, at byte {at}"
            )
        self.seen.add(at)
        count, head = self._one(self.count, at), struct.calcsize("<" + self.count)
        size = 4 + 2 * self.width
        end = at + head + count * size
        self.following = self._one(self.offset, end)
        self.spans.append((at, end + self.width))
        for place in range(at + head, end, size):
            yield self._entry(place, page, parent)

    def _entry(self, at: int, page: int, parent: int) -> Entry:
        """The field at a place of a directory."""
        tag, form = self._one("H", at), self._one("H", at + 2)
        count, value = self._one(self.offset, at + 4), at + 4 + self.width
        code = _FORMS.get(form)
        if code is None:
            return Entry(page, parent, tag, form, self.content[value : value + self.width], ())
        size = count * struct.calcsize("<" + code)
        if size > self.width:
            value = self._one(self.offset, value)
            self.spans.append((value, value + size))
        self.left -= size
        if value + size > len(self.content) or self.left < 0:
            raise DataError(f"field {tag} of the TIFF is cut short, or lies within others")
        raw = self.content[value : value + size]
        many = (
            ""
            if code == "s" or size > _MOST_NUMBERS
            else f"{self.order}{count * len(code)}{code[0]}"
        )
        return Entry(page, parent, tag, form, raw, struct.unpack(many, raw) if many else ())

    def _one(self, code: str, at: int) -> int:
        """The whole number at a place."""
        if at + struct.calcsize("<" + code) > len(self.content):
            raise DataError(f"the TIFF is cut short: it points to byte {at}")
        return int(struct.unpack_from(self.order + code, self.content, at)[0])

    def claim_pixels(self, found: list[Entry]) -> None:
        """Note where strips, tiles and thumbnails are."""
        places = {(one.page, one.parent, one.tag): one.numbers for one in found}
        for (page, parent, tag), offsets in places.items():
            for begin, length in _PIXELS:
                if tag == begin:
                    sizes = places.get((page, parent, length), ())
                    for at, size in zip(offsets, sizes, strict=False):
                        if isinstance(at, int) and isinstance(size, int):
                            self.spans.append((at, at + size))

    def unclaimed(self) -> bytes:
        """The bytes of no span but zeros, which pad, and the headers of pages put behind others."""
        rest: list[bytes] = []
        done = 0
        for begin, end in [*sorted(self.spans), (len(self.content), len(self.content))]:
            gap = self.content[done : max(begin, done)]
            rest += [] if gap.strip(b"\0") in _HEADERS else [gap]
            done = max(done, end)
        return b"".join(rest)
