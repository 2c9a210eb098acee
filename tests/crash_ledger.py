"""Reserve and commit on a small ledger, for a test that kills this process in the middle.

``python tests/crash_ledger.py FOLDER`` prints ``reserved`` and ``committed`` as each is
safely written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from synth_common.privacy.accounting import Use
from synth_common.privacy.ledger import Ledger, RoundKey


def main(folder: Path) -> None:
    """One round's writes."""
    with Ledger.hold(folder / "ledger.sqlite") as ledger:
        sys.stdout.write("holding\n")
        sys.stdout.flush()
        # Without noise the cost is known at once, so that no accountant is imported.
        reservation = ledger.reserve(
            RoundKey("run", 1, "aa", "plan"), [Use(0.0, 0.1, 10)], "patient"
        )
        sys.stdout.write("reserved\n")
        sys.stdout.flush()
        ledger.commit(reservation, "bb")
        sys.stdout.write("committed\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
