"""PNG files: pixels in, a marked file out; and the chunks of any file, as they are.

Chunks are read here and not by Pillow because what a picture library passes over (unknown chunks,
bytes after the end, a chunk with a wrong checksum) is what may hide an identifier.
PNG: W3C Portable Network Graphics, third edition, section 5.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synth_common.errors import DataError
from synth_common.release.marking import XMP_KEYWORD, xmp_packet

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_TEXT = 4_000_000
"""Bytes that a compressed text may unfold to."""


@dataclass(frozen=True)
class Chunk:
    """One chunk; ``kind`` is ``"trailing"`` for bytes after the end of the picture."""

    kind: str
    data: bytes


def encode(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A marked PNG of (1 or 3, H, W) grey or colour values, 0 to 255."""
    from PIL import Image, PngImagePlugin

    marks = PngImagePlugin.PngInfo()
    marks.add_itxt(XMP_KEYWORD, xmp_packet())
    flat = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(flat)).save(out, format="PNG", pnginfo=marks)
    return out.getvalue()


def chunks(content: bytes) -> Iterator[Chunk]:
    """Every chunk of a PNG in order, then what stands after its end, if anything does.

    Raises:
        DataError: It is no PNG, is cut short, or a checksum is wrong.
    """
    if not content.startswith(SIGNATURE):
        raise DataError("not a PNG: it does not begin as one")
    at, kind = len(SIGNATURE), ""
    while kind != "IEND":
        if len(content) < at + 12:
            raise DataError("the PNG is cut short")
        (length,) = struct.unpack_from(">I", content, at)
        raw, end = content[at + 4 : at + 8], at + 8 + length
        data = content[at + 8 : end]
        if (
            len(content) < end + 4
            or zlib.crc32(raw + data) != struct.unpack_from(">I", content, end)[0]
        ):
            raise DataError(f"chunk {raw!r} is cut short or its checksum is wrong")
        kind = raw.decode("latin-1")
        yield Chunk(kind, data)
        at = end + 4
    if at < len(content):
        yield Chunk("trailing", content[at:])


@dataclass(frozen=True)
class Text:
    """What a text chunk holds.

    Attributes:
        keyword: What it is called.
        text: The text itself.
        also: Language and translated keyword, which iTXt alone has.
        hidden: Bytes after the end of the compressed text.
    """

    keyword: str
    text: str
    also: str = ""
    hidden: bytes = b""


def text_of(chunk: Chunk) -> tuple[str, str]:
    """Keyword and text of a tEXt, zTXt or iTXt chunk.

    Raises:
        DataError: It cannot be read, or unfolds to more than 4 MB.
    """
    whole = whole_text(chunk)
    return whole.keyword, whole.text


def whole_text(chunk: Chunk) -> Text:
    """All that a tEXt, zTXt or iTXt chunk holds.

    Raises:
        DataError: It cannot be read, or unfolds to more than 4 MB.
    """
    also, hidden = "", b""
    try:
        keyword, rest = chunk.data.split(b"\0", 1)
        if chunk.kind == "zTXt":
            body, hidden = unfold(rest[1:])
        elif chunk.kind == "iTXt":
            language, translated, text = rest[2:].split(b"\0", 2)
            body, hidden = unfold(text) if rest[0] else (text, b"")
            also = b" ".join((language, translated)).decode("utf-8", errors="replace").strip()
            word = keyword.decode("latin-1")
            return Text(word, body.decode("utf-8", errors="replace"), also, hidden)
        else:
            body = rest
    except (ValueError, IndexError, zlib.error) as err:
        raise DataError(f"a {chunk.kind} chunk cannot be read: {err}") from err
    return Text(keyword.decode("latin-1"), body.decode("latin-1"), also, hidden)


def unfold(data: bytes) -> tuple[bytes, bytes]:
    """Inflate, but not without end; and the bytes after the end of the compressed ones.

    Raises:
        DataError: It unfolds to more than 4 MB.
        zlib.error: It is damaged.
    """
    tool = zlib.decompressobj()
    body = tool.decompress(data, _MOST_TEXT)
    if tool.unconsumed_tail:
        raise DataError(f"a compressed text unfolds to more than {_MOST_TEXT:,} bytes")
    return body, tool.unused_data
