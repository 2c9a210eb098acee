"""A site's service: what it answers, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from link_peers import wait_for
from site_scenario import deployed_plan, ready_site, site_values, write_settings

from synth_client import cli, lock
from synth_client.events import EVENTS, Asked, SiteEvents, read_state
from synth_client.service import ask_to_stop, start, stop_asked
from synth_client.status import status
from synth_common import messages
from synth_common.errors import (
    ConfigError,
    DataError,
    EnrolmentError,
    Interrupted,
    LedgerError,
    LimitError,
    RefusedError,
    RunningError,
)
from synth_common.flower import ArrayRecord, Context, Message, RecordDict, arrays_of, open_run
from synth_common.flower.link import Listener, open_link
from synth_common.generators import build_generator
from synth_common.messages import Header
from synth_common.plan import Plan
from synth_common.privacy.ledger import Ledger
from synth_common.terminal import guarded
from synth_server.members import Members


def _context() -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def _question(plan: Plan, number: int, kind: str = "train", run: str = "run") -> Message:
    open_run()
    header = Header(run, number, plan.digest())
    state = build_generator(plan.generator, 0).shared_state()
    arrays = arrays_of(state) if kind != "query" else ArrayRecord()
    return Message(messages.request(header, arrays, plan), 1, kind, group_id="1")


class Coordinator:
    """Plays the node and the coordinator behind it, in this thread."""

    def __init__(self, *questions: Message, during: Callable[[], None] | None = None) -> None:
        self.questions, self.during = list(questions), during
        self.replies: list[Message] = []
        self.seen: dict[str, Any] = {}

    def __call__(self, coordinator, key, app, events, stopping) -> None:
        self.seen = {"coordinator": coordinator, "key": key, "events": events}
        events.connected()
        for question in self.questions:
            if stopping():
                return
            events.asked(question)
            if self.during is not None:
                self.during()
            reply = app(question, _context())
            self.replies.append(reply)
            events.answered(question, reply)


def _events(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / EVENTS).read_text().splitlines()]


def test_a_round_is_one_line_with_what_it_cost_and_what_remains(tmp_path: Path) -> None:
    _, directory, plan = ready_site(tmp_path)
    lines: list[str] = []
    peer = Coordinator(_question(plan, 1), _question(plan, 2), _question(plan, 2))
    start(directory, "north", lines.append, peer)
    assert not any(reply.has_error() for reply in peer.replies)
    with Ledger.read(directory / "ledger.sqlite") as ledger:
        assert len(ledger.reservations()) == 2  # the third answer was paid for already
    rounds = [line for line in lines if "round" in line]
    assert len(rounds) == 3
    spent = messages.values_in(peer.replies[1])["epsilon"]
    assert "round 2 of run run: done in" in rounds[1]
    assert f"epsilon {spent:.4f} spent, {8 - float(spent):.4f} remains" in rounds[1]
    kinds = [event["event"] for event in _events(directory)]
    assert kinds == ["started", "connected", *["asked", "worked", "answered"] * 3, "stopped"]
    state = read_state(directory)
    assert state is not None
    assert (state.last, state.last_error, state.connected) == ("round 2 of run run", None, False)
    assert state.stopped is not None
    for name in (EVENTS, "state.json"):
        assert (directory / name).stat().st_mode & 0o077 == 0


def test_the_node_gets_the_kit_s_address_authority_and_key_and_the_proxy(tmp_path: Path) -> None:
    federation, directory, _ = ready_site(tmp_path, server={"proxy": "http://127.0.0.1:3128"})
    peer = Coordinator()
    start(directory, "north", lambda _: None, peer)
    found = peer.seen["coordinator"]
    assert (found.host, found.port, found.proxy) == ("127.0.0.1", 8443, "http://127.0.0.1:3128")
    assert found.ca_certificate == (directory / "ca.crt").read_bytes()
    own = federation.kit("north").kit.member("north")
    assert own is not None
    from synth_common.keys import node_public

    assert node_public(peer.seen["key"]) == own.keys.node


def test_a_refusal_is_a_code_outside_and_a_story_inside(tmp_path: Path) -> None:
    _, directory, plan = ready_site(tmp_path, limits={"rounds_per_day": 1})
    lines: list[str] = []
    peer = Coordinator(_question(plan, 1), _question(plan, 2))
    start(directory, "north", lines.append, peer)
    refusal = peer.replies[1]
    assert (refusal.error.code, refusal.error.reason) == (1000 + LimitError.exit_code, "LimitError")
    assert "REFUSED, LimitError (see errors.log)" in lines[-2]
    assert (
        "limits.rounds_per_day = 1: 1 rounds were begun" in (directory / "errors.log").read_text()
    )
    now = status(directory, "north")
    assert (now.rounds_today, now.rounds_per_day, now.last_error) == (1, 1, "LimitError")
    with Ledger.read(directory / "ledger.sqlite") as ledger:
        assert len(ledger.reservations()) == 1


def test_what_a_peer_calls_a_run_does_not_reach_the_terminal(tmp_path: Path) -> None:
    plan = deployed_plan()
    hostile = _question(plan, 1, run="\x1b[2Jrun\n2030-01-01 all is well")
    assert Asked.of(hostile) == Asked("round", "?", 1)
    bare = Message(RecordDict(), 1, "train", group_id="1")
    assert str(Asked.of(bare)) == "round 0 of run ?"
    assert Asked.of(_question(plan, 0, "train.release")).kind == "release"
    assert Asked.of(_question(plan, 0, "query.release")).kind == "roll-call"


def test_one_service_per_site(tmp_path: Path) -> None:
    _, directory, _ = ready_site(tmp_path)
    assert lock.holder(directory) is None
    with lock.hold(directory):
        assert lock.holder(directory) == os.getpid()
        with pytest.raises(RunningError, match=f"process {os.getpid()}"):
            start(directory, "north", print, Coordinator())
    assert lock.holder(directory) is None


def test_too_few_patients_end_the_start_before_anybody_is_dialled(tmp_path: Path) -> None:
    _, directory, plan = ready_site(tmp_path)
    write_settings(
        directory, site_values(limits={"min_patients": 31}, data={"nominal_patients": 31})
    )
    peer = Coordinator(_question(plan, 1))
    with pytest.raises(LimitError, match=r"min_patients = 31: the site has 30 training patients"):
        start(directory, "north", lambda _: None, peer)
    assert peer.seen == {}


def test_a_site_that_is_not_ready_says_so_and_answers_nothing(tmp_path: Path) -> None:
    _, directory, _ = ready_site(tmp_path)
    peer = Coordinator()
    for missing, error, words in (
        ("data.npz", DataError, "is not a prepared site"),
        ("ledger.sqlite", LedgerError, "is missing"),
        ("kit.json", EnrolmentError, "has accepted no kit"),
        ("site.toml", ConfigError, "synth-client init"),
    ):
        (directory / missing).rename(directory / "away")
        with pytest.raises(error, match=words):
            start(directory, "north", print, peer)
        (directory / "away").rename(directory / missing)
    assert peer.seen == {}


# ---------------------------------------------------------------------- how it ends


def test_the_first_signal_lets_the_round_finish(tmp_path: Path) -> None:
    _, directory, plan = ready_site(tmp_path)
    lines: list[str] = []
    peer = Coordinator(
        _question(plan, 1),
        _question(plan, 2),
        during=lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    start(directory, "north", lines.append, peer)
    assert len(peer.replies) == 1
    assert not peer.replies[0].has_error()
    assert any(line.startswith("finishing round 1 of run run") for line in lines)
    assert _events(directory)[-1]["event"] == "stopped"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_abandons_the_round_and_what_it_reserved_stays_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, directory, plan = ready_site(tmp_path)

    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("synth_client.round._use", killed)
    peer = Coordinator(_question(plan, 1))
    with pytest.raises(Interrupted, match="round 1 of run run was abandoned"):
        start(directory, "north", lambda _: None, peer)
    assert peer.replies == []
    assert _events(directory)[-1]["abandoned"] == "round 1 of run run"
    with Ledger.read(directory / "ledger.sqlite") as ledger:
        assert (len(ledger.reservations()), len(ledger.commits())) == (1, 0)
    assert lock.holder(directory) is None


def test_the_flag_after_round_ends_it_between_two_rounds(tmp_path: Path) -> None:
    _, directory, plan = ready_site(tmp_path)
    with pytest.raises(RunningError, match="does not run"):
        ask_to_stop(directory, "after-round")
    (directory / "stop").write_text("now\n")  # left behind by a service that was killed
    peer = Coordinator(
        _question(plan, 1),
        _question(plan, 2),
        during=lambda: ask_to_stop(directory, "after-round"),
    )
    start(directory, "north", lambda _: None, peer)
    assert len(peer.replies) == 1
    assert stop_asked(directory) is None


def test_the_flag_now_wakes_a_service_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, directory, plan = ready_site(tmp_path)

    def slow(*_: object) -> None:
        ask_to_stop(directory, "now")
        time.sleep(60)

    monkeypatch.setattr("synth_client.round._use", slow)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        start(directory, "north", lambda _: None, Coordinator(_question(plan, 1)))
    assert time.monotonic() - began < 30


def test_an_answer_that_does_not_arrive_holds_the_end_up_for_a_minute_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, question = SiteEvents(tmp_path, lambda _: None), _question(deployed_plan(), 1)
    assert not events.busy
    events.asked(question)
    assert events.busy
    events.worked(question, Message(RecordDict(), reply_to=_delivered(question)))
    assert events.busy  # on its way
    later = time.monotonic() + 61.0
    monkeypatch.setattr("synth_client.events.time.monotonic", lambda: later)
    assert not events.busy


def test_an_answer_that_nobody_waits_for_holds_nothing_up(tmp_path: Path) -> None:
    lines: list[str] = []
    events, question = SiteEvents(tmp_path, lines.append), _question(deployed_plan(), 1)
    events.asked(question)
    events.worked(question, Message(RecordDict(), reply_to=_delivered(question)))
    events.unwanted(question)
    assert not events.busy
    assert read_state(tmp_path).undelivered is None  # type: ignore[union-attr]
    assert "does not wait for the answer" in lines[-1]


def _delivered(message: Message) -> Message:
    from synth_common.flower import delivered

    return delivered(message, "1")


def test_a_coordinator_that_turns_the_site_away_ends_the_service(tmp_path: Path) -> None:
    _, directory, _ = ready_site(tmp_path)
    lines: list[str] = []

    def refused(*_: object) -> None:
        raise RefusedError("north was revoked on 2030-01-01 (moved)")

    with pytest.raises(RefusedError):
        start(directory, "north", lines.append, lambda *given: refused())
    assert "ended: north was revoked on 2030-01-01 (moved)" in lines[-1]
    assert _events(directory)[-1]["error"] == "RefusedError"


def test_a_full_disk_ends_the_logs_and_not_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    events = SiteEvents(tmp_path / "gone", lines.append)
    events.connected()
    events.disconnected("port: nothing accepts connections")
    assert sum("the logs cannot be written" in line for line in lines) == 1
    assert any("DISCONNECTED: port" in line for line in lines)


# ---------------------------------------------------------------------- what is told


def test_status_of_a_service_that_died_says_at_what(tmp_path: Path) -> None:
    _, directory, plan = ready_site(tmp_path)
    assert status(directory, "north").reason == "never started"
    events = SiteEvents(directory, lambda _: None)
    events.connected()
    events.asked(_question(plan, 2))
    now = status(directory, "north")
    assert (now.running, now.connected) == (False, False)
    assert now.reason == "it died while round 2 of run run"
    with lock.hold(directory):
        now = status(directory, "north")
    assert (now.running, now.connected, now.pid) == (True, True, os.getpid())
    assert now.working_on == "round 2 of run run"


def test_the_commands_tell_what_they_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, directory, _ = ready_site(tmp_path)
    home = ["--site", "north", "--home", str(directory.parents[1])]

    def run(*words: str) -> tuple[int, str]:
        code = guarded(lambda: cli.app([*words, *home]))
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, out = run("status")
    assert (code, "NOT RUNNING: never started" in out) == (0, True)
    code, out = run("status", "--json")
    assert json.loads(out)["remains"] == pytest.approx(8.0)
    code, out = run("stop")
    assert (code, "does not run" in out) == (RunningError.exit_code, True)


# ---------------------------------------------------------------------- over a network


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """``synth-client start`` in a process of its own."""

    def __init__(self, directory: Path) -> None:
        home = str(directory.parents[1])
        command = [sys.executable, "-m", "synth_client.cli", "start", "--site", "north"]
        self.popen = subprocess.Popen(
            [*command, "--home", home], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        self.lines += iter(self.popen.stdout)

    def end(self, seconds: float = 60.0) -> int:
        code = self.popen.wait(seconds)
        self._reader.join(10.0)
        if self.popen.stdout is not None:
            self.popen.stdout.close()
        return code

    def kill(self) -> None:
        self.popen.kill()
        self.end()


@pytest.mark.slow
def test_a_site_answers_over_tls_is_killed_comes_back_and_ends_in_good_order(
    tmp_path: Path,
) -> None:
    port = _free_port()
    federation, directory, plan = ready_site(tmp_path, address=f"127.0.0.1:{port}")
    folder = federation.folder
    listener = Listener("127.0.0.1", port, folder.keys / "server.crt", folder.keys / "server.key")
    processes = [Process(directory)]
    try:
        with open_link(listener, Members(folder.path)) as grid:
            wait_for(grid, 1, 90.0)
            (node,) = grid.sites

            def ask(number: int) -> Message:
                question = _question(plan, number)
                message = Message(question.content, node, "train", group_id=str(number))
                (reply,) = grid.send_and_receive([message], timeout=90.0)
                return reply

            reply = ask(1)
            assert messages.values_in(reply)["site"] == "north"
            assert status(directory, "north").connected
            processes[0].kill()
            assert "died" in status(directory, "north").reason
            processes.append(second := Process(directory))
            again = ask(1)  # from the outbox, for nothing
            assert messages.values_in(again)["epsilon"] == messages.values_in(reply)["epsilon"]
            ask(2)
            second.popen.send_signal(signal.SIGTERM)
            assert second.end() == 0, second.lines
        assert any("round 2 of run run: done" in line for line in second.lines), second.lines
        with Ledger.read(directory / "ledger.sqlite") as ledger:
            assert len(ledger.reservations()) == 2
    finally:
        for process in processes:
            process.kill()
