"""``synth-client``: a hospital's own command. It parses and prints; the work is below it."""

from __future__ import annotations

import getpass
import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from synth_client import audit_sets_cli, enrol_cli, service_cli, statement_cli
from synth_client.cli_options import HOME, HomeOption, OperatorOption, ReasonOption, SiteOption
from synth_common.errors import ConfigError
from synth_common.terminal import guarded, show_version

app = typer.Typer(
    name="synth-client",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
plan_app = typer.Typer(
    name="plan", help="What a coordinator may ask of this site.", no_args_is_help=True
)
app.add_typer(plan_app)
app.command("init")(enrol_cli.init)
app.command("accept")(enrol_cli.accept)
service_cli.add_to(app)
app.command("statement")(statement_cli.statement)
app.command("audit-sets")(audit_sets_cli.audit_sets)

VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", is_eager=True, callback=show_version, help="Print the version and end."
    ),
]


class AccountantName(StrEnum):
    """Accountants a budget can be composed by."""

    prv = "prv"
    rdp = "rdp"
    pld = "pld"


class UnitName(StrEnum):
    """Units a budget can be stated for."""

    patient = "patient"
    image = "image"


@app.callback()
def operate(version: VersionOption = False) -> None:
    """What a hospital's operator decides and sees: enrolment, budget, plan, service."""


@app.command()
def budget(
    site: SiteOption,
    home: HomeOption = HOME,
    set_: Annotated[
        float | None,
        typer.Option("--set", metavar="EPSILON", help="Set the lifetime budget; needs --reason."),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Delta of the new budget; default: as before, or 1e-5.")
    ] = None,
    accountant: Annotated[
        AccountantName | None,
        typer.Option(help="What composes the new budget; default: as before, or prv."),
    ] = None,
    unit: Annotated[
        UnitName | None,
        typer.Option(
            help="Whose presence the new budget is about; default: as before, or patient."
        ),
    ] = None,
    reason: ReasonOption = "",
    operator: OperatorOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the account as JSON.")] = False,
) -> None:
    """Show what a site's budget was spent on and how long it lasts, or set it.

    The budget is the most that the site's data set may ever cost one patient, over all runs,
    retries and restarts. Only whoever can write the site's ledger can set it; no message can.
    """
    from synth_client.budget import describe, statement
    from synth_client.site import find_site
    from synth_common.privacy.ledger import Budget, Decision, Ledger

    directory = find_site(home, site)
    if set_ is None and (reason or delta or accountant or unit):
        raise ConfigError("--reason, --delta, --accountant and --unit belong to --set EPSILON")
    if set_ is not None:
        decision = Decision(operator or getpass.getuser(), reason)
        with Ledger.hold(directory / "ledger.sqlite") as ledger:
            before = ledger.budgets()
            base = before[-1].budget if before else Budget(set_, 1e-5)
            new = Budget(
                set_,
                base.delta if delta is None else delta,
                accountant.value if accountant else base.accountant,
                unit.value if unit else base.unit,
            )
            ledger.set_budget(new, decision)
    account = statement(directory)
    if as_json:
        typer.echo(json.dumps(_plain(asdict(account)), indent=2))
    else:
        for line in describe(account):
            typer.echo(line)


def _plain(value: Any) -> Any:
    """Infinite numbers as strings, which JSON can hold."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if value in (float("inf"), float("-inf")) else value


@plan_app.command("show")
def show_plan(
    site: SiteOption,
    home: HomeOption = HOME,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """Print every plan that was ever approved, who approved or revoked it, when and why."""
    from synth_client.site import find_site
    from synth_common.privacy.ledger import Ledger

    with Ledger.read(find_site(home, site) / "ledger.sqlite") as ledger:
        plans = ledger.plans()
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in plans], indent=2))
        return
    if not plans:
        typer.echo("no plan is approved: synth-client plan approve FILE --site NAME")
    for item in plans:
        typer.echo(f"plan {item.digest}")
        why = item.decision
        typer.echo(f"approved {item.time} by {why.operator}: {why.reason}")
        if item.revoked is not None:
            why, when = item.revoked
            typer.echo(f"REVOKED {when} by {why.operator}: {why.reason}")
        typer.echo(json.dumps(json.loads(item.plan), indent=2))


@plan_app.command("approve")
def approve_plan(
    file: Annotated[Path, typer.Argument(help="The plan as JSON, as the coordinator sent it.")],
    site: SiteOption,
    reason: ReasonOption,
    home: HomeOption = HOME,
    operator: OperatorOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
) -> None:
    """Agree, once, to a plan: a coordinator may ask for what is approved and nothing else.

    FILE is the plan as JSON. Plans approved before go on to hold until they are revoked. The
    command prints every setting and what it would cost.
    """
    from synth_client.approval import approve
    from synth_client.cost import cost_of
    from synth_client.site import find_site, load_site
    from synth_common.plan import Plan
    from synth_common.privacy.ledger import Decision

    try:
        plan = Plan.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"cannot read plan {file}: {err}") from err
    decision = Decision(operator or getpass.getuser(), reason)
    directory = find_site(home, site)
    typer.echo(json.dumps(json.loads(plan.to_json()), indent=2))
    typer.echo(f"plan {plan.digest()}")
    typer.echo(cost_of(plan, directory))
    if not yes and not typer.confirm("Approve this plan?"):
        raise ConfigError("not approved; nothing was written")
    others = approve(load_site(directory), plan, decision)
    typer.echo("approved")
    if others:
        typer.echo(f"these hold, too: {', '.join(digest[:16] for digest in others)}")


@plan_app.command("revoke")
def revoke_plan(
    digest: Annotated[str, typer.Argument(help="The plan's digest, or how it begins.")],
    site: SiteOption,
    reason: ReasonOption,
    home: HomeOption = HOME,
    operator: OperatorOption = "",
) -> None:
    """Take an approval back: every message under this plan is refused from now on.

    DIGEST is the plan's digest, or at least its first eight characters.
    """
    from synth_client.approval import revoke
    from synth_client.site import find_site
    from synth_common.privacy.ledger import Decision

    decision = Decision(operator or getpass.getuser(), reason)
    whole = revoke(find_site(home, site) / "ledger.sqlite", digest, decision)
    typer.echo(f"revoked {whole}")


def main() -> None:
    """Entry point: one line on stderr and the exit code of the error's branch."""
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
