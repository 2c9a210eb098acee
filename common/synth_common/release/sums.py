"""``SHA256SUMS``, as ``sha256sum --check`` reads it, and the files of a folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_MOST_TEXT = 64_000_000


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal. Raises OSError."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def files_below(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Plain files below a folder by their names with ``/``; and names of what is none.

    The second are links, devices and the like, but not folders. Both are in order. Raises OSError.
    """
    plain: dict[str, Path] = {}
    odd: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            odd.append(name)
        elif path.is_file():
            plain[name] = path
    return plain, odd


def render(digests: Mapping[str, str]) -> str:
    """The text of ``SHA256SUMS``, in the order of the names."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def parse(text: str) -> dict[str, str]:
    """The digests in a text of :func:`render`. Raises ValueError for anything else."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None or match[2] in found:
            raise ValueError(f"line {line[:80]!r}")
        found[match[2]] = match[1]
    return found


def text_in(path: Path) -> str:
    """A file's text. Raises OSError, and ValueError where it is too large or not UTF-8."""
    if path.is_symlink():
        raise ValueError("it is a link")
    if path.stat().st_size > _MOST_TEXT:
        raise ValueError(f"larger than {_MOST_TEXT:,} bytes")
    return path.read_text(encoding="utf-8")
