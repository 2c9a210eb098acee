"""Identifiers in EXIF, in the tags of TIFF, and in XMP packets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from synth_common.errors import DataError
from synth_common.release import tiff
from synth_common.release.identifiers import Found, Kind, decoded, in_words
from synth_common.release.marking import is_only_mark
from synth_common.release.profiles import in_profile

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
# Values of up to four bytes that only say how to read the others.
_TECHNICAL: Final = frozenset(
    (
        *("ExifVersion", "FlashPixVersion", "ComponentsConfiguration", "InteropIndex"),
        *("InteropVersion", "FileSource", "SceneType"),
    )
)
# Where pixels are, and tables of any length to show them.
_LAYOUT: Final = frozenset(
    (258, 273, 279, 280, 281, 291, 301, 320, 324, 325, 330, 338, 339, 340, 341, 519, 520, 521, 532)
)
_WIDE: Final = ("XPTitle", "XPComment", "XPKeywords", "XPSubject", "XPAuthor")
"""Tags whose bytes are UTF-16."""
_XMP, _IPTC, _RESOURCES, _PROFILE, _TABLES = 700, 33723, 34377, 34675, 347
_MOST_NUMBERS = 16


def in_exif(content: bytes) -> Iterator[Found]:
    """What the EXIF of a picture says: ``content`` begins with its byte order."""
    yield from _in_directories(content, "EXIF", holds_pixels=False)


def in_tiff(content: bytes) -> Iterator[Found]:
    """What a TIFF says beside its pixels, on all its pages."""
    yield from _in_directories(content, "TIFF", holds_pixels=True)


def in_packet(place: str, packet: str) -> Iterator[Found]:
    """An XMP packet that is more than the mark of a synthetic picture."""
    if not is_only_mark(packet):
        yield from in_words(f"XMP in {place}" if place else "XMP", packet)


def _in_directories(content: bytes, what: str, holds_pixels: bool) -> Iterator[Found]:
    try:
        entries, rest = tiff.read(content)
    except DataError as err:
        yield "unreadable", what, str(err)
        return
    for entry in entries:
        yield from _in_entry(entry, holds_pixels)
    if rest:
        yield "hidden data", f"{what}, in no directory", f"{len(rest)} bytes"


def _in_entry(entry: tiff.Entry, holds_pixels: bool) -> Iterator[Found]:
    """One tag: by what it is called, else by its words; bare numbers only say how to show it."""
    name = _name(entry)
    place = f"EXIF {name}" + (f" of page {entry.page + 1}" if entry.page else "")
    kind = next((kind for begin, kind in _TAGS if name.startswith(begin)), None)
    if entry.tag in (tiff.EXIF, tiff.GPS):
        return
    if kind is not None:
        yield kind, place, _shown(entry, name)
    elif entry.tag == _XMP:
        yield from in_packet(place if entry.page else "", decoded(entry.raw))
    elif entry.tag == _PROFILE:
        yield from in_profile(place, entry.raw)
    elif not holds_pixels and entry.tag in (273, 324, 513):
        yield "hidden data", place, "a second picture, such as a thumbnail"
    elif entry.tag in _LAYOUT or (holds_pixels and entry.tag == _TABLES):
        return
    elif name not in _TECHNICAL or len(entry.raw) > 4:
        yield from _in_value(entry, name, place)


def _in_value(entry: tiff.Entry, name: str, place: str) -> Iterator[Found]:
    """A tag that only its value can tell of."""
    text = _shown(entry, name)
    if entry.form == 2 or name in ("UserComment", *_WIDE):
        if text:
            yield from in_words(place, text)
    elif entry.raw.strip(b"\0 ") and _is_opaque(entry, name):
        yield from in_words(place, decoded(entry.raw), least="hidden data")


def _is_opaque(entry: tiff.Entry, name: str) -> bool:
    """Whether it may hold more than a few numbers."""
    return (
        entry.tag in (_IPTC, _RESOURCES)
        or not 0 < len(entry.numbers) <= _MOST_NUMBERS
        or name.startswith("tag ")
        or _is_written(entry)
    )


def _is_written(entry: tiff.Entry) -> bool:
    """Whether numbers read as letters, by byte or one by one."""
    stored = entry.raw.strip(b"\0 ")
    as_bytes = len(stored) >= (4 if entry.form in (1, 6) else 8)
    return (as_bytes and all(32 <= byte < 127 for byte in stored)) or (
        len(entry.numbers) > 4 and all(32 <= number < 127 for number in entry.numbers)
    )


def _name(entry: tiff.Entry) -> str:
    from PIL import ExifTags

    if entry.parent == tiff.GPS:
        return ExifTags.GPSTAGS.get(entry.tag, f"GPS {entry.tag}")
    return ExifTags.TAGS.get(entry.tag, f"tag {entry.tag}")


def _shown(entry: tiff.Entry, name: str) -> str:
    """A value as text."""
    if name in _WIDE:
        return entry.raw.decode("utf-16-le", "replace").strip("\0 ")
    if entry.numbers:
        return ", ".join(f"{number:g}" for number in entry.numbers)
    if name == "UserComment" and entry.raw.startswith(b"UNICODE"):
        return entry.raw[8:].decode("utf-16", "replace").strip("\0 ")
    text = entry.raw[8:] if name == "UserComment" else entry.raw
    return decoded(text).strip("\0 ")
