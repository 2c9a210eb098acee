"""The systemd unit: complete, hardened, and patient with a round that is paid for."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from site_scenario import deployed_plan, enrolled

from synth_client import cli
from synth_client.unit import Service, systemd_unit
from synth_common import errors
from synth_common.errors import ConfigError
from synth_common.terminal import guarded

ROOT = Path(__file__).resolve().parents[1]


def _read(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    return parser


def _service(**changes: object) -> Service:
    values = {
        "name": "north", "home": Path("/srv/synth ward"), "user": "synth",
        "program": Path("/opt/bin/synth-client"), "gpu": False, "patience": 600.0,
    }  # fmt: skip
    return Service(**{**values, **changes})  # type: ignore[arg-type]


def test_a_unit_may_write_into_the_site_and_nowhere_else() -> None:
    unit = _read(systemd_unit(_service()))["Service"]
    assert unit["ReadWritePaths"] == '"/srv/synth ward/sites/north"'
    assert unit["ExecStart"] == (
        '"/opt/bin/synth-client" start --site north --home "/srv/synth ward"'
    )
    assert (unit["ProtectSystem"], unit["NoNewPrivileges"]) == ("strict", "yes")
    assert unit["CapabilityBoundingSet"] == ""
    assert unit["User"] == "synth"
    assert unit["PrivateDevices"] == "yes"
    gpu = systemd_unit(_service(gpu=True))
    assert "DeviceAllow=char-nvidia rw" in gpu
    assert "PrivateDevices" not in gpu


def test_a_stop_waits_for_a_whole_round_and_decisions_are_not_retried() -> None:
    unit = _read(systemd_unit(_service(patience=600.0)))["Service"]
    assert unit["TimeoutStopSec"] == "660"
    ended = {int(code) for code in unit["RestartPreventExitStatus"].split()}
    for decision in (errors.ConfigError, errors.PrivacyError, errors.LedgerError):
        assert decision.exit_code in ended
    assert {errors.RefusedError.exit_code, errors.EnrolmentError.exit_code} <= ended
    assert errors.StorageError.exit_code not in ended  # a full disk may be emptied
    assert errors.LedgerHeldError.exit_code not in ended


@pytest.mark.parametrize("path", ["/srv/50%", '/srv/"x', "/srv/$HOME", "/srv/a\nUser=root"])
def test_a_path_that_systemd_would_read_otherwise_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="another folder"):
        systemd_unit(_service(home=Path(path)))


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyse = shutil.which("systemd-analyze")
    if analyse is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "synth-client"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file = tmp_path / "synthward-north.service"
    file.write_text(systemd_unit(_service(home=tmp_path, user="root", program=program)))
    done = subprocess.run([analyse, "verify", str(file)], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "synthward-north" in line]
    assert complaints == []


def test_the_command_prints_the_unit_of_a_site(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = deployed_plan(federation={"round_timeout_s": 100.0})
    _, directory = enrolled(tmp_path, plan=plan)
    home = directory.parents[1]
    code = guarded(lambda: cli.app(["unit", "--site", "north", "--home", str(home), "--user", "u"]))
    unit = _read(capsys.readouterr().out)["Service"]
    assert code == 0
    assert unit["TimeoutStopSec"] == "160"
    assert f'--home "{home}"' in unit["ExecStart"]
    assert unit["PrivateDevices"] == "yes"  # compute.device = "cpu"


def test_the_container_file_runs_as_nobody_special_and_holds_no_data() -> None:
    text = (ROOT / "docs/how-to/site.Containerfile").read_text()
    instructions = re.findall(r"^([A-Z]+) (.*)", text, re.M)
    assert ("USER", "synthward") in instructions
    assert ("STOPSIGNAL", "SIGTERM") in instructions
    copied = [words for name, words in instructions if name in ("COPY", "ADD")]
    assert all("sites" not in words and "keys" not in words for words in copied)
    assert 'ENTRYPOINT ["synth-client"]' in text
