"""A federated run as its coordinator sees it, wherever the sites are: what it is and who failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synth_common.errors import FederationError, SynthwardError
from synth_common.facts import Fact, FactLog
from synth_common.generators import Generator
from synth_common.messages import Values, error_class
from synth_common.plan import Plan
from synth_server.checkpoint import Checkpoint, save_checkpoint
from synth_server.progress import Reporter
from synth_server.release_store import Release
from synth_server.rounds import State
from synth_server.strategy import OFFLINE, OWN_CODES, Failure, Memory

_SOURCE = "synth_server.coordination"


@dataclass(frozen=True)
class Coordination:
    """Everything that rounds and a release need but the sites.

    Attributes:
        plan: What is asked for.
        run_id: The run.
        seed: Of everything reproducible that is not private.
        folder: Run directory; checkpoints go below it.
        log: The run's facts.
        tell: Progress.
        generator: With its public initial weights; carries the current ones later.
        prices: Epsilon of a release alone, as charged (``epsilon``) and if all other sites
            collude (``epsilon_if_all_others_collude``).
        story: Where a site's own account of its failures can be read from here; None for a
            site that is elsewhere.
        more: Facts to record with a round beside those of every run, from its number (0: the
            release) and the public values of its replies.
        memory: What the coordinator knows of the sites from rounds already completed.
        released: Whether a planned release was made and learnt from already.
    """

    plan: Plan
    run_id: str
    seed: int
    folder: Path
    log: FactLog
    tell: Reporter
    generator: Generator
    prices: Callable[[Release], Mapping[str, float]]
    story: Callable[[str], Path | None] = lambda site: None
    more: Callable[[int, Mapping[str, Values]], list[Fact]] = lambda number, replies: []
    memory: Memory = field(default_factory=Memory)
    released: bool = False

    @property
    def checkpoints(self) -> Path:
        """Where the run keeps its checkpoints and its release."""
        return self.folder / "checkpoints"

    def keep(self, number: int, state: State) -> Path:
        """Write the checkpoint of a completed round. Raises StorageError."""
        made = Checkpoint(self.run_id, number, self.plan.digest(), state, self.memory)
        return save_checkpoint(self.checkpoints, made)


def record_failures(run: Coordination, failures: Sequence[Failure], number: int) -> None:
    """Facts and a line of progress for every failed site; round 0 is the release."""
    for failure in failures:
        story = run.story(failure.site)
        hint = f"; {story} says why" if story is not None and story.exists() else ""
        when = f"round {number}" if number else "release"
        run.tell.note(f"{when}: {failure.site} failed: {failure.code}{hint}")
    source = f"{_SOURCE}.record_failures"
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


def as_reported(
    run: Coordination, failures: Sequence[Failure], err: FederationError
) -> SynthwardError:
    """The error in the class that all failed sites agree on; their own words stay with them."""
    failed = [failure for failure in failures if failure.code != OFFLINE]
    stories = [path for failure in failed if (path := run.story(failure.site)) is not None]
    hint = ". Each site's own account: " + ", ".join(map(str, stories)) if stories else ""
    codes = {failure.code for failure in failed}
    if len(codes) == 1 and (code := codes.pop()) not in OWN_CODES:
        return error_class(code)(f"{err}{hint}")
    return FederationError(f"{err}{hint}")
