"""Options that commands of ``synth-client`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SiteOption = Annotated[str, typer.Option("--site", help="Name of the site.")]
HomeOption = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="SYNTHWARD_HOME",
        help="Folder that holds sites/NAME; a run directory of synth-sim is one, too.",
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it is written in the ledger.")]
OperatorOption = Annotated[
    str, typer.Option("--operator", help="Who decides; default: the user of this terminal.")
]
HOME = Path.home() / "synthward"
