"""What a site's service does, as ``synth-client status`` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synth_client import lock
from synth_client.budget import Balance, balance
from synth_client.events import State, read_state
from synth_client.limits import used_within_a_day
from synth_client.service import stop_asked
from synth_client.settings import load_settings
from synth_common.clock import moment
from synth_common.privacy.ledger import Ledger


@dataclass(frozen=True)
class Status:
    """A site's service at this moment.

    Attributes:
        site: Its name.
        running: Whether the process lives (it holds the site's lock).
        pid: That process; None if it does not.
        connected: Whether the coordinator answers it.
        reason: Why not.
        working_on: What is being worked on.
        stopping: How it was asked to end; None if it was not.
        last: What was answered last.
        last_time: When, UTC.
        last_error: Class of the error that was answered last; None since the last success.
        rounds_today: Rounds and attempts at a release that were begun in the last 24 hours.
        rounds_per_day: The limit; None for none.
        epsilon: Spent, by the ledger.
        remains: Of the budget.
    """

    site: str
    running: bool
    pid: int | None
    connected: bool
    reason: str
    working_on: str | None
    stopping: str | None
    last: str | None
    last_time: str | None
    last_error: str | None
    rounds_today: int
    rounds_per_day: int | None
    epsilon: float
    remains: float


def status(directory: Path, name: str) -> Status:
    """The status of site ``name``; the ledger is verified on the way.

    Raises:
        ConfigError: There is no such site.
        LedgerError, BudgetError: The ledger does not verify, or holds no budget.
    """
    limits = load_settings(directory, name).limits
    path = directory / "ledger.sqlite"
    account: Balance = balance(path)
    with Ledger.read(path) as ledger:
        today = used_within_a_day(ledger.reservations(), moment())
    pid = lock.holder(directory)
    state = read_state(directory) or State(0, "", reason="never started")
    running = pid is not None
    return Status(
        site=name,
        running=running,
        pid=pid,
        connected=running and state.connected,
        reason=state.reason if running else _why_not(state),
        working_on=state.working_on if running else None,
        stopping=stop_asked(directory) if running else None,
        last=state.last,
        last_time=state.last_time,
        last_error=state.last_error,
        rounds_today=today,
        rounds_per_day=limits.rounds_per_day,
        epsilon=account.spent,
        remains=account.remaining,
    )


def _why_not(state: State) -> str:
    """Why a service that does not run is not connected."""
    if not state.started:
        return state.reason
    if state.stopped is None:
        return f"it died while {state.working_on or 'it waited'}"
    return f"stopped {state.stopped}"


def describe(now: Status) -> list[str]:
    """The status for reading, line by line."""
    life = f"running, process {now.pid}" if now.running else f"NOT RUNNING: {now.reason}"
    if now.stopping is not None:
        life += f"; will stop ({now.stopping})"
    lines = [f"site       {now.site}: {life}"]
    if now.running:
        lines.append(
            f"server     {'connected' if now.connected else f'NOT CONNECTED: {now.reason}'}"
        )
        lines.append(f"working on {now.working_on or 'nothing'}")
    told = "nothing yet" if now.last is None else f"{now.last}, {now.last_time}"
    lines.append(f"last       {told}{f', REFUSED: {now.last_error}' if now.last_error else ''}")
    most = "no limit" if now.rounds_per_day is None else f"at most {now.rounds_per_day}"
    lines.append(f"rounds     {now.rounds_today} in 24 hours, {most}")
    return [*lines, f"epsilon    {now.epsilon:.4f} spent, {now.remains:.4f} remains"]
