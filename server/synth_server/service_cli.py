"""``synth-server start``, ``resume`` and ``status``: a run with sites on a network."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synth_common.errors import ConfigError

if TYPE_CHECKING:
    from synth_server.board import Snapshot

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")]
MetricsOption = Annotated[
    int | None,
    typer.Option(
        "--metrics", metavar="PORT", help="Serve Prometheus metrics on 127.0.0.1:PORT/metrics."
    ),
]
PageOption = Annotated[
    int | None,
    typer.Option(
        "--status-page", metavar="PORT", help="Serve a page that shows the run on 127.0.0.1:PORT."
    ),
]
TensorBoardOption = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard", metavar="FOLDER", help="Write curves and samples for TensorBoard."
    ),
]
MlflowOption = Annotated[
    str | None, typer.Option("--mlflow", metavar="URI", help="Log the run to MLflow at this URI.")
]


def start(
    folder: FolderArgument,
    metrics: MetricsOption = None,
    status_page: PageOption = None,
    tensorboard: TensorBoardOption = None,
    mlflow: MlflowOption = None,
) -> None:
    """Run the plan of DIR with the enrolled sites, and write the report.

    Waits until enough sites are connected; DIR/server.toml says how long. Ends in good order
    after the current message on SIGTERM or Ctrl-C. What is done is kept in DIR/run.
    """
    _run(folder, False, (metrics, status_page), (tensorboard, mlflow))


def resume(
    folder: FolderArgument,
    metrics: MetricsOption = None,
    status_page: PageOption = None,
    tensorboard: TensorBoardOption = None,
    mlflow: MlflowOption = None,
) -> None:
    """Go on with the run in DIR/run from its newest checkpoint.

    A round that was cut short is asked for again: sites that had answered answer for nothing.
    """
    _run(folder, True, (metrics, status_page), (tensorboard, mlflow))


def status(
    folder: FolderArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what the coordinator of DIR is doing, or did last."""
    from synth_server.service import run_state

    state = run_state(folder)
    if state is None:
        raise ConfigError(f"{folder / 'run'} holds no run; begin with synth-server start {folder}")
    if as_json:
        typer.echo(json.dumps(state, indent=2))
        return
    for line in describe(state):
        typer.echo(line)


def describe(state: Snapshot) -> list[str]:
    """The state of a run in lines."""
    where = f"round {state['round']}, " if state["phase"] in ("round", "waiting") else ""
    lines = [
        f"{state['name']}, run {state['id']}: {state['phase']}, {where}"
        f"{state['completed']} of {state['planned']} rounds completed",
        f"process {state['pid']}: {'running' if state['running'] else 'not running'}; "
        f"state of {state['updated']}",
    ]
    for name, site in state["sites"].items():
        here = "connected" if site["connected"] and state["running"] else "not connected"
        failed = f" ({site['failure']})" if site["activity"] == "failed" else ""
        spent = "none stated" if site["epsilon"] is None else f"{float(site['epsilon']):.4g}"
        lines.append(f"  {name}: {here}; {site['activity']}{failed}; epsilon {spent}")
    if state["error"]:
        lines.append(f"error: {state['error']}")
    return lines


def _run(
    folder: Path,
    resume: bool,
    ports: tuple[int | None, int | None],
    trackers: tuple[Path | None, str | None],
) -> None:
    """Start or resume: the coordinator's checks, then the run."""
    from synth_server.authority import require_identity
    from synth_server.deployment import Deployment
    from synth_server.network import open_network
    from synth_server.progress import reporter
    from synth_server.service import ServiceOptions, coordinate

    deployment = Deployment.read(folder)
    for warning in require_identity(deployment.folder, deployment.settings):
        typer.echo(f"warning: {warning}", err=True)
    options = ServiceOptions(
        resume=resume,
        metrics=ports[0],
        status_page=ports[1],
        tensorboard=trackers[0],
        mlflow=trackers[1],
        command=shlex.join(["synth-server", *sys.argv[1:]]),
    )
    report = coordinate(deployment, options, open_network, reporter)
    typer.echo(f"report: {report}")
