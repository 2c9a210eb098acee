"""What a coordinator cannot do to a site: fill its memory, or have it wait for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.proto.fleet_pb2 import PullMessagesResponse
from link_peers import (
    QUICK,
    STATE,
    Node,
    Relay,
    doubling,
    eventually,
    make_world,
    questions,
    running,
    wait_for,
)

from synth_common import messages
from synth_common.flower import ClientApp, Message, RecordDict, arrays_of, connection, gate, node
from synth_common.flower.fleet import Fleet
from synth_common.flower.link import LinkGrid, open_link
from synth_common.flower.spool import SpooledStore

KILOBYTE = replace(QUICK, most_bytes=lambda: 1_000)


def _untouched() -> ClientApp:
    """An app that must not be asked."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        raise AssertionError("the message was opened")

    return app


def _unfolding(grid: LinkGrid) -> Message:
    """400 bytes, named a thousand times."""
    (site,) = grid.sites
    arrays = arrays_of({"w": torch.rand(100)})
    chunk = arrays["w"].slice_array()[0]
    arrays["w"].__dict__["_chunks"] = [chunk] * 1000
    return Message(RecordDict({"arrays": arrays}), site, "train")


def _heavy(grid: LinkGrid) -> Message:
    (question,) = questions(grid, {"w": torch.rand(2_000_000)})
    return question


@pytest.mark.parametrize("made", [_unfolding, _heavy])
def test_a_message_heavier_than_the_plan_allows_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[LinkGrid], Message]
) -> None:
    monkeypatch.setattr(node, "_HEADS", 50_000)
    world = make_world(tmp_path, ("east",))
    with (
        open_link(world.listener, world.register) as grid,
        running(world, grid.port, {"east": _untouched()}, KILOBYTE) as nodes,
    ):
        (reply,) = grid.send_and_receive([made(grid)], timeout=30.0)
        assert messages.error_code(reply) == "DataError"
        assert nodes["east"].diary.reasons == []


def test_a_message_of_too_many_objects_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_MOST_OBJECTS", 5)
    world = make_world(tmp_path, ("east",))
    with (
        open_link(world.listener, world.register) as grid,
        running(world, grid.port, {"east": _untouched()}),
    ):
        (reply,) = grid.send_and_receive(questions(grid, STATE), timeout=30.0)
        assert messages.error_code(reply) == "DataError"


@pytest.mark.parametrize("kind", ["large", "compressed", "without a length"])
def test_an_answer_that_may_fill_the_memory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    again = iter([True] * 2)
    answer, respond = Fleet.answer, gate.Gate.__call__
    if kind == "large":
        monkeypatch.setattr(connection, "_MOST_ANSWER", 50_000)
        padding = b"\x7a\xe0\xd4\x03" + bytes(60_000)  # a field that no message has: it is skipped
        monkeypatch.setattr(
            Fleet,
            "answer",
            lambda self, *a: answer(self, *a) + (padding if next(again, False) else b""),
        )

    async def other_heads(self: gate.Gate, scope: dict, receive: object, send: Callable) -> None:
        async def changed(event: dict) -> None:
            if event["type"] == "http.response.start" and next(again, False):
                kept = [h for h in event["headers"] if h[0] != b"content-length"]
                packed = [*event["headers"], (b"content-encoding", b"gzip")]
                event = {**event, "headers": packed if kind == "compressed" else kept}
            await send(event)

        await respond(self, scope, receive, changed)

    if kind != "large":
        monkeypatch.setattr(gate.Gate, "__call__", other_heads)
    world = make_world(tmp_path, ("east",))
    with (
        open_link(world.listener, world.register) as grid,
        running(world, grid.port, {"east": doubling()}) as nodes,
    ):
        # Flower's own client would read the first and the last, and unpack the second.
        reasons = nodes["east"].diary.reasons
        eventually(lambda: any("RemoteProtocolError" in told for told in reasons))
        replies = grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=30.0)
        assert [reply.has_content() for reply in replies] == [True]


@pytest.mark.parametrize("kind", ["no message", "no tree"])
def test_what_is_no_message_is_refused_and_the_site_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    answer, again = Fleet.answer, iter([True])

    def spoilt(self: Fleet, *a: object) -> bytes:
        content = answer(self, *a)
        if "pull-messages" not in str(a[0]):
            return content
        pulled = PullMessagesResponse.FromString(content)
        if not pulled.messages_list or not next(again, False):
            return content
        if kind == "no tree":
            del pulled.message_object_trees[:]
        else:
            pulled.messages_list[0].Clear()
        return pulled.SerializeToString()

    monkeypatch.setattr(Fleet, "answer", spoilt)
    world = make_world(tmp_path, ("east",))
    with (
        open_link(world.listener, world.register) as grid,
        running(world, grid.port, {"east": doubling()}) as nodes,
    ):
        replies = grid.send_and_receive(questions(grid, {"w": torch.ones(2)}), timeout=30.0)
        assert [reply.has_content() for reply in replies] == [True]
        assert any("RemoteProtocolError" in told for told in nodes["east"].diary.reasons)
        assert nodes["east"].error is None


def test_objects_that_are_announced_and_never_there_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_PULL_TRIES", 2)
    get, hidden = SpooledStore.get, threading.Event()
    hidden.set()
    monkeypatch.setattr(
        SpooledStore, "get", lambda self, key: b"" if hidden.is_set() else get(self, key)
    )
    world = make_world(tmp_path, ("east",))
    with (
        open_link(world.listener, world.register) as grid,
        running(world, grid.port, {"east": doubling()}) as nodes,
    ):
        ids = list(grid.push_messages(questions(grid, {"w": torch.ones(2)})))
        began = time.monotonic()
        eventually(lambda: nodes["east"].diary.reasons != [])
        assert time.monotonic() - began < 15.0
        hidden.clear()
        eventually(lambda: "answered" in nodes["east"].diary.lines)
        assert [reply.has_content() for reply in grid.pull_messages(ids)] == [True]


def test_silence_in_the_middle_of_a_message_is_noticed(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    with open_link(world.listener, world.register) as grid:
        relay = Relay(grid.port)
        pace = replace(QUICK, timeout_seconds=1.0)
        key = world.register.keys["east"]
        peer = Node(world.coordinator(relay.port), key, doubling(), pace)
        try:
            wait_for(grid, 1)
            relay.silent_after(relay.passed + 600_000)  # within the tensors
            ids = list(grid.push_messages(questions(grid, STATE)))
            eventually(lambda: any("silence" in reason for reason in peer.diary.reasons))
            assert "asked" not in peer.diary.lines
            relay.heal()
            eventually(lambda: "answered" in peer.diary.lines)
            assert [reply.has_content() for reply in grid.pull_messages(ids)] == [True]
            assert peer.error is None
        finally:
            peer.stop()
            relay.close()
