"""Reads a DICOM file to its last byte, with bounds, and says what is left over.

A file is a preamble, file meta information, and elements in ascending order of tags (PS3.10, 7;
PS3.5, 7.1). Readers look at the elements that they ask for; what stands twice, behind a stray
delimiter or after the last element is carried along unseen.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset, read_partial
from pydicom.filewriter import write_sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from synth_common.errors import DataError

_MOST_INFLATED: Final = 256 << 20
"""Bytes of a deflated data set; larger ones are refused."""
_DEFERRED: Final = 1 << 20
"""Bytes: longer values stay in the file until they are asked for."""
_PREAMBLE, _BEGIN = 128, 132
_HEADER = 8
"""Bytes of the shortest element."""
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Leftover:
    """Bytes that belong to no element that a reader shows.

    Attributes:
        place: Where they stand, in words.
        text: What they are: how many, or which element.
    """

    place: str
    text: str


@dataclass(frozen=True)
class DicomFile:
    """A file that was read to its end.

    Attributes:
        data: The data set with its file meta information.
        leftovers: What is not in it.
        cut: Whether the file ends within an element, or is damaged from one on.
    """

    data: FileDataset
    leftovers: tuple[Leftover, ...]
    cut: bool


@dataclass(frozen=True)
class _Place:
    """An element of the top level, as its header says; ``at`` is where its value begins."""

    tag: BaseTag
    vr: str | None
    length: int
    at: int

    @property
    def begin(self) -> int:
        """Where its header begins (PS3.5, 7.1.2 and 7.1.3)."""
        return self.at - (12 if self.vr in EXPLICIT_VR_LENGTH_32 else _HEADER)

    @property
    def is_sequence(self) -> bool:
        """Whether it is one, by its header or by PS3.6."""
        if self.vr in (None, "UN"):
            return dictionary_has_tag(self.tag) and dictionary_VR(self.tag) == "SQ"
        return self.vr == "SQ"


class _Watched(io.BufferedReader):
    """Remembers the last thing that was asked for and what came; never gives all at once."""

    asked, got = 0, b""

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file; ValueError without a size, as only unbounded inflation asks so."""
        if size is None or size < 0:
            raise ValueError("a deflated data set is inflated within bounds only")
        self.asked, self.got = size, super().read(size)
        return self.got


class _Order:
    """What the reader meets at the top level: where elements stand, and which stand twice."""

    def __init__(self, source: _Watched) -> None:
        self._source = source
        self.places: list[_Place] = []
        self._first: dict[int, int] = {}
        self.twice: list[str] = []

    def restart(self) -> None:
        """Forget the places; the reader begins anew."""
        self.places, self._first = [], {}

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        """See ``stop_when`` of pydicom's reader, which may show the first element twice."""
        place = _Place(tag, vr, length, self._source.tell())
        first = self._first.setdefault(int(tag), place.at)
        if place.at - first >= _HEADER:
            self.twice.append(str(tag))
        elif self.places and self.places[-1].tag == tag:
            self.places.pop()
        self.places.append(place)
        return False


def read(path: Path) -> DicomFile:
    """A DICOM file with its pixels; deflated ones up to 256 MiB.

    Raises:
        OSError: There is no such file, or it may not be read.
        DataError: It is no DICOM file, is damaged, or is larger when inflated.
    """
    with _Watched(io.FileIO(str(path))) as source, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damage, which is told in the result
        try:
            return _parsed(source)
        except Exception as err:  # damaged bytes raise a dozen exception types, OSError too
            why = f"{type(err).__name__}: {err}"
            raise DataError(f"{path.name} cannot be read as DICOM: {why}") from err


def is_registered(uid: str) -> bool:
    """Whether PS3.6 registers a UID: it then names a thing of the standard."""
    return UID(uid).name != uid


