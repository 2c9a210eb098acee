"""Looks for identifiers in the files of a set of images, before or after it leaves.

What is looked at: names of files and folders, text chunks and EXIF and XMP of PNG, JPEG and TIFF,
headers of DICOM, and marks near the border of images that look like burned-in text. What a file is
is told by its first bytes and not by its name.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from synth_common.errors import ConfigError
from synth_common.release.burned_in import text_like
from synth_common.release.exif import in_tiff
from synth_common.release.identifiers import Found, Kind, in_name
from synth_common.release.image_headers import in_jpeg, in_png
from synth_common.release.png import SIGNATURE

_MOST_BYTES = 1_000_000_000
_MOST_PIXELS = 64_000_000
_MAGIC: Mapping[bytes, str] = {
    SIGNATURE: "png",
    b"\xff\xd8\xff": "jpeg",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
}
_READERS: Mapping[str, Callable[[bytes], Iterator[Found]]] = {
    "png": in_png,
    "jpeg": in_jpeg,
    "tiff": in_tiff,
}


@dataclass(frozen=True)
class Finding:
    """What may identify somebody.

    Attributes:
        file: Path relative to what was scanned.
        kind: What it seems to be.
        place: Where in the file: a chunk, tag or element, ``file name`` or ``pixels``.
        value: What stands there.
    """

    file: str
    kind: Kind
    place: str
    value: str


@dataclass(frozen=True)
class Scan:
    """What was looked at and what was found.

    Attributes:
        findings: In the order of files.
        scanned: Files looked into, by what they are.
        skipped: Files of other kinds, whose names alone were looked at, by ending.
    """

    findings: Sequence[Finding]
    scanned: Mapping[str, int]
    skipped: Mapping[str, int]


def scan(target: Path, allowed: Sequence[str] = (), pixels: bool = True) -> Scan:
    """Look for identifiers in a file, or in all files below a folder.

    Args:
        target: File or folder.
        allowed: Values that a person has looked at and found harmless; not reported.
        pixels: Whether to look for burned-in text.

    Raises:
        ConfigError: There is no such file or folder, or it holds no file.
    """
    if not target.exists():
        raise ConfigError(f"{target}: there is no such file or folder")
    paths = sorted(p for p in target.rglob("*") if p.is_file()) if target.is_dir() else [target]
    if not paths:
        raise ConfigError(f"{target} holds no file")
    findings: list[Finding] = []
    scanned: dict[str, int] = {}
    skipped: dict[str, int] = {}
    seen: set[str] = set()
    for path in paths:
        name = path.relative_to(target).as_posix() if target.is_dir() else path.name
        findings += _in_path(name, seen)
        kind = _kind(path)
        if kind is None:
            ending = path.suffix.lower() or "no ending"
            skipped[ending] = skipped.get(ending, 0) + 1
            continue
        scanned[kind] = scanned.get(kind, 0) + 1
        found = [*_in_header(path, kind), *(_in_pixels(path, kind) if pixels else ())]
        findings += [Finding(name, *one) for one in found]
    kept = [finding for finding in findings if finding.value not in allowed]
    return Scan(kept, scanned, skipped)


def _in_path(name: str, seen: set[str]) -> Iterator[Finding]:
    """The names of a file and its folders; of a folder once."""
    *folders, last = name.split("/")
    for at, part in enumerate([*folders, last]):
        whole = "/".join(name.split("/")[: at + 1])
        if whole in seen:
            continue
        seen.add(whole)
        is_file = whole == name
        place = "file name" if is_file else "folder name"
        stem = part.rsplit(".", 1)[0] if is_file and "." in part[1:] else part
        for kind, value in in_name(stem):
            yield Finding(whole, kind, place, value)


def _kind(path: Path) -> str | None:
    """What a file is by its first bytes; None for what is not looked into."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        with path.open("rb") as handle:
            head = handle.read(132)
    except OSError:
        return None
    if head[128:132] == b"DICM":
        return "dicom"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _in_header(path: Path, kind: str) -> Iterator[Found]:
    """What a file says beside its pixels."""
    if kind == "dicom":
        from synth_common.release.dicom_headers import in_dicom

        yield from in_dicom(path)
    else:
        yield from _READERS[kind](path.read_bytes())


def _in_pixels(path: Path, kind: str) -> Iterator[Found]:
    """Marks near the border that look like text."""
    try:
        for page, image in enumerate(_greys(path, kind)):
            place = f"pixels of page {page + 1}" if page else "pixels"
            for top, bottom, left, right in text_like(image):
                yield "burned-in text", place, f"rows {top}-{bottom}, columns {left}-{right}"
    except Exception as err:  # decoders meet hostile bytes with a dozen exception types
        yield "unreadable", "pixels", f"not looked at: {type(err).__name__}"


def _greys(path: Path, kind: str) -> Iterator[npt.NDArray[np.float64]]:
    """Every page, or of DICOM the first frame, as (H, W) grey values, in whatever range."""
    if kind == "dicom":
        from synth_common.release.dicom_headers import grey_frame

        yield grey_frame(path)
        return
    from PIL import Image, ImageSequence

    Image.init()  # Pillow knows TIFF only when all its formats are loaded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of size, which is judged here
        with Image.open(io.BytesIO(path.read_bytes()), formats=("PNG", "JPEG", "TIFF")) as picture:
            for page in ImageSequence.Iterator(picture):
                if page.width * page.height > _MOST_PIXELS:
                    raise ValueError("too large")
                convert = page.mode in ("1", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr")
                grey = page.convert("L") if convert else page
                yield np.asarray(grey, dtype=np.float64).reshape(page.height, page.width)
