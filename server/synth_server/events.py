"""What happens in a run, one JSON object a line, for whoever watches or asks later.

Lines hold names of sites, numbers that are public, and codes; nothing of a patient reaches the
coordinator.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synth_common import wall_clock
from synth_common.errors import StorageError
from synth_common.facts import plain

EVENTS = "events.jsonl"


class EventLog:
    """Appends events to a file, in whole lines.

    Args:
        path: The file; made with the first event.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: str, **values: Any) -> None:
        """Append an event with its time. Raises StorageError when the disk refuses."""
        line = {"time": wall_clock.now().isoformat(), "event": event}
        line |= {key: plain(value) for key, value in values.items() if value is not None}
        try:
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as err:
            raise StorageError(f"cannot append to {self._path}: {err.strerror}") from err
