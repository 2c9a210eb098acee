"""Which sites are there: waits for enough of them, and says who is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from synth_common.errors import FederationError
from synth_common.flower import Grid
from synth_server.board import Board
from synth_server.rounds import Interlude
from synth_server.run_settings import RunConfig
from synth_server.stopping import Stopper
from synth_server.strategy import NO_REPLY, OFFLINE, Failure, UniformAverage

_POLL_SECONDS = 0.2
_GONE = frozenset({NO_REPLY, OFFLINE})
_FOR_A_WHILE = frozenset({"LedgerHeldError", "LimitError"})
"""What a site refuses before it is charged, and may do later: asking again costs nothing."""


class Roster(Protocol):
    """Who is enrolled and who is connected; a link's grid is one."""

    @property
    def sites(self) -> Mapping[int, str]:
        """Site name by node id, of every site that is enrolled now."""
        ...

    def online(self) -> Mapping[str, float]:
        """Seconds since each connected site was heard of, by name."""
        ...


@dataclass(frozen=True)
class Sites:
    """The sites of a run: how to reach them, and who is there."""

    grid: Grid
    roster: Roster


class _Patience:
    """The seconds for which a round is waited for, in all: before it, and since it failed first.

    The time in which sites work on a round that succeeds is not counted.

    Args:
        seconds: How many.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._number, self._spent = -1, 0.0
        self._since: float | None = None  # runs from here; None while nothing is waited for
        self._failing = False

    def over(self, number: int) -> bool:
        """Whether a round was waited for long enough."""
        self._turn(number)
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return self._spent + running >= self._seconds

    def failed(self, number: int) -> None:
        """A round failed: from the first time on, all is waiting."""
        self._turn(number)
        self._failing = True
        self._begin()

    @contextmanager
    def waiting(self, number: int) -> Iterator[None]:
        """Count what the block takes."""
        self._turn(number)
        self._begin()
        yield
        if not self._failing and self._since is not None:
            self._spent += time.monotonic() - self._since
            self._since = None

    def _begin(self) -> None:
        if self._since is None:
            self._since = time.monotonic()

    def _turn(self, number: int) -> None:
        if number != self._number:
            self._number, self._spent, self._since, self._failing = number, 0.0, None, False


class Attendance(Interlude):
    """Waits between rounds until enough sites are connected.

    Sites that come later join at the next round. After a round that had too few usable replies,
    it is asked for again as long as the patience lasts, if that can help: sites that answered it
    answer again for nothing, and sites that refused it for a while were not charged.

    Args:
        roster: Who is there.
        strategy: Learns of sites that were enrolled or connected meanwhile.
        config: How long to wait.
        board: Shows what is waited for.
        stopper: Ends a wait.
        tell: Takes a line of progress.
    """

    def __init__(
        self,
        roster: Roster,
        strategy: UniformAverage,
        config: RunConfig,
        board: Board,
        stopper: Stopper,
        tell: Callable[[str], None],
    ) -> None:
        self._roster, self._strategy, self._config = roster, strategy, config
        self._board, self._stopper, self._tell = board, stopper, tell
        self._patience = _Patience(config.patience_s)
        self._met = False
        strategy.present = self._present
        strategy.enrolled = lambda: roster.sites.values()

    def before(self, number: int) -> None:
        """Wait until the round can be asked for.

        Raises:
            FederationError: The patience ended first; names who is missing.
        """
        self.gather(self._strategy.min_sites, f"round {number}", number)
        self._board.begin("round", number)

    def again(self, number: int, failures: Sequence[Failure]) -> bool:
        """Whether to ask for the round again; waits before it says yes."""
        codes = {failure.site: failure.code for failure in failures}
        known = set(self._strategy.sites.values())
        usable = len(self._strategy.outcome.replies)
        curable = {site for site, code in codes.items() if code in _GONE | _FOR_A_WHILE} & known
        if usable + len(curable) < self._strategy.min_sites:
            return False
        self._patience.failed(number)
        if self._patience.over(number):
            return False
        named = ", ".join(f"{site} ({codes[site]})" for site in sorted(curable))
        self._board.failed(number, failures)
        self._tell(f"round {number}: too few usable replies; waiting for {named}")
        if any(codes[site] in _FOR_A_WHILE for site in curable):
            self._stopper.sleep(self._config.retry_s)
        self.gather(self._strategy.min_sites, f"round {number}", number)
        self._board.begin("round", number)
        return True

    def gather(
        self, count: int, purpose: str, number: int, names: frozenset[str] = frozenset()
    ) -> None:
        """Wait until so many sites are connected, and these among them.

        Args:
            count: Fewest sites.
            purpose: What they are needed for, for the error.
            number: The round, 0 for the release.
            names: Sites that must be there.

        Raises:
            FederationError: The patience ended first; names who is missing.
        """
        self._stopper.check()
        told = False
        with self._patience.waiting(number):
            while not self._enough(count, names):
                if not told:
                    self._board.begin("waiting", number)
                    self._tell(f"{purpose}: {self._missing(count, names)}")
                    told = True
                if self._patience.over(number):
                    raise FederationError(self._in_vain(purpose, count, names))
                self._stopper.sleep(_POLL_SECONDS)
        if not self._met:  # before the first round the other sites get a moment, too
            self.linger()
        self._strategy.meet(self._roster.sites)

    def linger(self) -> None:
        """Wait until every enrolled site is connected, but no longer than ``gather_s``."""
        self._met = True
        until = time.monotonic() + self._config.gather_s
        while time.monotonic() < until and not self._enough(len(self._roster.sites), frozenset()):
            self._stopper.sleep(_POLL_SECONDS)
        self._strategy.meet(self._roster.sites)

    def _present(self) -> Mapping[str, float]:
        return self._roster.online()

    def _enough(self, count: int, names: frozenset[str]) -> bool:
        online = self._roster.online()
        self._board.heard(online, self._roster.sites.values())
        return len(online) >= count and names <= online.keys()

    def _in_vain(self, purpose: str, count: int, names: frozenset[str]) -> str:
        """That the patience ended, in words."""
        return (
            f"{purpose}: {self._missing(count, names)} within run.patience_s = "
            f"{self._config.patience_s:g} s. The run is kept: start the sites and resume it"
        )

    def _missing(self, count: int, names: frozenset[str]) -> str:
        """What is lacking, in words."""
        online = self._roster.online()
        enrolled = set(self._roster.sites.values())
        absent = sorted(enrolled - online.keys() | names - online.keys())
        text = f"{len(online)} sites are connected, and {count} are needed"
        if len(enrolled) < count:
            text += f"; only {len(enrolled)} are enrolled"
        return text + f"; missing: {', '.join(absent) or 'none of the enrolled sites'}"
