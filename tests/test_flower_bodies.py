"""Bodies on their way: whole at the end, and never whole in memory before."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from link_peers import make_world, questions, serving

from synth_common.flower.bodies import PART, Incoming, outgoing, parts
from synth_common.flower.spool import Spool

_SIZES = st.lists(st.integers(0, 2 * PART), max_size=12)


@settings(max_examples=40, deadline=None)
@given(_SIZES)
def test_a_body_comes_together_and_waits_on_the_disk(sizes: list[int]) -> None:
    body, sent = Incoming(Spool()), b""
    for number, size in enumerate(sizes):
        part = bytes([number]) * size
        body.add(part)
        sent += part
        held = len(body._held) + sum(len(piece.content or b"") for piece in body._pieces)
        assert held < PART
    assert (body.length, body.read()) == (len(sent), sent)


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 5 * PART + 7])
def test_a_body_is_sent_in_parts(size: int) -> None:
    content = os.urandom(size)
    sent = list(parts(outgoing(content, Spool())))
    assert b"".join(sent) == content
    assert max(map(len, sent)) <= PART
    assert (outgoing(content, Spool()).content is None) == (size > PART)


def test_bodies_take_no_disk_once_they_are_gone() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    place = Spool(file_bytes=PART)
    for _ in range(20):
        body = Incoming(place)
        body.add(bytes(PART))
        assert len(body.read()) == PART
    del body
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_few_whole_bodies_are_in_memory_however_many_sites_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a body back is what makes it whole: count how many threads do so at a time."""
    now, most, lock = 0, 0, threading.Lock()
    read = Incoming.read

    def counted(self: Incoming) -> bytes:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        whole = read(self)
        time.sleep(0.002)
        with lock:
            now -= 1
        return whole

    monkeypatch.setattr(Incoming, "read", counted)
    world = make_world(tmp_path, tuple(f"site{n}" for n in range(6)))
    with serving(world) as (grid, _):
        state = {f"w{n}": torch.rand(400_000) for n in range(2)}
        replies = list(grid.send_and_receive(questions(grid, state), timeout=60.0))
    assert len(replies) == 6
    assert most <= 2


def test_a_disk_that_refuses_a_body_costs_an_attempt_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = iter([True] * 2)
    add = Incoming.add

    def full(self: Incoming, part: bytes) -> None:
        if self.length + len(part) > PART and next(refused, False):
            raise OSError(28, "No space left on device")
        add(self, part)

    monkeypatch.setattr(Incoming, "add", full)
    with serving(make_world(tmp_path, ("east",))) as (grid, nodes):
        replies = grid.send_and_receive(questions(grid, {"w": torch.rand(400_000)}), timeout=60.0)
        assert [reply.has_content() for reply in replies] == [True]
        assert next(refused, None) is None, "nothing was refused"
        assert nodes["east"].error is None
