"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from synth_common.errors import StorageError


def replace_bytes(path: Path, content: bytes, mode: int = 0o644) -> Path:
    """Put ``content`` at ``path`` in one step, on the disk when it returns; returns ``path``.

    Temporary files are private; ``mode`` is the file's own, by default readable by others.

    Raises:
        StorageError: The directory does not exist, is not writable, or the disk is full.
    """
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as handle:
            temporary = Path(handle.name)
            try:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
                temporary.chmod(mode)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename, too, survives a power cut
        finally:
            os.close(folder)
    except OSError as err:
        raise StorageError(f"cannot write {path}: {err.strerror}") from err
    return path


def filled(template: str, values: Mapping[str, object]) -> str:
    """A template with ``@NAME@`` replaced by the value ``name``, for each."""
    for name, value in values.items():
        template = template.replace(f"@{name.upper()}@", str(value))
    return template


def replace_text(path: Path, content: str) -> Path:
    """Put UTF-8 text at ``path`` in one step; returns ``path``. Errors as :func:`replace_bytes`."""
    return replace_bytes(path, content.encode("utf-8"))
