"""The doctor on the way to the coordinator: each thing that can be wrong has its own words."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from link_peers import Authority, make_world, new_key

from synth_client import doctor_network
from synth_client.doctor_network import examine_network
from synth_client.findings import Examination, Finding
from synth_common.flower.link import open_link
from synth_common.flower.node import Coordinator

Handle = Callable[[socket.socket], None]


@contextmanager
def _listening(handle: Handle) -> Iterator[int]:
    """A server that does ``handle`` with every connection; yields its port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            with line:
                try:
                    handle(line)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10.0)


def _tls(files: tuple[Path, Path], headers: str = "") -> Handle:
    """Speaks TLS with a certificate, and answers any request with 200 and ``headers``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)

    def handle(line: socket.socket) -> None:
        with context.wrap_socket(line, server_side=True) as secured:
            if secured.recv(4096):
                secured.sendall(f"HTTP/1.1 200 OK\r\n{headers}Content-Length: 0\r\n\r\n".encode())

    return handle


def _examined(coordinator: Coordinator) -> dict[str, Finding]:
    examination = Examination()
    examine_network(examination, coordinator, new_key())
    return {finding.check: finding for finding in examination.findings}


def _at(port: int, authority: Authority, host: str = "127.0.0.1") -> Coordinator:
    return Coordinator(host, port, authority.pem)


def test_a_coordinator_that_knows_the_site_passes_every_check(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("north",))
    with open_link(world.listener, world.register) as grid:
        examination = Examination()
        examine_network(examination, world.coordinator(grid.port), world.register.keys["north"])
        assert {f.outcome for f in examination.findings} <= {"ok", "warning"}, examination.findings
        certificate = next(f for f in examination.findings if f.check == "certificate")
        assert "TLSv1.3" in certificate.found
        world.register.revoke("north")
        again = Examination()
        examine_network(again, world.coordinator(grid.port), world.register.keys["north"])
        assert again.findings[-1].check == "coordinator"
        assert again.findings[-1].outcome == "problem"
        assert "north was revoked on 2026-01-01" in again.findings[-1].found


def test_a_name_without_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = _examined(_at(443, Authority(tmp_path), "coordinator.invalid"))
    assert found["DNS"].outcome == "problem"
    assert "coordinator.invalid has no address" in found["DNS"].found
    assert {f.outcome for name, f in found.items() if name != "DNS"} == {"not run"}


def test_a_port_that_nobody_listens_on(tmp_path: Path) -> None:
    with _listening(lambda line: None) as port:
        pass
    found = _examined(_at(port, Authority(tmp_path)))
    assert found["port"].outcome == "problem"
    assert "cannot be reached" in found["port"].found
    assert found["clock"].found == "needs certificate, see there"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("name", "is for another name than 127.0.0.1"),
        ("authority", "is not of the federation's authority"),
        ("expired", "has expired, or this machine's clock is ahead"),
        ("future", "this machine's clock is behind"),
    ],
)
def test_a_certificate_that_is_wrong_says_how(tmp_path: Path, fault: str, words: str) -> None:
    authority = Authority(tmp_path)
    given = {
        "name": {"host": "other.example"},
        "expired": {"begins": timedelta(days=-9), "ends": timedelta(days=-1)},
        "future": {"begins": timedelta(days=1)},
    }
    files = authority.server(**given.get(fault, {}))
    trusted = Authority(tmp_path) if fault == "authority" else authority
    with _listening(_tls(files)) as port:
        finding = _examined(_at(port, trusted))["certificate"]
    assert (finding.outcome, words in finding.found) == ("problem", True), finding
    assert finding.fix


@pytest.mark.parametrize(("days", "outcome"), [(9, "warning"), (90, "ok")])
def test_a_certificate_that_ends_soon_is_a_warning(tmp_path: Path, days: int, outcome: str) -> None:
    authority = Authority(tmp_path)
    files = authority.server(ends=timedelta(days=days, hours=12))
    with _listening(_tls(files)) as port:
        finding = _examined(_at(port, authority))["certificate"]
    assert (finding.outcome, f"{days} days left" in finding.found) == (outcome, True), finding


def test_something_that_speaks_no_tls(tmp_path: Path) -> None:
    with _listening(lambda line: line.sendall(b"SSH-2.0-OpenSSH\r\n")) as port:
        finding = _examined(_at(port, Authority(tmp_path)))["certificate"]
    assert (finding.outcome, "does not speak TLS" in finding.found) == ("problem", True), finding


@pytest.mark.parametrize(
    ("ahead", "outcome"), [(0.0, "ok"), (-200.0, "ok"), (60.0, "problem"), (-400.0, "problem")]
)
def test_a_clock_is_compared_with_the_coordinator_s(
    tmp_path: Path, ahead: float, outcome: str
) -> None:
    authority = Authority(tmp_path)
    theirs = datetime.now().astimezone() - timedelta(seconds=ahead)
    headers = f"Date: {format_datetime(theirs)}\r\n"
    with _listening(_tls(authority.server(), headers)) as port:
        finding = _examined(_at(port, authority))["clock"]
    assert finding.outcome == outcome, finding
    assert ("behind" in finding.found) == (ahead < 0)


def test_a_coordinator_that_tells_no_time_is_a_warning(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with _listening(_tls(authority.server())) as port:
        assert _examined(_at(port, authority))["clock"].outcome == "warning"


# ---------------------------------------------------------------------- through a proxy


def _through(target: int, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> Handle:
    """A proxy that connects everybody to ``target``, if its answer is a 200."""

    def handle(line: socket.socket) -> None:
        assert line.recv(4096).startswith(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n")
        line.sendall(answer)
        if b" 200 " not in answer:
            return
        with socket.create_connection(("127.0.0.1", target)) as far:
            back = threading.Thread(target=_pour, args=(far, line), daemon=True)
            back.start()
            _pour(line, far)
            back.join(10.0)

    return handle


def _pour(source: socket.socket, target: socket.socket) -> None:
    try:
        while part := source.recv(4096):
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_a_proxy_that_lets_us_through_is_gone_through(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with (
        _listening(_tls(authority.server())) as port,
        _listening(_through(port)) as proxy,
    ):
        coordinator = Coordinator("127.0.0.1", 1, authority.pem, f"http://127.0.0.1:{proxy}")
        found = _examined(coordinator)
    assert {found[name].outcome for name in ("DNS", "proxy", "port")} == {"ok"}, found
    assert "for 127.0.0.1, by the federation's authority" in found["certificate"].found


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "asks for a password"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "answers 403"),
        (b"hello\r\n\r\n", "does not speak as a proxy"),
    ],
)
def test_a_proxy_that_does_not_is_told_from_a_dead_coordinator(
    tmp_path: Path, answer: bytes, words: str
) -> None:
    with _listening(_through(0, answer)) as proxy:
        pem = Authority(tmp_path).pem
        coordinator = Coordinator("127.0.0.1", 1, pem, f"http://127.0.0.1:{proxy}")
        found = _examined(coordinator)
    assert (found["proxy"].outcome, words in found["proxy"].found) == ("problem", True), found
    assert found["port"].outcome == "not run"


def test_the_tolerances_are_those_of_flower() -> None:
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert doctor_network._AHEAD == SYSTEM_TIME_TOLERANCE
    assert doctor_network._BEHIND == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
