"""The federated part of a simulated run: sites on one machine, and the coordinator's own code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from synth_client.app import SiteApp
from synth_client.evaluate import SiteEvaluation
from synth_client.site import Site
from synth_common.errors import DataError
from synth_common.facts import read_facts
from synth_common.flower import Grid
from synth_common.randomness import derive_seed
from synth_server.coordinate import train
from synth_server.coordination import Coordination, record_failures
from synth_server.rounds import Ended, State, discover_sites, evaluate_sites
from synth_server.strategy import UniformAverage
from synth_sim.kept_updates import FOLDER, KeepingGrid
from synth_sim.prepare import load_reference
from synth_sim.scenario import Scenario
from synth_sim.transport import Engine, PartitionSites, open_grid

_DISCOVERY_SECONDS = 600.0


@dataclass(frozen=True)
class Federation:
    """Everything the federated part of a simulated run needs.

    Attributes:
        scenario: What runs.
        course: The coordinator's side of the run.
        sites: In the order of their partition ids.
        keep_updates: Whether every update is written down, for an audit.
    """

    scenario: Scenario
    course: Coordination
    sites: Sequence[Site]
    keep_updates: bool = False

    @property
    def out(self) -> Path:
        """The run directory."""
        return self.course.folder


def federate(run: Federation, engine: Engine, start: tuple[int, State]) -> tuple[Ended, float]:
    """Train the remaining rounds, then have every site judge the generator.

    Args:
        run: The run.
        engine: Transport.
        start: Rounds already completed and the tensors after them.

    Returns:
        How training ended, and the seconds the sites' evaluation took.

    Raises:
        SynthwardError: A round could not be made up; see :func:`synth_server.coordinate.train`.
    """
    course = run.course
    with open_grid(engine, _site_app(run, engine), len(run.sites)) as grid:
        strategy = _strategy(run, grid)
        ended = train(course, _watched(run, grid), strategy, start)
        began = time.perf_counter()
        course.tell.note("every site judges the generator on its held-out patients")
        outcome = evaluate_sites(grid, strategy, ended, course.plan.federation.round_timeout_s)
        record_failures(course, outcome.failures, ended.completed)
        _require_evaluations(run)
    return ended, time.perf_counter() - began


def _watched(run: Federation, grid: Grid) -> Grid:
    """The grid, keeping updates where that is asked for."""
    if not run.keep_updates:
        return grid
    names = discover_sites(grid, _DISCOVERY_SECONDS)
    return KeepingGrid(grid, run.out / FOLDER, names)


def _require_evaluations(run: Federation) -> None:
    """A site answers alike whether or not its evaluation worked; its own facts tell which."""
    for site in run.sites:
        path = site.facts.path
        facts = read_facts(path) if path.exists() else iter(())
        if not any(fact.name == "membership.attack" for fact in facts):
            raise DataError(
                f"site {site.name} could not evaluate the generator; {site.directory}/errors.log "
                "says why. Mend it and continue with --resume"
            )


def _tell_stage(run: Federation, site: str, stage: str) -> None:
    """Where the sites' evaluation stands."""
    names = sorted(each.name for each in run.sites)
    run.course.tell.stage(f"evaluation {names.index(site) + 1}/{len(names)}, {site}", stage)


def _site_app(run: Federation, engine: Engine) -> SiteApp:
    """What every node runs."""
    seed = derive_seed(run.scenario.seed, "evaluation")
    evaluation = SiteEvaluation(run.scenario.evaluation, seed, load_reference(run.scenario))
    if engine == "inprocess":  # from Ray's workers no word comes but the reply
        evaluation = replace(evaluation, tell=partial(_tell_stage, run))
    return SiteApp(
        resolve=PartitionSites(tuple(site.directory for site in run.sites)),
        evaluation=evaluation,
        threads=torch.get_num_threads(),
    )


def _strategy(run: Federation, grid: Grid) -> UniformAverage:
    """The strategy over the sites that the grid knows."""
    course, plan = run.course, run.course.plan
    sites = discover_sites(grid, _DISCOVERY_SECONDS)
    strategy = UniformAverage(sites, plan.federation.min_sites, course.run_id, plan)
    strategy.on_ask = course.tell.site
    strategy.on_judged = partial(_tell_stage, run, stage="done")
    return strategy
