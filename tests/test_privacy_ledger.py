"""The ledger: append-only, chained, one holder, and it refuses what does not fit."""

from __future__ import annotations

import math
import multiprocessing
import sqlite3

import pytest

from synth_common.errors import BudgetError, LedgerError, LedgerHeldError, StorageError
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.ledger import Budget, Ledger, RoundKey

BUDGET = Budget(8.0, 1e-5, "prv")
USE = Use(1.0, 0.05, 50)


@pytest.fixture
def path(tmp_path):
    """An empty ledger."""
    Ledger.create(tmp_path / "ledger.sqlite")
    return tmp_path / "ledger.sqlite"


def key(number: int = 1, request: str = "aa") -> RoundKey:
    return RoundKey("run", number, request)


def test_a_reservation_without_commit_stays_spent(path):
    with Ledger.hold(path) as ledger:
        ledger.reserve(key(1), USE, BUDGET)
    with Ledger.hold(path) as ledger:
        assert ledger.history() == [USE]
        assert ledger.committed(key(1)) is None
        done = ledger.reserve(key(1), USE, BUDGET)
        ledger.commit(done, "bb")
        assert ledger.history() == [USE, USE]
        assert ledger.committed(key(1)).reply == "bb"
        assert ledger.committed(key(1, "other request")) is None


def test_the_budget_covers_all_runs_and_a_refusal_writes_nothing(path):
    with Ledger.hold(path) as ledger:
        first = RoundKey("first run", 1, "aa")
        ledger.reserve(first, USE, BUDGET)
        tight = Budget(epsilon([USE, USE], 1e-5, "prv") * 0.999, 1e-5, "prv")
        with pytest.raises(BudgetError, match=r"budget_epsilon = .* is spent and round 2"):
            ledger.reserve(RoundKey("second run", 2, "bb"), USE, tight)
        assert len(ledger.entries()) == 1
        assert ledger.history("second run") == []


def test_no_noise_never_fits_a_finite_budget(path):
    with Ledger.hold(path) as ledger:
        with pytest.raises(BudgetError):
            ledger.reserve(key(), Use(0.0, 0.1, 1), BUDGET)
        ledger.reserve(key(), Use(0.0, 0.1, 1), Budget(math.inf, 1e-5, "prv"))


@pytest.mark.parametrize(
    ("damage", "entry"),
    [
        ("UPDATE entries SET body = replace(body, '50', '5') WHERE number = 2", 2),
        ("DELETE FROM entries WHERE number = 1", 1),
        ("UPDATE entries SET number = 9 WHERE number = 3", 3),
        ("UPDATE entries SET hash = 'x' WHERE number = 3", 3),
    ],
)
def test_the_first_altered_entry_is_named(path, damage, entry):
    with Ledger.hold(path) as ledger:
        for number in (1, 2, 3):
            ledger.reserve(key(number), USE, BUDGET)
    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(damage)
    connection.executescript(f"DROP TRIGGER no_update; DROP TRIGGER no_delete; {damage};")
    connection.close()
    with pytest.raises(LedgerError, match=f"entry {entry} "), Ledger.hold(path):
        pass


def _hold(path, ready, stop):
    with Ledger.hold(path):
        ready.set()
        stop.wait(30)


def test_a_ledger_has_one_holder_and_a_dead_one_lets_go(path):
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(path, ready, stop))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(LedgerHeldError, match="held by another process"), Ledger.hold(path):
            pass
    finally:
        process.kill()
        process.join()
    with Ledger.hold(path) as ledger:
        assert ledger.entries() == []


def test_files_that_are_no_ledger_are_refused(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database, but long enough to look at" * 50)
    with pytest.raises(LedgerError, match="not a ledger"), Ledger.hold(path):
        pass
    with pytest.raises(LedgerError, match="is missing"), Ledger.hold(tmp_path / "gone.sqlite"):
        pass
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError), Ledger.hold(blocked / "ledger.sqlite"):
        pass


def test_an_older_copy_or_a_lost_anchor_is_refused(path):
    with Ledger.hold(path) as ledger:
        ledger.reserve(key(1), USE, BUDGET)
    older = path.read_bytes()
    with Ledger.hold(path) as ledger:
        ledger.reserve(key(2), USE, BUDGET)
    newer = path.read_bytes()
    path.write_bytes(older)
    with pytest.raises(LedgerError, match="entry 2 was written once"), Ledger.hold(path):
        pass
    path.write_bytes(newer)
    Ledger.create(path)  # leaves it as it is
    with Ledger.hold(path) as ledger:
        assert ledger.history() == [USE, USE]
    path.with_suffix(".head").unlink()
    with pytest.raises(LedgerError, match="lost its anchor"), Ledger.hold(path):
        pass


def test_a_crash_between_entry_and_anchor_loses_nothing(path, monkeypatch):
    def die(*_args):
        raise KeyboardInterrupt

    with Ledger.hold(path) as ledger:
        ledger.reserve(key(1), USE, BUDGET)
        monkeypatch.setattr("synth_common.privacy.ledger._write_anchor", die)
        with pytest.raises(KeyboardInterrupt):
            ledger.reserve(key(2), USE, BUDGET)
    with Ledger.hold(path) as ledger:
        assert ledger.history() == [USE, USE]
