"""What the service of a site tells: one line per message, an event log, and its state.

Nothing of a patient is written here: a message's kind, run and round, seconds, what the
ledger composes, and the class of an error. The whole story of a failure is in the site's
``errors.log``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synth_client.budget import Balance, balance
from synth_common import messages
from synth_common.errors import DataError, StorageError, SynthwardError
from synth_common.flower import Message
from synth_common.messages import RELEASE
from synth_common.privacy.ledger import RUN_ID
from synth_common.reporting.files import replace_bytes

EVENTS, STATE = "events.jsonl", "state.json"
_DELIVERY_SECONDS = 60.0
_KINDS = {"train": "round", "evaluate": "evaluation", "query": "question"}


@dataclass(frozen=True)
class Asked:
    """What a message asks for, as far as it can be read.

    Attributes:
        kind: ``round``, ``release``, ``roll-call``, ``evaluation`` or ``question``.
        run_id: The run; ``?`` where it is no plain name, so that no peer writes on a terminal.
        round: The round; 0 outside of one.
    """

    kind: str
    run_id: str
    round: int

    @staticmethod
    def of(message: Message) -> Asked:
        """Read a message; what cannot be read is ``?``."""
        action = str(message.metadata.message_type).partition(".")
        kind = _KINDS.get(action[0], "?")
        if action[2] == RELEASE:
            kind = "release" if action[0] == "train" else "roll-call"
        try:
            header = messages.header_of(message)
        except DataError:
            return Asked(kind, "?", 0)
        run = header.run_id if RUN_ID.fullmatch(header.run_id) else "?"
        return Asked(kind, run, header.round)

    def __str__(self) -> str:
        """For reading."""
        if self.kind == "question":
            return "who are you"
        number = f" {self.round}" if self.kind == "round" else ""
        return f"{self.kind}{number} of run {self.run_id}"


@dataclass(frozen=True)
class State:
    """What ``state.json`` says; ``synth-client status`` reads it.

    Attributes:
        pid: The service's process.
        started: When it started, UTC.
        connected: Whether the coordinator answers.
        reason: Why not.
        working_on: What is being worked on; None for nothing.
        undelivered: What was answered and has not arrived, but is still waited for; None for
            nothing.
        last: What was answered last; None for nothing yet.
        last_time: When, UTC.
        last_error: Class of the error that was answered last; None since the last success.
        stopped: When the service ended in good order, UTC.
    """

    pid: int
    started: str
    connected: bool = False
    reason: str = "not connected yet"
    working_on: str | None = None
    undelivered: str | None = None
    last: str | None = None
    last_time: str | None = None
    last_error: str | None = None
    stopped: str | None = None


def utc_now() -> str:
    """This second, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_state(directory: Path) -> State | None:
    """The state that the service of a site wrote last; None where there is none."""
    try:
        return State(**json.loads((directory / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@dataclass
class SiteEvents:
    """Hears what the node does, and tells it: to the terminal, the event log and the state.

    A disk that is full must not end the service: the first refusal is told on the terminal
    and the work goes on, because the ledger decides and not the log.

    Attributes:
        directory: Of the site.
        say: Gets the lines for the terminal.
    """

    directory: Path
    say: Callable[[str], None]
    state: State = field(default_factory=lambda: State(os.getpid(), utc_now()))
    _began: float = 0.0
    _ended: float = 0.0
    _told: bool = False

    @property
    def busy(self) -> bool:
        """Whether a message is being worked on, or its answer is on its way.

        An answer that does not arrive for a minute is not waited for: it is kept, and sent again
        for nothing when it is asked for again.
        """
        if self.state.working_on is not None:
            return True
        waited = time.monotonic() - self._ended
        return self.state.undelivered is not None and waited < _DELIVERY_SECONDS

    def started(self, words: str) -> None:
        """The service begins."""
        self._tell("started", words, pid=self.state.pid)

    def connected(self) -> None:
        """The coordinator answers."""
        if not self.state.connected:
            self._become(connected=True, reason="")
            self._tell("connected", "connected")

    def disconnected(self, reason: str) -> None:
        """The coordinator does not answer; the node goes on trying."""
        if self.state.connected or self.state.reason != reason:
            self._become(connected=False, reason=reason)
            self._tell("disconnected", f"DISCONNECTED: {reason}", reason=reason)

    def asked(self, message: Message) -> None:
        """A message came."""
        asked = Asked.of(message)
        self._began = time.monotonic()
        self._become(working_on=str(asked))
        self._tell("asked", "", **asdict(asked))

    def worked(self, message: Message, reply: Message) -> None:
        """The work on a message is over; ``reply`` is to be sent."""
        asked = Asked.of(message)
        self._ended = time.monotonic()
        seconds = round(self._ended - self._began, 3)
        error = messages.error_code(reply) if reply.has_error() else None
        values: dict[str, Any] = {**asdict(asked), "seconds": seconds, "error": error}
        words = f"{asked}: {'done' if error is None else f'REFUSED, {error} (see errors.log)'}"
        words += f" in {seconds:.1f} s"
        account = self._account()
        if account is not None:
            values |= {"epsilon": account.spent, "remains": account.remaining}
            words += f"; epsilon {account.spent:.4f} spent, {account.remaining:.4f} remains"
        told = {"last": str(asked), "last_time": utc_now(), "last_error": error}
        self._become(working_on=None, undelivered=str(asked), **told)
        self._tell("worked", "" if asked.kind == "question" else words, **values)

    def answered(self, message: Message, reply: Message) -> None:
        """The coordinator has the whole answer."""
        self._become(undelivered=None)
        self._tell("answered", "", **asdict(Asked.of(message)))

    def unwanted(self, message: Message) -> None:
        """The coordinator does not take the answer. It is kept; asked again it costs nothing."""
        asked = Asked.of(message)
        self._become(undelivered=None)
        words = f"{asked}: the coordinator does not wait for the answer any more"
        self._tell("unwanted", "" if asked.kind == "question" else words, **asdict(asked))

    def stopped(self, words: str, **values: Any) -> None:
        """The service ends."""
        self._become(connected=False, reason="stopped", working_on=None, stopped=utc_now())
        self._tell("stopped", words, **values)

    def _account(self) -> Balance | None:
        """What is spent and what remains; None where the ledger cannot say."""
        try:
            return balance(self.directory / "ledger.sqlite")
        except SynthwardError:
            return None  # the message's own error says so

    def _become(self, **changes: Any) -> None:
        """Write the state down, changed."""
        self.state = replace(self.state, **changes)
        text = json.dumps(asdict(self.state), indent=2) + "\n"
        try:
            replace_bytes(self.directory / STATE, text.encode(), mode=0o600)
        except StorageError as err:
            self._cannot_write(err)

    def _tell(self, event: str, words: str, **values: Any) -> None:
        """Append an event, and say it if there are words."""
        time_ = utc_now()
        line = json.dumps({"time": time_, "event": event, **values}, sort_keys=True, default=str)
        try:
            handle = os.open(self.directory / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "a", encoding="utf-8") as log:
                log.write(line + "\n")
        except OSError as err:
            self._cannot_write(err)
        if words:
            self.say(f"{time_} {words}")

    def _cannot_write(self, err: Exception) -> None:
        """Say once that nothing is written any more."""
        if not self._told:
            self._told = True
            self.say(f"{utc_now()} the logs cannot be written: {err}; going on without")
