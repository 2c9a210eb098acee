"""``synth-audit run``: sets and a model from files, an audit, and its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import monotonic

import numpy as np

from synth_common.audit.battery import Copies
from synth_common.audit.gates import GateResult, Outcome
from synth_common.audit.gathering import Inputs
from synth_common.audit.intake import AuditSet, common_target, load_set, outline
from synth_common.audit.near_copies import FLIPS
from synth_common.audit.policy import read_policy
from synth_common.audit.release_audit import audit_release
from synth_common.audit.released_model import ReleasedModel
from synth_common.audit.shadows import Shadows, require_models
from synth_common.errors import ConfigError, StorageError
from synth_common.facts import Fact, FactLog
from synth_common.images.preprocess import Target
from synth_common.reporting.audit_report import write_audit
from synth_common.reporting.grids import GridLook, write_grid
from synth_sim.audit_model import load_model

_SOURCE = "synth_sim.audit_run.run_audit"
_LIBRARIES = ("synthward", "torch", "numpy", "scipy", "scikit-learn")
_PAIRS = 8
PAIRS_FILE = "pairs-site-local.png"


@dataclass(frozen=True)
class AuditOptions:
    """What to audit, and where to.

    Attributes:
        synthetic, members, nonmembers, reference: Sources as :func:`outline` takes them.
        out: Directory of the audit; must be empty or absent.
        model: Run directory of the released model.
        updates: Stored updates of that run; need ``model``.
        policy: Policy file; None for the packaged one.
        seed: Of draws and resamples.
        size: Side of the compared pictures; None for the synthetic images' own.
        site_local: Also write the edition that shows patients.
        command: Command line, for the record.
        shadow_models: Trainings of the model's recipe to attack with; None for none. Need
            ``model``.
    """

    synthetic: str
    members: str
    nonmembers: str
    out: Path
    reference: str | None = None
    model: Path | None = None
    updates: Path | None = None
    policy: Path | None = None
    seed: int = 0
    size: int | None = None
    site_local: bool = False
    command: str = ""
    shadow_models: int | None = None


@dataclass(frozen=True)
class AuditDone:
    """The verdict, the gates, and where the report is."""

    verdict: Outcome
    gates: list[GateResult]
    page: Path
    site_local_page: Path | None


def run_audit(options: AuditOptions, tell: Callable[[str], None]) -> AuditDone:
    """Read, audit, record and report.

    Args:
        options: What and where.
        tell: Is told each stage as it begins.

    Raises:
        ConfigError: The policy or an option is impossible, or ``out`` is not empty.
        DataError: A set cannot be used, or members and non-members are not alike.
        CheckpointError: The model cannot be read.
        StorageError: The disk refuses.
    """
    started, clock = datetime.now(UTC), monotonic()
    written = read_policy(options.policy)
    _require_free(options.out)
    if options.updates is not None and options.model is None:
        raise ConfigError("--updates needs --model: the run whose updates they are")
    if options.shadow_models is not None:
        require_models(options.shadow_models)
        if options.model is None:
            raise ConfigError("--shadow-models needs --model: the run whose recipe is followed")
    tell("reading the sets")
    model = None if options.model is None else load_model(options.model, options.updates)
    shadows = _shadows(options, model, tell)
    inputs = _inputs(options, model)
    found = audit_release(inputs, written, model, options.seed, tell, shadows)
    tell("writing the report")
    log = FactLog(options.out / "facts.jsonl")
    log.extend([*_run_facts(options, started, monotonic() - clock), *found.facts])
    if options.site_local:
        log.append(_pairs(inputs, found.copies, options.out))
    page = write_audit(options.out, site_local=False)
    local = write_audit(options.out, site_local=True) if options.site_local else None
    return AuditDone(found.verdict, found.gates, page, local)


def _require_free(out: Path) -> None:
    """Refuse a directory that holds something."""
    try:
        found = sorted(path.name for path in out.iterdir()) if out.exists() else []
    except OSError as err:
        raise StorageError(f"--out {out}: {err.strerror}") from err
    if found:
        raise ConfigError(
            f"--out {out} is not empty (holds {', '.join(found[:3])}); choose another"
        )


def _shadows(
    options: AuditOptions, model: ReleasedModel | None, tell: Callable[[str], None]
) -> Shadows | None:
    """Who trains shadow models, below ``out``; None where none are asked for."""
    if options.shadow_models is None or options.model is None or model is None:
        return None
    from synth_sim.shadow_recipe import read_recipe
    from synth_sim.shadows import ShadowTrainer

    recipe = read_recipe(options.model, model)
    trainer = ShadowTrainer(recipe, options.out, options.shadow_models, options.seed, tell)
    return Shadows(options.shadow_models, trainer.draw, trainer.record)


def _inputs(options: AuditOptions, model: ReleasedModel | None) -> Inputs:
    """Look at all sets, then read them as one picture."""
    given = {
        "--synthetic": options.synthetic,
        "--members": options.members,
        "--nonmembers": options.nonmembers,
        "--reference": options.reference,
    }
    outlines = {o: outline(text, o) for o, text in given.items() if text is not None}
    if model is None:
        target = common_target(list(outlines.values()), options.size)
    elif options.size is not None:
        raise ConfigError(f"--size {options.size}: with --model the model's own size is used")
    else:
        plan = model.plan.generator
        target = Target(
            size=plan.size,
            channels=plan.channels,
            classes=plan.classes,
            with_mask=plan.with_mask,
        )

    def read(option: str) -> AuditSet:
        return load_set(outlines[option], target, option.removeprefix("--"))

    return Inputs(
        read("--synthetic"),
        read("--members"),
        read("--nonmembers"),
        read("--reference") if options.reference is not None else None,
    )


def _run_facts(options: AuditOptions, started: datetime, seconds: float) -> list[Fact]:
    """The run itself."""
    values = {
        "run.command": options.command,
        "run.seed": options.seed,
        "run.started": started.isoformat(timespec="seconds"),
        "run.finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "run.versions": {name: version(name) for name in _LIBRARIES},
    }
    facts = [Fact(name, value, "public", _SOURCE) for name, value in values.items()]
    return [*facts, Fact("run.seconds", seconds, "public", _SOURCE, detail={"phase": "total"})]


def _pairs(inputs: Inputs, copies: Copies, out: Path) -> Fact:
    """Draw the closest pairs; the picture shows patients."""
    pairs = copies.pairs[:_PAIRS]
    real = inputs.members.images.images[pairs[:, 1]]
    drawn = inputs.synthetic.images.images[pairs[:, 0]]
    similarity = copies.match.similarity[pairs[:, 0]]
    flips = copies.match.flip[pairs[:, 0]]
    rows = [f"{s:.3f}, {FLIPS[f]}" for s, f in zip(similarity, flips, strict=True)]
    images = np.stack([drawn, real], axis=1).reshape(-1, *real.shape[1:])
    title = "Closest pairs: similarity, how the synthetic image is turned"
    look = GridLook(headings=("synthetic", "member"))
    write_grid(images, rows, out / PAIRS_FILE, title, look=look)
    detail = {"rows": rows, "kind": "real"}
    return Fact("audit.pairs", PAIRS_FILE, "site-local", _SOURCE, detail=detail)
