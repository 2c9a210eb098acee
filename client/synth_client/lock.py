"""One service per site: the process that holds a site's lock file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synth_common.errors import RunningError, StorageError
from synth_common.file_lock import take

_FILE = "service.lock"


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Be the one service of the site in ``directory``; the system frees it when we die.

    Raises:
        RunningError: Another process is; names it.
        StorageError: The disk refused.
    """
    path = directory / _FILE
    try:
        handle = path.open("a+")
    except OSError as err:
        raise StorageError(f"cannot lock {path}: {err.strerror}") from err
    with handle:
        try:
            take(handle)
        except OSError as err:
            raise RunningError(
                f"the service of {directory.name} runs already (process {_written(path)}); see "
                "synth-client status, or end it with synth-client stop"
            ) from err
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        try:
            yield
        finally:
            handle.truncate(0)


def holder(directory: Path) -> int | None:
    """The process that runs the service of the site in ``directory``, or None."""
    path = directory / _FILE
    try:
        handle = path.open("r")
    except OSError:
        return None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _written(path)
    return None


def _written(path: Path) -> int:
    """The process id in a lock file; 0 where it cannot be read."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
