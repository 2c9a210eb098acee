"""A coordinator that runs a plan with sites on a network, from its start to its report.

All of a run is in ``DIR/run``: facts are appended as they are measured, a checkpoint is written
after every round, and what the sites paid for they keep, so that a process which ended anyhow
can be followed by another that goes on where it stopped.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from synth_common.errors import ConfigError, Interrupted, StorageError, SynthwardError
from synth_common.facts import Fact, read_facts
from synth_common.messages import Values
from synth_common.plan import Plan
from synth_server.aggregation import doubts, largest_update
from synth_server.attendance import Attendance, Sites
from synth_server.board import Board, Snapshot, read_state
from synth_server.checkpoint import Checkpoint, load_latest
from synth_server.coordinate import train
from synth_server.coordination import Coordination, record_failures
from synth_server.deployed import data_facts, stated_facts
from synth_server.lock import is_locked, locked
from synth_server.loopback import served
from synth_server.metrics import CONTENT_TYPE, render_metrics
from synth_server.pictures import Gallery, synthetic_grid, traversals
from synth_server.progress import Reporter
from synth_server.record import (
    RunStart,
    generator_fact,
    peak_memory_fact,
    pretraining_fact,
    run_facts,
    time_facts,
)
from synth_server.release_run import prices_by_replies
from synth_server.release_store import AttemptBook, load_release
from synth_server.rounds import Ended, State, evaluate_sites
from synth_server.settings import ServerFolder, ServerSettings, load_plan, load_settings
from synth_server.stopping import StoppableGrid, Stopper
from synth_server.strategy import Memory, UniformAverage
from synth_server.trackers import TrackedLog, shareable, trackers
from synth_server.weights import initial_generator

_SOURCE = "synth_server.service"

Link = Callable[[ServerFolder, ServerSettings], AbstractContextManager[Sites]]
"""Opens the way to the sites."""


@dataclass(frozen=True)
class ServiceOptions:
    """How to run, apart from what.

    Attributes:
        resume: Go on with the run in ``DIR/run``.
        metrics: Port of Prometheus metrics on 127.0.0.1, 0 for a free one, None for none.
        status_page: Port of the status page on 127.0.0.1, likewise.
        tensorboard: Folder for TensorBoard, or None.
        mlflow: Tracking URI of MLflow, or None.
        command: Command line, for the report.
    """

    resume: bool = False
    metrics: int | None = None
    status_page: int | None = None
    tensorboard: Path | None = None
    mlflow: str | None = None
    command: str = ""


@dataclass(frozen=True)
class Deployment:
    """A coordinator's folder, read.

    Attributes:
        folder: Where everything is.
        settings: How to run.
        plan: What to run.
    """

    folder: ServerFolder
    settings: ServerSettings
    plan: Plan

    @staticmethod
    def read(folder: Path) -> Deployment:
        """Read a folder that ``synth-server init`` made. Raises ConfigError."""
        server = ServerFolder(folder)
        return Deployment(server, load_settings(server), load_plan(server.plan))


def coordinate(
    deployment: Deployment,
    options: ServiceOptions,
    link: Link,
    reporter: Callable[[int, int], AbstractContextManager[Reporter]],
) -> Path:
    """Run the plan with the sites, from where it stands. Returns the path of ``report.html``.

    Args:
        deployment: The coordinator.
        options: Where to start and what to show.
        link: Opens the way to the sites.
        reporter: Takes planned and completed rounds; tells how it goes.

    Raises:
        ConfigError: There is a run already and ``resume`` is not set, or none and it is; another
            process runs it; or a port or a tracker cannot be used.
        CheckpointError: The newest checkpoint is damaged.
        FederationError: Too few sites for too long; names them. The run can be resumed.
        Interrupted: SIGTERM or Ctrl-C; the run can be resumed.
        StorageError: The disk refuses.
    """
    run_dir = deployment.folder.run
    _make(run_dir)
    with (
        locked(run_dir),
        Stopper(f"synth-server resume {deployment.folder.path}") as stopper,
        trackers(run_dir, deployment.settings.name, options.tensorboard, options.mlflow) as sinks,
    ):
        known = _known(deployment, options)
        board = _board(deployment, known)
        log = TrackedLog(run_dir / "facts.jsonl", [board, *sinks])
        if not options.resume:
            log.extend(_first_facts(deployment, options, known))
        with reporter(deployment.plan.training.rounds, known.completed) as tell:
            service = _Service(deployment, known, log, board, tell, stopper)
            with _shown(board, run_dir, options, tell):
                service.run(link)
    from synth_common.reporting.report import write_report

    return write_report(run_dir)


def run_state(folder: Path) -> Snapshot | None:
    """What a coordinator is doing, or did last; None where no run was started.

    ``running`` is added: whether a process holds the run now. A run whose process was killed
    has the phase ``killed``.
    """
    run_dir = ServerFolder(folder).run
    state = read_state(run_dir)
    if state is None:
        return None
    running = is_locked(run_dir)
    if not running and state["phase"] not in ("finished", "stopped", "failed"):
        state["phase"] = "killed"
    return {**state, "running": running}


@dataclass(frozen=True)
class _Known:
    """What a run's directory tells of it: what was decided once, and how far it is."""

    run_id: str
    seed: int
    facts: Sequence[Fact]
    checkpoint: Checkpoint | None

    @property
    def completed(self) -> int:
        """Rounds completed."""
        return 0 if self.checkpoint is None else self.checkpoint.round

    @property
    def finished(self) -> bool:
        """Whether nothing is left but the report."""
        return any(fact.name == "run.finished" for fact in self.facts)


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise StorageError(f"cannot make {run_dir}: {err.strerror}") from err


