"""The whole deployment: a coordinator and three hospitals, each a process, over TLS."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from enrolment_scenario import Federation, found
from site_scenario import OPERATOR, deployed_plan, prepare, site_values, write_settings

from synth_client.approval import approve
from synth_client.site import load_site
from synth_common.facts import read_facts
from synth_common.plan import Plan
from synth_common.privacy.ledger import Ledger
from synth_common.reporting.factbook import FactBook
from synth_server.service import run_state

NAMES = ("hill", "north", "river")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _federation(folder: Path, plan: Plan) -> Federation:
    """Three hospitals that are enrolled, prepared and agreed."""
    federation = found(folder, f"127.0.0.1:{_free_port()}", plan)
    federation.enrol(*NAMES)
    for number, name in enumerate(NAMES):
        federation.accept(name)
        values = site_values(site={"name": name})
        values["data"]["source"]["seed"] = number
        write_settings(federation.site(name), values)
        prepare(federation.site(name), plan)
        approve(load_site(federation.site(name)), plan, OPERATOR)
    settings = federation.folder.settings
    text = settings.read_text().replace("gather_s = 30", "gather_s = 60")
    settings.write_text(text.replace("retry_s = 60", "retry_s = 1"))
    return federation


def _process(module: str, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", f"{module}.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment)


@contextmanager
def _hospitals(federation: Federation) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The sites' services, stopped in the end."""
    made = {
        name: _process(
            "synth_client", "start", "--site", name, "--home", str(federation.path / name),
            log=federation.path / f"{name}.log",
        )
        for name in NAMES
    }  # fmt: skip
    try:
        yield made
    finally:
        for process in made.values():
            process.terminate()
        for process in made.values():
            process.wait(timeout=60)


def _until(holds: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while not holds():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def _round_begun(federation: Federation, number: int) -> bool:
    state = run_state(federation.folder.path)
    return state is not None and (state["phase"], state["round"]) == ("round", number)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_coordinator_killed_in_a_round_resumes_and_no_hospital_pays_twice(
    tmp_path: Path,
) -> None:
    plan = deployed_plan(federation={"min_sites": 3, "round_timeout_s": 200.0})
    federation, log = _federation(tmp_path, plan), tmp_path / "server.log"
    folder, page = str(federation.folder.path), _free_port()
    with _hospitals(federation):
        first = _process("synth_server", "start", folder, log=log)
        _until(lambda: _round_begun(federation, 2), first, log)
        first.send_signal(signal.SIGKILL)
        first.wait()
        state = run_state(federation.folder.path)
        assert state is not None
        assert (state["phase"], state["running"], state["completed"]) == ("killed", False, 1)
        watched = ("--status-page", str(page), "--metrics", "0")
        second = _process("synth_server", "resume", folder, *watched, log=log)
        _until(lambda: _round_begun(federation, 3), second, log)
        shown = urllib.request.urlopen(f"http://127.0.0.1:{page}/", timeout=30).read().decode()
        assert all(f'<th scope="row">{name}</th>' in shown for name in NAMES)
        assert second.wait(timeout=240) == 0, log.read_text()
    for name in NAMES:
        with Ledger.read(federation.site(name) / "ledger.sqlite") as ledger:
            charged = [made.key.round for made in ledger.reservations()]
        assert charged == [1, 2, 3], name
        local = {fact.name for fact in read_facts(federation.site(name) / "facts.jsonl")}
        assert "membership.attack" in local
    run = federation.folder.run
    book = FactBook(read_facts(run / "facts.jsonl"))
    assert [f.value["replies"] for f in book.all("federation.round")] == [list(NAMES)] * 3
    assert book.value("run.rounds") == {"planned": 3, "completed": 3, "ended": "completed"}
    told = json.loads((run / "report.json").read_text())
    assert {site["name"] for site in told["privacy"]["sites"]} == set(NAMES)
    assert told["warnings"] != []
    assert (run / "samples" / "synthetic.png").is_file()
    assert "report:" in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_release_over_the_network_is_masked_and_made_once(tmp_path: Path) -> None:
    plan = deployed_plan(
        generator={"family": "embedding", "frequencies": 4, "features": 40, "refine_steps": 3},
        training={"rounds": 0},
        privacy={"trust_model": "secure-aggregation"},
        release={"embedding": {}},
        federation={"min_sites": 3, "round_timeout_s": 200.0},
    )
    federation, log = _federation(tmp_path, plan), tmp_path / "server.log"
    with _hospitals(federation):
        process = _process("synth_server", "start", str(federation.folder.path), log=log)
        assert process.wait(timeout=300) == 0, log.read_text()
    book = FactBook(read_facts(federation.folder.run / "facts.jsonl"))
    (released,) = book.all("release.embedding")
    assert (released.value["sites"], released.value["attempts"]) == (list(NAMES), 1)
    assert released.value["epsilon"] == pytest.approx(
        max(f.value for f in book.all("privacy.epsilon"))
    )
