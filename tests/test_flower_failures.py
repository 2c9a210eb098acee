"""Sites are killed, networks are cut, the coordinator restarts, clocks jump: the round goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from link_peers import (
    STATE,
    Node,
    Relay,
    doubling,
    eventually,
    make_world,
    questions,
    running,
    same_port,
    serving,
    store_is_empty,
    wait_for,
    waiting_for,
    write_node,
)

from synth_common.flower.fleet import Fleet
from synth_common.flower.link import open_link
from synth_common.flower.node import Pace


def test_a_clock_that_jumps_loses_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.server.superlink.linkstate import in_memory_linkstate
    from flwr.server.utils import validator

    world = make_world(tmp_path, ("east",))
    with serving(world) as (grid, nodes):
        ids = list(grid.push_messages(questions(grid, {"w": torch.ones(2)})))
        # The coordinator's clock, as Flower's state reads it, jumps by a month.
        later = datetime.now(UTC) + timedelta(days=31)
        monkeypatch.setattr(in_memory_linkstate, "now", lambda: later)
        monkeypatch.setattr(validator, "now", lambda: later)
        ids += grid.push_messages(questions(grid, {"w": torch.ones(2)}))
        eventually(lambda: nodes["east"].diary.lines.count("answered") == 2)
        assert all(reply.has_content() for reply in grid.pull_messages(ids))
        assert grid.run.run_id
        assert len(list(grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=20)))


def _process(folder: Path, name: str, port: int) -> subprocess.Popen[bytes]:
    program = [sys.executable, str(Path(__file__).with_name("link_peers.py"))]
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.Popen(
        [*program, str(folder), name, str(port)], env={**os.environ, "PYTHONPATH": path}
    )


@pytest.mark.slow
def test_a_killed_site_that_returns_within_its_lease_gets_its_message_again(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, ("east", "north"))
    write_node(tmp_path, world, "east")
    with (
        open_link(world.listener, world.register) as grid,
        running(world, grid.port, {"north": doubling()}),
    ):
        first = _process(tmp_path, "east", grid.port)
        lives = [first]
        try:
            wait_for(grid, 2, 60.0)

            def kill_and_restart() -> None:
                eventually((tmp_path / "east.begun").exists)
                first.send_signal(signal.SIGKILL)
                first.wait()
                lives.append(_process(tmp_path, "east", grid.port))

            threading.Thread(target=kill_and_restart).start()
            began = time.monotonic()
            replies = list(grid.send_and_receive(questions(grid, STATE), timeout=120.0))
            names = sorted(grid.sites[reply.metadata.src_node_id] for reply in replies)
            assert names == ["east", "north"]
            assert not any(reply.has_error() for reply in replies)
            # A new Python with Flower takes seconds to start; a lease is 20.
            assert time.monotonic() - began < 60.0
            assert store_is_empty(grid)
        finally:
            for life in lives:
                life.kill()
                life.wait()


def test_a_node_activates_again_while_its_lease_holds(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    key = world.register.keys["east"]
    with open_link(world.listener, world.register) as grid:
        asleep = threading.Event()
        apps = waiting_for(asleep, "east", world)
        first = Node(world.coordinator(grid.port), key, apps["east"])
        ids = list(grid.push_messages(questions(grid, {"w": torch.ones(2)})))
        eventually(lambda: "asked" in first.diary.lines)
        began = time.monotonic()
        second = Node(world.coordinator(grid.port), key, doubling())
        eventually(lambda: "answered" in second.diary.lines)
        assert time.monotonic() - began < 10.0
        (reply,) = grid.pull_messages(ids)
        assert reply.has_content()
        asleep.set()  # the first life awakes: its answer is not waited for any more
        time.sleep(0.5)
        assert "answered" not in first.diary.lines
        assert list(grid.pull_messages(ids)) == []
        first.stop()
        second.stop()


def test_a_node_outlives_its_coordinator_and_delivers_to_the_next(tmp_path: Path) -> None:
    world, go_on = make_world(tmp_path, ("east",)), threading.Event()
    apps = waiting_for(go_on, "east", world)
    link = open_link(world.listener, world.register)
    grid = link.__enter__()
    node = Node(world.coordinator(grid.port), world.register.keys["east"], apps["east"])
    try:
        list(grid.push_messages(questions(grid, {"w": torch.ones(2)})))
        eventually(lambda: "asked" in node.diary.lines)
        port = grid.port
        link.__exit__(None, None, None)
        go_on.set()  # it finishes while nobody is there
        eventually(lambda: "disconnected" in node.diary.lines)
        with open_link(same_port(world, port).listener, world.register) as again:
            replies = list(
                again.send_and_receive(questions(again, {"w": torch.ones(2)}), timeout=60.0)
            )
            assert [reply.has_content() for reply in replies] == [True]
        assert node.diary.lines.count("connected") >= 2
        assert any("port" in reason for reason in node.diary.reasons)
        assert node.error is None
    finally:
        node.stop()


@pytest.mark.parametrize("fault", ["cut", "half-open"])
def test_a_node_survives_a_network_that_fails(tmp_path: Path, fault: str) -> None:
    world = make_world(tmp_path, ("east",))
    with open_link(world.listener, world.register) as grid:
        relay = Relay(grid.port)
        pace = Pace(poll_seconds=0.05, lease_seconds=20.0, timeout_seconds=1.0)
        node = Node(world.coordinator(relay.port), world.register.keys["east"], doubling(), pace)
        try:
            wait_for(grid, 1, 20.0)
            if fault == "cut":
                relay.cut()
            else:
                relay.silent_after(0)
                eventually(lambda: any("silence" in reason for reason in node.diary.reasons))
                relay.heal()
            replies = grid.send_and_receive(questions(grid, STATE), timeout=30.0)
            assert [reply.has_content() for reply in replies] == [True]
            assert node.error is None
        finally:
            node.stop()
            relay.close()


def test_a_node_that_waits_for_work_keeps_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.server.superlink.linkstate import in_memory_linkstate

    from synth_common.flower import connection as module

    monkeypatch.setattr(in_memory_linkstate, "HEARTBEAT_PATIENCE", 0.1)  # a lease of 1 s
    monkeypatch.setattr(module, "_HEARTBEATS_PER_LEASE", 80)  # a heartbeat every 0.25 s
    world = make_world(tmp_path, ("east",))
    with serving(world) as (grid, nodes):
        for _ in range(25):
            assert list(grid.online()) == ["east"]
            time.sleep(0.1)
        nodes["east"].stop()
        assert grid.online() == {}  # it said farewell


def test_answers_that_are_no_protobuf_do_not_end_a_node(tmp_path: Path, monkeypatch) -> None:
    world = make_world(tmp_path, ("east",))
    good = Fleet.answer
    spoiled = iter([b"\xff" * 40] * 3)
    monkeypatch.setattr(Fleet, "answer", lambda self, *given: next(spoiled, good(self, *given)))
    with serving(world) as (grid, nodes):
        reasons = nodes["east"].diary.reasons
        eventually(lambda: any("protocol" in reason for reason in reasons))
        replies = grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=20.0)
        assert len(list(replies)) == 1
