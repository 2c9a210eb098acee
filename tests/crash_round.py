"""Kill a site's round at every line that runs in the modules that write; run by a test.

``python tests/crash_round.py FOLDER`` forks one child per line: the child plays a round
and kills itself (SIGKILL) when that line is reached, then the parent checks what is left
on the disk. Prints how many kills there were; an AssertionError names the line.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from small_sites import approve, small_plan, small_site

from synth_client import outbox, round
from synth_client.round import RoundRequest, train_round
from synth_client.site import Site, load_site, save_site
from synth_common.generators import build_generator
from synth_common.plan import ReleasePlan
from synth_common.privacy import chain, ledger
from synth_common.privacy.egress import state_digest
from synth_common.privacy.ledger import Ledger
from synth_common.privacy.statistics import label_histogram
from synth_common.privacy.training import LocalResult, PrivateTrainer, Steps

WATCHED = {module.__file__ for module in (chain, ledger, outbox, round)}
# Reading and checking writes nothing: a kill there is a kill before the next write.
READING = {
    "_verified", "_link", "_text", "entries", "_reservation", "_commit", "_of", "__init__",
    "_entry", "plans", "budgets", "reservations", "commits", "__post_init__",
    "<listcomp>", "<dictcomp>", "<genexpr>",
}  # fmt: skip


def play(site: Site, request: RoundRequest) -> None:
    """One round; the reply's digest is written down when it leaves."""
    released = train_round(site, request)
    text = f"{state_digest(released.tensors)}\n"
    with (site.directory / "left.txt").open("a") as handle:
        handle.write(text)


def say_that_it_looked() -> None:
    """Write down that private images are being used, and whether that was reserved."""
    with Ledger.read(_place / "ledger.sqlite") as book:
        reserved = len(book.reservations()) > len(book.commits())
    with (_place / "touched.txt").open("a") as handle:
        handle.write("reserved\n" if reserved else "FREE\n")


def marked_histogram(*arguments: object) -> torch.Tensor:
    """The histogram, and a note that it looked."""
    say_that_it_looked()
    return label_histogram(*arguments)


def quick_training(self: PrivateTrainer, steps: Steps, kept: object) -> LocalResult:
    """Stands in for the steps: moves the weights as noise would, and says that it looked."""
    say_that_it_looked()
    with torch.no_grad():
        for parameter in self._generator.parameters():
            parameter.add_(torch.randn_like(parameter))
    return LocalResult(1.0, 0.5, {})


_place = Path()


def killed_at(count: int, action: Callable[[], None]) -> bool:
    """Fork a child that dies at its ``count``-th watched line; False if it lived to the end."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return True
        assert os.WEXITSTATUS(status) == 0, f"the child failed at line {count}"
        return False
    seen = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Callable[..., object] | None:
        nonlocal seen
        code = frame.f_code
        if code.co_filename not in WATCHED or code.co_name in READING:
            return None
        if event == "line":
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    try:
        sys.settrace(trace)
        action()
        sys.settrace(None)
    except BaseException:
        os._exit(1)
    os._exit(0)


def check(site: Site, request: RoundRequest, count: int) -> None:
    """What must hold after any kill, and after the same message came again."""
    left = _lines(site.directory / "left.txt")
    looked = _lines(site.directory / "touched.txt")
    with Ledger.read(site.ledger_path) as book:  # raises if the kill left it damaged
        earlier = book.commits("run-b")
        reserved = [r for r in book.reservations("run") if r.key.round == request.round]
        committed = [c for c in book.commits("run") if c.key.round == request.round]
    assert len(earlier) == 2, f"kill {count}: an earlier commit is gone"
    assert "FREE" not in looked, f"kill {count}: images were used before they were reserved"
    assert len(reserved) >= bool(looked), f"kill {count}: a use of the images is not charged"
    assert len(committed) >= len(left), f"kill {count}: a reply left without a commit"
    again = state_digest(train_round(site, request).tensors)
    with Ledger.read(site.ledger_path) as book:
        now = [r for r in book.reservations("run") if r.key.round == request.round]
    fresh = len(now) - len(reserved)
    assert fresh == (0 if committed else 1), f"kill {count}: {fresh} new charges"
    assert left in ([], [again]), f"kill {count}: a free answer that is not the one that left"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def kill_everywhere(
    fresh: Site, act: Callable[[Site], None], check: Callable[[Site, int], None]
) -> None:
    """Kill ``act`` at every line, one after the other, each on a new copy of a site at ``_place``.

    After each kill the site and the number of the kill are checked; prints how many there were.
    """
    kills = 0
    while True:
        shutil.rmtree(_place, ignore_errors=True)
        shutil.copytree(fresh.directory, _place)
        site = load_site(_place)
        if not killed_at(kills + 1, lambda site=site: act(site)):
            break
        kills += 1
        check(site, kills)
    sys.stdout.write(f"{kills} kills\n")


def main(folder: Path) -> None:
    """Kill at every line, one after the other."""
    global _place
    torch.set_num_threads(1)
    plan = small_plan(accountant="rdp")
    plan = plan.model_copy(update={"release": ReleasePlan(label_histogram=8.0)})
    fresh = small_site(folder / "fresh", budget=20.0)
    save_site(fresh)
    approve(fresh, plan)
    PrivateTrainer.run = quick_training
    round.label_histogram = marked_histogram
    start = build_generator(plan.generator, 0).shared_state()
    _place = fresh.directory
    # Two finished rounds of a run whose name begins alike.
    train_round(fresh, RoundRequest("run-b", 1, plan, start))
    train_round(fresh, RoundRequest("run-b", 2, plan, start))
    (fresh.directory / "touched.txt").unlink()
    request = RoundRequest("run", 1, plan, start)
    _place = folder / "place"
    kill_everywhere(
        fresh, lambda site: play(site, request), lambda site, count: check(site, request, count)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
