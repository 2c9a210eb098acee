"""Moments by two clocks: the wall's, which can be set, and the machine's own, which cannot.

A limit such as "so many rounds a day" must not be lifted by a clock that jumps. The time
since the machine started (sleep included) only runs forward, and where two moments belong
to one start it alone decides. Across a restart the wall clock is all there is, except that
what was written before the restart is at least as old as the restart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Moment:
    """A point in time.

    Attributes:
        wall: By the wall clock, UTC.
        boot: Which start of the machine; empty where the system does not tell.
        uptime: Seconds since that start; 0 where the system does not tell.
    """

    wall: datetime
    boot: str = ""
    uptime: float = 0.0


def moment() -> Moment:
    """This moment."""
    boot, uptime = _uptime()
    return Moment(datetime.now(UTC), boot, uptime)


def may_be_within(past: Moment, now: Moment, seconds: float) -> bool:
    """Whether ``past`` may lie less than ``seconds`` before ``now``, in doubt True.

    A wall clock that was set back makes the past lie in the future, which is in doubt.
    """
    if past.boot and past.boot == now.boot:
        return now.uptime - past.uptime < seconds
    if past.boot and now.boot and now.uptime >= seconds:
        return False  # before this start, and that is longer ago
    return (now.wall - past.wall).total_seconds() < seconds


def _uptime() -> tuple[str, float]:
    """Which start of the machine, and seconds since then; nothing where it is not Linux."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        boot = ""
    if clock is None or not boot:
        return "", 0.0
    return boot, round(time.clock_gettime(clock), 3)
