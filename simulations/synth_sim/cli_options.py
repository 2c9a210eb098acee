"""Arguments and options that several commands share, and the hint for a setting typed as one."""

from __future__ import annotations

from typing import Annotated

import click
import typer
from typer.core import TyperCommand

from synth_common.terminal import show_version

ScenarioArgument = Annotated[
    str, typer.Argument(help="Name of a packaged scenario (see list), or a TOML file.")
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one value of the scenario, for example training.rounds=3. Repeatable. "
        "synth-sim keys SCENARIO lists all; docs/reference/scenario.md explains them.",
    ),
]
VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", is_eager=True, callback=show_version, help="Print the version and end."
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(help="Seed of everything reproducible; default: the scenario's.")
]


class SettingsCommand(TyperCommand):
    """A command that takes ``--set``: an unknown option that is a key's name gets told so."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as err:
            if keys := _keys_called(err.option_name):
                told = " or ".join(f"--set {key}=VALUE" for key in keys)
                raise click.NoSuchOption(
                    err.option_name,
                    message=f"No such option: {err.option_name}. Scenarios have it: {told}",
                    ctx=ctx,
                ) from None
            raise


def _keys_called(option: str) -> list[str]:
    """The keys of a scenario whose last part is an option's name."""
    from synth_common.validation import known_keys
    from synth_sim.scenario import Scenario

    name = option.lstrip("-").replace("-", "_")
    return [key for key in known_keys(Scenario) if name in (key, key.rpartition(".")[2])]
