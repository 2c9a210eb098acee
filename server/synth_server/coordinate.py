"""The federated part of a run: a release if one is planned, then rounds, each one recorded.

The same code whether the sites are calls in this process, Ray's workers or hospitals.
"""

from __future__ import annotations

import torch

from synth_common.errors import FederationError
from synth_common.evaluation.synthetic import balanced_labels
from synth_common.facts import Fact
from synth_common.flower import Grid
from synth_common.randomness import derive_seed
from synth_server.coordination import Coordination, as_reported, record_failures
from synth_server.pictures import scope_of
from synth_server.release import Releasing
from synth_server.release_run import learn
from synth_server.release_store import AttemptBook
from synth_server.rounds import Ended, Interlude, RoundResult, State, run_rounds
from synth_server.strategy import UniformAverage

_SOURCE = "synth_server.coordinate"
_HEALTH_SAMPLES = 64


def train(
    run: Coordination,
    grid: Grid,
    strategy: UniformAverage,
    start: tuple[int, State],
    between: Interlude | None = None,
) -> Ended:
    """Make the planned release if it is not made yet, then the remaining rounds.

    Args:
        run: The run; its generator carries the final weights afterwards.
        grid: Where the sites are.
        strategy: Asks, checks and averages; its memory becomes the run's.
        start: Rounds already completed and the tensors after them.
        between: What happens before a round and after one that failed; default: nothing.

    Raises:
        SynthwardError: A round or the release could not be made up, or no round was. Where all
            failed sites report one error, it is of that error's class, so that its exit code
            says what to do.
    """
    strategy.memory = run.memory
    if run.plan.release.embedding is not None and not run.released:
        start = (0, _release(run, grid, strategy))
    try:
        ended = run_rounds(
            grid, strategy, run.plan, start, lambda result: after_round(run, result), between
        )
    except FederationError as err:
        record_failures(run, strategy.outcome.failures, strategy.round)
        raise as_reported(run, strategy.outcome.failures, err) from err
    if ended.reason != "completed":
        record_failures(run, strategy.outcome.failures, strategy.round)
        run.tell.note(f"training ended after round {ended.completed}: {ended.reason}")
    if ended.completed == 0 and run.plan.training.rounds:
        no_round = FederationError("no round could be trained, so there is nothing to judge")
        raise as_reported(run, strategy.outcome.failures, no_round)
    run.generator.load_shared_state(ended.state)
    return ended


def _release(run: Coordination, grid: Grid, strategy: UniformAverage) -> State:
    """Get and learn the release; record who failed, whether or not it came about."""
    asking = Releasing(grid, strategy, AttemptBook(run.checkpoints))
    try:
        state = learn(run, asking)
        run.log.extend(_health_facts(run, 0))
        return state
    except FederationError as err:
        raise as_reported(run, asking.failures, err) from err
    finally:
        record_failures(run, asking.failures, 0)


def after_round(run: Coordination, result: RoundResult) -> None:
    """Record a round, look at the generator's health, and keep a checkpoint."""
    number, outcome = result.round, result.outcome
    value = {
        "replies": sorted(outcome.replies),
        "seconds": round(result.seconds, 3),
        "bytes_down": outcome.bytes_down,
        "bytes_up": outcome.bytes_up,
    }
    source = f"{_SOURCE}.after_round"
    facts = [Fact("federation.round", value, "public", source, round=number)]
    run.generator.load_shared_state(result.state)
    facts += _health_facts(run, number) + _share_facts(run, result)
    facts += run.more(number, outcome.replies)
    run.log.extend(facts)
    record_failures(run, outcome.failures, number)
    run.keep(number, result.state)
    replies = outcome.replies.items()
    run.tell.round(number, {name: v["epsilon"] for name, v in replies if "epsilon" in v})


def _share_facts(run: Coordination, result: RoundResult) -> list[Fact]:
    """The classes' shares, in the round that brought a released histogram."""
    if not any(result.outcome.statistics.values()):
        return []
    value = dict(zip(run.plan.generator.classes, run.memory.shares(), strict=False))
    detail = {"noise": run.plan.release.label_histogram}
    source = f"{_SOURCE}._share_facts"
    return [Fact("data.label_shares", value, "released", source, detail=detail)]


def _health_facts(run: Coordination, number: int) -> list[Fact]:
    """Signals of collapse or divergence, from released weights and samples only."""
    labels = torch.from_numpy(balanced_labels(run.plan, _HEALTH_SAMPLES))
    seeds = [derive_seed(run.seed, "health", i) for i in range(len(labels))]
    health = run.generator.health(run.generator.sample(labels, seeds), labels)
    source = f"{_SOURCE}._health_facts"
    scope = scope_of(run.plan)
    facts = [Fact("training.health", dict(health.signals), scope, source, round=number)]
    for warning in health.warnings:
        run.tell.note(f"round {number}: {warning}")
        facts.append(Fact("training.warning", warning, scope, source, round=number))
    return facts
