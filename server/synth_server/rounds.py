"""The round loop: from any round on, with a callback after each, and an end in good order.

Flower's own ``Strategy.start`` always begins at round 1 and can end early only by an
exception; a resumable run under a budget needs both otherwise. Everything a round does is
in the strategy, so the two loops agree.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from synth_common import messages
from synth_common.errors import FederationError
from synth_common.flower import (
    ArrayRecord,
    ConfigRecord,
    Grid,
    Message,
    RecordDict,
    arrays_of,
    state_of,
)
from synth_common.generators import build_generator
from synth_common.plan import Plan
from synth_common.randomness import derive_seed
from synth_server.strategy import Failure, Outcome, UniformAverage

State = dict[str, Tensor]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class RoundResult:
    """A finished round: the averaged tensors, what came of it, and its seconds."""

    round: int
    state: State
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class Ended:
    """How training ended: the final tensors, rounds completed in all, and why."""

    state: State
    completed: int
    reason: str


class Interlude:
    """What happens between rounds; this one waits for nobody and asks for no round twice."""

    def before(self, number: int) -> None:
        """A round is about to be asked for; may wait for sites, or raise to end the run."""

    def again(self, number: int, failures: Sequence[Failure]) -> bool:
        """Whether to ask for a round again that had too few usable replies; may wait, or raise."""
        return False


def discover_sites(grid: Grid, timeout: float) -> dict[int, str]:
    """Ask every connected node for its site's name; node id to name, in order of names.

    Raises:
        FederationError: A node failed to answer, or gave a name that cannot be used.
    """
    nodes = sorted(grid.get_node_ids())
    asked = [Message(RecordDict(), node, "query", ttl=timeout) for node in nodes]
    names: dict[int, str] = {}
    for reply in grid.send_and_receive(asked, timeout=timeout):
        node = reply.metadata.src_node_id
        if reply.has_error():
            code = messages.error_code(reply)
            raise FederationError(f"node {node} could not open its site: {code}")
        name = str(messages.values_in(reply).get("site", ""))
        if not _NAME.fullmatch(name) or name in names.values():
            raise FederationError(f"node {node}: site name {name!r} is unusable or taken")
        names[node] = name
    silent = [node for node in nodes if node not in names]
    if silent:
        raise FederationError(f"no answer from nodes {silent} within {timeout:.0f} s")
    return dict(sorted(names.items(), key=lambda item: item[1]))


def run_rounds(
    grid: Grid,
    strategy: UniformAverage,
    plan: Plan,
    start: tuple[int, State],
    on_round: Callable[[RoundResult], None],
    between: Interlude | None = None,
) -> Ended:
    """Train until the planned rounds are done or the sites' budgets are spent.

    Args:
        grid: Where the sites are.
        strategy: Asks, checks and averages.
        plan: Rounds and the timeout of each.
        start: Rounds already completed, and the tensors after them. They are taken out of the
            mapping: while a round runs, the model is held once, as it is sent.
        on_round: Called after every completed round, before the next begins.
        between: What happens between rounds; default: nothing.

    Raises:
        FederationError: A round had too few usable replies.
    """
    completed, begun = start
    state = dict(begun)
    begun.clear()
    between = between or Interlude()
    while completed < plan.training.rounds:
        number = completed + 1
        between.before(number)
        began = time.perf_counter()
        sent, state = arrays_of(state), {}
        try:
            averaged = _round(grid, strategy, plan, (number, sent))
        except FederationError:
            if between.again(number, strategy.outcome.failures):
                state = state_of(sent)
                continue
            raise
        if averaged is None:
            return Ended(state_of(sent), completed, strategy.outcome.ended or "stopped")
        del sent
        state = refined(plan, averaged, strategy.run_id, number)
        completed = number
        on_round(RoundResult(number, state, strategy.outcome, time.perf_counter() - began))
    return Ended(state, completed, "completed")


def _round(
    grid: Grid, strategy: UniformAverage, plan: Plan, asked: tuple[int, ArrayRecord]
) -> State | None:
    """Ask for one round, by number, from the tensors given; None when budgets are spent."""
    number, sent = asked
    timeout = plan.federation.round_timeout_s
    config = ConfigRecord({"timeout": timeout})
    requests = strategy.configure_train(number, sent, config, grid)
    replies = grid.send_and_receive(requests, timeout=timeout)
    averaged, _ = strategy.aggregate_train(number, replies)
    return None if averaged is None else state_of(averaged, empty=True)


def refined(plan: Plan, state: State, run_id: str, number: int) -> State:
    """The tensors after what the coordinator does of its own, as post-processing.

    Args:
        plan: Says whether a GAN's generator is trained here; otherwise nothing is done.
        state: The sites' average.
        run_id: The run; with the round it decides all randomness: asked again, same answer.
        number: The round, 1-based.
    """
    if plan.generator.family != "gan" or plan.training.generator_training != "server":
        return state
    generator = build_generator(plan.generator, seed=0, pretraining=plan.pretraining)
    generator.load_shared_state(state)
    generator.refine(plan.training, derive_seed(0, "refine", run_id, number))
    return generator.shared_state()


def evaluate_sites(grid: Grid, strategy: UniformAverage, ended: Ended, timeout: float) -> Outcome:
    """Have every site judge the final generator on its own data; only who did is returned."""
    asked = strategy.ask_evaluation(ended.completed, arrays_of(ended.state))
    strategy.aggregate_evaluate(ended.completed, grid.send_and_receive(asked, timeout=timeout))
    return strategy.outcome
