"""A run with sites that are elsewhere, in one process: wait, train, have them judge, close."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from synth_common.errors import Interrupted, SynthwardError
from synth_common.facts import Fact, FactLog
from synth_common.messages import Values
from synth_server.aggregation import doubts, largest_update
from synth_server.attendance import Attendance, Sites
from synth_server.board import Board
from synth_server.checkpoint import load_latest
from synth_server.coordinate import train
from synth_server.coordination import Coordination, record_failures
from synth_server.deployed import stated_facts
from synth_server.deployment import Deployment, Known
from synth_server.pictures import Gallery, synthetic_grid, traversals
from synth_server.progress import Reporter
from synth_server.record import (
    energy_fact,
    energy_meter,
    peak_memory_fact,
    resumed_fact,
    time_facts,
    weights_fact,
)
from synth_server.release_run import prices_by_replies
from synth_server.release_store import AttemptBook, load_release
from synth_server.rounds import Ended, State, evaluate_sites
from synth_server.settings import ServerFolder, ServerSettings
from synth_server.stopping import StoppableGrid, Stopper
from synth_server.strategy import Memory, UniformAverage

_SOURCE = "synth_server.deployed_run"

Link = Callable[[ServerFolder, ServerSettings], AbstractContextManager[Sites]]
"""Opens the way to the sites."""


@dataclass(frozen=True)
class Process:
    """What a process has beside the run: where it tells, and how it is stopped."""

    log: FactLog
    board: Board
    tell: Reporter
    stopper: Stopper


class DeployedRun:
    """One process's part of a run.

    Args:
        deployment: The coordinator.
        known: What the run's directory tells.
        process: Where it tells, and how it is stopped.
    """

    def __init__(self, deployment: Deployment, known: Known, process: Process) -> None:
        self._began = time.perf_counter()
        self._meter = energy_meter(deployment.plan)
        self._deployment, self._known = deployment, known
        self._board, self._stopper, self._tell = process.board, process.stopper, process.tell
        plan, kept = deployment.plan, known.checkpoint
        enrolled = len(list(deployment.folder.sites.glob("*.json")))
        self._course = Coordination(
            plan=plan,
            run_id=known.run_id,
            seed=known.seed,
            folder=deployment.folder.run,
            log=process.log,
            tell=process.tell,
            generator=deployment.generator(known.seed),
            prices=partial(prices_by_replies, plan, max(enrolled, plan.release_sites)),
            more=self._of_round,
            memory=Memory() if kept is None else kept.memory,
            released=kept is not None,
        )
        self._start = known.start or self._initial()

    def _initial(self) -> tuple[int, State]:
        """No round, and the public initial weights."""
        return 0, self._deployment.generator(self._known.seed).shared_state()

    def run(self, link: Link) -> None:
        """Train, have the sites judge, and close the run; the board shows how it ends.

        Raises:
            SynthwardError: Whatever stopped the run; it can be resumed.
        """
        if self._known.finished:
            self._board.end("finished")
            return
        try:
            self._open()
            folder, settings = self._deployment.folder, self._deployment.settings
            with link(folder, settings) as sites, self._meter:
                self._train_and_judge(sites)
            self._board.end("finished")
        except KeyboardInterrupt:  # a second signal
            self._board.end("stopped")
            self._stopper.stop()
            self._stopper.check()
        except SynthwardError as err:
            self._end("stopped" if isinstance(err, Interrupted) else "failed", err)
            raise
        except Exception as err:  # a fault of ours: what the newest checkpoint holds is kept
            self._end("failed", err)
            raise

    def _open(self) -> None:
        """Record that the run goes on, and say what the rule of aggregation cannot do."""
        if self._known.facts:
            kept = self._known.checkpoint
            self._course.log.append(
                resumed_fact(self._course.plan, None if kept is None else kept.round)
            )
        for doubt in self._doubts():
            self._tell.note(doubt)
            self._board.warn(doubt)

    def _end(self, phase: str, err: Exception) -> None:
        """Keep what the sites told last, and show the error, which a full disk does not replace."""
        try:
            if isinstance(err, SynthwardError):
                self._keep()
            self._board.end(phase, err)
        except SynthwardError as second:  # StorageError, or a checkpoint that was damaged meanwhile
            self._tell.note(str(second))

    def _keep(self) -> None:
        """The newest checkpoint again, with what the sites told since."""
        course = self._course
        newest = load_latest(course.checkpoints)
        if newest is not None:
            course.keep(newest.round, dict(newest.state))
        elif course.plan.release.embedding is None:
            course.keep(*self._initial())

    def _doubts(self) -> list[str]:
        """What the rule of aggregation cannot do here."""
        state = self._start[1].values()
        size = sum(value.numel() * value.element_size() for value in state)
        least = self._deployment.plan.federation.min_sites
        return doubts(self._deployment.settings.aggregation, least, size)

    def _train_and_judge(self, sites: Sites) -> None:
        """Everything that needs the sites, and the facts at the end."""
        config = self._deployment.settings.run
        strategy = self._strategy(sites)
        grid = StoppableGrid(sites.grid, self._stopper)
        attendance = Attendance(
            sites.roster, strategy, config, self._board, self._stopper, self._tell.note
        )
        with self._board.refreshed(partial(_look, self._board, sites)):
            self._gather_for_release(attendance, strategy)
            ended = train(self._course, grid, strategy, self._start, attendance)
            began = time.perf_counter()
            if config.evaluate:
                attendance.linger()  # a run that goes on here has asked nobody yet
                self._judge(grid, strategy, ended)
            self._finish(ended, time.perf_counter() - began)

    def _strategy(self, sites: Sites) -> UniformAverage:
        """The strategy, with the rule of aggregation and the bound on updates."""
        plan, config = self._course.plan, self._deployment.settings.aggregation
        least = plan.federation.min_sites
        strategy = UniformAverage(sites.roster.sites, least, self._course.run_id, plan)
        strategy.aggregation = config
        strategy.largest_update = largest_update(
            plan, self._course.generator, config.largest_update
        )
        strategy.on_ask, strategy.on_reply = self._board.asked, self._board.replied
        strategy.on_judged = partial(self._board.replied, refused=None)
        return strategy

    def _gather_for_release(self, attendance: Attendance, strategy: UniformAverage) -> None:
        """Wait for enough sites, and for all that took part in an attempt that was cut short."""
        course, plan = self._course, self._course.plan
        if plan.release.embedding is None or course.released:
            return
        if load_release(course.checkpoints, course.run_id, plan.digest()) is not None:
            return  # it only has to be learnt
        attempt = AttemptBook(course.checkpoints).unfinished(set(strategy.sites.values()))
        names = frozenset() if attempt is None else frozenset(attempt.participants)
        attendance.gather(plan.release_sites, "release", 0, names)
        self._board.begin("release", 0)

    def _of_round(self, number: int, replies: Mapping[str, Values]) -> list[Fact]:
        """What is recorded of a round beside what every run records: epsilons, and a picture."""
        plan = self._course.plan
        picture = synthetic_grid(plan, self._course.generator, self._gallery())
        return [*stated_facts(plan, number, replies), picture]

    def _gallery(self) -> Gallery:
        config = self._deployment.settings.run
        return Gallery(
            self._course.folder, self._course.seed, config.grid_columns, config.traversals
        )

    def _judge(self, grid: StoppableGrid, strategy: UniformAverage, ended: Ended) -> None:
        """Have the sites that are there judge the generator; the figures stay with them."""
        course = self._course
        self._board.begin("evaluation", ended.completed)
        self._tell.note("every site judges the generator on its held-out patients")
        outcome = evaluate_sites(grid, strategy, ended, course.plan.federation.round_timeout_s)
        record_failures(course, outcome.failures, ended.completed)

    def _finish(self, ended: Ended, judging: float) -> None:
        """Draw what was learnt, and close the run in one write."""
        course = self._course
        self._board.begin("report")
        course.generator.eval()
        rounds = {
            "planned": course.plan.training.rounds,
            "completed": ended.completed,
            "ended": ended.reason,
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        facts = [
            synthetic_grid(course.plan, course.generator, self._gallery()),
            *traversals(course.plan, course.generator, self._gallery()),
            Fact("run.rounds", rounds, "public", _SOURCE),
            weights_fact(course.generator),
            peak_memory_fact("the coordinator's process"),
            energy_fact(self._meter, bool(self._known.facts)),
            *time_facts(course.log.path, judging, time.perf_counter() - self._began),
            Fact("run.finished", now, "public", _SOURCE),
        ]
        course.log.extend(facts)


def _look(board: Board, sites: Sites) -> None:
    """Show who is connected now."""
    board.heard(sites.roster.online(), sites.roster.sites.values())
