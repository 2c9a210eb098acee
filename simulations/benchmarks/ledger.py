"""What a ledger write costs, and what verifying a long ledger costs.

A reservation and a commit are each one fsynced SQLite transaction and one fsynced anchor
file. The accountant is left out: it answers from its cache when nothing changed. Beside
them stands a bare fsynced append of as many bytes to a plain file on the same disk.

    python simulations/benchmarks/ledger.py [--rounds 500] [--folder .]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from synth_common.privacy.accounting import Use
from synth_common.privacy.ledger import Budget, Decision, Ledger, RoundKey

_NOISELESS = Use(0.0, 0.1, 20)  # its cost (infinity) is known without an accountant


def _timed(action: Callable[[], object], seconds: list[float]) -> object:
    began = time.perf_counter()
    result = action()
    seconds.append(time.perf_counter() - began)
    return result


def _append(path: Path) -> None:
    """The least that a durable record can cost."""
    with path.open("ab") as handle:
        handle.write(b"x" * 500)
        handle.flush()
        os.fsync(handle.fileno())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=500, help="rounds written")
    parser.add_argument("--folder", type=Path, default=Path(), help="a folder on the disk to test")
    options = parser.parse_args()
    reserving: list[float] = []
    committing: list[float] = []
    plain: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "ledger.sqlite"
        Ledger.create(path, "benchmark")
        with Ledger.hold(path) as ledger:
            ledger.set_budget(Budget(float("inf"), 1e-5), Decision("benchmark", "speed"))
            for number in range(options.rounds):
                key = RoundKey("run", number + 1, "a" * 64, "p" * 64)
                began = time.perf_counter()
                reservation = ledger.reserve(key, [_NOISELESS], "patient")
                reserving.append(time.perf_counter() - began)
                _timed(lambda r=reservation: ledger.commit(r, "b" * 64), committing)
                _timed(lambda: _append(Path(folder) / "plain"), plain)
        opening: list[float] = []

        def look() -> None:
            with Ledger.read(path):
                pass

        for _ in range(5):
            _timed(look, opening)
    print("| step | median ms | 99th percentile ms |")
    print("|---|---|---|")
    rows = (("reserve", reserving), ("commit", committing), ("fsynced append, plain file", plain))
    for name, seconds in rows:
        worst = statistics.quantiles(seconds, n=100)[98]
        print(f"| {name} | {1e3 * statistics.median(seconds):.2f} | {1e3 * worst:.2f} |")
    last = [1e3 * statistics.median(s[-50:]) for s in (reserving, committing)]
    print(
        f"\nlast 50 of {options.rounds} rounds: reserve {last[0]:.2f} ms, commit {last[1]:.2f} ms"
    )
    entries = 2 + 2 * options.rounds
    print(f"open and verify {entries} entries: {1e3 * statistics.median(opening):.1f} ms")


if __name__ == "__main__":
    main()
