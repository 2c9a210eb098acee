"""An append-only file of hash-chained entries, with one writer and an anchor beside it.

This module knows how entries are kept, not what they mean (:mod:`ledger` does). One
SQLite file; each entry's SHA-256 covers the entry before it, so that an edited, removed
or re-ordered one is found by position. The file ``.head`` beside it names the last entry
that was written, so that an older copy of the file is found too. Every write is on disk
before the call returns.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from synth_common.clock import Moment, moment
from synth_common.errors import LedgerError, LedgerHeldError, StorageError

GENESIS = "0" * 64
"""What the first entry's hash is chained to."""

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
class Entry:
    """One verified line.

    Attributes:
        number: Position, from 1.
        kind: What it says; the ledger's word.
        body: The values of that kind.
        time: When it was written, UTC, ISO 8601.
        hash: SHA-256 over the entry before, the number and the text.
        boot: Which start of the machine wrote it; empty in an entry of an earlier version.
        uptime: Seconds since that start.
    """

    number: int
    kind: str
    body: Mapping[str, Any]
    time: str
    hash: str
    boot: str = ""
    uptime: float = 0.0

    @property
    def moment(self) -> Moment:
        """When it was written, by both clocks."""
        return Moment(datetime.fromisoformat(self.time), self.boot, self.uptime)


class Chain:
    """An open chain whose entries were verified. Get one with :meth:`hold` or :meth:`read`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, writable: bool) -> None:
        self.path = path
        self._connection = connection
        self._writable = writable
        # The anchor first: read after the entries it could name one that was just written.
        anchor = _read_anchor(path)
        self._entries = _verified(connection, path)
        _check_anchor(path, anchor, self._entries)

    @staticmethod
    def create(path: Path) -> bool:
        """Begin an empty chain at ``path``; False if one is there, which is left as it is.

        Raises:
            StorageError: The file cannot be written.
        """
        with _lock(path):
            if path.exists() or _entries_written(path):
                return False
            partial = path.with_suffix(".new")
            try:
                partial.unlink(missing_ok=True)
                connection = sqlite3.connect(partial, isolation_level=None)
                connection.executescript(_SCHEMA)
                connection.close()
                partial.chmod(0o600)
                # The anchor first: a crash in between leaves "nothing was written", and no file.
                _write_anchor(path, 0, GENESIS)
                partial.replace(path)
                _sync_directory(path.parent)
            except (OSError, sqlite3.OperationalError) as err:
                raise StorageError(f"cannot create ledger {path}: {err}") from err
        return True

    @classmethod
    @contextmanager
    def hold(cls, path: Path) -> Iterator[Chain]:
        """Open the chain as its only writer and verify the whole of it.

        Raises:
            LedgerHeldError: Another process holds it.
            LedgerError: It is missing or older than its anchor, or an entry was altered,
                removed or re-ordered; names the first.
            StorageError: The file cannot be read or written.
        """
        with _lock(path), _connection(path) as connection:
            yield cls(path, connection, writable=True)

    @classmethod
    @contextmanager
    def read(cls, path: Path) -> Iterator[Chain]:
        """The same verified entries without the lock, while somebody else may be writing."""
        with _connection(path) as connection:
            yield cls(path, connection, writable=False)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries in order."""
        return tuple(self._entries)

    @property
    def head(self) -> str:
        """Hash of the last entry; 64 zeros for an empty chain."""
        return self._entries[-1].hash if self._entries else GENESIS

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Write one entry and its anchor; both are on disk when this returns.

        Raises:
            LedgerError: The file changed since it was verified.
            StorageError: The disk refuses.
        """
        if not self._writable:
            raise LedgerError(f"ledger {self.path} was opened for reading only")
        number = len(self._entries) + 1
        now = moment()
        stamp = {
            "time": now.wall.isoformat(timespec="seconds"),
            "boot": now.boot,
            "uptime": now.uptime,
        }
        text = _text({"kind": kind, **stamp, "body": dict(body)})
        digest = _link(self.head, number, text)
        try:
            self._connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (number, text, digest))
        except sqlite3.IntegrityError as err:
            raise LedgerError(f"{self.path}: entry {number} was written by somebody else") from err
        except sqlite3.OperationalError as err:
            raise StorageError(f"cannot write ledger {self.path}: {err}") from err
        entry = _entry(number, json.loads(text), digest)
        self._entries.append(entry)
        # After the entry: a crash in between leaves the file ahead of its anchor, never behind.
        _write_anchor(self.path, number, digest)
        return entry


def _text(values: Mapping[str, Any]) -> str:
    """Canonical JSON: what is hashed."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _entry(number: int, values: Mapping[str, Any], digest: str) -> Entry:
    """An entry from its text's values; those of earlier versions know the wall clock only."""
    body = MappingProxyType(values["body"])
    boot, uptime = values.get("boot", ""), values.get("uptime", 0.0)
    return Entry(number, values["kind"], body, values["time"], digest, boot, uptime)


