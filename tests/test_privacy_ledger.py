"""The ledger: append-only, chained, one writer, and it refuses what does not fit."""

from __future__ import annotations

import math
import multiprocessing
import shutil
import sqlite3

import pytest

from synth_common.errors import (
    BudgetError,
    ConfigError,
    LedgerError,
    LedgerHeldError,
    StorageError,
)
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.chain import Chain
from synth_common.privacy.ledger import Budget, Decision, Ledger, RoundKey

BUDGET = Budget(8.0, 1e-5, "prv")
USE = Use(1.0, 0.05, 50)
WHY = Decision("alice", "ethics vote 12/26")


@pytest.fixture
def path(tmp_path):
    """A ledger with a budget: entry 1 opens it, entry 2 sets the budget."""
    file = tmp_path / "ledger.sqlite"
    Ledger.create(file, "chests")
    with Ledger.hold(file) as ledger:
        ledger.set_budget(BUDGET, WHY)
    return file


def key(number: int = 1, request: str = "aa") -> RoundKey:
    return RoundKey("run", number, request, "plan")


def test_a_reservation_without_commit_stays_spent(path):
    with Ledger.hold(path) as ledger:
        ledger.reserve(key(1), [USE], "patient")
    with Ledger.hold(path) as ledger:
        assert ledger.history() == [USE]
        assert ledger.committed(key(1)) is None
        done = ledger.reserve(key(1), [USE], "patient")
        assert done.attempt == 2
        ledger.commit(done, "bb")
        assert ledger.history() == [USE, USE]
        assert ledger.committed(key(1)).reply == "bb"
        assert ledger.committed(key(1)).reservation == done.number
        assert ledger.committed(key(1, "other request")) is None
        assert ledger.committed_rounds("run") == 1


def test_several_mechanisms_of_one_round_are_one_reservation(path):
    once = Use(5.0, 1.0, 1, "label histogram")
    with Ledger.hold(path) as ledger:
        assert ledger.reserve(key(), [USE, once], "patient").uses == (USE, once)
    with Ledger.read(path) as ledger:
        assert ledger.history() == [USE, once]
        (kept,) = ledger.reservations()
        assert (kept.attempt, kept.key) == (1, key())


def test_the_budget_covers_all_runs_and_a_refusal_writes_nothing(path):
    with Ledger.hold(path) as ledger:
        ledger.reserve(RoundKey("first run", 1, "aa", "plan"), [USE], "patient")
        ledger.set_budget(Budget(epsilon([USE, USE], 1e-5, "prv") * 0.999, 1e-5), WHY)
        before = len(ledger.entries)
        with pytest.raises(BudgetError, match=r"budget_epsilon = .* is spent and round 2"):
            ledger.reserve(RoundKey("second run", 2, "bb", "plan"), [USE], "patient")
        assert len(ledger.entries) == before
        assert ledger.history("second run") == []


def test_a_budget_has_an_owner_and_a_reason_and_its_past_is_kept(path):
    with Ledger.hold(path) as ledger:
        ledger.set_budget(Budget(10.0, 1e-5), Decision("bob", "vote 3/27"))
        first, second = ledger.budgets()
        assert (first.budget, first.decision) == (BUDGET, WHY)
        assert (second.budget.epsilon, second.decision.reason) == (10.0, "vote 3/27")
        assert ledger.budget == second.budget
    for operator, reason in (("", "why"), ("bob", "  ")):
        with pytest.raises(ConfigError, match="is empty"):
            Decision(operator, reason)
    with pytest.raises(ConfigError, match="budget_epsilon = -1"):
        Budget(-1.0, 1e-5)
    with pytest.raises(ConfigError, match="budget_delta = 2"):
        Budget(1.0, 2.0)


def test_without_a_budget_nothing_can_be_reserved(tmp_path):
    file = tmp_path / "ledger.sqlite"
    assert Ledger.create(file, "chests")
    assert not Ledger.create(file, "chests")
    with Ledger.hold(file) as ledger:
        assert ledger.data_set == "chests"
        with pytest.raises(BudgetError, match="no budget was set for data set 'chests'"):
            ledger.reserve(key(), [USE], "patient")


def test_plans_are_approved_and_revoked(path):
    with Ledger.hold(path) as ledger:
        ledger.approve("d1", "{}", WHY)
        ledger.approve("d2", "{}", WHY)
        ledger.revoke("d1", WHY)
        assert list(ledger.approved()) == ["d2"]
        with pytest.raises(ConfigError, match="d1 is not approved"):
            ledger.revoke("d1", WHY)


def test_no_noise_never_fits_a_finite_budget(path):
    with Ledger.hold(path) as ledger:
        with pytest.raises(BudgetError):
            ledger.reserve(key(), [Use(0.0, 0.1, 1)], "patient")
        ledger.set_budget(Budget(math.inf, 1e-5), WHY)
        ledger.reserve(key(), [Use(0.0, 0.1, 1)], "patient")
    with Ledger.read(path) as ledger:
        assert ledger.budget.epsilon == math.inf


