"""A coordinator and three hospitals as processes of their own, over TLS on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from enrolment_scenario import Federation, found
from site_scenario import OPERATOR, prepare, site_values, write_settings

from synth_client.approval import approve
from synth_client.site import load_site
from synth_common.plan import Plan

NAMES = ("hill", "north", "river")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def enrolled_federation(folder: Path, plan: Plan, **sections: Any) -> Federation:
    """Three hospitals that are enrolled, prepared and agreed."""
    federation = found(folder, f"127.0.0.1:{free_port()}", plan)
    federation.enrol(*NAMES)
    for number, name in enumerate(NAMES):
        federation.accept(name)
        values = site_values(site={"name": name}, **sections)
        values["data"]["source"]["seed"] = number
        write_settings(federation.site(name), values)
        prepare(federation.site(name), plan)
        approve(load_site(federation.site(name)), plan, OPERATOR)
    settings = federation.folder.settings
    text = settings.read_text().replace("gather_s = 30", "gather_s = 60")
    settings.write_text(text.replace("retry_s = 60", "retry_s = 1"))
    return federation


def start(module: str, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", f"{module}.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment)


def start_hospital(federation: Federation, name: str) -> subprocess.Popen[bytes]:
    """The service of one site."""
    home, log = federation.path / name, federation.path / f"{name}.log"
    return start("synth_client", "start", "--site", name, "--home", str(home), log=log)


@contextmanager
def hospitals(federation: Federation) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The sites' services, stopped in the end."""
    made = {name: start_hospital(federation, name) for name in NAMES}
    try:
        yield made
    finally:
        for process in made.values():
            process.terminate()
        for process in made.values():
            process.wait(timeout=60)


def until(holds: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while not holds():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
