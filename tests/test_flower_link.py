"""A federation over TLS on loopback: answers, order, time, crashes and networks that fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from link_peers import (
    QUICK,
    Diary,
    Node,
    World,
    doubling,
    make_world,
    new_key,
    questions,
    serving,
    write_node,
)

from synth_common import messages
from synth_common.errors import ConfigError, FederationError, RefusedError
from synth_common.flower import (
    ClientApp,
    ConfigRecord,
    Context,
    Message,
    RecordDict,
    arrays_of,
    state_of,
)
from synth_common.flower.link import open_link
from synth_common.flower.node import Coordinator, Pace, serve_node
from synth_sim.transport import InProcessGrid

STATE = {
    "w": torch.arange(700_000, dtype=torch.float32),
    "b": torch.tensor(1.5),
    "empty": torch.zeros(0, 2),
    **{f"layer{n}": torch.full((5_000,), n, dtype=torch.float64) for n in range(20)},
}


def _eventually(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def _store_is_empty(grid) -> bool:
    state = grid._state
    return not (
        grid._store.store
        or grid._store._pieces
        or grid._store.kept
        or state.message_ins_store
        or state.message_res_store
        or state._object_push_sessions
    )


def test_three_sites_answer_with_the_bytes_of_the_in_process_grid(tmp_path: Path) -> None:
    with serving(make_world(tmp_path)) as (grid, nodes):
        replies = list(grid.send_and_receive(questions(grid, STATE), timeout=60.0))
        names = sorted(grid.sites[reply.metadata.src_node_id] for reply in replies)
        assert names == ["east", "north", "west"]
        assert {reply.metadata.group_id for reply in replies} == {"1"}
        _eventually(lambda: all("answered" in node.diary.lines for node in nodes.values()))
        assert _store_is_empty(grid)
    local = InProcessGrid(doubling(), 1)
    content = RecordDict({"arrays": arrays_of(STATE)})
    (expected,) = local.send_and_receive([Message(content, 1, "train", group_id="1")])
    wanted = expected.content.array_records["arrays"]
    for reply in replies:
        arrays = reply.content.array_records["arrays"]
        assert {k: v.data for k, v in arrays.items()} == {k: v.data for k, v in wanted.items()}
        # In the spool until somebody reads it: memory holds no answer.
        assert all(type(array).__name__ == "SpooledArray" for array in arrays.values())
        assert torch.equal(state_of(arrays, empty=True)["w"], 2 * STATE["w"])


def _waiting_for(event: threading.Event, slow: str, world: World) -> dict[str, ClientApp]:
    """Apps of which one answers only after ``event``."""

    def slow_app() -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            assert event.wait(30.0)
            return doubling()(message, context)

        return app

    return {name: slow_app() if name == slow else doubling() for name in world.register.keys}


@contextmanager
def _nodes(world: World, port: int, apps: dict[str, ClientApp], pace: Pace = QUICK):
    nodes = {
        name: Node(world.coordinator(port), world.register.keys[name], app, pace)
        for name, app in apps.items()
    }
    try:
        yield nodes
    finally:
        for node in nodes.values():
            node.stop()


def test_answers_are_given_out_as_they_come(tmp_path: Path) -> None:
    world, last = make_world(tmp_path), threading.Event()
    with (
        open_link(world.listener, world.register) as grid,
        _nodes(world, grid.port, _waiting_for(last, "east", world)),
    ):
        grid.wait_for(3, 20.0)
        order = []
        for reply in grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=60.0):
            order.append(grid.sites[reply.metadata.src_node_id])
            if len(order) == 2:
                last.set()  # before this, the slow site cannot have answered
        assert order[2] == "east"


def test_the_timeout_is_kept_and_a_late_answer_is_refused(tmp_path: Path) -> None:
    world, never = make_world(tmp_path, ("east", "north")), threading.Event()
    with (
        open_link(world.listener, world.register) as grid,
        _nodes(world, grid.port, _waiting_for(never, "east", world)) as nodes,
    ):
        grid.wait_for(2, 20.0)
        began = time.monotonic()
        replies = list(grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=3.0))
        assert 2.9 < time.monotonic() - began < 4.0
        assert [grid.sites[reply.metadata.src_node_id] for reply in replies] == ["north"]
        assert _store_is_empty(grid)
        never.set()
        time.sleep(1.0)
        assert nodes["east"].diary.lines.count("answered") == 0
        # The node is not disturbed: it answers the next message.
        again = list(grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=20.0))
        assert len(again) == 2
        assert _store_is_empty(grid)


def test_a_site_that_joins_late_gets_its_message(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    with open_link(world.listener, world.register) as grid:
        late: list[Node] = []

        def join() -> None:
            time.sleep(1.0)
            late.append(Node(world.coordinator(grid.port), world.register.keys["east"], doubling()))

        threading.Thread(target=join).start()
        replies = list(grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=30.0))
        assert len(replies) == 1
        late[0].stop()


def test_too_few_sites_online_is_an_error_that_names_who_is_missing(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    with (
        open_link(world.listener, world.register) as grid,
        _nodes(world, grid.port, {"north": doubling()}),
    ):
        with pytest.raises(FederationError, match=r"1 sites .*missing: east, west"):
            grid.wait_for(3, 2.0)
        assert list(grid.wait_for(1, 2.0).values()) == ["east", "north", "west"]
        assert list(grid.online()) == ["north"]
        assert [grid.sites[node] for node in grid.get_node_ids()] == ["north"]


def test_a_message_to_nobody_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    with open_link(world.listener, world.register) as grid:
        message = Message(RecordDict(), 77, "train")
        with pytest.raises(FederationError, match="node 77"):
            list(grid.send_and_receive([message], timeout=1.0))


def test_an_app_that_fails_answers_with_a_code_and_no_text(tmp_path: Path) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ValueError("/data/patients/Jane Doe.png")

    world = make_world(tmp_path, ("east",))
    with serving(world, app) as (grid, _):
        (reply,) = grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=20.0)
        assert messages.error_code(reply) == "UnexpectedError"
        assert "Jane" not in str(reply)
        # A kind of message that the app does not know is answered in the same way.
        (other,) = grid.send_and_receive(
            questions(grid, {"w": torch.ones(2)}, "evaluate"), timeout=20.0
        )
        assert messages.error_code(other) == "UnexpectedError"


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
        _nodes(world, grid.port, {"north": doubling()}),
    ):
        first = _process(tmp_path, "east", grid.port)
        lives = [first]
        try:
            grid.wait_for(2, 60.0)

            def kill_and_restart() -> None:
                _eventually((tmp_path / "east.begun").exists)
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
            assert _store_is_empty(grid)
        finally:
            for life in lives:
                life.kill()
                life.wait()


def test_a_node_activates_again_while_its_lease_holds(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    key = world.register.keys["east"]
    with open_link(world.listener, world.register) as grid:
        asleep = threading.Event()
        apps = _waiting_for(asleep, "east", world)
        first = Node(world.coordinator(grid.port), key, apps["east"])
        ids = list(grid.push_messages(questions(grid, {"w": torch.ones(2)})))
        _eventually(lambda: "asked" in first.diary.lines)
        began = time.monotonic()
        second = Node(world.coordinator(grid.port), key, doubling())
        _eventually(lambda: "answered" in second.diary.lines)
        assert time.monotonic() - began < 10.0
        (reply,) = grid.pull_messages(ids)
        assert reply.has_content()
        asleep.set()  # the first life awakes: its answer is not waited for any more
        time.sleep(0.5)
        assert "answered" not in first.diary.lines
        assert list(grid.pull_messages(ids)) == []
        first.stop()
        second.stop()


def _same_port(world: World, port: int) -> World:
    return replace(world, listener=replace(world.listener, port=port))


def test_a_node_outlives_its_coordinator_and_delivers_to_the_next(tmp_path: Path) -> None:
    world, go_on = make_world(tmp_path, ("east",)), threading.Event()
    apps = _waiting_for(go_on, "east", world)
    link = open_link(world.listener, world.register)
    grid = link.__enter__()
    node = Node(world.coordinator(grid.port), world.register.keys["east"], apps["east"])
    try:
        list(grid.push_messages(questions(grid, {"w": torch.ones(2)})))
        _eventually(lambda: "asked" in node.diary.lines)
        port = grid.port
        link.__exit__(None, None, None)
        go_on.set()  # it finishes while nobody is there
        _eventually(lambda: "disconnected" in node.diary.lines)
        with open_link(_same_port(world, port).listener, world.register) as again:
            replies = list(
                again.send_and_receive(questions(again, {"w": torch.ones(2)}), timeout=60.0)
            )
            assert [reply.has_content() for reply in replies] == [True]
        assert node.diary.lines.count("connected") >= 2
        assert any("port" in reason for reason in node.diary.reasons)
        assert node.error is None
    finally:
        node.stop()


class Relay:
    """A wire between a node and the coordinator that can be cut, or go silent."""

    def __init__(self, port: int) -> None:
        self._target, self._open = port, True
        self.silent = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        self._pairs: list[socket.socket] = []

    def _accept(self) -> None:
        while self._open:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._pairs += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                if self.silent.is_set():
                    continue  # half-open: bytes vanish, and nobody is told
                other.sendall(data)
        except OSError:
            return

    def cut(self) -> None:
        pairs, self._pairs = self._pairs, []
        for end in pairs:
            end.close()

    def close(self) -> None:
        self._open = False
        self._listener.close()
        self.cut()


@pytest.mark.parametrize("fault", ["cut", "half-open"])
def test_a_node_survives_a_network_that_fails(tmp_path: Path, fault: str) -> None:
    world = make_world(tmp_path, ("east",))
    with open_link(world.listener, world.register) as grid:
        relay = Relay(grid.port)
        pace = Pace(poll_seconds=0.05, lease_seconds=20.0, timeout_seconds=1.0)
        node = Node(world.coordinator(relay.port), world.register.keys["east"], doubling(), pace)
        try:
            grid.wait_for(1, 20.0)
            if fault == "cut":
                relay.cut()
            else:
                relay.silent.set()
                _eventually(lambda: any("silence" in reason for reason in node.diary.reasons))
                relay.silent.clear()
                relay.cut()
            replies = grid.send_and_receive(questions(grid, STATE), timeout=30.0)
            assert [reply.has_content() for reply in replies] == [True]
            assert node.error is None
        finally:
            node.stop()
            relay.close()


def test_a_refused_site_stops_with_the_reason(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    with serving(world) as (grid, nodes):
        world.register.revoke("east")
        _eventually(lambda: nodes["east"].error is not None)
        error = nodes["east"].error
        assert isinstance(error, RefusedError)
        assert "east was revoked on 2026-01-01" in str(error)
        assert grid.sites == {}
        stranger = world.coordinator(grid.port)
        with pytest.raises(RefusedError, match="unknown key"):
            serve_node(stranger, new_key(), doubling(), nodes["east"].diary, lambda: False, QUICK)


def test_a_site_that_is_enrolled_while_the_server_runs_takes_part(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    with serving(world) as (grid, _):
        world.register.keys["north"] = new_key()
        with _nodes(world, grid.port, {"north": doubling()}):
            grid.wait_for(2, 20.0)
            replies = grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=20.0)
            assert len(list(replies)) == 2


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    with open_link(world.listener, world.register) as grid:
        taken = _same_port(world, grid.port)
        with (
            pytest.raises(ConfigError, match=rf"{grid.port} cannot be used"),
            open_link(taken.listener, world.register),
        ):
            pass


@pytest.mark.parametrize("lease", [5.0, 1e5])
def test_a_lease_that_flower_would_refuse_is_refused_here(lease: float) -> None:
    with pytest.raises(ConfigError, match="lease_seconds"):
        Pace(lease_seconds=lease)


def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    broken = replace(world.listener, certificate=world.listener.key)
    with (
        pytest.raises(ConfigError, match=r"127\.0\.0\.1\.key"),
        open_link(broken, world.register),
    ):
        pass
    coordinator = Coordinator("127.0.0.1", 1, b"no certificate")
    with pytest.raises(ConfigError, match="accept the coordinator's kit again"):
        serve_node(coordinator, new_key(), doubling(), Diary(), lambda: True)


def test_replies_hold_config_values(tmp_path: Path) -> None:
    with serving(make_world(tmp_path, ("east",))) as (grid, _):
        (reply,) = grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=20.0)
        values = reply.content.config_records["values"]
        assert isinstance(values, ConfigRecord)
        assert values["node"] == reply.metadata.src_node_id


_DIALLED: list[tuple[str, object]] = []
_WATCHING = threading.Event()


def _watch(event: str, arguments: tuple) -> None:
    if _WATCHING.is_set() and event in ("socket.connect", "socket.getaddrinfo"):
        _DIALLED.append((event, arguments[1] if event == "socket.connect" else arguments[:2]))


def test_a_whole_exchange_dials_the_coordinator_and_nobody_else(tmp_path: Path) -> None:
    sys.addaudithook(_watch)  # sees every connection and every look-up that Python makes
    _DIALLED.clear()
    _WATCHING.set()
    try:
        with serving(make_world(tmp_path)) as (grid, _):
            replies = grid.send_and_receive(questions(grid, STATE), timeout=60.0)
            assert len(list(replies)) == 3
            port = grid.port
    finally:
        _WATCHING.clear()
    connected = {address for event, address in _DIALLED if event == "socket.connect"}
    looked_up = {address[0] for event, address in _DIALLED if event == "socket.getaddrinfo"}
    assert connected == {("127.0.0.1", port)}
    assert looked_up <= {"127.0.0.1", b"127.0.0.1"}
