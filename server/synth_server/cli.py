"""``synth-server``: the coordinator's command. It parses and prints; the work is below it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synth_common.errors import ConfigError
from synth_common.terminal import guarded, show_version
from synth_server import publish_cli, service_cli
from synth_server.service_cli import FolderArgument

if TYPE_CHECKING:
    from synth_server.kits import Issued
    from synth_server.members import Member

app = typer.Typer(
    name="synth-server",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("start")(service_cli.start)
app.command("resume")(service_cli.resume)
app.command("status")(service_cli.status)
app.command("release")(publish_cli.release)
app.command("withdraw")(publish_cli.withdraw)

VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", is_eager=True, callback=show_version, help="Print the version and end."
    ),
]
DaysOption = Annotated[
    int, typer.Option("--days", help="Days until the site has to send a fresh request.")
]
_DAYS = 365


@app.callback()
def operate(version: VersionOption = False) -> None:
    """What the coordinator's IT does: make a federation, enrol hospitals, run the plan."""


@app.command()
def init(
    folder: FolderArgument,
    name: Annotated[str, typer.Option("--name", help="Name of the federation.")],
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="Where sites reach the server.")
    ],
    plan: Annotated[
        Path,
        typer.Option(
            "--plan",
            help="The federation plan: JSON (synth-sim plan writes it), or TOML with its sections.",
        ),
    ],
) -> None:
    """Make a coordinator in DIR: its keys, certificates, settings and plan.

    Private keys stay in DIR/keys, for their owner only. Prints the fingerprint that is read to
    every hospital over the telephone.
    """
    from synth_common.certificates import certificate_fingerprint
    from synth_server.enrol import init_server
    from synth_server.settings import ServerFolder

    authority = init_server(ServerFolder(folder), name, address, plan)
    typer.echo(f"made the coordinator of {name} in {folder}")
    typer.echo(f"fingerprint of its authority: {certificate_fingerprint(authority)}")
    typer.echo("  read it to every hospital over the telephone: who can replace a kit on its way")
    typer.echo("  can replace a fingerprint that is sent with it")
    typer.echo(f"next: synth-server enrol {folder} REQUEST..., the request.json of each hospital")


@app.command()
def enrol(
    folder: FolderArgument,
    requests: Annotated[
        list[Path],
        typer.Argument(metavar="REQUEST...", help="Requests that synth-client init wrote."),
    ],
    days: DaysOption = _DAYS,
) -> None:
    """Enrol the hospitals that sent REQUEST..., and write a kit for every site.

    If one request is refused, none is enrolled. Compare each fingerprint that is printed with
    the one that the hospital's IT reads out. All sites, new or not, are sent the new kits: each
    kit names all members.
    """
    from synth_server.enrol import enrol as enrol_sites
    from synth_server.settings import ServerFolder

    members, issued = enrol_sites(ServerFolder(folder), requests, days)
    for member in members:
        typer.echo(f"enrolled {member.name} until {member.valid_until:%Y-%m-%d}")
        typer.echo(f"  fingerprint of its keys: {member.keys.fingerprint()}")
    typer.echo("compare with what each hospital's IT reads out; if one differs, revoke the site")
    _print_issued(issued)


@app.command()
def members(
    folder: FolderArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the sites: enrolled until when, expired, or revoked and why.

    Prints the authority's fingerprint again, for hospitals that ask for it.
    """
    from synth_common.certificates import certificate_fingerprint, read_certificate
    from synth_server.members import read_members
    from synth_server.settings import ServerFolder, load_settings

    settings = load_settings(ServerFolder(folder))
    found = read_members(ServerFolder(folder))
    if as_json:
        typer.echo(json.dumps([_row(member) for member in found], indent=2))
        return
    authority = read_certificate(ServerFolder(folder).keys / "ca.crt")
    typer.echo(f"{settings.name}, {settings.address}")
    typer.echo(f"fingerprint of its authority: {certificate_fingerprint(authority)}")
    if not found:
        typer.echo(f"nobody is enrolled: synth-server enrol {folder} REQUEST...")
    for member in found:
        typer.echo(_line(member))
        typer.echo(f"  fingerprint of its keys: {member.keys.fingerprint()}")


@app.command()
def revoke(
    folder: FolderArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; the site is told it.")],
) -> None:
    """Turn the site NAME away, from its next request on; the server need not be restarted."""
    from synth_server.enrol import revoke as revoke_site
    from synth_server.settings import ServerFolder

    member, issued = revoke_site(ServerFolder(folder), name, reason)
    typer.echo(_line(member))
    _print_issued(issued)


@app.command()
def renew(
    folder: FolderArgument,
    site: Annotated[
        str, typer.Option("--site", help="Renew this site's enrolment; needs --request.")
    ] = "",
    request: Annotated[
        Path | None, typer.Option("--request", help="A fresh request of that site.")
    ] = None,
    days: DaysOption = _DAYS,
) -> None:
    """Renew the server's certificate, or with --site the enrolment of one site.

    Either way all kits are written anew, with the address and the plan as they are now. A
    revoked site is let in again only with new keys.
    """
    from synth_common.certificates import days_left
    from synth_server.enrol import renew_member, renew_server
    from synth_server.settings import ServerFolder

    if bool(site) != (request is not None):
        raise ConfigError("--site and --request go together: NAME and a fresh request of that site")
    if request is None:
        certificate, issued = renew_server(ServerFolder(folder))
        until = certificate.not_valid_after_utc
        typer.echo(f"the server's certificate is valid until {until:%Y-%m-%d}")
        typer.echo(f"  that is for {days_left(certificate)} days; restart the server to use it")
    else:
        member, changed, issued = renew_member(ServerFolder(folder), site, request, days)
        typer.echo(_line(member))
        if changed:
            typer.echo(f"  NEW KEYS, fingerprint: {member.keys.fingerprint()}")
            typer.echo("  compare it with what the hospital's IT reads out; else revoke the site")
    _print_issued(issued)


def _print_issued(issued: Issued) -> None:
    """Which kits go where, and what the sites' operators compare."""
    typer.echo(f"kits number {issued.serial}; send each site its own:")
    for path in issued.kits.values():
        typer.echo(f"  {path}")
    typer.echo(f"fingerprint of all members: {issued.members_fingerprint}")
    missing = issued.wanted - len(issued.kits)
    if missing > 0:
        typer.echo(
            f"the plan needs {issued.wanted} sites; {len(issued.kits)} enrolled, {missing} missing"
        )


def _line(member: Member) -> str:
    """A member's state in words."""
    state = member.state()
    if member.revoked is not None:
        return f"{member.name}  revoked {member.revoked.when:%Y-%m-%d}: {member.revoked.reason}"
    word = "until" if state == "enrolled" else "since"
    return f"{member.name}  {state} {word} {member.valid_until:%Y-%m-%d}"


def _row(member: Member) -> dict[str, object]:
    """A member as JSON: its file, its state and its fingerprint."""
    values: dict[str, object] = json.loads(member.model_dump_json())
    return {"state": member.state(), "fingerprint": member.keys.fingerprint(), **values}


def main() -> None:
    """Entry point: one line on stderr and the exit code of the error's branch."""
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
