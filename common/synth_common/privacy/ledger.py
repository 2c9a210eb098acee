"""The site's ledger: every use of private data, before it happens.

One SQLite file per site, append-only and hash-chained. A round is *reserved* before the
data is touched and *committed* before anything leaves; a reservation without a commit
(the process died in between) stays spent. Only one process may hold a ledger. Entries
say what was used (noise, rate, steps), not what it cost: cost is recomputed from the
whole history, so composition over rounds, retries and runs cannot be forgotten.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from synth_common.errors import BudgetError, LedgerError, LedgerHeldError, StorageError
from synth_common.plan import Accountant
from synth_common.privacy.accounting import Use, epsilon

_GENESIS = "0" * 64
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY,
    body TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


@dataclass(frozen=True)
class RoundKey:
    """What a reservation is for.

    Attributes:
        run_id: The run.
        round: 1-based round.
        request: SHA-256 of what the server sent, so that a repeated message is known.
    """

    run_id: str
    round: int
    request: str


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    ``reserve`` entries carry the use; a ``commit`` points at its reservation and carries
    the SHA-256 of the reply that may now leave.
    """

    number: int
    kind: Literal["reserve", "commit"]
    key: RoundKey
    use: Use | None
    reservation: int | None
    reply: str | None
    time: str
    hash: str


@dataclass(frozen=True)
class Budget:
    """The most a site ever spends on a data set: (epsilon, delta) by the given accountant."""

    epsilon: float
    delta: float
    accountant: Accountant


