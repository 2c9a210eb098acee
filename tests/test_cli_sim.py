"""The command line: light to import, documented whole, and its errors are one line."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from simulation_scenario import write_tiny

from synth_client import cli as client_cli
from synth_common.errors import CheckpointError, SynthwardError
from synth_common.terminal import guarded
from synth_sim import audit_cli, cli

_REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"


def _call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    code = guarded(lambda: cli.app(list(arguments), standalone_mode=True))
    out, err = capsys.readouterr()
    return code, out, err


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    heavy = ("torch", "opacus", "flwr", "numpy", "pydantic", "matplotlib", "sklearn", "ray")
    program = f"import sys, synth_sim.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_reference_is_what_the_commands_say() -> None:
    from synth_sim.reference import cli_reference

    assert _REFERENCE.read_text(encoding="utf-8") == cli_reference(), (
        "run: python -m synth_sim.reference > docs/reference/cli.md"
    )


def test_every_option_of_every_command_is_in_the_reference_with_a_meaning() -> None:
    import click

    text = _REFERENCE.read_text(encoding="utf-8")
    group = typer.main.get_command(cli.app)
    assert isinstance(group, click.Group)
    for name, command in group.commands.items():
        section = text.split(f"## synth-sim {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                (row,) = [r for r in section.splitlines() if f"`{parameter.opts[0]}`" in r]
                assert len(row.split("|")[4].strip()) > 10


@pytest.mark.parametrize("name", ["phantom-hospitals", "chest-xray-hospitals", "nuclei"])
def test_keys_are_listed_as_set_takes_them(capsys: pytest.CaptureFixture[str], name: str) -> None:
    from synth_common.validation import known_keys
    from synth_sim.scenario import Scenario, load_scenario

    code, out, _ = _call(capsys, "keys", name)
    assert code == 0
    lines = out.splitlines()
    taken = [line for line in lines if not line.endswith(" (not set)")]
    assert load_scenario(name, taken) == load_scenario(name)
    shown = {line.partition("=")[0].removesuffix(" (not set)") for line in lines}
    sections = {key.rpartition(".")[0] for key in known_keys(Scenario)}
    missing = set(known_keys(Scenario)) - shown - sections
    assert missing <= {"data.sources", "data.reference", "partition.sites"}
    assert len(lines) == len(shown)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--epsilon", "--set privacy.epsilon=VALUE"),
        ("--patients-per-step", "--set training.patients_per_step=VALUE"),
        ("--colluders", "--set release.embedding.colluders=VALUE"),
    ],
)
def test_a_setting_typed_as_an_option_gets_the_set_that_was_meant(
    capsys: pytest.CaptureFixture[str], option: str, hint: str
) -> None:
    code, _, err = _call(capsys, "run", "phantom-hospitals", option, "2")
    assert code == 2
    assert hint in " ".join(err.replace("│", " ").split())
    code, _, err = _call(capsys, "run", "phantom-hospitals", "--bogus", "2")
    assert (code, "--set" in err) == (2, False)


def test_the_help_of_a_run_says_where_keys_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call(capsys, "run", "--help")
    assert code == 0
    words = " ".join(out.replace("│", " ").split())
    assert "synth-sim keys SCENARIO" in words
    assert "docs/reference/scenario.md" in words


def test_list_names_every_packaged_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call(capsys, "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "chest-xray-hospitals",
        "mednist",
        "mnist-pooled",
        "mnist",
        "nuclei",
        "phantom-hospitals",
        "phantom-release",
        "retina",
    ]


@pytest.mark.parametrize("app", [cli.app, client_cli.app, audit_cli.app])
def test_every_command_says_its_version(
    capsys: pytest.CaptureFixture[str], app: typer.Typer
) -> None:
    assert guarded(lambda: app(["--version"], standalone_mode=True)) == 0
    assert capsys.readouterr().out == f"synthward {version('synthward')}\n"
    section = f"## {app.info.name}\n"
    assert "`--version`" in _REFERENCE.read_text().split(section)[1].split("\n## ")[0]


@pytest.mark.parametrize("arguments", [("run",), ("run", "x", "--bogus"), ("walk",)])
def test_wrong_usage_exits_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, _, err = _call(capsys, *arguments)
    assert code == 2
    assert "Usage" in err


def test_an_expected_error_is_one_line_and_its_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tiny = str(write_tiny(tmp_path))
    code, _, err = _call(capsys, "run", tiny, "--set", "training.round=1")
    assert code == 2
    assert err.startswith("error: ")
    assert "training.round" in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_missing_data_root_says_both_ways_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SYNTHWARD_DATA", raising=False)
    out = tmp_path / "run"
    for command in ("run", "compare"):
        code, _, err = _call(capsys, command, "chest-xray-hospitals", "--out", str(out))
        assert code == 3
        assert "data.root is not set, and neither is SYNTHWARD_DATA" in err
        assert "--set data.root=FOLDER" in err
        assert not out.exists()


def test_a_missing_file_exits_3_and_names_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    wrong = ("--out", str(out), "--set", f"data.root={tmp_path}")
    code, _, err = _call(capsys, "run", "mednist", *wrong)
    assert code == 3
    assert f"data.root = '{tmp_path}' does not hold" in err
    assert "mednist64.npz" in err
    assert not out.exists()


def test_missing_weights_and_engines_are_refused_before_a_directory_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, tiny = tmp_path / "run", str(write_tiny(tmp_path))
    named = ("--set", f"pretraining.sha256={'a' * 64}", "--set", "pretraining.public_data=drawn")
    code, _, err = _call(capsys, "run", tiny, "--out", str(out), *named)
    assert (code, "data.weights" in err) == (2, True)
    monkeypatch.setattr("synth_common.flower.engine.find_spec", lambda name: None)
    code, _, err = _call(capsys, "run", tiny, "--out", str(out), "--engine", "ray")
    assert (code, "make install" in err) == (2, True)
    assert not out.exists()


def test_a_full_directory_is_refused_and_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    code, _, err = _call(capsys, "run", str(write_tiny(tmp_path)), "--out", str(out))
    assert code == 2
    assert "thesis.txt" in err
    assert "--resume" in err
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_way_is_a_storage_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "run")
    code, _, err = _call(capsys, "run", str(write_tiny(tmp_path)), "--out", out)
    assert code == 10
    assert out in err


@pytest.mark.parametrize("command", ["run", "compare"])
def test_resume_needs_to_know_what(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    tiny = str(write_tiny(tmp_path))
    code, _, err = _call(capsys, command, tiny, "--resume")
    assert (code, "--out" in err) == (2, True)
    if command == "run":
        code, _, err = _call(capsys, command, tiny, "--resume", "--out", str(tmp_path / "none"))
        assert (code, "holds no run" in err) == (2, True)
        assert not (tmp_path / "none").exists()


def test_compare_refuses_an_impossible_case_before_it_runs_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "compare"
    tiny = str(write_tiny(tmp_path))
    code, _, err = _call(
        capsys, "compare", tiny, "--generators", "vae,diffusion", "--out", str(out)
    )
    assert code == 2
    assert "diffusion" in err
    assert not out.exists()


def test_sampling_what_is_no_run_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = _call(
        capsys, "sample", str(tmp_path), "--n", "1", "--label", "a", "--out", str(tmp_path / "o")
    )
    assert (code, "holds no run" in err) == (2, True)


@pytest.mark.parametrize(
    ("error", "code"),
    [(CheckpointError("c"), 9), (SynthwardError("s"), 1), (KeyboardInterrupt(), 130)],
)
def test_each_branch_of_errors_has_its_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def fail() -> None:
        raise error

    assert guarded(fail) == code
    assert capsys.readouterr().err.startswith("error: ")


def test_an_unexpected_error_is_not_hidden() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded(fail)
