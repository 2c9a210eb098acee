"""A site's own limits: refused before anything is charged, whatever the clock does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from small_sites import approve, enrolled_sites, release_plan, small_plan, small_site

from synth_client import site as site_module
from synth_client.limits import DAY, Hours, Limits
from synth_client.release import ReleaseRequest, ready, release_embedding
from synth_client.round import RoundRequest, train_round
from synth_client.site import Site
from synth_common import clock
from synth_common.clock import Moment, may_be_within, moment
from synth_common.errors import ConfigError, LimitError
from synth_common.generators import build_generator
from synth_common.plan import Plan
from synth_common.privacy import chain
from synth_common.privacy.ledger import Ledger
from synth_common.validation import validate

_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Machine:
    """A machine whose wall clock can be set, and which can be started again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = Moment(_NOON, "first", 100_000.0)
        for module in (chain, site_module):
            monkeypatch.setattr(module, "moment", lambda: self.now)

    def wait(self, seconds: float) -> None:
        """Time goes by, on both clocks."""
        wall = self.now.wall + timedelta(seconds=seconds)
        self.now = Moment(wall, self.now.boot, self.now.uptime + seconds)

    def set_clock(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        wall = self.now.wall + timedelta(seconds=seconds)
        self.now = Moment(wall, self.now.boot, self.now.uptime)

    def restart(self) -> None:
        """The machine starts again, at once."""
        self.now = Moment(self.now.wall, self.now.boot + "+", 0.0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def _limited(directory: Path, **limits: object) -> Site:
    from dataclasses import replace

    return replace(small_site(directory), limits=Limits.model_validate(limits))


def _train(site: Site, plan: Plan, number: int = 1) -> None:
    state = build_generator(plan.generator, 0).shared_state()
    train_round(site, RoundRequest("run", number, plan, state))


def _reserved(site: Site) -> int:
    with Ledger.read(site.ledger_path) as ledger:
        return len(ledger.reservations())


def _plan() -> Plan:
    return small_plan(accountant="rdp", epsilon=4.0)


def test_a_round_too_many_is_refused_before_it_is_charged(tmp_path: Path, machine: Machine) -> None:
    site, plan = _limited(tmp_path, rounds_per_day=2), _plan()
    approve(site, plan)
    _train(site, plan, 1)
    _train(site, plan, 2)
    with pytest.raises(LimitError, match="rounds_per_day = 2: 2 rounds"):
        _train(site, plan, 3)
    assert _reserved(site) == 2
    _train(site, plan, 2)  # a reply that was paid for is sent again, and not counted
    machine.wait(DAY + 1)
    _train(site, plan, 3)
    assert _reserved(site) == 3


@pytest.mark.parametrize("jump", [2 * DAY, -2 * DAY, 400 * DAY])
def test_a_clock_that_is_set_brings_no_round_more(
    tmp_path: Path, machine: Machine, jump: float
) -> None:
    site, plan = _limited(tmp_path, rounds_per_day=1), _plan()
    approve(site, plan)
    _train(site, plan, 1)
    machine.set_clock(jump)
    with pytest.raises(LimitError):
        _train(site, plan, 2)
    machine.wait(DAY + 1)  # a day by the clock that cannot be set
    _train(site, plan, 2)


def test_a_round_under_a_clock_set_back_counts_when_it_is_set_right(
    tmp_path: Path, machine: Machine
) -> None:
    site, plan = _limited(tmp_path, rounds_per_day=1), _plan()
    approve(site, plan)
    machine.set_clock(-3 * DAY)
    _train(site, plan, 1)
    machine.set_clock(3 * DAY)
    with pytest.raises(LimitError):
        _train(site, plan, 2)


def test_after_a_restart_the_wall_clock_counts_and_doubt_ends_after_a_day(
    tmp_path: Path, machine: Machine
) -> None:
    site, plan = _limited(tmp_path, rounds_per_day=1), _plan()
    approve(site, plan)
    machine.set_clock(300 * DAY)
    _train(site, plan, 1)
    machine.restart()
    machine.set_clock(-300 * DAY)  # the entry now lies in the future
    with pytest.raises(LimitError):
        _train(site, plan, 2)
    machine.wait(DAY + 1)  # but it is older than this start of the machine
    _train(site, plan, 2)


def test_hours_are_local_and_go_over_midnight(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine.now.wall.astimezone().hour
    closed = f"{(here + 1) % 24:02d}-{here:02d}"
    site, plan = _limited(tmp_path, hours=closed), _plan()
    approve(site, plan)
    with pytest.raises(LimitError, match=f"hours = {closed}: it is {here:02d}:00"):
        _train(site, plan)
    assert _reserved(site) == 0
    machine.wait(3600)
    _train(site, plan)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("20-06", (20, 23, 0, 5), (6, 12, 19)),
        ("08-18", (8, 17), (7, 18, 0)),
        ("22-24", (22, 23), (0, 21)),
    ],
)
def test_a_window_holds_its_first_hour_and_not_its_last(
    text: str, inside: tuple[int, ...], outside: tuple[int, ...]
) -> None:
    hours = Hours.parse(text)
    assert all(hours.cover(hour) for hour in inside)
    assert not any(hours.cover(hour) for hour in outside)


@pytest.mark.parametrize("text", ["20:00-06:00", "8-18", "06-06", "00-24", "20-25", "", "20-06 "])
def test_hours_that_are_no_window_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="for example 20-06"):
        validate(Limits, {"hours": text}, "site.toml")


def test_no_answer_depends_on_how_many_patients_there_are(tmp_path: Path) -> None:
    """The coordinator would see the refusal, and with it whether one patient is there."""
    site, plan = _limited(tmp_path, min_patients=41), _plan()
    approve(site, plan)
    with pytest.raises(LimitError, match="min_patients = 41: the site has 40"):
        site.limits.require_patients(site.train.unit_count())
    _train(site, plan)
    assert _reserved(site) == 1
    Limits(min_patients=40).require_patients(40)


def test_a_release_and_its_roll_call_know_the_limits(tmp_path: Path, machine: Machine) -> None:
    from dataclasses import replace

    plan, names = release_plan(), ("east", "north", "west")
    site = replace(enrolled_sites(tmp_path)[0], limits=Limits(rounds_per_day=1))
    approve(site, plan)
    ready(site, plan, "run")
    assert _reserved(site) == 0
    release_embedding(site, ReleaseRequest("run", 1, names, plan))
    for ask in (
        lambda: ready(site, plan, "other"),
        lambda: release_embedding(site, ReleaseRequest("other", 1, names, plan)),
    ):
        with pytest.raises(LimitError):
            ask()
    assert _reserved(site) == 1


def test_an_entry_of_an_earlier_version_is_judged_by_the_wall_clock() -> None:
    old = Moment(_NOON)
    now = Moment(_NOON + timedelta(hours=23), "boot", 10.0)
    assert may_be_within(old, now, DAY)
    assert not may_be_within(old, Moment(_NOON + timedelta(hours=25), "boot", 10.0), DAY)


def test_the_machine_s_own_clock_runs_forward_and_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = moment(), moment()
    assert first.boot == second.boot
    assert first.uptime <= second.uptime
    monkeypatch.setattr(clock, "_BOOT_ID", tmp_path / "none")
    assert (moment().boot, moment().uptime) == ("", 0.0)
