"""``synth-audit run``: the privacy audit of a release, with gates and exit codes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from synth_common.errors import GateError, UndecidedError


def run(
    synthetic: Annotated[
        str,
        typer.Option(
            metavar="SET", help="The synthetic images: a folder, FILE.npz or FILE.npz:SPLIT."
        ),
    ],
    members: Annotated[
        str, typer.Option(metavar="SET", help="Images that the generator was trained on.")
    ],
    nonmembers: Annotated[
        str, typer.Option(metavar="SET", help="Images of other patients of the same source.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the audit; empty or absent.")],
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="Images of third patients that the adversary holds; default: half of the "
            "non-members, who then are no candidates.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Run directory of the released model, for attacks on its weights."),
    ] = None,
    updates: Annotated[
        Path | None,
        typer.Option(
            help="Updates that the run kept (synth-sim run --keep-updates), for the view of a "
            "curious server; needs --model."
        ),
    ] = None,
    shadow_models: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Also attack with K shadow models (LiRA), trained by the recipe of --model on "
            "halves of the members and non-members. It costs K trainings of the generator: the "
            "first is timed, and the estimate for all is printed. K is even and at least 8.",
        ),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy file (TOML) with the gates; default: packaged.")
    ] = None,
    site_local: Annotated[
        bool,
        typer.Option(
            "--site-local",
            help="Also write report-site-local.html, which shows patients beside the synthetic "
            "images nearest to them. It must not leave the site.",
        ),
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(help="Side in pixels at which images are compared; default: the synthetic's."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of draws and resamples.")] = 0,
) -> None:
    """Audit a folder of synthetic images before it is released.

    Attacks it with everything Synthward knows, judges the gates of a policy, and writes
    audit.html, audit.json and facts.jsonl. Exits with 0 only if every gate passes: 21 if one
    failed, 22 if none failed but not all could be decided, 23 if members and non-members are
    too unlike for an audit.
    """
    from synth_sim.audit_run import AuditOptions, run_audit

    command = shlex.join(["synth-audit", *sys.argv[1:]])
    options = AuditOptions(
        synthetic=synthetic,
        members=members,
        nonmembers=nonmembers,
        out=out,
        reference=reference,
        model=model,
        updates=updates,
        policy=policy,
        seed=seed,
        size=size,
        site_local=site_local,
        command=command,
        shadow_models=shadow_models,
    )
    started = monotonic()
    done = run_audit(options, lambda stage: typer.echo(f"[{monotonic() - started:4.0f} s] {stage}"))
    for result in done.gates:
        view, name = result.gate.view, result.gate.measure
        typer.echo(f"{result.outcome.upper():<15}{view:<8}{name:<21}{result.reason}")
    typer.echo(f"written: {done.page}")
    if done.site_local_page is not None:
        typer.echo(f"written: {done.site_local_page} (shows patients; must not leave the site)")
    failed = [r.gate.measure for r in done.gates if r.outcome == "fail"]
    if failed:
        raise GateError(f"gates failed: {', '.join(failed)}; do not release. See {done.page}")
    if done.verdict != "pass":
        undecided = [
            f"{r.gate.measure} ({r.outcome})"
            for r in done.gates
            if r.outcome == "not resolvable" or (r.outcome == "not run" and r.gate.required)
        ] or ["none was run"]
        raise UndecidedError(
            f"gates not decided: {', '.join(undecided)}; see {done.page} for what each needs"
        )