class Ledger:
    """An open, locked and verified ledger. Use :meth:`hold` to get one."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    @staticmethod
    def create(path: Path) -> None:
        """Begin an empty ledger at ``path``; one that is there is left as it is.

        Raises:
            StorageError: The file cannot be written.
        """
        if path.exists() or path.with_suffix(".head").exists():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, isolation_level=None)
            connection.executescript(_SCHEMA)
            connection.close()
            _write_anchor(path, 0, _GENESIS)
        except (OSError, sqlite3.OperationalError) as err:
            raise StorageError(f"cannot create ledger {path}: {err}") from err

    @classmethod
    @contextmanager
    def hold(cls, path: Path) -> Iterator[Ledger]:
        """Open the ledger at ``path`` as its only holder and verify the whole chain.

        Raises:
            LedgerHeldError: Another process holds it.
            LedgerError: It is missing or older than its anchor, or an entry was altered,
                removed or re-ordered; names the first.
            StorageError: The file cannot be read or written.
        """
        with _lock(path):
            if not path.is_file():
                raise LedgerError(
                    f"ledger {path} is missing; what was spent is unknown, so nothing more can be. "
                    "Restore it from a backup"
                )
            try:
                connection = sqlite3.connect(path, isolation_level=None)
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("SELECT count(*) FROM entries")
            except sqlite3.OperationalError as err:
                raise StorageError(f"cannot open ledger {path}: {err}") from err
            except sqlite3.DatabaseError as err:
                raise LedgerError(f"{path} is not a ledger: {err}") from err
            try:
                ledger = cls(connection, path)
                ledger.entries()
                yield ledger
            finally:
                connection.close()

    def entries(self) -> list[Entry]:
        """All entries in order, the chain verified. Raises LedgerError at the first bad one."""
        try:
            rows = self._connection.execute(
                "SELECT number, body, hash FROM entries ORDER BY number"
            ).fetchall()
        except sqlite3.DatabaseError as err:
            raise LedgerError(f"{self._path} cannot be read: {err}") from err
        previous, entries = _GENESIS, []
        for position, (number, body, digest) in enumerate(rows, start=1):
            if number != position or _chain(previous, number, body) != digest:
                raise LedgerError(
                    f"{self._path}: entry {position} was altered, removed or re-ordered; "
                    "restore the ledger from a backup made before the change"
                )
            entries.append(_parse(number, body, digest))
            previous = digest
        self._check_anchor(entries)
        return entries

    def _check_anchor(self, entries: list[Entry]) -> None:
        """The entry that the anchor names must be there: an older copy of the file has it not."""
        try:
            number, digest = self._path.with_suffix(".head").read_text().split()
        except (OSError, ValueError) as err:
            raise LedgerError(f"{self._path} has lost its anchor (.head): {err}") from err
        found = _GENESIS if number == "0" else None
        if 0 < int(number) <= len(entries):
            found = entries[int(number) - 1].hash
        if found != digest:
            raise LedgerError(
                f"{self._path} ends at entry {len(entries)}, but entry {number} was written once: "
                "it is an older or another copy; restore the newest backup"
            )

    def head(self) -> str:
        """Hash of the last entry; 64 zeros for an empty ledger."""
        entries = self.entries()
        return entries[-1].hash if entries else _GENESIS

    def history(self, run_id: str | None = None) -> list[Use]:
        """Every reserved use, committed or not; of one run if ``run_id`` is given."""
        return [
            e.use for e in self.entries() if e.use is not None and run_id in (None, e.key.run_id)
        ]

    def committed(self, key: RoundKey) -> Entry | None:
        """The commit of exactly this key, or None."""
        return next((e for e in self.entries() if e.kind == "commit" and e.key == key), None)

    def committed_rounds(self, run_id: str) -> int:
        """How many different rounds of a run were committed."""
        commits = (e.key for e in self.entries() if e.kind == "commit")
        return len({key.round for key in commits if key.run_id == run_id})

    def reserve(self, key: RoundKey, use: Use, budget: Budget) -> Entry:
        """Write that ``use`` is about to happen; from here on it counts as spent.

        Raises:
            BudgetError: History plus ``use`` would exceed the budget. Nothing is written.
        """
        total = epsilon([*self.history(), use], budget.delta, budget.accountant)
        if total > budget.epsilon:
            spent = epsilon(self.history(), budget.delta, budget.accountant)
            raise BudgetError(
                f"budget_epsilon = {budget.epsilon:.4g}: {spent:.4g} is spent and round "
                f"{key.round} would bring it to {total:.4g} at delta {budget.delta:g}"
            )
        return self._append({"kind": "reserve", "key": asdict(key), "use": asdict(use)})

    def commit(self, reservation: Entry, reply: str) -> Entry:
        """Write that the reply with SHA-256 ``reply`` may leave for this reservation."""
        body = {"kind": "commit", "key": asdict(reservation.key)}
        return self._append({**body, "reservation": reservation.number, "reply": reply})

    def _append(self, body: dict[str, Any]) -> Entry:
        entries = self.entries()
        number, previous = len(entries) + 1, entries[-1].hash if entries else _GENESIS
        body["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        digest = _chain(previous, number, text)
        try:
            self._connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (number, text, digest))
        except sqlite3.OperationalError as err:
            raise StorageError(f"cannot write ledger {self._path}: {err}") from err
        # After the entry: a crash in between leaves the ledger ahead of its anchor, never behind.
        _write_anchor(self._path, number, digest)
        return _parse(number, text, digest)


def _write_anchor(path: Path, number: int, digest: str) -> None:
    """Note the last entry beside the ledger, on disk before anything else happens."""
    anchor = path.with_suffix(".head")
    partial = anchor.with_suffix(".partial")
    try:
        with partial.open("w") as handle:
            handle.write(f"{number} {digest}\n")
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(anchor)
    except OSError as err:
        raise StorageError(f"cannot write {anchor}: {err.strerror}") from err


def _chain(previous: str, number: int, body: str) -> str:
    """Hash of an entry: covers the entry before it, its number and its text."""
    return hashlib.sha256(f"{previous}\n{number}\n{body}".encode()).hexdigest()


def _parse(number: int, text: str, digest: str) -> Entry:
    """An entry from its stored text."""
    body = json.loads(text)
    use = body.get("use")
    return Entry(
        number=number,
        kind=body["kind"],
        key=RoundKey(**body["key"]),
        use=None if use is None else Use(**use),
        reservation=body.get("reservation"),
        reply=body.get("reply"),
        time=body["time"],
        hash=digest,
    )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold ``path``'s lock file; the operating system frees it when the process dies."""
    handle: IO[str] | None = None
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.with_suffix(".lock").open("a")
        except OSError as err:
            raise StorageError(f"cannot lock ledger {path}: {err.strerror}") from err
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise LedgerHeldError(
                f"ledger {path} is held by another process; wait for that run to end, or stop it"
            ) from err
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield
    finally:
        if handle is not None:
            handle.close()
