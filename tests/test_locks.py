"""Whoever looks whether a run or a site is busy is in nobody's way."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from synth_client import lock as client_lock
from synth_common.errors import ConfigError, RunningError
from synth_server import lock as server_lock

HOLDERS = [
    pytest.param(server_lock.locked, ".lock", ConfigError, id="server"),
    pytest.param(client_lock.hold, "service.lock", RunningError, id="client"),
]


@contextmanager
def _look(path: Path, seconds: float) -> Iterator[None]:
    """Hold a lock file as a look at it does, but for longer."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        timer = threading.Timer(seconds, fcntl.flock, (handle, fcntl.LOCK_UN))
        timer.start()
        yield
        timer.join()


@pytest.mark.parametrize(("hold", "name", "error"), HOLDERS)
def test_a_look_at_a_lock_does_not_refuse_a_start(
    tmp_path: Path,
    hold: Callable[[Path], AbstractContextManager[None]],
    name: str,
    error: type[Exception],
) -> None:
    with _look(tmp_path / name, 0.1), hold(tmp_path):
        pass
    with hold(tmp_path), pytest.raises(error, match="run"), hold(tmp_path):
        pass
