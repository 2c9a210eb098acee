"""How long a coordinator waits: as long as it was told to, in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from synth_common.errors import FederationError
from synth_common.plan import Plan
from synth_server import attendance
from synth_server.attendance import Attendance
from synth_server.run_settings import RunConfig
from synth_server.strategy import Failure, UniformAverage


class _Clock:
    """Stands still until somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def check(self) -> None:
        """Nobody stops it."""


@dataclass
class _Roster:
    sites: Mapping[int, str] = field(default_factory=lambda: {1: "east", 2: "north"})
    here: set[str] = field(default_factory=set)

    def online(self) -> Mapping[str, float]:
        return dict.fromkeys(self.here, 0.0)


class _Board:
    def __getattr__(self, name: str):
        return lambda *given: None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(attendance, "time", made)
    return made


def _attendance(clock: _Clock, roster: _Roster) -> Attendance:
    strategy = UniformAverage(roster.sites, 2, "run", Plan())
    strategy.outcome.replies["east"] = {}  # one answer was usable
    config = RunConfig(patience_s=100.0, gather_s=0.0, retry_s=10.0)
    return Attendance(roster, strategy, config, _Board(), clock, lambda line: None)


def test_patience_is_counted_once_before_a_round_and_after_it_failed(clock: _Clock) -> None:
    roster = _Roster(here={"east"})
    waits = _attendance(clock, roster)
    sleep = clock.sleep

    def arrives(seconds: float) -> None:
        sleep(seconds)
        if clock.now > 1060.0:
            roster.here.add("north")

    clock.sleep = arrives  # type: ignore[method-assign]
    waits.before(1)
    assert clock.now == pytest.approx(1060.0, abs=0.5)
    clock.now += 500.0  # the sites work; nobody is waited for
    began, refused = clock.now, [Failure("north", "LimitError", "not in these hours")]
    while waits.again(1, refused):
        assert clock.now - began < 60.0, "asked again although the patience is spent"
    assert clock.now - began == pytest.approx(40.0, abs=11.0)


def test_a_round_whose_attempts_take_long_is_given_up(clock: _Clock) -> None:
    roster = _Roster(here={"east", "north"})
    waits = _attendance(clock, roster)
    waits.before(1)
    silent, attempts = [Failure("north", "NoReply", "no reply")], 0
    while waits.again(1, silent):
        clock.now += 60.0  # until the round's timeout, in vain
        attempts += 1
    assert attempts == 2


def test_every_round_has_its_own_patience(clock: _Clock) -> None:
    roster = _Roster(here={"east", "north"})
    waits = _attendance(clock, roster)
    waits.before(1)
    assert waits.again(1, [Failure("north", "LimitError", "not in these hours")])
    clock.now += 95.0
    waits.before(2)
    assert waits.again(2, [Failure("north", "LimitError", "not in these hours")])
    roster.here.clear()
    began = clock.now
    with pytest.raises(FederationError, match=r"patience_s = 100 s"):
        waits.before(3)
    assert clock.now - began == pytest.approx(100.0, abs=1.0)
