"""Where a run stands: a live line on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class Reporter(Protocol):
    """What a run tells about itself while it goes on."""

    def note(self, text: str) -> None:
        """Something happened that stays worth reading."""
        ...

    def site(self, name: str) -> None:
        """A site is being worked on."""
        ...

    def stage(self, where: str, what: str) -> None:
        """A stage of the evaluation begins."""
        ...

    def round(self, number: int, epsilons: Mapping[str, float | str]) -> None:
        """A round is complete; epsilon spent by site, as their ledgers report it."""
        ...


def _spent(epsilons: Mapping[str, float | str]) -> str:
    """Epsilon by site on one line; the highest alone when there are many sites."""
    named = {site: float(value) for site, value in epsilons.items()}
    if not named:
        return "epsilon NOT RECORDED"
    if len(named) > 4:
        return f"epsilon up to {max(named.values()):.2f}"
    return "epsilon " + ", ".join(f"{site} {value:.2f}" for site, value in named.items())


def _clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Pace:
    """Time left, from the rounds this process has made."""

    def __init__(self, rounds: int, completed: int) -> None:
        self._rounds, self._first = rounds, completed
        self._began = time.monotonic()

    def left(self, completed: int) -> float:
        made = completed - self._first
        return (time.monotonic() - self._began) / max(made, 1) * (self._rounds - completed)


class PlainReporter:
    """One line per event, for logs and pipes."""

    def __init__(self, say: Callable[[str], None], rounds: int, completed: int) -> None:
        self._say, self._rounds = say, rounds
        self._pace = _Pace(rounds, completed)

    def note(self, text: str) -> None:
        """See :class:`Reporter`."""
        self._say(text)

    def site(self, name: str) -> None:
        """Not worth a line of its own."""

    def stage(self, where: str, what: str) -> None:
        """See :class:`Reporter`."""
        self._say(f"{where}: {what}")

    def round(self, number: int, epsilons: Mapping[str, float | str]) -> None:
        """See :class:`Reporter`."""
        left = _clock(self._pace.left(number))
        self._say(f"round {number}/{self._rounds}: {_spent(epsilons)}, about {left} left")


class _LiveReporter:
    """A bar with round, site, epsilon and time left."""

    def __init__(self, bar: Progress, task: TaskID, rounds: int, completed: int) -> None:
        self._bar, self._task, self._rounds = bar, task, rounds
        self._pace = _Pace(rounds, completed)
        self._epsilon = ""

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def site(self, name: str) -> None:
        self._bar.update(self._task, status=f"{name}  {self._epsilon}")

    def stage(self, where: str, what: str) -> None:
        self._bar.update(self._task, status=f"{where}: {what}")

    def round(self, number: int, epsilons: Mapping[str, float | str]) -> None:
        self._epsilon = f"{_spent(epsilons)}  {_clock(self._pace.left(number))} left"
        self._bar.update(self._task, completed=number, status=self._epsilon)


@contextmanager
def reporter(rounds: int, completed: int = 0, console: Console | None = None) -> Iterator[Reporter]:
    """A reporter for a run of ``rounds`` rounds of which ``completed`` are done.

    Args:
        rounds: Planned rounds.
        completed: Rounds done before (a resumed run).
        console: Where to write; default: standard output.
    """
    from rich.console import Console

    console = console or Console()
    if not console.is_terminal:
        # A pipe has no width: long lines must not be wrapped.
        def say(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield PlainReporter(say, rounds, completed)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("round"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("rounds", total=rounds, completed=completed, status="")
        yield _LiveReporter(bar, task, rounds, completed)
