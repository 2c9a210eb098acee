"""A coordinator that runs a plan with sites on a network, from its start to its report.

All of a run is in ``DIR/run``: facts are appended as they are measured, a checkpoint is written
after every round, and what the sites paid for they keep, so that a process which ended anyhow
can be followed by another that goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from synth_common.errors import StorageError
from synth_common.facts import FactLog
from synth_server.board import Board, Snapshot, read_state
from synth_server.deployed_run import DeployedRun, Link, Process
from synth_server.deployment import Deployment, Known, first_facts, known_run
from synth_server.lock import is_locked, locked
from synth_server.loopback import served
from synth_server.metrics import CONTENT_TYPE, render_metrics
from synth_server.progress import Reporter
from synth_server.settings import ServerFolder
from synth_server.stopping import Stopper
from synth_server.trackers import TrackedLog, shareable, trackers


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
    stopper = Stopper(f"synth-server resume {deployment.folder.path}")
    with locked(run_dir), stopper:
        known = known_run(deployment, options.resume)
        with (
            reporter(deployment.plan.training.rounds, known.completed) as tell,
            _watched(deployment, options, known, tell) as (log, board),
        ):
            DeployedRun(deployment, known, Process(log, board, tell, stopper)).run(link)
    from synth_common.reporting.report import write_report

    return write_report(run_dir)


@contextmanager
def _watched(
    deployment: Deployment, options: ServiceOptions, known: Known, tell: Reporter
) -> Iterator[tuple[FactLog, Board]]:
    """The run's log and board, with everything that watches them; begins a new run."""
    run_dir, asked = deployment.folder.run, (options.tensorboard, options.mlflow)
    with trackers(run_dir, deployment.settings.name, asked, tell.note) as sinks:
        board = _board(deployment, known)
        log = TrackedLog(run_dir / "facts.jsonl", [board, *sinks])
        with _shown(board, run_dir, options, tell):
            if not options.resume:
                log.extend(first_facts(deployment, known, options.command))
            yield log, board


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


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise StorageError(f"cannot make {run_dir}: {err.strerror}") from err


def _board(deployment: Deployment, known: Known) -> Board:
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
