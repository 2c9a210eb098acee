"""Kill -9 at every single write: spent is never less than released, and nothing is damaged."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from needs import missing

from synth_common.privacy.ledger import Budget, Decision, Ledger

HERE = Path(__file__).parent
WRITES = "write,pwrite64,fsync,fdatasync,rename,unlink,ftruncate"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("script", "least"), [("crash_round.py", 300), ("crash_release.py", 200)])
def test_a_reply_killed_at_any_line_is_charged_for_all_that_left(memory_path, script, least):
    """Over every line of the modules that write; see ``check`` of each for what must hold."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(memory_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) > least


def _ledger(folder: Path) -> Path:
    """A fresh ledger in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    Ledger.create(folder / "ledger.sqlite", "chests")
    with Ledger.hold(folder / "ledger.sqlite") as ledger:
        ledger.set_budget(Budget(math.inf, 1e-5), Decision("alice", "test"))
    return folder / "ledger.sqlite"


def _traced(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The ledger's writer under strace."""
    command = [
        "strace",
        "-f",
        "-qq",
        *options,
        sys.executable,
        str(HERE / "crash_ledger.py"),
    ]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, check=False, env=environment
    )


def _calls(folder: Path) -> list[tuple[str, int]]:
    """(system call, its how-manieth) of every write after the ledger was opened."""
    log = folder.with_suffix(".strace")
    _ledger(folder)
    done = _traced(folder, "-e", f"trace={WRITES}", "-o", str(log))
    if done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
    counts: dict[str, int] = {}
    calls, holding = [], False
    for line in log.read_text().splitlines():
        match = re.match(r"\d+\s+(\w+)\(", line)
        if match:
            name = match[1]
            counts[name] = counts.get(name, 0) + 1
            holding = holding or "holding" in line
            if holding:
                calls.append((name, counts[name]))
    return calls


@pytest.mark.slow
def test_a_ledger_killed_within_any_write_of_sqlite_opens_and_forgets_nothing(tmp_path):
    """The line-by-line test cannot stop inside SQLite; the kernel can."""
    if shutil.which("strace") is None:
        missing("needs strace")
    calls = _calls(tmp_path / "place")
    assert {"pwrite64", "fdatasync", "rename"} & {name for name, _ in calls}
    assert len(calls) > 20
    for name, number in calls:
        path = _ledger(tmp_path / "place")
        inject = f"inject={name}:signal=KILL:when={number}"
        done = _traced(path.parent, "-e", f"trace={name}", "-e", inject, "-o", os.devnull)
        assert done.returncode != 0, f"no kill at {name} {number}"
        with Ledger.hold(path) as ledger:
            reserved, committed = len(ledger.reservations()), len(ledger.commits())
        assert reserved >= ("reserved" in done.stdout), f"{name} {number} lost a reservation"
        assert committed >= ("committed" in done.stdout), f"{name} {number} lost a commit"
        assert reserved >= committed