@pytest.mark.parametrize(
    ("damage", "entry"),
    [
        ("UPDATE entries SET body = replace(body, '50', '5') WHERE number = 4", 4),
        ("UPDATE entries SET body = replace(body, '8.0', '80.0') WHERE number = 2", 2),
        ("DELETE FROM entries WHERE number = 3", 3),
        ("UPDATE entries SET number = 9 WHERE number = 5", 5),
        ("UPDATE entries SET hash = 'x' WHERE number = 5", 5),
        (
            "UPDATE entries SET number = 99 WHERE number = 3;"
            "UPDATE entries SET number = 3 WHERE number = 4;"
            "UPDATE entries SET number = 4 WHERE number = 99",
            3,
        ),
    ],
)
def test_the_first_altered_entry_is_named(path, damage, entry):
    with Ledger.hold(path) as ledger:
        for number in (1, 2, 3):
            ledger.reserve(key(number), [USE], "patient")
    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(damage.split(";")[0])
    connection.executescript(f"DROP TRIGGER no_update; DROP TRIGGER no_delete; {damage};")
    connection.close()
    for opened in (Ledger.hold, Ledger.read):
        with pytest.raises(LedgerError, match=f"entry {entry} "), opened(path):
            pass


def _hold(path, ready, stop):
    with Ledger.hold(path):
        ready.set()
        stop.wait(30)


def test_a_ledger_has_one_writer_and_a_dead_one_lets_go(path):
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(path, ready, stop))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(LedgerHeldError, match="held by another process"), Ledger.hold(path):
            pass
        with Ledger.read(path) as ledger:  # looking is always possible
            assert len(ledger.entries) == 2
            with pytest.raises(LedgerError, match="reading only"):
                ledger.reserve(key(), [USE], "patient")
    finally:
        process.kill()
        process.join()
    with Ledger.hold(path) as ledger:
        assert len(ledger.entries) == 2


def test_a_writer_that_ignores_the_lock_is_noticed(path):
    with Ledger.hold(path) as ledger:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("INSERT INTO entries VALUES (3, '{}', 'x')")
        connection.close()
        with pytest.raises(LedgerError, match="entry 3 was written by somebody else"):
            ledger.reserve(key(), [USE], "patient")


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
    Chain.create(tmp_path / "empty.sqlite")
    with (
        pytest.raises(LedgerError, match="does not begin"),
        Ledger.hold(tmp_path / "empty.sqlite"),
    ):
        pass


def test_an_older_copy_or_a_lost_anchor_is_refused(path):
    with Ledger.hold(path) as ledger:
        ledger.reserve(key(1), [USE], "patient")
    older = path.read_bytes()
    with Ledger.hold(path) as ledger:
        ledger.reserve(key(2), [USE], "patient")
    newer = path.read_bytes()
    path.write_bytes(older)
    with pytest.raises(LedgerError, match="entry 4 was written once"), Ledger.hold(path):
        pass
    path.unlink()
    assert not Chain.create(path)  # the anchor says that entries were written
    path.write_bytes(newer)
    assert not Ledger.create(path, "chests")  # leaves it as it is
    with Ledger.hold(path) as ledger:
        assert ledger.history() == [USE, USE]
    path.with_suffix(".head").unlink()
    with pytest.raises(LedgerError, match="lost its anchor"), Ledger.hold(path):
        pass


def test_a_copy_rolled_back_with_its_anchor_is_noticed_by_what_others_saw(path, tmp_path):
    backup = tmp_path / "backup"
    shutil.copytree(path.parent, backup, ignore=shutil.ignore_patterns("backup"))
    with Ledger.hold(path) as ledger:
        seen_before, _ = ledger.head, ledger.reserve(key(1), [USE], "patient")
        seen = ledger.head
        ledger.require(seen_before)
        ledger.require(seen)
    for name in ("ledger.sqlite", "ledger.head"):
        shutil.copy(backup / name, path.parent / name)
    with Ledger.hold(path) as ledger:
        ledger.require(seen_before)
        with pytest.raises(LedgerError, match="which the coordinator saw"):
            ledger.require(seen)


def test_a_crash_between_entry_and_anchor_loses_nothing(path, monkeypatch):
    def die(*_args):
        raise KeyboardInterrupt

    with Ledger.hold(path) as ledger:
        ledger.reserve(key(1), [USE], "patient")
        monkeypatch.setattr("synth_common.privacy.chain._write_anchor", die)
        with pytest.raises(KeyboardInterrupt):
            ledger.reserve(key(2), [USE], "patient")
    with Ledger.hold(path) as ledger:
        assert ledger.history() == [USE, USE]


def test_a_ledger_whose_making_was_cut_short_is_made_again(tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite"

    def die(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("synth_common.privacy.chain._sync_directory", die)
        with pytest.raises(KeyboardInterrupt):
            Ledger.create(path, "chests")
    assert not path.exists()
    assert Ledger.create(path, "chests")
    with Ledger.hold(path) as ledger:
        assert ledger.data_set == "chests"


def test_equal_ledgers_have_different_hashes(tmp_path):
    """The head goes to the coordinator: without a salt it could be matched against guesses."""
    heads = set()
    for name in ("a", "b"):
        Ledger.create(tmp_path / name, "chests")
        with Ledger.read(tmp_path / name) as ledger:
            heads.add(ledger.head)
    assert len(heads) == 2


def test_the_files_are_the_owners_alone(path):
    assert path.stat().st_mode & 0o077 == 0