def _known(deployment: Deployment, options: ServiceOptions) -> _Known:
    """What is known of the run; a new one gets its name here."""
    run_dir, digest = deployment.folder.run, deployment.plan.digest()
    path = run_dir / "facts.jsonl"
    facts = list(read_facts(path)) if path.exists() else []
    recorded = {fact.name: fact.value for fact in facts}
    started = "run.id" in recorded
    if started and not options.resume:
        raise ConfigError(
            f"{run_dir} holds run {recorded['run.id']}: go on with synth-server resume "
            f"{deployment.folder.path}, or move the folder away to start another run"
        )
    if not started and options.resume:
        raise ConfigError(
            f"{run_dir} holds no run to resume; begin with synth-server start "
            f"{deployment.folder.path}"
        )
    if not started:
        return _Known(secrets.token_hex(8), deployment.settings.run.seed, facts, None)
    if recorded["plan.digest"] != digest:
        raise ConfigError(
            f"{deployment.folder.plan} is not the plan that run {recorded['run.id']} began under "
            f"({recorded['plan.digest'][:12]}): put that one back, or move {run_dir} away to start "
            "another run"
        )
    run_id = str(recorded["run.id"])
    checkpoint = load_latest(run_dir / "checkpoints", run_id, digest)
    return _Known(run_id, int(recorded["run.seed"]), facts, checkpoint)


def _board(deployment: Deployment, known: _Known) -> Board:
    """The board, with the curves of what was done before."""
    plan = deployment.plan
    board = Board(
        deployment.folder.run,
        {
            "name": deployment.settings.name,
            "id": known.run_id,
            "planned": plan.training.rounds,
            "target_epsilon": plan.privacy.epsilon,
        },
    )
    board.recall(shareable(known.facts))
    return board


def _first_facts(deployment: Deployment, options: ServiceOptions, known: _Known) -> list[Fact]:
    """Everything known before training, in one write: with it the run has begun."""
    settings, plan = deployment.settings, deployment.plan
    start = RunStart(
        run_id=known.run_id,
        name=settings.name,
        title=settings.name,
        seed=known.seed,
        engine="network",
        command=options.command,
        simulation=False,
    )
    generator = initial_generator(plan, known.seed, _weights(deployment), "run.weights")
    return [
        *run_facts(start, plan),
        *data_facts(plan),
        generator_fact(generator),
        pretraining_fact(plan.pretraining),
        Fact("run.started", _now(), "public", _SOURCE),
    ]


def _weights(deployment: Deployment) -> Path | None:
    """The file of public weights; a relative path starts at the coordinator's folder."""
    named = deployment.settings.run.weights
    return None if named is None else deployment.folder.path / named.expanduser()


@contextmanager
def _shown(board: Board, run_dir: Path, options: ServiceOptions, tell: Reporter) -> Iterator[None]:
    """Serve what was asked for on this machine while the run lasts."""
    from synth_server.status_page import render_page

    def page() -> tuple[str, bytes]:
        return "text/html; charset=utf-8", render_page(board.snapshot(), run_dir).encode()

    def metrics() -> tuple[str, bytes]:
        return CONTENT_TYPE, render_metrics(board.snapshot()).encode()

    with ExitStack() as stack:
        if options.metrics is not None:
            port = stack.enter_context(served("--metrics", options.metrics, {"/metrics": metrics}))
            tell.note(f"metrics: http://127.0.0.1:{port}/metrics")
        if options.status_page is not None:
            port = stack.enter_context(served("--status-page", options.status_page, {"/": page}))
            tell.note(f"status page: http://127.0.0.1:{port}/")
        yield


