"""Taking a lock file that others may look at."""

from __future__ import annotations

import fcntl
import time
from typing import IO, Any

_LOOK_SECONDS = 0.3  # who asks whether a lock is held has it, shared, for less than this
_RETRY_SECONDS = 0.02


def take(handle: IO[Any]) -> None:
    """Lock an open file for this process alone, until it is closed.

    A look at whether it is locked holds it for a moment, so a refusal is not believed at once.

    Raises:
        OSError: Another process holds it.
    """
    until = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
        time.sleep(_RETRY_SECONDS)
