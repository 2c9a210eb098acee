"""The state of a run at this moment, for the status command, the page and the metrics.

Everything on it is public or was released: it is made of events at the coordinator and of the
run's facts that are not local to a site.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synth_common import wall_clock
from synth_common.errors import StorageError, SynthwardError
from synth_common.facts import Fact, plain
from synth_common.reporting.files import replace_text
from synth_server.events import EVENTS, EventLog
from synth_server.strategy import Failure

_LOG = logging.getLogger(__name__)
STATE = "state.json"
_TICK_SECONDS = 2.0

Snapshot = dict[str, Any]
"""The board as JSON can hold it; see :meth:`Board.snapshot`."""


class Board:
    """Collects what goes on, writes it as events, and keeps ``state.json`` fresh.

    Args:
        folder: Run directory.
        run: Identity of the run: ``name``, ``id``, ``planned`` rounds, ``target_epsilon``.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self._path = folder / STATE
        self._events = EventLog(folder / EVENTS)
        self._lock = threading.RLock()
        self._began = time.monotonic()
        self._values: Snapshot = {
            **run,
            "pid": os.getpid(),
            "started": wall_clock.now().isoformat(),
            "phase": "starting",
            "round": 0,
            "completed": 0,
            "round_seconds": None,
            "bytes_down": 0,
            "bytes_up": 0,
            "error": None,
        }
        self._sites: dict[str, dict[str, Any]] = {}
        self._heard: dict[str, float] = {}
        self._sent: dict[str, float] = {}
        self._health: dict[int, Mapping[str, Any]] = {}
        self._sample: str | None = None

    def recall(self, facts: Iterable[Fact]) -> None:
        """Take over what an earlier process recorded, without events."""
        with self._lock:
            for fact in facts:
                if fact.scope != "site-local":
                    self._take(fact)

    def take(self, facts: Iterable[Fact]) -> None:
        """Take over what curves and counters show, and write a completed round as an event."""
        seen = list(facts)
        self.recall(seen)
        epsilons = {f.site: f.value for f in seen if f.name == "privacy.epsilon"}
        for fact in seen:
            if fact.name == "federation.round":
                self._events.write("round", round=fact.round, **fact.value, epsilon=epsilons)

    def _take(self, fact: Fact) -> None:
        """One fact, if it is of those that are shown."""
        if fact.name == "federation.round" and fact.round is not None:
            if fact.round > self._values["completed"]:
                self._values["bytes_down"] += fact.value["bytes_down"]
                self._values["bytes_up"] += fact.value["bytes_up"]
            self._values["completed"] = max(self._values["completed"], fact.round)
            self._values["round_seconds"] = fact.value["seconds"]
        elif fact.name == "privacy.epsilon" and fact.site is not None:
            site = self._site(fact.site)
            site["epsilon"] = fact.value
            site["epsilon_by_round"][fact.round or 0] = fact.value
        elif fact.name == "training.health" and fact.round is not None:
            self._health[fact.round] = fact.value
        elif fact.name == "samples.grid" and fact.detail.get("kind") == "synthetic":
            self._sample = str(fact.value)

    def begin(self, phase: str, number: int | None = None) -> None:
        """A phase begins: waiting, release, round, evaluation, report."""
        with self._lock:
            if number is not None:
                self._values["round"] = number
            if phase != self._values["phase"] or phase == "round":
                self._values["phase"] = phase
                self._events.write("phase", phase=phase, round=number)
            self._save()

    def heard(self, online: Mapping[str, float], enrolled: Iterable[str]) -> None:
        """Who is connected now; notes who came and who went."""
        with self._lock:
            for name in enrolled:
                self._site(name)
            for name, site in self._sites.items():
                here = name in online
                if site["connected"] != here:
                    site["connected"] = here
                    self._events.write("connected" if here else "disconnected", site=name)
            now = time.monotonic()
            self._heard |= {name: now - seconds for name, seconds in online.items()}

    def asked(self, site: str) -> None:
        """A message goes out to a site."""
        with self._lock:
            self._sent[site] = time.monotonic()
            self._site(site)["activity"] = "asked"
            self._events.write("asked", site=site, round=self._values["round"])
            self._save()

    def replied(self, site: str, refused: str | None) -> None:
        """A site's reply was taken, or why there is none that can be used."""
        with self._lock:
            entry = self._site(site)
            sent = self._sent.pop(site, None)
            seconds = None if sent is None else round(time.monotonic() - sent, 3)
            entry["activity"] = "answered" if refused is None else "failed"
            entry["failure"] = refused
            entry["answers" if refused is None else "failures"] += 1
            self._events.write(
                "reply" if refused is None else "failure",
                site=site,
                round=self._values["round"],
                code=refused,
                seconds=seconds,
            )
            self._save()

    def failed(self, number: int, failures: Sequence[Failure]) -> None:
        """A round had too few usable replies."""
        with self._lock:
            named = {failure.site: failure.code for failure in failures}
            self._events.write("round failed", round=number, failures=named)

    def warn(self, text: str) -> None:
        """Something that the operator should read."""
        with self._lock:
            self._events.write("warning", text=text)

    def end(self, phase: str, error: Exception | None = None) -> None:
        """The run ends here: finished, stopped or failed; of a fault, the class alone is told."""
        with self._lock:
            self._values["phase"] = phase
            if error is not None:
                name = type(error).__name__
                known = isinstance(error, SynthwardError)
                self._values["error"] = f"{name}: {error}" if known else name
            self._events.write(phase, error=self._values["error"])
            self._save()

    def snapshot(self) -> Snapshot:
        """The state now.

        Returns:
            ``name``, ``id``, ``planned``, ``target_epsilon``, ``pid``, ``started``, ``updated``,
            ``up_s``, ``phase``, ``round`` (in progress), ``completed``, ``round_seconds`` (of the
            last), ``bytes_down``, ``bytes_up``, ``error``; ``sites``: by name, ``connected``,
            ``heard_s`` (seconds ago, or None), ``activity`` (idle, asked, answered, failed),
            ``failure`` (the last code, or None), ``answers``, ``failures``, ``epsilon``,
            ``epsilon_by_round``; ``health``: signals by round; ``sample``: the grid's file,
            relative to the run directory, or None.
        """
        with self._lock:
            now = time.monotonic()
            sites = {
                name: {**site, "heard_s": self._heard_ago(name, now)}
                for name, site in sorted(self._sites.items())
            }
            copied: Snapshot = plain(
                {
                    **self._values,
                    "updated": wall_clock.now().isoformat(),
                    "up_s": round(now - self._began, 1),
                    "sites": sites,
                    "health": self._health,
                    "sample": self._sample,
                }
            )
            return copied

    def _heard_ago(self, name: str, now: float) -> float | None:
        return round(now - self._heard[name], 1) if name in self._heard else None

    def _site(self, name: str) -> dict[str, Any]:
        """The entry of a site."""
        return self._sites.setdefault(
            name,
            {
                "connected": False,
                "activity": "idle",
                "failure": None,
                "answers": 0,
                "failures": 0,
                "epsilon": None,
                "epsilon_by_round": {},
            },
        )

    def _save(self) -> None:
        replace_text(self._path, json.dumps(self.snapshot(), indent=2) + "\n")

    @contextmanager
    def refreshed(self, look: Callable[[], object]) -> Iterator[None]:
        """Within this, ``state.json`` is written every two seconds, after a call of ``look``."""
        stop = threading.Event()

        def tick() -> None:
            while not stop.wait(_TICK_SECONDS):
                try:
                    look()
                    with self._lock:
                        self._save()
                except StorageError:
                    continue  # the main thread writes more than this, and says so
                except Exception:  # a fault of ours; the next tick may do better
                    _LOG.exception("the board was not refreshed")

        ticker = threading.Thread(target=tick, name="board", daemon=True)
        ticker.start()
        try:
            yield
        finally:
            stop.set()
            ticker.join()


def read_state(folder: Path) -> Snapshot | None:
    """What a run's process wrote last; None where none did, or what is there cannot be read."""
    try:
        found = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