def _parsed(source: _Watched) -> DicomFile:
    """File meta information, and the data set as its transfer syntax says."""
    if source.read(_BEGIN)[_PREAMBLE:] != b"DICM":
        raise ValueError("there is no DICM after the preamble")
    order = _Order(source)
    meta = read_dataset(source, False, True, stop_when=partial(_after_meta, order))
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return _deflated(source, FileMetaDataset(meta), order.twice)
    order.restart()
    source.seek(0)
    try:
        data = read_partial(source, order, defer_size=_DEFERRED)
        if all(place.tag in data for place in order.places):
            return _result(data, source, order)
    except Exception:
        if not order.places:
            raise
    # The reader gave up, and lost what it had read: what stands before the damage is read again.
    source.seek(0)
    last = order.places[-1].tag
    data = read_partial(source, lambda tag, *_: tag == last, defer_size=_DEFERRED)
    return DicomFile(data, tuple(_twice(order)), True)


def _after_meta(order: _Order, tag: BaseTag, vr: str | None, length: int) -> bool:
    """Whether group 0002 has ended."""
    return tag.group != 2 or order(tag, vr, length)


def _deflated(outer: _Watched, meta: FileMetaDataset, twice: list[str]) -> DicomFile:
    """PS3.5, A.5: all after the file meta information is one deflate stream without a header."""
    at = outer.tell()
    zipped = outer.read(outer.seek(0, io.SEEK_END) - outer.seek(at))
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    content = engine.decompress(zipped, _MOST_INFLATED + 1)
    if len(content) > _MOST_INFLATED:
        raise ValueError(f"the data set is larger than {_MOST_INFLATED} bytes when inflated")
    if not engine.eof:
        raise ValueError("the deflated data set ends early")
    plain = io.BytesIO(content)
    with _Watched(plain) as source:
        order = _Order(source)
        found = read_dataset(source, False, True, stop_when=order)
        data = FileDataset(io.BytesIO(), found, None, meta, False, True)
        data.set_original_encoding(False, True, found.original_character_set)
        order.twice = [*twice, *order.twice]
        whole = _result(data, source, order)
    after = _bytes("after the deflated data set", engine.unused_data)
    return DicomFile(data, (*whole.leftovers, *after), whole.cut)


def _result(data: FileDataset, source: _Watched, order: _Order) -> DicomFile:
    """What was read, and what the reader passed over."""
    at, size = source.tell(), source.seek(0, io.SEEK_END)
    short = source.got if 0 < len(source.got) < source.asked == _HEADER else b""
    cut = at > size or any(_is_cut(data, place.tag) for place in order.places)
    left = [*_twice(order), *_lost(data, order, at - len(short))]
    left += _bytes("after the data set", short)  # too short for an element
    if at < size:
        source.seek(at)
        left += _bytes("after the data set", source.read(size - at))
    return DicomFile(data, tuple(left), cut)


def _lost(data: FileDataset, order: _Order, end: int) -> Iterator[Leftover]:
    """Sequences that take more bytes than what the reader shows of them, written again."""
    ends = [*(place.begin for place in order.places[1:]), end]
    for place, until in zip(order.places, ends, strict=False):
        if not place.is_sequence:
            continue
        try:
            element = data[place.tag]
            again = DicomBytesIO()
            again.is_implicit_VR = place.vr is None
            again.is_little_endian = data.original_encoding[1] is not False
            write_sequence(again, element, convert_encodings(data.original_character_set))
        except Exception:  # of damaged values; each is told where it is looked at
            continue
        size = again.tell() + (_HEADER if place.length == _UNDEFINED else 0)
        if size != until - place.at:
            yield Leftover(f"sequence {place.tag}", f"{until - place.at - size} bytes not shown")


def _twice(order: _Order) -> Iterator[Leftover]:
    """The elements of which a reader shows the last one only."""
    return (Leftover(f"element {tag}", "stands twice") for tag in order.twice)


def _is_cut(data: FileDataset, tag: BaseTag) -> bool:
    """Whether the reader gave up on an element, or the file ended within it."""
    if tag not in data:
        return True
    raw: Any = data.get_item(tag)
    if not isinstance(raw, RawDataElement) or raw.value is None or raw.length == _UNDEFINED:
        return False
    return len(raw.value) < raw.length


def _bytes(place: str, content: bytes) -> Iterator[Leftover]:
    """Bytes that are more than filling."""
    if content.strip(b"\0"):
        yield Leftover(place, f"{len(content)} bytes")
