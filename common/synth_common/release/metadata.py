"""Looks for identifiers in the files of a set of images, before or after it leaves.

What is looked at: names of files and folders, text chunks and EXIF and XMP of PNG, JPEG and TIFF,
headers of DICOM, and marks near the border of images that look like burned-in text. What a file is
is told by its first bytes and not by its name.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from synth_common.errors import ConfigError, DataError
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
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
# Data sets without preamble begin with group 0002 or 0008, in which elements are below 0100.
_DICOM_BEGINS = frozenset(bytes((group, 0, low, 0)) for group in (2, 8) for low in (0, 1, 5, 8, 22))
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
    findings: list[Finding] = []
    paths = list(_below(target, findings)) if target.is_dir() else [target]
    if not paths and not findings:
        raise ConfigError(f"{target} holds no file")
    scanned: dict[str, int] = {}
    skipped: dict[str, int] = {}
    seen: set[str] = set()
    for path in paths:
        name = path.relative_to(target).as_posix() if target.is_dir() else path.name
        findings += _in_path(name, seen)
        try:
            kind = _kind(path)
            if kind is not None:
                found = [*_in_header(path, kind), *(_in_pixels(path, kind) if pixels else ())]
                findings += [Finding(name, *one) for one in found]
        except (OSError, DataError) as err:
            why = err.strerror or type(err).__name__ if isinstance(err, OSError) else str(err)
            findings.append(Finding(name, "unreadable", "file", why))
            continue
        if kind is None:
            ending = path.suffix.lower() or "no ending"
            skipped[ending] = skipped.get(ending, 0) + 1
        else:
            scanned[kind] = scanned.get(kind, 0) + 1
    kept = [finding for finding in findings if finding.value not in allowed]
    return Scan(kept, scanned, skipped)


def _below(folder: Path, findings: list[Finding]) -> Iterator[Path]:
    """All files below a folder in order; what cannot be entered is a finding."""

    def missed(path: Path, why: str) -> None:
        name = path.relative_to(folder).as_posix()
        findings.append(Finding(name, "unreadable", "folder", why))

    walk = os.walk(folder, onerror=lambda err: missed(Path(err.filename), err.strerror or "error"))
    paths: list[Path] = []
    for at, folders, files in walk:
        for name in sorted((*folders, *files)):
            path = Path(at, name)
            if path.is_file():
                paths.append(path)
            elif path.is_symlink():
                missed(path, "a link that is not followed")
            elif not path.is_dir():
                missed(path, "neither a file nor a folder")
    yield from sorted(paths)


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
    """What a file is by its first bytes; None for what is not looked into.

    Raises:
        DataError: It should be looked into and cannot be.
        OSError: It cannot be read.
    """
    with path.open("rb") as handle:
        head = handle.read(132)
    is_dicom = head[128:132] == b"DICM"
    kind = "dicom" if is_dicom else next((k for m, k in _MAGIC.items() if head.startswith(m)), None)
    if kind is None and (path.suffix.lower() in _DICOM_ENDINGS or head[:4] in _DICOM_BEGINS):
        raise DataError("DICOM without the preamble of PS3.10, section 7.1: not looked into")
    if kind is None and path.suffix.lower() in _PICTURES:
        raise DataError(f"named {path.suffix}, and is no such picture: not looked into")
    if kind is not None and path.stat().st_size > _MOST_BYTES:
        raise DataError(f"more than {_MOST_BYTES:,} bytes: not looked into")
    return kind


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
