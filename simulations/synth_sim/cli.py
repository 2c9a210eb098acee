"""``synth-sim``: simulated federations from the command line.

This module parses and prints; what a command does is one function below it, imported
when the command runs, so that ``--help`` loads nothing heavy.
"""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from synth_common.errors import ConfigError
from synth_common.terminal import guarded
from synth_sim.cli_options import (
    ScenarioArgument,
    SeedOption,
    SetOption,
    SettingsCommand,
    VersionOption,
)

app = typer.Typer(
    name="synth-sim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class EngineName(StrEnum):
    """Transports a user can choose."""

    inprocess = "inprocess"
    ray = "ray"


@app.callback()
def simulate(version: VersionOption = False) -> None:
    """Simulate hospitals that make synthetic images together under differential privacy."""


@app.command("list")
def list_scenarios() -> None:
    """List the packaged scenarios."""
    from synth_sim.scenario import summaries

    rows = summaries()
    width = max(len(name) for name, _ in rows)
    for name, title in rows:
        typer.echo(f"{name:<{width}}  {title}")


@app.command(cls=SettingsCommand)
def keys(
    scenario: ScenarioArgument,
    set_: SetOption = [],  # noqa: B006 - typer copies it
) -> None:
    """List every key of a scenario with its value, as --set takes it.

    SCENARIO is the name of a packaged scenario (see list) or a TOML file. What each key means is
    in docs/reference/scenario.md.
    """
    from synth_sim.keys import settings
    from synth_sim.scenario import load_scenario

    for line in settings(load_scenario(scenario, set_)):
        typer.echo(line)


@app.command(cls=SettingsCommand)
def run(
    scenario: ScenarioArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory; default: runs/SCENARIO-TIME."),
    ] = None,
    set_: SetOption = [],  # noqa: B006 - typer copies it
    seed: SeedOption = None,
    engine: Annotated[
        EngineName, typer.Option(help="Transport between server and sites.")
    ] = EngineName.inprocess,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --out.")
    ] = False,
    keep_updates: Annotated[
        bool,
        typer.Option(
            "--keep-updates",
            help="Keep every site's update of every round in OUT/updates, for audits only: "
            "synth-audit run --updates.",
        ),
    ] = False,
) -> None:
    """Train a federation, evaluate it and write its report.

    SCENARIO is the name of a packaged scenario (see list) or a TOML file. Everything in it can be
    changed with --set, for example the budget: --set privacy.epsilon=2. synth-sim keys SCENARIO
    lists every key with its value; docs/reference/scenario.md says what each means.
    """
    from synth_sim.run import RunOptions, load_run, run_scenario
    from synth_sim.scenario import load_scenario

    if resume and out is None:
        raise ConfigError("--resume needs --out: which run is to be continued")
    if resume and out is not None and not set_ and seed is None:
        chosen = load_run(out)
        if load_scenario(scenario).name != chosen.name:
            raise ConfigError(f"--resume: {out} holds a run of {chosen.name!r}, not {scenario!r}")
    else:
        chosen = load_scenario(scenario, set_, seed)
    out = out or Path("runs") / f"{chosen.name}-{datetime.now():%Y%m%d-%H%M%S}"
    typer.echo(f"{chosen.title}: {out}")
    options = RunOptions(out, engine.value, resume, _command_line(), typer.echo, keep_updates)
    report = run_scenario(chosen, options)
    typer.echo(f"report: {report}")


