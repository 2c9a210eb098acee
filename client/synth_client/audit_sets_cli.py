"""``synth-client audit-sets``: what ``synth-audit run`` compares synthetic images with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synth_client.cli_options import HOME, HomeOption, SiteOption


def audit_sets(
    site: SiteOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the two files; inside the site.")],
    home: HomeOption = HOME,
) -> None:
    """Write the site's training and held-out images as two files for synth-audit run.

    They are patients' images: the files are readable by their owner only, and must not leave the
    site. Delete them after the audit. In a simulation --home is the run directory.
    """
    from synth_client.audit_sets import write_audit_sets
    from synth_client.site import find_site, load_site

    member, nonmember = write_audit_sets(load_site(find_site(home, site)), out)
    typer.echo(f"written: {member}, images that were trained on")
    typer.echo(f"written: {nonmember}, images of patients who were kept out")
    typer.echo("they show patients: keep them inside the site, and delete them after the audit")
    typer.echo(
        f"next: synth-audit run --synthetic RELEASE/images --members {member} "
        f"--nonmembers {nonmember} --out DIR"
    )
