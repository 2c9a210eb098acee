"""``synth-audit charter``: what people state, to fill in or to check."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class CharterKind(StrEnum):
    """Whose charter a file is."""

    federation = "federation"
    site = "site"


KindOption = Annotated[
    CharterKind, typer.Option(help="Whose charter: the federation's, or one site's.")
]


def charter(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The charter, a TOML file.")],
    kind: KindOption = CharterKind.federation,
    site: Annotated[
        str, typer.Option(help="Name of the site in a new charter of kind site.")
    ] = "north",
    check: Annotated[
        bool, typer.Option("--check", help="Read FILE instead, and list what it leaves out.")
    ] = False,
) -> None:
    """Write a charter to fill in, or check one that was filled in.

    FILE is a TOML file; it must not exist yet, unless --check is given. A charter holds what no
    program can know: purpose, roles, approvals, consent, the decision on what risk remains.
    """
    from synth_common.charter import charter_template, left_out, load_charter, load_site_charter
    from synth_common.errors import ConfigError
    from synth_common.reporting.files import replace_text

    if check:
        load = load_charter if kind is CharterKind.federation else load_site_charter
        read = load(file)
        missing = left_out(read)
        digest = read.origin.sha256 if read.origin else ""
        typer.echo(f"{file}: valid, SHA-256 {digest}")
        for key in missing:
            typer.echo(f"NOT RECORDED  {key}")
        return
    if file.exists():
        raise ConfigError(f"{file} exists; choose another name, or check it with --check")
    replace_text(file, charter_template(kind.value, site))
    typer.echo(f"written: {file}; fill it in, then: synth-audit charter {file} --check")


def add_to(app: typer.Typer) -> None:
    """Add the commands to ``synth-audit``."""
    app.command()(charter)
