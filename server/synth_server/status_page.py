"""The coordinator's page: round, sites, epsilon, curves and the sample grid; reads, never acts.

One document without scripts that asks for nothing else and is loaded anew every few seconds.
"""

from __future__ import annotations

import base64
import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader

from synth_common.reporting.html import environment
from synth_common.reporting.plots import epsilon_plot, health_plot
from synth_common.reporting.svg import Plot
from synth_server.board import Snapshot

REFRESH_SECONDS = 5
_PNG = b"\x89PNG\r\n\x1a\n"


def render_page(state: Snapshot, run_dir: Path) -> str:
    """The page as HTML.

    Args:
        state: See :meth:`synth_server.board.Board.snapshot`.
        run_dir: Where the sample grid's path starts.
    """
    template = _environment().get_template("status.html.j2")
    return template.render(
        state=state,
        refresh=REFRESH_SECONDS,
        epsilon=_epsilon(json.dumps(_spent(state))),
        health=_health(json.dumps(_signals(state))),
        sample=_picture(run_dir, state["sample"]),
    )


@cache
def _environment() -> Environment:
    """The report's templates and filters, and the page's own template."""
    reports = environment()
    loaders = [PackageLoader("synth_server"), PackageLoader("synth_common.reporting")]
    return reports.overlay(loader=ChoiceLoader(loaders))


def _spent(state: Snapshot) -> list[dict[str, Any]]:
    """Epsilon by site and round, as the report's plot takes it."""
    return [
        {
            "name": name,
            "target_epsilon": state["target_epsilon"],
            "epsilon_by_round": [
                {"round": int(number), "epsilon": value}
                for number, value in site["epsilon_by_round"].items()
            ],
        }
        for name, site in state["sites"].items()
    ]


def _signals(state: Snapshot) -> list[dict[str, Any]]:
    """Health by round, as the report's plot takes it."""
    return [{"round": int(k), "signals": v} for k, v in state["health"].items()]


# Plots change once a round, the page is asked for every few seconds.
@lru_cache(maxsize=2)
def _epsilon(sites: str) -> Plot | None:
    return epsilon_plot(json.loads(sites))


@lru_cache(maxsize=2)
def _health(signals: str) -> Plot | None:
    return health_plot(json.loads(signals))


def _picture(run_dir: Path, name: str | None) -> str | None:
    """The sample grid as base64; None where there is none yet."""
    if name is None:
        return None
    try:
        content = (run_dir / name).read_bytes()
    except OSError:
        return None
    return base64.b64encode(content).decode() if content.startswith(_PNG) else None
