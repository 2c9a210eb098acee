"""One process in a run directory at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synth_common.errors import ConfigError, StorageError
from synth_common.file_lock import take

LOCK = ".lock"
"""The lock's file in a run directory; the operating system lets it go when its holder dies."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run directory.

    Raises:
        ConfigError: Another process holds it.
        StorageError: The directory cannot be written.
    """
    try:
        lock = (folder / LOCK).open("a")
    except OSError as err:
        raise StorageError(f"cannot use {folder} as run directory: {err.strerror}") from err
    with lock:
        try:
            take(lock)
        except OSError:
            raise ConfigError(
                f"another process is running in {folder}; wait for it to end"
            ) from None
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds a run directory now."""
    path = folder / LOCK
    try:
        with path.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
