"""A coordinator's folder, read, and what its run directory tells of the run."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from synth_common.errors import ConfigError
from synth_common.facts import Fact, read_facts
from synth_common.generators import Generator
from synth_common.plan import Plan
from synth_server.checkpoint import Checkpoint, load_latest
from synth_server.deployed import data_facts
from synth_server.record import (
    RunStart,
    generator_fact,
    pretraining_fact,
    roles_fact,
    run_facts,
)
from synth_server.rounds import State
from synth_server.settings import ServerFolder, ServerSettings, load_plan, load_settings
from synth_server.weights import initial_generator

_SOURCE = "synth_server.deployment"


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

    def generator(self, seed: int) -> Generator:
        """The planned generator with its public initial weights.

        A relative path of ``run.weights`` starts at the coordinator's folder. Errors as
        :func:`synth_server.weights.initial_generator`.
        """
        named = self.settings.run.weights
        path = None if named is None else self.folder.path / named.expanduser()
        return initial_generator(self.plan, seed, path, "run.weights")


@dataclass(frozen=True)
class Known:
    """What a run's directory tells of it: what was decided once, and how far it is.

    Attributes:
        run_id: The run.
        seed: It began with.
        facts: Recorded so far.
        checkpoint: The newest, without its tensors; None before the first.
        start: Rounds completed, and the tensors after them; None before the first checkpoint.
            Who goes on from here takes the tensors out.
    """

    run_id: str
    seed: int
    facts: Sequence[Fact]
    checkpoint: Checkpoint | None = None
    start: tuple[int, State] | None = None

    @property
    def completed(self) -> int:
        """Rounds completed."""
        return 0 if self.checkpoint is None else self.checkpoint.round

    @property
    def finished(self) -> bool:
        """Whether nothing is left but the report."""
        return any(fact.name == "run.finished" for fact in self.facts)


def known_run(deployment: Deployment, resume: bool) -> Known:
    """What is known of the run; a new one gets its name here.

    Args:
        deployment: The coordinator.
        resume: Whether there has to be a run already; otherwise there must be none.

    Raises:
        ConfigError: It is not so, or the plan is another than the run's.
        CheckpointError: The newest checkpoint is damaged.
    """
    run_dir, digest = deployment.folder.run, deployment.plan.digest()
    path = run_dir / "facts.jsonl"
    facts = list(read_facts(path)) if path.exists() else []
    recorded = {fact.name: fact.value for fact in facts}
    started = "run.started" in recorded  # the last fact of the write with which a run begins
    if started and not resume:
        raise ConfigError(
            f"{run_dir} holds run {recorded['run.id']}: go on with synth-server resume "
            f"{deployment.folder.path}, or move the folder away to start another run"
        )
    if not started and resume:
        raise ConfigError(
            f"{run_dir} holds no run to resume; begin with synth-server start "
            f"{deployment.folder.path}"
        )
    if not started:
        return Known(secrets.token_hex(8), deployment.settings.run.seed, facts)
    if recorded["plan.digest"] != digest:
        raise ConfigError(
            f"{deployment.folder.plan} is not the plan that run {recorded['run.id']} began under "
            f"({recorded['plan.digest'][:12]}): put that one back, or move {run_dir} away to start "
            "another run"
        )
    run_id = str(recorded["run.id"])
    kept = load_latest(run_dir / "checkpoints", run_id, digest)
    known = Known(run_id, int(recorded["run.seed"]), facts)
    if kept is None:
        return known
    start = kept.round, dict(kept.state)
    return replace(known, checkpoint=replace(kept, state={}), start=start)


def first_facts(deployment: Deployment, known: Known, command: str) -> list[Fact]:
    """Everything known before training, in one write: with it the run has begun."""
    from synth_server.network import LINK  # with Flower, which not every command needs

    settings, plan = deployment.settings, deployment.plan
    enrolled = sorted(path.stem for path in deployment.folder.sites.glob("*.json"))
    start = RunStart(
        run_id=known.run_id,
        name=settings.name,
        title=settings.name,
        seed=known.seed,
        engine="network",
        command=command,
        simulation=False,
    )
    return [
        *run_facts(start, plan),
        *data_facts(plan),
        roles_fact(settings.name, enrolled),
        Fact("security.link", LINK, "public", _SOURCE),
        generator_fact(deployment.generator(known.seed)),
        pretraining_fact(plan.pretraining),
        Fact("run.started", datetime.now(UTC).isoformat(timespec="seconds"), "public", _SOURCE),
    ]
