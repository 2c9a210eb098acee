"""``synth-audit``: put claims to the test from the command line.

This module parses and prints; what a command does is one function below it, imported
when the command runs, so that ``--help`` loads nothing heavy.
"""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from synth_common.errors import AuditError
from synth_common.reporting import ethics_cli
from synth_common.terminal import guarded
from synth_sim.cli_options import (
    ScenarioArgument,
    SeedOption,
    SetOption,
    SettingsCommand,
    VersionOption,
)

app = typer.Typer(
    name="synth-audit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ethics_cli.add_to(app)


@app.callback()
def audits(version: VersionOption = False) -> None:
    """Attack a simulated federation, and compare what the attack shows with what is claimed."""


@app.command(cls=SettingsCommand)
def canaries(
    scenario: ScenarioArgument,
    count: Annotated[
        int, typer.Option("--canaries", help="Canary patients; about half of them are put in.")
    ] = 1000,
    site: Annotated[
        str | None, typer.Option(help="Site that gets them; default: the scenario's first.")
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="Probability of refuting a claim that holds.")
    ] = 0.05,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the audit; default: runs/audit-SCENARIO-TIME."),
    ] = None,
    set_: SetOption = [],  # noqa: B006 - typer copies it
    seed: SeedOption = None,
) -> None:
    """Bound the true epsilon of a site from below, and compare it with the claimed one.

    SCENARIO is the name of a packaged scenario (see synth-sim list) or a TOML file. It
    runs as ever, with canary patients among one site's. Exits with 13 if the claim is
    refuted.
    """
    from synth_sim.canaries import AuditOptions, audit_scenario
    from synth_sim.canary_page import audit_lines
    from synth_sim.scenario import load_scenario

    chosen = load_scenario(scenario, set_, seed)
    out = out or Path("runs") / f"audit-{chosen.name}-{datetime.now():%Y%m%d-%H%M%S}"
    typer.echo(f"{chosen.title}: {out}")
    command = shlex.join(["synth-audit", *sys.argv[1:]])
    audit = audit_scenario(chosen, AuditOptions(out, count, site, alpha, command))
    for name, text in audit_lines(audit.site, audit.value):
        typer.echo(f"{name:<24}{text}")
    typer.echo(f"written: {audit.page}")
    if audit.result.refuted:
        result = audit.result
        raise AuditError(
            f"site {audit.site}: the claimed epsilon {result.claim.epsilon:.3f} is refuted; at "
            f"least {result.cp_gdp:.3f} leaks. Do not release anything made with these settings; "
            f"see {audit.page}"
        )


def main() -> None:
    """Entry point: one line on stderr and the exit code of the error's branch."""
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
