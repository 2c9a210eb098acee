"""``synth-audit charter`` and ``ethics``: what people state, and the report for a board."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from synth_common.errors import ConfigError


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
    of = "" if kind is CharterKind.federation else f" --kind {kind.value}"
    typer.echo(f"written: {file}; fill it in, then: synth-audit charter {file}{of} --check")


def ethics(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN|BUNDLE", help="A run directory, or a release bundle."),
    ],
    charter: Annotated[
        Path | None,
        typer.Option(help="The federation's charter; default: charter.toml in RUN, if there."),
    ] = None,
    site_charter: Annotated[
        list[Path] | None,
        typer.Option(help="A site's own charter, beside those in RUN/charters; repeatable."),
    ] = None,
    audit: Annotated[
        list[Path] | None,
        typer.Option(help="Directory of an audit with its facts.jsonl; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the report; default: RUN. A release needs one outside of it."
        ),
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also print the page to ethics.pdf.")] = False,
) -> None:
    """Write the ethics report of a run or a release: evidence for those who decide.

    RUN is a run directory of synth-sim or synth-server, BUNDLE a release. Every field has its
    value, what recorded it and when, and the clause that it serves; what nobody recorded prints
    NOT RECORDED and is counted at the top, and so are dates of a charter in an order that cannot be
    right or that a reader must know of. Writes ethics.html and ethics.json.
    """
    from synth_common.charter import load_charter
    from synth_common.reporting.ethics import write_ethics

    page = write_ethics(
        folder,
        None if charter is None else load_charter(charter),
        _place(folder, out),
        audits=audit or (),
        site_charters=site_charter or (),
    )
    written = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    missing = written["missing"]
    typer.echo(f"written: {page}")
    typer.echo(f"NOT RECORDED: {missing['values']} of {missing['of']} values")
    for order in written["dates"]:
        typer.echo(f"DATES: {order['title']}: {order['text']}")
    if pdf:
        from synth_common.reporting.pdf import print_pdf

        typer.echo(f"written: {print_pdf(page)}")


def _place(folder: Path, out: Path | None) -> Path:
    """Where the report goes. Raises ConfigError for a place inside a release, which is signed."""
    place = folder if out is None else out
    released = (folder / "report.json").is_file() and not (folder / "facts.jsonl").is_file()
    if released and place.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--out {place}: {folder} is a release, and what was signed is never changed; give a "
            "folder outside of it"
        )
    return place


def add_to(app: typer.Typer) -> None:
    """Add the commands to ``synth-audit``."""
    app.command()(ethics)
    app.command()(charter)
