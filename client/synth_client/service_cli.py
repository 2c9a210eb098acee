"""``synth-client prepare``, ``doctor``, ``start``, ``stop``, ``status`` and ``unit``."""

from __future__ import annotations

import getpass
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from synth_client.cli_options import HOME, HomeOption, OperatorOption, SiteOption

JsonOption = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


def prepare(
    site: SiteOption,
    home: HomeOption = HOME,
    plan: Annotated[
        Path | None,
        typer.Option(help="Plan that says how images are wanted; default: that of the kit."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put the images in the place of those before.")
    ] = False,
    reason: Annotated[
        str, typer.Option(help="Why the budget is what it is; it is written in the ledger.")
    ] = "budget of site.toml",
    operator: OperatorOption = "",
) -> None:
    """Read the site's images, split them by patient, and open the ledger with its budget.

    Everything is read from site.toml. A ledger that is there is never touched: with --replace
    other images take the place of those before, and what was spent stays spent.
    """
    from synth_client.enrol import find_enrolling
    from synth_client.prepare import describe, prepare_site, read_plan
    from synth_client.settings import load_settings
    from synth_common.privacy.ledger import Decision

    directory = find_enrolling(home, site)
    prepared = prepare_site(
        directory,
        load_settings(directory, site),
        read_plan(plan or directory / "plan.json"),
        Decision(operator or getpass.getuser(), reason),
        _say,
        replace=replace,
    )
    for line in describe(prepared):
        typer.echo(line)
    typer.echo(f"next: synth-client plan approve {directory / 'plan.json'} --site {site}")


def doctor(
    site: SiteOption,
    home: HomeOption = HOME,
    offline: Annotated[bool, typer.Option("--offline", help="Leave the network out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check everything that a round needs, and say how to mend what is wrong.

    Nothing is charged, no image is used for training, and nothing is sent but a signed
    timestamp. Ends with 18 if there is a problem; warnings are none.
    """
    from synth_client.doctor import examine
    from synth_client.enrol import find_enrolling
    from synth_client.findings import describe, require_ready

    findings = examine(find_enrolling(home, site), site, network=not offline)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for line in describe(findings):
            typer.echo(line)
    require_ready(findings)


def start(site: SiteOption, home: HomeOption = HOME) -> None:
    """Take part in the federation until stopped: one line per message.

    Survives broken connections. The first SIGTERM or Ctrl-C lets the round in hand finish, a
    second one abandons it.
    """
    from synth_client.service import start as run
    from synth_client.site import find_site

    run(find_site(home, site), site, _say)


def stop(
    site: SiteOption,
    home: HomeOption = HOME,
    after_round: Annotated[
        bool,
        typer.Option(
            "--after-round/--now",
            help="Finish the round in hand, or abandon it: what it reserved stays spent.",
        ),
    ] = True,
    wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait for the end; 0 does not wait.")
    ] = 0.0,
) -> None:
    """End the site's service."""
    from synth_client.service import ask_to_stop, wait_for_end
    from synth_client.site import find_site

    directory = find_site(home, site)
    ask_to_stop(directory, "after-round" if after_round else "now")
    if wait:
        wait_for_end(directory, wait)
        typer.echo(f"the service of {site} has ended")
    else:
        typer.echo(f"the service of {site} will end; see synth-client status --site {site}")


def status(site: SiteOption, home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Show whether the service runs, what it does, and what is spent."""
    from synth_client.site import find_site
    from synth_client.status import describe
    from synth_client.status import status as status_of

    now = status_of(find_site(home, site), site)
    if as_json:
        typer.echo(json.dumps(asdict(now), indent=2))
        return
    for line in describe(now):
        typer.echo(line)


def unit(
    site: SiteOption,
    home: HomeOption = HOME,
    user: Annotated[
        str, typer.Option(help="User that runs it and owns the folder; default: you.")
    ] = "",
) -> None:
    """Print a hardened systemd unit for the site's service."""
    from synth_client.enrol import find_enrolling
    from synth_client.kit import load_kit
    from synth_client.settings import load_settings
    from synth_client.unit import Service, systemd_unit

    directory = find_enrolling(home, site)
    own = Path(sys.argv[0]).resolve()
    program = own if own.name == "synth-client" else Path(shutil.which("synth-client") or own)
    service = Service(
        name=site,
        home=home,
        user=user or getpass.getuser(),
        program=program,
        gpu=load_settings(directory, site).compute.device != "cpu",
        patience=load_kit(directory).plan.federation.round_timeout_s,
    )
    typer.echo(systemd_unit(service), nl=False)


def _say(line: str) -> None:
    """A line at once, also into a pipe or a journal."""
    typer.echo(line)
    sys.stdout.flush()


def add_to(app: typer.Typer) -> None:
    """Make them commands of ``app``."""
    for command in (prepare, doctor, start, stop, status, unit):
        app.command()(command)
