"""A canary audit of a scenario: the federation as it runs, with canary patients in one site.

Sites, plan, Flower messages, clip, noise and ledger are those of a run; only the training
images of the audited site are more. What is scored is what a curious server sees: the
weights it sent and the weights that came back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from synth_client.app import SiteApp
from synth_client.evaluate import SiteEvaluation
from synth_client.site import load_site, privacy_facts, save_site
from synth_common.audit.canaries import (
    FEWEST,
    AuditResult,
    Claim,
    Flags,
    Floats,
    audit_canaries,
    canary_scores,
)
from synth_common.errors import ConfigError, FederationError, StorageError
from synth_common.facts import Fact, FactLog
from synth_common.flower import Grid, Message, PassingGrid, state_of
from synth_common.generators.canary import CANARY_LENGTH, CANARY_WEIGHTS
from synth_common.images.imageset import ImageSet, concatenate
from synth_common.messages import arrays_in
from synth_common.plan import Plan
from synth_common.randomness import numpy_stream
from synth_common.reporting.files import replace_text
from synth_server.progress import Reporter, reporter
from synth_server.rounds import RoundResult, State, discover_sites, run_rounds
from synth_server.strategy import UniformAverage
from synth_sim.canary_page import audit_page
from synth_sim.prepare import prepare_sites, require_data, site_directories
from synth_sim.record import run_facts
from synth_sim.scenario import Scenario, save_scenario
from synth_sim.transport import PartitionSites, open_grid
from synth_sim.weights import initial_generator

_SOURCE = "synth_sim.canaries.audit_scenario"
_DISCOVERY_SECONDS = 600.0
_BLANK = 0.5


@dataclass(frozen=True)
class AuditOptions:
    """How to audit, apart from what.

    Attributes:
        out: Directory of the audit; must be empty.
        canaries: How many, of which about half are put in.
        site: The audited site; None for the scenario's first.
        alpha: Probability with which a claim that holds may be refuted.
        command: Command line, for the record.
    """

    out: Path
    canaries: int = 1000
    site: str | None = None
    alpha: float = 0.05
    command: str = ""


@dataclass(frozen=True)
class Audit:
    """What came of an audit: the audited site, the result, its fact's value, and its page."""

    site: str
    result: AuditResult
    value: Mapping[str, Any]
    page: Path


def audit_scenario(scenario: Scenario, options: AuditOptions) -> Audit:
    """Run the scenario with canaries in one site and judge that site's claim.

    Args:
        scenario: What to run; its own ``generator.canaries`` is replaced.
        options: Where and how.

    Raises:
        ConfigError: Nothing is claimed (epsilon is infinite), the site is unknown, or a
            value is impossible.
        SynthwardError: Whatever stopped the run; see its class.
    """
    name = _audited(scenario, options)
    generator = scenario.generator.model_copy(update={"canaries": options.canaries})
    scenario = scenario.model_copy(update={"generator": generator})
    require_data(scenario)
    _own(options.out)
    save_scenario(scenario, options.out / "scenario.toml")
    prepare_sites(scenario, options.out)
    log = FactLog(options.out / "facts.jsonl")
    log.extend(run_facts(scenario, "inprocess", options.command))
    directories = site_directories(scenario, options.out)
    included = draw_inclusion(options.canaries, scenario.seed, name)
    site = load_site(directories[name])
    save_site(replace(site, train=with_canaries(site.train, included, scenario.plan)))
    with reporter(scenario.training.rounds) as tell:
        sent, replied = _federate(scenario, directories, name, tell)
    guarantee = privacy_facts(site, scenario.plan, scenario.run_id())
    claim = Claim(float(guarantee[0].value["epsilon"]), scenario.privacy.delta, options.alpha)
    scores = canary_scores(sent, replied, _round_rates(scenario.plan, len(sent)))
    result = audit_canaries(included, scores, claim, numpy_stream(scenario.seed, "audit", "third"))
    value = {**result.as_fact_value(), "canaries": options.canaries, "rounds": len(sent)}
    log.extend([*guarantee, Fact("audit.canaries", value, "released", _SOURCE, site=name)])
    page = replace_text(options.out / "canaries.md", audit_page(name, value))
    return Audit(name, result, value, page)


def draw_inclusion(canaries: int, seed: int, site: str) -> Flags:
    """(canaries,) whether each is in: a fair coin each, from a stream of its own."""
    return np.asarray(numpy_stream(seed, "audit", site, "coins").random(canaries) < 0.5)


def with_canaries(images: ImageSet, included: Flags, plan: Plan) -> ImageSet:
    """The images and those of the canaries that are in.

    Every canary is one patient with as many images as the plan ever uses of one, so that
    counting images where patients were meant shows. Canary j's label is classes + j.
    """
    each, classes = plan.privacy.max_images_per_patient, plan.generator.classes
    names = (*classes, *(f"canary-{j}" for j in range(len(included))))
    chosen = np.repeat(np.flatnonzero(included), each)
    shape = (len(chosen), *images.images.shape[1:])
    masks = None if images.masks is None else np.zeros((shape[0], *shape[2:]), dtype=np.uint8)
    known = images.patient_ids is not None
    canaries = ImageSet(
        images=np.full(shape, _BLANK, dtype=np.float32),
        labels=(len(classes) + chosen).astype(np.int64),
        class_names=names,
        patient_ids=np.array([f"canary-{j}" for j in chosen], dtype=str) if known else None,
        masks=masks,
    )
    return concatenate([replace(images, class_names=names), canaries])


