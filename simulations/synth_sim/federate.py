"""The federated part of a run: rounds over a transport, each recorded, and the judging."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from synth_client.app import SiteApp
from synth_client.evaluate import SiteEvaluation, balanced_labels
from synth_client.site import Site
from synth_common.errors import DataError, FederationError, SynthwardError
from synth_common.facts import Fact, FactLog, Scope, read_facts
from synth_common.flower import Grid
from synth_common.generators import Generator
from synth_common.messages import error_class
from synth_common.randomness import derive_seed
from synth_server.checkpoint import Checkpoint, save_checkpoint
from synth_server.rounds import (
    Ended,
    RoundResult,
    State,
    discover_sites,
    evaluate_sites,
    run_rounds,
)
from synth_server.strategy import Failure, Memory, UniformAverage
from synth_sim.prepare import load_reference
from synth_sim.progress import Reporter
from synth_sim.release import learn, releasing
from synth_sim.scenario import Scenario
from synth_sim.transport import Engine, PartitionSites, open_grid

_SOURCE = "synth_sim.federate"
_HEALTH_SAMPLES = 64
_DISCOVERY_SECONDS = 600.0


@dataclass(frozen=True)
class Federation:
    """Everything the federated part of a run needs.

    Attributes:
        scenario: What runs.
        out: Run directory.
        log: The run's facts.
        tell: Progress.
        generator: With its public initial weights; carries the current ones later.
        sites: In the order of their partition ids.
        memory: What the coordinator knows of the sites from rounds already completed.
        released: Whether a planned release was made and learnt from already.
    """

    scenario: Scenario
    out: Path
    log: FactLog
    tell: Reporter
    generator: Generator
    sites: Sequence[Site]
    memory: Memory = field(default_factory=Memory)
    released: bool = False


def federate(run: Federation, engine: Engine, start: tuple[int, State]) -> tuple[Ended, float]:
    """Train the remaining rounds, then have every site judge the generator.

    Args:
        run: The run.
        engine: Transport.
        start: Rounds already completed and the tensors after them.

    Returns:
        How training ended, and the seconds the sites' evaluation took.

    Raises:
        SynthwardError: A round could not be made up. Where all failed sites report one
            error, it is of that error's class, so that its exit code says what to do.
    """
    with open_grid(engine, _site_app(run, engine), len(run.sites)) as grid:
        strategy = _strategy(run, grid)
        if run.scenario.release.embedding is not None and not run.released:
            start = (0, _release(run, grid, strategy))
        try:
            ended = run_rounds(
                grid, strategy, run.scenario.plan, start, lambda result: _after_round(run, result)
            )
        except FederationError as err:
            _record_failures(run, strategy.outcome.failures, strategy.round)
            raise _as_reported(run, strategy.outcome.failures, err) from err
        if ended.reason != "completed":
            _record_failures(run, strategy.outcome.failures, strategy.round)
            run.tell.note(f"training ended after round {ended.completed}: {ended.reason}")
        if ended.completed == 0 and run.scenario.training.rounds:
            no_round = FederationError("no round could be trained, so there is nothing to judge")
            raise _as_reported(run, strategy.outcome.failures, no_round)
        run.generator.load_shared_state(ended.state)
        began = time.perf_counter()
        run.tell.note("every site judges the generator on its held-out patients")
        outcome = evaluate_sites(grid, strategy, ended, run.scenario.federation.round_timeout_s)
        _record_failures(run, outcome.failures, ended.completed)
        _require_evaluations(run)
    return ended, time.perf_counter() - began


def _release(run: Federation, grid: Grid, strategy: UniformAverage) -> State:
    """Get and learn the release; record who failed, whether or not it came about."""
    asking = releasing(run, grid, strategy)
    try:
        state = learn(run, asking)
        run.log.extend(_health_facts(run, 0))
        return state
    except FederationError as err:
        raise _as_reported(run, asking.failures, err) from err
    finally:
        _record_failures(run, asking.failures, 0)


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
    run.tell.stage(f"evaluation {names.index(site) + 1}/{len(names)}, {site}", stage)


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
    plan = run.scenario.plan
    strategy = UniformAverage(
        discover_sites(grid, _DISCOVERY_SECONDS),
        plan.federation.min_sites,
        run.scenario.run_id(),
        plan,
    )
    strategy.memory = run.memory
    strategy.on_ask = run.tell.site
    strategy.on_judged = partial(_tell_stage, run, stage="done")
    return strategy


def _after_round(run: Federation, result: RoundResult) -> None:
    """Record a round, look at the generator's health, and keep a checkpoint."""
    number, outcome = result.round, result.outcome
    value = {
        "replies": sorted(outcome.replies),
        "seconds": round(result.seconds, 3),
        "bytes_down": outcome.bytes_down,
        "bytes_up": outcome.bytes_up,
    }
    source = f"{_SOURCE}._after_round"
    facts = [Fact("federation.round", value, "public", source, round=number)]
    run.generator.load_shared_state(result.state)
    facts += _health_facts(run, number) + _share_facts(run, result)
    run.log.extend(facts)
    _record_failures(run, outcome.failures, number)
    plan = run.scenario.plan
    save_checkpoint(
        run.out / "checkpoints",
        Checkpoint(run.scenario.run_id(), number, plan.digest(), result.state, run.memory),
    )
    replies = outcome.replies.items()
    run.tell.round(number, {name: v["epsilon"] for name, v in replies if "epsilon" in v})


