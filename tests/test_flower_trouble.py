"""A site that cannot reach its coordinator says which part fails."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from link_peers import Authority, Diary, doubling, make_world, new_key

from synth_common.errors import RefusedError, UnreachableError
from synth_common.flower.link import open_link
from synth_common.flower.node import Coordinator, Pace, knock, serve_node
from synth_common.flower.trouble import Kind, explain

FAST = Pace(poll_seconds=0.05, lease_seconds=20.0, timeout_seconds=1.0)


def _first_reason(coordinator: Coordinator, key) -> str:
    """Why a node that starts is not connected."""
    diary = Diary()
    serve_node(coordinator, key, doubling(), diary, lambda: bool(diary.lines), FAST)
    assert diary.lines[0] == "disconnected"
    return diary.reasons[0]


def _both(coordinator: Coordinator, key, kind: Kind) -> str:
    """The reason, which a check before the first round and the running node agree on."""
    reason = _first_reason(coordinator, key)
    with pytest.raises(UnreachableError) as caught:
        knock(coordinator, key, 1.0)
    assert str(caught.value).startswith(f"{kind}: ")
    assert reason.startswith(f"{kind}: ")
    return reason


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_an_unknown_name_is_a_matter_of_dns(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    reason = _both(Coordinator("no-such-host.invalid", 443, authority.pem), new_key(), Kind.DNS)
    assert "no-such-host.invalid:443" in reason


def test_a_port_where_nobody_listens_is_named(tmp_path: Path) -> None:
    port = _free_port()
    coordinator = Coordinator("127.0.0.1", port, Authority(tmp_path).pem)
    assert f"127.0.0.1:{port}" in _both(coordinator, new_key(), Kind.PORT)


def test_a_port_that_drops_packets_is_a_matter_of_the_firewall(monkeypatch) -> None:
    dropped = explain(httpx.ConnectTimeout("timed out"), "hub:443", None)
    assert (dropped.kind, "firewall" in dropped.sentence) == (Kind.PORT, True)


@contextmanager
def _answering(reply: bytes):
    """Something at a port that says one thing to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    line, _ = listener.accept()
                except OSError:
                    return
                with line:
                    line.recv(65536)
                    line.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_proxy_that_refuses_or_is_not_there_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with _answering(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n") as port:
        proxy = f"http://127.0.0.1:{port}"
        reason = _both(Coordinator("hub.test", 443, authority.pem, proxy), new_key(), Kind.PROXY)
        assert proxy in reason
        assert "hub.test:443" in reason
    gone = f"http://127.0.0.1:{_free_port()}"
    assert gone in _both(Coordinator("hub.test", 443, authority.pem, gone), new_key(), Kind.PROXY)


def test_the_environments_proxies_are_not_used(tmp_path: Path, monkeypatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{_free_port()}")
    world = make_world(tmp_path, ("east",))
    with open_link(world.listener, world.register) as grid:
        knock(world.coordinator(grid.port), world.register.keys["east"])


def test_a_port_that_speaks_no_tls_is_named(tmp_path: Path) -> None:
    with _answering(b"SSH-2.0-OpenSSH_9.6\r\n") as port:
        coordinator = Coordinator("127.0.0.1", port, Authority(tmp_path).pem)
        assert "TLS" in _both(coordinator, new_key(), Kind.PROTOCOL)


def test_a_certificate_of_another_name(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    certificate, key = world.authority.server(host="other.test")
    listener = replace(world.listener, certificate=certificate, key=key)
    with open_link(listener, world.register) as grid:
        _both(world.coordinator(grid.port), world.register.keys["east"], Kind.CERTIFICATE_NAME)


def test_a_certificate_of_another_authority(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    with open_link(world.listener, world.register) as grid:
        coordinator = Coordinator("127.0.0.1", grid.port, other.pem)
        reason = _both(coordinator, world.register.keys["east"], Kind.AUTHORITY)
        assert "kit" in reason


@pytest.mark.parametrize(
    ("begins", "ends", "kind"),
    [
        (timedelta(days=-3), timedelta(days=-1), Kind.EXPIRED),
        (timedelta(days=1), timedelta(days=3), Kind.CLOCK),
    ],
)
def test_a_certificate_out_of_its_time(tmp_path: Path, begins, ends, kind) -> None:
    world = make_world(tmp_path, ("east",))
    certificate, key = world.authority.server(begins=begins, ends=ends)
    listener = replace(world.listener, certificate=certificate, key=key)
    with open_link(listener, world.register) as grid:
        _both(world.coordinator(grid.port), world.register.keys["east"], kind)


@pytest.mark.parametrize("offset", [timedelta(hours=-2), timedelta(minutes=3)])
def test_a_clock_that_is_wrong_is_named_with_the_difference(
    tmp_path: Path, monkeypatch, offset: timedelta
) -> None:
    from flwr.supernode import node_auth_http_interceptor as interceptor

    from synth_common.flower import trouble

    class Wrong(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + offset

    world = make_world(tmp_path, ("east",))
    with open_link(world.listener, world.register) as grid:
        # The site's clock alone: both ends run in this process.
        monkeypatch.setattr(interceptor, "now", lambda: datetime.now(UTC) + offset)
        monkeypatch.setattr(trouble, "datetime", Wrong)
        reason = _both(world.coordinator(grid.port), world.register.keys["east"], Kind.CLOCK)
        told = re.search(r"by ([+-]\d+) s", reason)
        assert told is not None
        assert abs(int(told[1]) - offset.total_seconds()) <= 3


def test_knocking_takes_no_part_and_tells_the_clocks_difference(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    with open_link(world.listener, world.register) as grid:
        offset = knock(world.coordinator(grid.port), world.register.keys["east"])
        assert offset is not None
        assert abs(offset) < 3.0
        assert grid.online() == {}
        world.register.revoke("east")
        with pytest.raises(RefusedError, match="east was revoked"):
            knock(world.coordinator(grid.port), world.register.keys["east"])
        with pytest.raises(RefusedError, match="unknown key"):
            knock(world.coordinator(grid.port), new_key())


def test_a_refusals_text_is_one_short_line(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("east",))
    world.register.revoke("east")
    (key,) = world.register.refused
    world.register.refused[key] = "gone\n\x1b[31m" + "x" * 5000
    with (
        open_link(world.listener, world.register) as grid,
        pytest.raises(RefusedError) as caught,
    ):
        knock(world.coordinator(grid.port), world.register.keys["east"])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
