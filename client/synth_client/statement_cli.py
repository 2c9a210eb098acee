"""``synth-client statement``: what a run charged, signed by the site, for a release."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synth_client.cli_options import HOME, HomeOption, SiteOption


def statement(
    site: SiteOption,
    out: Annotated[Path, typer.Option("--out", help="File to write; a file there is replaced.")],
    home: HomeOption = HOME,
    run: Annotated[
        str | None, typer.Option("--run", help="The run; default: the last in the ledger.")
    ] = None,
) -> None:
    """Write the site's privacy statement about a run, signed with the site's own key.

    It says what the ledger says: epsilon of the run and of all runs, delta, unit, trust model,
    accountant, what ran, and the ledger's head. Send it to the coordinator, who cannot publish
    images of the run without it.
    """
    from synth_client.enrol import load_signing_key
    from synth_client.site import find_site
    from synth_client.statement import write_statement
    from synth_common.keys import signing_public
    from synth_common.release.dsse import key_id

    directory = find_site(home, site)
    made = write_statement(directory, out, run)
    typer.echo(f"run {made.run_id} under plan {made.plan_digest[:16]}: epsilon {made.epsilon:.4f}")
    typer.echo(f"  per {made.unit} at delta {made.delta:g}; all runs {made.epsilon_all_runs:.4f}")
    typer.echo(f"signed with the key {key_id(signing_public(load_signing_key(directory)))}")
    typer.echo("  read it to whoever checks a release of these images")
    typer.echo(f"next: send {out} to the coordinator; it holds nothing secret")
