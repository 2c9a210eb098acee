"""A federation over TLS on loopback: answers, order, time, and who takes part."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from link_peers import (
    QUICK,
    STATE,
    Diary,
    Node,
    doubling,
    eventually,
    make_world,
    new_key,
    questions,
    running,
    same_port,
    serving,
    store_is_empty,
    wait_for,
    waiting_for,
)

from synth_common import messages
from synth_common.errors import ConfigError, FederationError, RefusedError, UnreachableError
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
from synth_common.flower.node import Coordinator, Pace, knock, serve_node
from synth_sim.transport import InProcessGrid


def test_three_sites_answer_with_the_bytes_of_the_in_process_grid(tmp_path: Path) -> None:
    with serving(make_world(tmp_path)) as (grid, nodes):
        replies = list(grid.send_and_receive(questions(grid, STATE), timeout=60.0))
        names = sorted(grid.sites[reply.metadata.src_node_id] for reply in replies)
        assert names == ["east", "north", "west"]
        assert {reply.metadata.group_id for reply in replies} == {"1"}
        eventually(lambda: all("answered" in node.diary.lines for node in nodes.values()))
        assert store_is_empty(grid)
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


def test_answers_are_given_out_as_they_come(tmp_path: Path) -> None:
    world, last = make_world(tmp_path), threading.Event()
    with (
        open_link(world.listener, world.register) as grid,
        running(world, grid.port, waiting_for(last, "east", world)),
    ):
        wait_for(grid, 3, 20.0)
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
        running(world, grid.port, waiting_for(never, "east", world)) as nodes,
    ):
        wait_for(grid, 2, 20.0)
        began = time.monotonic()
        replies = list(grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=3.0))
        assert 2.9 < time.monotonic() - began < 4.0
        assert [grid.sites[reply.metadata.src_node_id] for reply in replies] == ["north"]
        assert store_is_empty(grid)
        never.set()
        time.sleep(1.0)
        assert nodes["east"].diary.lines.count("answered") == 0
        assert nodes["east"].diary.lines.count("unwanted") == 1
        # The node is not disturbed: it answers the next message.
        again = list(grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=20.0))
        assert len(again) == 2
        assert store_is_empty(grid)


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


def test_who_is_online_is_told_from_who_is_enrolled(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    with (
        open_link(world.listener, world.register) as grid,
        running(world, grid.port, {"north": doubling()}),
    ):
        wait_for(grid, 1)
        assert list(grid.sites.values()) == ["east", "north", "west"]
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


def test_a_refused_site_stops_with_the_reason(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    with serving(world) as (grid, nodes):
        world.register.revoke("east")
        eventually(lambda: nodes["east"].error is not None)
        error = nodes["east"].error
        assert isinstance(error, RefusedError)
        assert "east was revoked on 2026-01-01" in str(error)
        assert grid.sites == {}
        stranger = world.coordinator(grid.port)
        with pytest.raises(RefusedError, match="unknown key"):
            serve_node(stranger, new_key(), doubling(), nodes["east"].diary, lambda: False, QUICK)


def test_a_site_that_is_revoked_while_messages_are_sent_is_skipped(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east", "north", "west"))
    with serving(world) as (grid, _):
        asked = questions(grid, {"w": torch.ones(2)})
        names = dict(grid.sites)

        def pushed() -> Iterator[Message]:
            yield asked[0]
            world.register.revoke(names[asked[1].metadata.dst_node_id])
            yield from asked[1:]

        began = time.monotonic()
        replies = list(grid.send_and_receive(pushed(), timeout=60.0))
        assert {names[reply.metadata.src_node_id] for reply in replies} == {"east", "west"}
        assert time.monotonic() - began < 50.0  # nobody waited for the one that was not asked
        assert store_is_empty(grid)


def test_messages_to_a_site_that_was_revoked_are_not_pushed(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east", "north"))
    with open_link(world.listener, world.register) as grid:
        asked = questions(grid, {"w": torch.ones(2)})
        world.register.revoke("north")
        assert len(list(grid.push_messages(asked))) == 1


def test_a_doorkeeper_that_fails_is_a_server_error_and_lets_nobody_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(tmp_path, ("east",))
    key = world.register.keys["east"]

    def broken(public_key: bytes) -> None:
        raise OSError("the disk is gone")

    with open_link(world.listener, world.register) as grid:
        world.register.verdict = broken
        with pytest.raises(UnreachableError, match="status 500: internal error"):
            knock(world.coordinator(grid.port), key)
    assert "the disk is gone" in caplog.text


def test_a_site_that_is_enrolled_while_the_server_runs_takes_part(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    with serving(world) as (grid, _):
        world.register.keys["north"] = new_key()
        with running(world, grid.port, {"north": doubling()}):
            wait_for(grid, 2, 20.0)
            replies = grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=20.0)
            assert len(list(replies)) == 2


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    with open_link(world.listener, world.register) as grid:
        taken = same_port(world, grid.port)
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


_STARTED = ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system")


def _watch(event: str, arguments: tuple) -> None:
    if not _WATCHING.is_set():
        return
    if event in _STARTED:
        _DIALLED.append((event, arguments))
    if event in ("socket.connect", "socket.getaddrinfo"):
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
    assert not [event for event, _ in _DIALLED if event in _STARTED], "a process was started"
    assert looked_up <= {"127.0.0.1", b"127.0.0.1"}