class CuriousGrid(PassingGrid):
    """A grid that keeps a note of the canaries' weights on the way to and from one node.

    Attributes:
        sent: (canaries,) weights of each message to the node.
        replied: The same of each of its replies.
    """

    def __init__(self, inner: Grid, node: int) -> None:
        super().__init__(inner)
        self._node = node
        self.sent: list[npt.NDArray[np.float64]] = []
        self.replied: list[npt.NDArray[np.float64]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Pass messages and replies on; note what concerns the node."""
        for reply in self._inner.send_and_receive(self._noted(messages), timeout=timeout):
            if reply.metadata.src_node_id == self._node and not reply.has_error():
                self.replied.append(_weights(reply))
            yield reply

    def _noted(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            if message.metadata.dst_node_id == self._node:
                self.sent.append(_weights(message))
            yield message


def _weights(message: Message) -> npt.NDArray[np.float64]:
    """The canaries' weights in a message."""
    state = state_of(arrays_in(message))
    return np.asarray(state[CANARY_WEIGHTS].numpy()[0], dtype=np.float64)


def _federate(
    scenario: Scenario, directories: dict[str, Path], name: str, tell: Reporter
) -> tuple[Floats, Floats]:
    """Run the rounds; the canaries' weights sent to the site and in its replies, by round."""
    plan = scenario.plan
    app = SiteApp(
        resolve=PartitionSites(tuple(directories.values())),
        evaluation=SiteEvaluation(scenario.evaluation, scenario.seed),
        threads=torch.get_num_threads(),
    )
    generator = initial_generator(scenario)
    with open_grid("inprocess", app, len(directories)) as grid:
        nodes = discover_sites(grid, _DISCOVERY_SECONDS)
        least = plan.federation.min_sites
        strategy = UniformAverage(nodes, least, scenario.run_id(), plan)
        strategy.on_ask = tell.site
        watched = CuriousGrid(grid, next(n for n, known in nodes.items() if known == name))
        _rounds(watched, strategy, plan, (name, directories[name], tell), generator.shared_state())
    return np.stack(watched.sent), np.stack(watched.replied)


def _rounds(
    grid: Grid,
    strategy: UniformAverage,
    plan: Plan,
    audited: tuple[str, Path, Reporter],
    state: State,
) -> None:
    """All planned rounds; the audited site must be in every one of them."""
    name, directory, tell = audited

    def after(result: RoundResult) -> None:
        replies = result.outcome.replies
        if name not in replies:
            raise FederationError(f"round {result.round}: the audited site {name} failed")
        tell.round(result.round, {site: v["epsilon"] for site, v in replies.items()})

    try:
        ended = run_rounds(grid, strategy, plan, (0, dict(state)), after)
    except FederationError as err:
        raise FederationError(f"{err}. The site's own account: {directory}/errors.log") from err
    if ended.completed < plan.training.rounds:
        raise FederationError(
            f"training ended after round {ended.completed} of {plan.training.rounds} "
            f"({ended.reason}); an audit needs every round"
        )


def _round_rates(plan: Plan, rounds: int) -> list[float]:
    """The schedule's factor summed over the steps of each round."""
    steps = plan.training.steps_per_round
    factors = [plan.training.rate_factor(step) for step in range(rounds * steps)]
    return [sum(factors[i : i + steps]) for i in range(0, len(factors), steps)]


def _audited(scenario: Scenario, options: AuditOptions) -> str:
    """The audited site's name; refuses what cannot be audited before anything is made."""
    names = [site.name for site in scenario.partition.sites]
    if not scenario.privacy.private:
        raise ConfigError(
            "privacy.epsilon = inf: the scenario claims no privacy, so there is no claim to "
            "audit; set privacy.epsilon"
        )
    if scenario.privacy.clip_norm > CANARY_LENGTH:
        raise ConfigError(
            f"privacy.clip_norm = {scenario.privacy.clip_norm:g}: canaries are "
            f"{CANARY_LENGTH:g} long before the clip; choose a smaller clip norm"
        )
    if options.canaries < FEWEST:
        raise ConfigError(f"--canaries {options.canaries}: an audit needs at least {FEWEST}")
    if not 0 < options.alpha < 1:
        raise ConfigError(f"--alpha {options.alpha}: must be in (0, 1)")
    if options.site is not None and options.site not in names:
        raise ConfigError(f"--site {options.site!r}: the sites are {', '.join(names)}")
    return options.site or names[0]


def _own(out: Path) -> None:
    """Make the audit's directory; one that holds anything is left alone."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in out.iterdir())
    except OSError as err:
        raise StorageError(f"cannot use {out} for an audit: {err.strerror}") from err
    if found:
        raise ConfigError(f"--out {out} is not empty (holds {', '.join(found[:3])})")