def _link(previous: str, number: int, text: str) -> str:
    """Hash of an entry: covers the entry before it, its number and its text."""
    return hashlib.sha256(f"{previous}\n{number}\n{text}".encode()).hexdigest()


@contextmanager
def _connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that writes through to the disk."""
    if not path.is_file():
        raise LedgerError(
            f"ledger {path} is missing; what was spent is unknown, so nothing more can be. "
            "Restore it from a backup"
        )
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        # EXTRA also syncs the directory: a power cut cannot bring a finished write back.
        connection.execute("PRAGMA synchronous=EXTRA")
        connection.execute("SELECT count(*) FROM entries")
    except sqlite3.DatabaseError as err:
        if isinstance(err, sqlite3.OperationalError) and "no such table" not in str(err):
            raise StorageError(f"cannot open ledger {path}: {err}") from err
        raise LedgerError(
            f"{path} is not a ledger ({err}); restore it and its anchor from the newest backup"
        ) from err
    try:
        yield connection
    finally:
        connection.close()


def _verified(connection: sqlite3.Connection, path: Path) -> list[Entry]:
    """All entries; raises LedgerError at the first that does not follow from the one before."""
    try:
        rows = connection.execute(
            "SELECT number, body, hash FROM entries ORDER BY number"
        ).fetchall()
    except sqlite3.DatabaseError as err:
        raise LedgerError(f"{path} cannot be read: {err}") from err
    previous, entries = GENESIS, []
    for position, (number, text, digest) in enumerate(rows, start=1):
        if number != position or _link(previous, number, text) != digest:
            raise LedgerError(
                f"{path}: entry {position} was altered, removed or re-ordered; "
                "restore the ledger from a backup made before the change"
            )
        entries.append(_entry(number, json.loads(text), digest))
        previous = digest
    return entries


def _anchor_path(path: Path) -> Path:
    return path.with_suffix(".head")


def _read_anchor(path: Path) -> tuple[int, str]:
    """Number and hash of the last entry that was certainly written."""
    try:
        number, digest = _anchor_path(path).read_text().split()
        return int(number), digest
    except (OSError, ValueError) as err:
        raise LedgerError(
            f"{path} has lost its anchor: {_anchor_path(path).name} is missing or damaged, so that "
            "an older copy could not be told. Restore both files from the newest backup; what was "
            "spent since then is not in it"
        ) from err


def _entries_written(path: Path) -> bool:
    """Whether an anchor says that entries were written once, or cannot be understood."""
    return _anchor_path(path).exists() and _read_anchor(path) != (0, GENESIS)


def _check_anchor(path: Path, anchor: tuple[int, str], entries: list[Entry]) -> None:
    """The entry that the anchor names must be there: an older copy of the file has it not."""
    number, digest = anchor
    found = GENESIS if number == 0 else None
    if 0 < number <= len(entries):
        found = entries[number - 1].hash
    if found != digest:
        raise LedgerError(
            f"{path} ends at entry {len(entries)}, but entry {number} was written once: "
            "it is an older or another copy; restore the newest backup"
        )


def _write_anchor(path: Path, number: int, digest: str) -> None:
    """Note the last entry beside the ledger, on disk before anything else happens."""
    anchor = _anchor_path(path)
    partial = anchor.with_suffix(".partial")
    try:
        with partial.open("w") as handle:
            handle.write(f"{number} {digest}\n")
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(anchor)
        _sync_directory(anchor.parent)
    except OSError as err:
        raise StorageError(f"cannot write {anchor}: {err.strerror}") from err


def _sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        yield
    finally:
        if handle is not None:
            handle.close()
