"""The how-to of enrolment, followed step by step with the commands as they stand on the page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "enrol-a-site.md"
SITES = ("north", "river", "hill")


class Reader:
    """Somebody who types what the page says; each command is what is installed here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "HOME": str(folder), "PATH": f"{folder}:/usr/bin:/bin"}
        self.environment.pop("SYNTHWARD_HOME", None)
        for name in ("synth_server", "synth_client"):
            command = folder / name.replace("_", "-")
            command.write_text(f'#!/bin/sh\nexec {sys.executable} -m {name}.cli "$@"\n')
            command.chmod(0o755)

    def type(self, command: str, answer: str = "") -> str:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.folder,
            env=self.environment,
            input=f"{answer}\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def send(self, name: str, to: str) -> None:
        shutil.copy(self.folder / "synthward/sites" / name / "request.json", self.folder / to)


@pytest.mark.slow  # fourteen processes
def test_the_page_leads_from_nothing_to_members_that_know_each_other(tmp_path):
    text = PAGE.read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    plan, *commands = [block for _, block in blocks]
    init, make, enrol, accept, revoke, again, renew = commands
    reader = Reader(tmp_path)
    (tmp_path / "plan.toml").write_text(plan)
    told = re.search(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}", reader.type(init)).group()
    for name in SITES:
        reader.type(make.replace("north", name))
        reader.send(name, f"{name}.json")
    assert "enrolled hill until" in reader.type(enrol)
    seen = set()
    for name in SITES:
        shutil.copy(tmp_path / "coordinator" / "kits" / f"{name}.json", tmp_path / "kit.json")
        out = reader.type(accept.replace("north", name), told)
        seen.add(re.search(r"all members: (\S+)", out).group(1))
    assert len(seen) == 1
    reader.type(revoke)
    reader.type(make.replace("north", "river"))
    reader.send("river", "river-again.json")
    reader.type(again)
    reader.type(renew)
    listed = reader.type("synth-server members coordinator")
    assert f"fingerprint of its authority: {told}" in listed
    assert re.findall(r"^(\w+)  (\w+) ", listed, re.M) == [
        ("hill", "revoked"),
        ("north", "enrolled"),
        ("river", "enrolled"),
    ]