class _Service:
    """One process's part of a run."""

    def __init__(
        self,
        deployment: Deployment,
        known: _Known,
        log: TrackedLog,
        board: Board,
        tell: Reporter,
        stopper: Stopper,
    ) -> None:
        self._began = time.perf_counter()
        self._deployment, self._known, self._board = deployment, known, board
        self._stopper, self._log, self._tell = stopper, log, tell
        plan, kept = deployment.plan, known.checkpoint
        enrolled = len(list(deployment.folder.sites.glob("*.json")))
        self._course = Coordination(
            plan=plan,
            run_id=known.run_id,
            seed=known.seed,
            folder=deployment.folder.run,
            log=log,
            tell=tell,
            generator=initial_generator(plan, known.seed, _weights(deployment), "run.weights"),
            prices=partial(prices_by_replies, plan, max(enrolled, plan.release_sites)),
            more=self._of_round,
            memory=Memory() if kept is None else kept.memory,
            released=kept is not None,
        )
        initial = self._course.generator.shared_state()
        self._start: tuple[int, State] = (
            (0, initial) if kept is None else (kept.round, dict(kept.state))
        )

    def run(self, link: Link) -> None:
        """Train, have the sites judge, and close the run; the board shows how it ends."""
        if self._known.finished:
            self._board.end("finished")
            return
        if self._known.facts:
            at = {"at_round": self._start[0] + 1}
            self._log.append(Fact("run.resumed", at, "public", f"{_SOURCE}.coordinate"))
        for doubt in self._doubts():
            self._tell.note(doubt)
            self._board.warn(doubt)
        try:
            with link(self._deployment.folder, self._deployment.settings) as sites:
                self._train_and_judge(sites)
            self._board.end("finished")
        except KeyboardInterrupt:  # a second signal
            self._board.end("stopped")
            self._stopper.stop()
            self._stopper.check()
        except SynthwardError as err:
            self._end("stopped" if isinstance(err, Interrupted) else "failed", err)
            raise

    def _end(self, phase: str, err: SynthwardError) -> None:
        """Keep what the sites told last, and show the error, which a full disk does not replace."""
        try:
            self._keep()
            self._board.end(phase, err)
        except StorageError as second:
            self._tell.note(str(second))

    def _keep(self) -> None:
        """The newest checkpoint again, with what the sites told since."""
        course = self._course
        newest = load_latest(course.checkpoints)
        if newest is not None:
            course.keep(newest.round, dict(newest.state))
        elif course.plan.release.embedding is None:
            course.keep(*self._start)

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
        pace = Attendance(
            sites.roster, strategy, config, self._board, self._stopper, self._tell.note
        )
        with self._board.refreshed(partial(_look, self._board, sites)):
            self._gather_for_release(pace, strategy)
            ended = train(self._course, grid, strategy, self._start, pace)
            began = time.perf_counter()
            if config.evaluate:
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
        return strategy

    def _gather_for_release(self, pace: Attendance, strategy: UniformAverage) -> None:
        """Wait for enough sites, and for all that took part in an attempt that was cut short."""
        course, plan = self._course, self._course.plan
        if plan.release.embedding is None or course.released:
            return
        if load_release(course.checkpoints, course.run_id, plan.digest()) is not None:
            return  # it only has to be learnt
        attempt = AttemptBook(course.checkpoints).unfinished(set(strategy.sites.values()))
        names = frozenset() if attempt is None else frozenset(attempt.participants)
        pace.gather(plan.release_sites, "release", 0, names)
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
        facts = [
            synthetic_grid(course.plan, course.generator, self._gallery()),
            *traversals(course.plan, course.generator, self._gallery()),
            Fact("run.rounds", rounds, "public", _SOURCE),
            peak_memory_fact("the coordinator's process"),
            *time_facts(course.log.path, judging, time.perf_counter() - self._began),
            Fact("run.finished", _now(), "public", _SOURCE),
        ]
        course.log.extend(facts)


def _look(board: Board, sites: Sites) -> None:
    """Show who is connected now."""
    board.heard(sites.roster.online(), sites.roster.sites.values())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
