"""A released model from the directory of its run: plan, final weights, recorded epsilon."""

from __future__ import annotations

import math
from pathlib import Path

from synth_common.audit.released_model import ReleasedModel
from synth_common.errors import CheckpointError, ConfigError
from synth_common.facts import read_facts
from synth_common.generators import build_generator
from synth_common.generators.embedding import Released, build_embedding
from synth_common.plan import Plan
from synth_common.release.names import SIGNATURE
from synth_common.reporting.factbook import FactBook
from synth_common.validation import validate
from synth_server.checkpoint import load_latest
from synth_server.release_store import load_release
from synth_sim.kept_updates import read_updates


def load_model(run: Path, updates: Path | None = None) -> ReleasedModel:
    """Read a run of synth-sim or synth-server.

    Args:
        run: Its directory, with ``facts.jsonl`` and ``checkpoints``; the sum of a release is
            there too.
        updates: Its stored updates, for the view of a curious server.

    Raises:
        ConfigError: It is no run directory; a release, which holds no weights, is told apart.
        CheckpointError: It has no checkpoint, or checkpoint or release are damaged or of another
            plan.
        DataError: The updates cannot be read.
    """
    _require_run(run)
    book = FactBook(read_facts(run / "facts.jsonl"))
    settings = book.value("plan.settings")
    if not isinstance(settings, dict):
        raise ConfigError(f"--model {run}: its facts.jsonl records no plan")
    plan = validate(Plan, settings, f"--model {run}: plan")
    run_id = str(book.value("run.id"))
    checkpoint = load_latest(run / "checkpoints", run_id, plan.digest())
    if checkpoint is None:
        raise CheckpointError(f"--model {run}: no checkpoint; no round was completed")
    generator = build_generator(plan.generator, seed=0, pretraining=plan.pretraining)
    generator.load_shared_state(checkpoint.state)
    generator.eval()
    kept = {} if updates is None else read_updates(updates)
    kept_sum = load_release(run / "checkpoints", run_id, plan.digest())
    released = None
    if kept_sum is not None:
        embedding = build_embedding(plan.generator)
        released = Released(kept_sum.vector, kept_sum.sigma, embedding)
    return ReleasedModel(
        plan,
        generator,
        checkpoint.round,
        _epsilon(book),
        _origin(run, plan),
        kept,
        released,
    )


def _require_run(run: Path) -> None:
    """Refuse what holds no run; a release is told apart, as it is easily taken for its run."""
    if (run / SIGNATURE).is_file():
        raise ConfigError(
            f"--model {run}: is a release, which holds no weights; name the directory of the run "
            "that it was made from (with facts.jsonl and checkpoints)"
        )
    if not (run / "facts.jsonl").is_file():
        raise ConfigError(f"--model {run}: holds no run (no facts.jsonl)")


def _origin(run: Path, plan: Plan) -> str:
    """Where the weights are from, and whether the noise behind their epsilon can be drawn again."""
    if plan.privacy.private and plan.privacy.noise == "simulation":
        return f"{run.name}, a SIMULATION: its seeded noise protects nobody"
    return run.name


def _epsilon(book: FactBook) -> float | None:
    """The largest recorded epsilon of any site; None where none is recorded."""
    recorded = [f.value.get("epsilon") for f in book.all("privacy.site") if hasattr(f.value, "get")]
    recorded += [f.value for f in book.all("privacy.epsilon")]
    found = [
        math.inf if value == "inf" else float(value)
        for value in recorded
        if isinstance(value, int | float) or value == "inf"
    ]
    return max(found, default=None)
