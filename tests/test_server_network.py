"""The whole deployment: a coordinator and three hospitals, each a process, over TLS."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from deployment_scenario import (
    NAMES,
    enrolled_federation,
    free_port,
    hospitals,
    start,
    start_hospital,
    until,
)
from enrolment_scenario import Federation
from site_scenario import deployed_plan

from synth_common.facts import read_facts
from synth_common.privacy.accounting import epsilon
from synth_common.privacy.ledger import Ledger
from synth_common.reporting.factbook import FactBook
from synth_server.service import run_state

KILLS = int(os.environ.get("SYNTHWARD_KILLS", "2"))
"""How often a hospital is killed; 50 for the long form."""


def _round_begun(federation: Federation, number: int) -> bool:
    state = run_state(federation.folder.path)
    return state is not None and (state["phase"], state["round"]) == ("round", number)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_coordinator_killed_in_a_round_resumes_and_no_hospital_pays_twice(
    tmp_path: Path,
) -> None:
    plan = deployed_plan(federation={"min_sites": 3, "round_timeout_s": 200.0})
    federation, log = enrolled_federation(tmp_path, plan), tmp_path / "server.log"
    folder, page = str(federation.folder.path), free_port()
    with hospitals(federation):
        first = start("synth_server", "start", folder, log=log)
        until(lambda: _round_begun(federation, 2), first, log)
        first.send_signal(signal.SIGKILL)
        first.wait()
        state = run_state(federation.folder.path)
        assert state is not None
        assert (state["phase"], state["running"], state["completed"]) == ("killed", False, 1)
        watched = ("--status-page", str(page), "--metrics", "0")
        second = start("synth_server", "resume", folder, *watched, log=log)
        until(lambda: _round_begun(federation, 3), second, log)
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
@pytest.mark.timeout(300 + 60 * KILLS)
def test_a_hospital_killed_again_and_again_has_paid_for_all_that_left_it(tmp_path: Path) -> None:
    """Wherever the kill falls: while it starts, trains, charges, keeps or sends."""
    plan = deployed_plan(
        training={"rounds": 2 + KILLS, "steps_per_round": 8},
        privacy={"spare_rounds": KILLS},
        federation={"min_sites": 3, "round_timeout_s": 300.0},
    )
    federation = enrolled_federation(tmp_path, plan, budget={"epsilon": 100.0})
    log, rng = tmp_path / "server.log", random.Random(7)
    with hospitals(federation) as running:
        server = start("synth_server", "start", str(federation.folder.path), log=log)
        until(lambda: _round_begun(federation, 1), server, log)
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.0, 8.0 if KILLS < 5 else 12.0))
            if server.poll() is not None:
                break
            running["north"].send_signal(signal.SIGKILL)
            running["north"].wait()
            running["north"] = start_hospital(federation, "north")
        assert server.wait(timeout=240 + 30 * KILLS) == 0, log.read_text()
    book = FactBook(read_facts(federation.folder.run / "facts.jsonl"))
    rounds = {f.round: f.value["replies"] for f in book.all("federation.round")}
    assert rounds == {number: list(NAMES) for number in range(1, plan.training.rounds + 1)}
    told = {f.site: f.value for f in book.all("privacy.epsilon")}
    for name in NAMES:
        with Ledger.read(federation.site(name) / "ledger.sqlite") as ledger:
            reserved, committed = ledger.reservations(), ledger.commits()
            spent = epsilon(ledger.history(), plan.privacy.delta, plan.privacy.accountant)
        assert {made.key.round for made in reserved} == set(rounds)
        # One reply of every round left the site, however often the round was begun.
        assert sorted(made.key.round for made in committed) == sorted(rounds)
        assert len(reserved) <= len(rounds) + (KILLS if name == "north" else 0)
        assert told[name] <= spent + 1e-9
