"""``synth-client init`` and ``accept``: how a hospital's IT enrols its site."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from synth_client.cli_options import HOME, HomeOption, OperatorOption, SiteOption
from synth_common.errors import ConfigError


def init(
    site: SiteOption,
    home: HomeOption = HOME,
    new_keys: Annotated[
        bool,
        typer.Option(
            "--new-keys", help="Replace keys that are there; the site must be renewed with them."
        ),
    ] = False,
) -> None:
    """Make a site's keys, settings to fill in, and the request that enrols it.

    Private keys are made here and stay here. What is there is kept, and the request is made anew:
    run it again for a fresh request.
    """
    from synth_client.enrol import init_site
    from synth_common.keys import fingerprint

    directory, request = init_site(home, site, new_keys)
    agreement = fingerprint(bytes.fromhex(request.keys.agreement))
    typer.echo(f"site {site} in {directory}")
    typer.echo(f"fingerprint of its keys: {request.keys.fingerprint()}")
    typer.echo("  read it to the coordinator's IT over the telephone")
    typer.echo(f"fingerprint of its X25519 key: {agreement}")
    typer.echo("  read it to the other hospitals' operators when they ask")
    typer.echo(
        f"next: send {directory / 'request.json'} to the coordinator; it holds nothing secret"
    )
    typer.echo(f"      fill in {directory / 'site.toml'}")


def accept(
    file: Annotated[Path, typer.Argument(metavar="KIT", help="The kit that the coordinator sent.")],
    site: SiteOption,
    home: HomeOption = HOME,
    told: Annotated[
        str,
        typer.Option(
            "--fingerprint",
            metavar="AB:CD:...",
            help="The authority's fingerprint, as the coordinator's IT read it out; default: ask.",
        ),
    ] = "",
    replace_peers: Annotated[
        bool, typer.Option("--replace-peers", help="Take peers' changed keys; needs --reason.")
    ] = False,
    reason: Annotated[
        str, typer.Option("--reason", help="Who confirmed the changed keys, and how.")
    ] = "",
    operator: OperatorOption = "",
) -> None:
    """Accept the coordinator's kit: its authority, the server's address, the plan, peers' keys.

    The first time the authority's fingerprint is compared, and the authority is pinned. Kits that
    are older, name other keys for this site, or change a known peer's key are refused.
    """
    from synth_client.enrol import find_enrolling
    from synth_client.kit import accept as accept_kit
    from synth_client.kit import is_pinned
    from synth_common.privacy.ledger import Decision
    from synth_common.signed_files import read_file, read_kit

    if bool(reason) != replace_peers:
        raise ConfigError("--replace-peers and --reason go together: who confirmed the new keys?")
    directory, who = find_enrolling(home, site), operator or getpass.getuser()
    signed = read_kit(read_file(file), str(file))
    if not told and not is_pinned(directory):
        told = typer.prompt("The authority's fingerprint, as the coordinator's IT reads it out")
    replacing = Decision(who, reason) if replace_peers else None
    peers = accept_kit(directory, signed, told or None, who, replacing)
    kit = signed.kit
    typer.echo(f"accepted kit {kit.serial} of {kit.federation}, server {kit.address}")
    own = kit.member(site)
    if own is not None:
        typer.echo(f"  {site} is enrolled until {own.valid_until:%Y-%m-%d}")
    for peer in peers:
        typer.echo(f"  {peer.change:7}  {peer.name}  X25519 {peer.fingerprint}")
    typer.echo(f"fingerprint of all members: {kit.members_fingerprint()}")
    typer.echo(
        "  compare it with the other hospitals' operators, NOT by way of the coordinator: one that "
        "hands out keys could pose as every peer. If all read the same, each key is its hospital's"
    )
    typer.echo(f"next: read the plan, {directory / 'plan.json'}, and approve it with")
    typer.echo(
        f"      synth-client plan approve {directory / 'plan.json'} --site {site} --reason TEXT"
    )
