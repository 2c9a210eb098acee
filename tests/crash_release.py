"""Kill a site's release at every line that runs in the modules that write; run by a test.

As ``crash_round.py`` does for a round. After a kill the same request is answered by the kept
reply if it was committed, and refused if it was begun: never made again under its masks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import crash_round
import torch
from small_sites import approve, enrolled_sites, release_plan

from synth_client import release
from synth_client.release import ReleaseRequest, release_embedding
from synth_client.site import Site, save_site
from synth_common.errors import AttemptSpentError
from synth_common.privacy.egress import state_digest
from synth_common.privacy.ledger import Ledger
from synth_common.privacy.statistics import embedding_sum

crash_round.WATCHED.add(release.__file__)
NAMES = ("east", "north", "west")


def marked_sum(*arguments: object) -> object:
    """The sum, and a note that it looked."""
    crash_round.say_that_it_looked()
    return embedding_sum(*arguments)


def play(site: Site, request: ReleaseRequest) -> None:
    """One attempt; the reply's digest is written down when it leaves."""
    released = release_embedding(site, request)
    with (site.directory / "left.txt").open("a") as handle:
        handle.write(f"{state_digest(released.statistics)}\n")


def check(site: Site, request: ReleaseRequest, count: int) -> None:
    """What must hold after any kill, and after the same message came again."""
    left = crash_round._lines(site.directory / "left.txt")
    looked = crash_round._lines(site.directory / "touched.txt")
    with Ledger.read(site.ledger_path) as book:  # raises if the kill left it damaged
        reserved, committed = book.reservations("run"), book.commits("run")
    assert "FREE" not in looked, f"kill {count}: images were used before they were reserved"
    assert len(reserved) >= bool(looked), f"kill {count}: a use of the images is not charged"
    assert len(committed) >= len(left), f"kill {count}: a reply left without a commit"
    try:
        again = state_digest(release_embedding(site, request).statistics)
    except AttemptSpentError:
        assert reserved, f"kill {count}: refused before it was begun"
        assert not committed, f"kill {count}: a committed reply was lost"
        again = None
    with Ledger.read(site.ledger_path) as book:
        assert len(book.reservations("run")) == 1, f"kill {count}: charged twice"
    assert left in ([], [again]), f"kill {count}: an answer that is not the one that left"


def main(folder: Path) -> None:
    """Kill at every line, one after the other."""
    torch.set_num_threads(1)
    plan = release_plan()
    fresh, *_ = enrolled_sites(folder / "fresh")
    save_site(fresh)
    approve(fresh, plan)
    release.embedding_sum = marked_sum
    request = ReleaseRequest("run", 1, NAMES, plan)
    crash_round._place = folder / "place"
    crash_round.kill_everywhere(
        fresh, lambda site: play(site, request), lambda site, count: check(site, request, count)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