@app.command(cls=SettingsCommand)
def pretrain(
    scenario: ScenarioArgument,
    public: Annotated[
        str,
        typer.Option(
            help="Public images: reference (the scenario's data.reference), a phantom look "
            "(radiograph, ct, mri, histology), or a TOML file that describes a source."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write; ends in .safetensors.")],
    steps: Annotated[int, typer.Option(help="Training steps.")] = 500,
    set_: SetOption = [],  # noqa: B006 - typer copies it
    seed: SeedOption = None,
) -> None:
    """Train the scenario's generator on PUBLIC images without privacy, for runs to start from.

    SCENARIO is the name of a packaged scenario (see list) or a TOML file. Prints the options
    with which a run starts from the weights. Refuses the scenario's private images.
    """
    from synth_sim.pretrain import pretrain as make
    from synth_sim.scenario import load_scenario

    made = make(load_scenario(scenario, set_, seed), public, steps, out)
    typer.echo(f"{made.path}: SHA-256 {made.sha256}, from {made.public_data}")
    options = " ".join(f"--set {shlex.quote(value)}" for value in made.settings())
    typer.echo(f"start a run from it with: {options}")


@app.command(cls=SettingsCommand)
def plan(
    scenario: ScenarioArgument,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: standard output.")
    ] = None,
    set_: SetOption = [],  # noqa: B006 - typer copies it
) -> None:
    """Write a scenario's federation plan as JSON, for the operators of real sites to approve.

    SCENARIO is the name of a packaged scenario (see list) or a TOML file. Real sites refuse
    repeatable noise: add --set privacy.noise=secure.
    """
    import json

    from synth_common.reporting.files import replace_text
    from synth_sim.scenario import load_scenario

    chosen = load_scenario(scenario, set_).plan
    text = json.dumps(json.loads(chosen.to_json()), indent=2)
    if out is None:
        typer.echo(text)
    else:
        typer.echo(f"plan {chosen.digest()}: {replace_text(out, text + chr(10))}")


@app.command("deal", cls=SettingsCommand)
def deal_command(
    scenario: ScenarioArgument,
    out: Annotated[Path, typer.Option(help="Folder for the files, one SITE.npz each.")],
    set_: SetOption = [],  # noqa: B006 - typer copies it
    seed: SeedOption = None,
) -> None:
    """Write every site's images to a file of its own, to rehearse a real deployment.

    SCENARIO is the name of a packaged scenario (see list) or a TOML file. The sites get the
    patients that they have in a simulation; docs/tutorials/three-hospitals.md goes on from there.
    """
    from synth_sim.dealing import deal_files
    from synth_sim.scenario import load_scenario

    for path, images in deal_files(load_scenario(scenario, set_, seed), out):
        patients = (
            "no patient ids" if images.patient_ids is None else f"{images.unit_count()} patients"
        )
        typer.echo(f"{path}: {len(images)} images, {patients}")


@app.command()
def sample(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    n: Annotated[int, typer.Option("--n", help="How many images.")],
    label: Annotated[str, typer.Option(help="Class of the images.")],
    out: Annotated[Path, typer.Option(help="Folder for the PNG files; must be empty.")],
    seed: Annotated[int, typer.Option(help="Another seed gives other images.")] = 0,
) -> None:
    """Draw synthetic images of one class from a run's generator.

    RUN is a run directory; its newest checkpoint is used.
    """
    from synth_sim.sample import sample_run

    typer.echo(f"{n} images: {sample_run(run_directory, n, label, out, seed)}")


@app.command(cls=SettingsCommand)
def compare(
    scenario: ScenarioArgument,
    generators: Annotated[
        str,
        typer.Option(
            help="What to compare, separated by commas. Families: vae, gan, embedding (no network: "
            "images from one noisy sum). Recipes: embedding-refined (released features teach a "
            "network to make pictures of them), curriculum (a vae that starts from such a sum), "
            "vae-site and gan-site (with normalisation per site)."
        ),
    ] = "vae,gan,embedding,curriculum",
    epsilon: Annotated[
        str, typer.Option(help="Budgets to compare, separated by commas; inf is without privacy.")
    ] = "1,8,inf",
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the comparison; default: runs/compare-SCENARIO-TIME."),
    ] = None,
    set_: SetOption = [],  # noqa: B006 - typer copies it
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds, separated by commas: every combination runs once with each; default: "
            "the scenario's."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip finished runs in --out, continue others.")
    ] = False,
) -> None:
    """Compare generators and budgets on the same data.

    SCENARIO is the name of a packaged scenario (see list) or a TOML file. Every
    combination is one run in a process of its own; one page plots and tabulates them, with mean
    and range over the seeds where there are several.
    """
    from synth_sim.compare import CompareOptions, parse_seeds, run_comparison
    from synth_sim.scenario import load_scenario

    if resume and out is None:
        raise ConfigError("--resume needs --out: which comparison is to be continued")
    name = load_scenario(scenario).name
    out = out or Path("runs") / f"compare-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    options = CompareOptions(
        scenario=scenario,
        out=out,
        generators=tuple(part.strip() for part in generators.split(",")),
        epsilons=tuple(part.strip() for part in epsilon.split(",")),
        overrides=tuple(set_),
        seeds=parse_seeds(seeds),
        resume=resume,
        command=_command_line(),
    )
    typer.echo(f"comparison: {run_comparison(options, typer.echo)}")


def _command_line() -> str:
    """What was typed, for the report."""
    return shlex.join(["synth-sim", *sys.argv[1:]])


def main() -> None:
    """Entry point: one line on stderr and the exit code of the error's branch."""
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
