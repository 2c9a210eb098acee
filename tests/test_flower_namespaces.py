"""A site behind a network of its own, which is cut, slowed down, and half-open.

The failing wire of ``link_peers.Relay`` is a program in between, whose kernel still answers. Here
the packets themselves do not arrive: the site is in a network namespace, at the other end of a pair
of virtual cards. Needs root and ``ip``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from link_peers import (
    STATE,
    eventually,
    make_world,
    questions,
    wait_for,
    write_node,
)

from synth_common.flower.link import LinkGrid, open_link

NAME = f"synthward{os.getpid()}"
OURS, THEIRS = f"sw{os.getpid()}a", f"sw{os.getpid()}b"
HERE, THERE = "10.231.7.1", "10.231.7.2"


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*words], capture_output=True, text=True, check=False)


def _made() -> str | None:
    """Make the namespace and the cards; why it cannot be done, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "needs ip (iproute2)"
    for command in (
        f"ip netns add {NAME}",
        f"ip link add {OURS} type veth peer name {THEIRS}",
        f"ip link set {THEIRS} netns {NAME}",
        f"ip addr add {HERE}/30 dev {OURS}",
        f"ip link set {OURS} up",
        f"ip -n {NAME} addr add {THERE}/30 dev {THEIRS}",
        f"ip -n {NAME} link set {THEIRS} up",
        f"ip -n {NAME} link set lo up",
    ):
        done = _ip(*command.split())
        if done.returncode:
            return f"this machine refuses {command!r}: {done.stderr.strip()}"
    return None


@dataclass
class _Behind:
    """A coordinator here, and a node of site east in the namespace."""

    grid: LinkGrid
    diary: Path

    def told(self, word: str) -> int:
        return self.diary.read_text().count(word)

    def must(self, *words: str) -> None:
        done = _ip(*words)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Behind]:
    folder = tmp_path_factory.mktemp("namespace")
    try:
        refused = _made()
        if refused is not None:
            pytest.skip(refused)
        world = make_world(folder, ("east",))
        certificate, key = world.authority.server(host=HERE)
        listener = replace(world.listener, host=HERE, certificate=certificate, key=key)
        write_node(folder, world, "east")
        (folder / "east.begun").write_text("this one answers at once")
        with open_link(listener, world.register) as grid, _node(folder, grid.port):
            wait_for(grid, 1, 120.0)
            yield _Behind(grid, folder / "east.diary")
    finally:
        _ip("ip", "link", "del", OURS)
        _ip("ip", "netns", "del", NAME)


@contextmanager
def _node(folder: Path, port: int) -> Iterator[None]:
    program = [sys.executable, str(Path(__file__).with_name("link_peers.py"))]
    path = os.pathsep.join(p for p in sys.path if p)
    process = subprocess.Popen(
        ["ip", "netns", "exec", NAME, *program, str(folder), "east", str(port), HERE],
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _still_answers(behind: _Behind) -> None:
    replies = behind.grid.send_and_receive(questions(behind.grid, STATE), timeout=120.0)
    assert [reply.has_content() for reply in replies] == [True]


@pytest.mark.slow
def test_a_cut_network_is_noticed_and_the_site_comes_back(behind: _Behind) -> None:
    before = behind.told("disconnected")
    behind.must("ip", "-n", NAME, "link", "set", THEIRS, "down")
    eventually(lambda: behind.told("disconnected") > before, 60.0)
    behind.must("ip", "-n", NAME, "link", "set", THEIRS, "up")
    _still_answers(behind)


@pytest.mark.slow
def test_packets_that_vanish_are_noticed_and_an_answer_is_delivered(behind: _Behind) -> None:
    """Half-open: both ends hold their connections, and nothing of either arrives."""
    nobody = ["lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev"]
    before, answered = behind.told("silence"), behind.told("answered")
    behind.must("ip", "neigh", "replace", THERE, *nobody, OURS)
    behind.must("ip", "-n", NAME, "neigh", "replace", HERE, *nobody, THEIRS)
    ids = list(behind.grid.push_messages(questions(behind.grid, STATE)))
    eventually(lambda: behind.told("silence") > before, 60.0)
    assert behind.told("answered") == answered
    behind.must("ip", "neigh", "del", THERE, "dev", OURS)
    behind.must("ip", "-n", NAME, "neigh", "del", HERE, "dev", THEIRS)
    eventually(lambda: behind.told("answered") > answered, 120.0)
    assert [reply.has_content() for reply in behind.grid.pull_messages(ids)] == [True]


@pytest.mark.slow
def test_a_slow_network_delays_and_breaks_nothing(behind: _Behind) -> None:
    """Each packet late where the kernel can do that, otherwise all through a narrow pipe."""
    if shutil.which("tc") is None:
        pytest.skip("needs tc (iproute2)")
    late, narrow = "netem delay 150ms", "tbf rate 16mbit burst 32kbit latency 500ms"
    root = ["tc", "qdisc", "replace", "dev", OURS, "root"]
    made = [kind for kind in (late, narrow) if _ip(*root, *kind.split()).returncode == 0]
    if not made:
        pytest.skip("the kernel has neither netem nor tbf")
    before = behind.told("disconnected")
    try:
        state = {"w": torch.arange(100_000, dtype=torch.float32)}
        replies = behind.grid.send_and_receive(questions(behind.grid, state), timeout=120.0)
        assert [reply.has_content() for reply in replies] == [True]
        assert behind.told("disconnected") == before
    finally:
        _ip("tc", "qdisc", "del", "dev", OURS, "root")