def _share_facts(run: Federation, result: RoundResult) -> list[Fact]:
    """The classes' shares, in the round that brought a released histogram."""
    if not any(result.outcome.statistics.values()):
        return []
    value = dict(zip(run.scenario.generator.classes, run.memory.shares(), strict=False))
    detail = {"noise": run.scenario.release.label_histogram}
    source = f"{_SOURCE}._share_facts"
    return [Fact("data.label_shares", value, "released", source, detail=detail)]


def _health_facts(run: Federation, number: int) -> list[Fact]:
    """Signals of collapse or divergence, from released weights and samples only."""
    labels = torch.from_numpy(balanced_labels(run.scenario.plan, _HEALTH_SAMPLES))
    seeds = [derive_seed(run.scenario.seed, "health", i) for i in range(len(labels))]
    health = run.generator.health(run.generator.sample(labels, seeds), labels)
    source = f"{_SOURCE}._health_facts"
    # Without privacy the weights themselves are uncharged, and so is all that follows.
    scope: Scope = "released" if run.scenario.privacy.private else "site-local"
    facts = [Fact("training.health", dict(health.signals), scope, source, round=number)]
    for warning in health.warnings:
        run.tell.note(f"round {number}: {warning}")
        facts.append(Fact("training.warning", warning, scope, source, round=number))
    return facts


def _record_failures(run: Federation, failures: Sequence[Failure], number: int) -> None:
    """Facts and a line on the terminal for every failed site."""
    source = f"{_SOURCE}._record_failures"
    for failure in failures:
        story = run.out / "sites" / failure.site / "errors.log"
        hint = f"; {story} says why" if story.exists() else ""
        when = f"round {number}" if number else "release"
        run.tell.note(f"{when}: {failure.site} failed: {failure.code}{hint}")
    run.log.extend(
        Fact(
            "federation.failure",
            {"code": failure.code, "reason": failure.reason},
            "public",
            source,
            site=failure.site,
            round=number,
        )
        for failure in failures
    )


def _as_reported(
    run: Federation, failures: Sequence[Failure], err: FederationError
) -> SynthwardError:
    """The error in the class that all failed sites agree on; their own words stay with them."""
    directories = {site.name: site.directory for site in run.sites}
    stories = [directories[f.site] / "errors.log" for f in failures if f.site in directories]
    hint = ". Each site's own account: " + ", ".join(map(str, stories)) if stories else ""
    codes = {failure.code for failure in failures}
    if len(codes) == 1 and (code := codes.pop()) not in ("NoReply", "BadReply"):
        return error_class(code)(f"{err}{hint}")
    return FederationError(f"{err}{hint}")
