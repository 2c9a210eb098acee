"""The command-line reference, made from the commands themselves.

``python -m synth_sim.reference`` prints ``docs/reference/cli.md``; a test holds the file
equal to this, so that no option can go undocumented.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click
import typer

from synth_client import cli as client_cli
from synth_server import cli as server_cli
from synth_sim import audit_cli, cli

_HEAD = """# synth-sim, synth-server, synth-client and synth-audit

Made by `python -m synth_sim.reference > docs/reference/cli.md`; do not edit by hand.

Expected errors are one line on stderr, and the [exit code](exit-codes.md) says which
kind. `--set` takes any key of a [scenario](scenario.md); `synth-sim keys` lists them.
"""


def cli_reference() -> str:
    """Markdown of every command, argument and option."""
    parts = [_HEAD]
    for app in (cli.app, server_cli.app, client_cli.app, audit_cli.app):
        parts += _commands(str(app.info.name), typer.main.get_command(app))
    return "\n".join(parts)


def _commands(name: str, command: click.Command) -> list[str]:
    """A command, or all commands of a group, as sections."""
    if not isinstance(command, click.Group):
        return [_command(name, command)]
    # A group has a section where it has options of its own.
    sections = [_command(name, command)] if command.params else []
    for part in sorted(command.commands):
        sections += _commands(f"{name} {part}", command.commands[part])
    return sections


def _command(name: str, command: click.Command) -> str:
    """One command as a section."""
    lines = [f"## {name}", "", inspect.cleandoc(command.help or ""), ""]
    rows = [_row(parameter) for parameter in command.params]
    if rows:
        lines += ["| parameter | value | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(parameter: click.Parameter) -> str:
    """One parameter as a table row."""
    if not isinstance(parameter, click.Option):
        metavar = parameter.metavar or (parameter.name or "").upper()
        return f"| `{metavar}` | required | | see above |"
    kind = parameter.type
    shown = _default(parameter)
    value = "flag" if parameter.is_flag else parameter.metavar or kind.name
    if isinstance(kind, click.Choice):
        value = ", ".join(f"`{choice}`" for choice in kind.choices)
    help_text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
    names = " / ".join(f"`{name}`" for name in (parameter.opts[0], *parameter.secondary_opts))
    if parameter.secondary_opts and not parameter.required:
        shown = f"`{parameter.opts[0] if parameter.default else parameter.secondary_opts[0]}`"
    return f"| {names} | {value} | {shown} | {help_text} |"


def _default(option: click.Option) -> str:
    """The default as a user would type it; empty where there is none worth typing."""
    if option.required:
        return "required"
    default = option.default
    if isinstance(default, Path):
        return f"`{str(default).replace(str(Path.home()), '~')}`"
    if isinstance(default, bool) or not isinstance(default, str | int | float) or default == "":
        return ""
    return f"`{getattr(default, 'value', default)}`"


if __name__ == "__main__":
    sys.stdout.write(cli_reference())
