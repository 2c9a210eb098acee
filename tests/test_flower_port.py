"""What the public port bears: sizes, connections, bodies, and requests that are none."""

from __future__ import annotations

import resource
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPSConnection
from pathlib import Path

import httpx
import pytest
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ObjectTree,
    PushObjectResponse,
)
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from link_peers import eventually
from surface_peers import Peer, Port, open_port, reply_to, tls_context

from synth_common import messages
from synth_common.flower import ConfigRecord, Message, RecordDict, serving, spool
from synth_common.flower.fleet import ROUTES
from synth_common.flower.gate import HEALTH


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    yield from open_port(tmp_path, {})


def test_objects_that_are_not_what_they_say_spoil_the_answer_by_name(port: Port) -> None:
    ids = port.ask()
    run_id = port.grid.run.run_id
    message, _ = port.east.pull()
    reply = reply_to(message)
    session = PushMessagesResponse.FromString(port.east.announce(reply).content)
    bad = port.east.push_object(run_id, session.session_id, session.objects_to_push[0], b"x")
    assert not PushObjectResponse.FromString(bad.content).stored
    (answer,) = port.grid.pull_messages(ids)
    assert port.grid.sites[answer.metadata.src_node_id] == "east"
    assert messages.error_code(answer) == "DataError"


def test_an_array_that_unfolds_to_more_than_was_sent_is_refused(tmp_path: Path) -> None:
    for port in open_port(tmp_path, {"max_reply_bytes": 2**20}):
        ids = port.ask()
        run_id = port.grid.run.run_id
        message, _ = port.east.pull()
        reply = reply_to(message, size=100_000)
        array = reply.content.array_records["arrays"]["w"]
        chunk = array.slice_array()[0]
        array.__dict__["_chunks"] = [chunk] * 1000  # 400 kB, named a thousand times
        responses = port.east.upload(reply, port.east.announce(reply), run_id)
        assert all(PushObjectResponse.FromString(r.content).stored for r in responses)
        (answer,) = port.grid.pull_messages(ids)
        assert messages.error_code(answer) == "DataError"


def test_a_record_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_RECORD_BYTES", 2**14)  # a large one takes long to make
    for port in open_port(tmp_path, {"max_reply_bytes": 2**24}):
        ids = port.ask()
        message, _ = port.east.pull()
        numbers = ConfigRecord({"numbers": [1] * 20_000})  # a byte each on the way
        reply = Message(RecordDict({"values": numbers}), reply_to=message)
        port.east.upload(reply, port.east.announce(reply), port.grid.run.run_id)
        (answer,) = port.grid.pull_messages(ids)
        assert messages.error_code(answer) == "DataError"


def test_a_stranger_keeps_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_HEAD_SECONDS", 0.5, raising=False)
    for port in open_port(tmp_path, {}):
        context = tls_context(port)
        asked = b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"
        for sent in (b"", b"GET /health HTTP/1.1\r\nHost:", asked):
            began = time.monotonic()
            line = socket.create_connection(("127.0.0.1", port.grid.port), timeout=10.0)
            with context.wrap_socket(line, server_hostname="127.0.0.1") as secured:
                secured.sendall(sent)
                with suppress(OSError):  # an abort says no farewell
                    while secured.recv(4096):
                        pass
            assert time.monotonic() - began < 8.0


def test_who_speaks_no_tls_keeps_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_HANDSHAKE_SECONDS", 0.5)
    for port in open_port(tmp_path, {}):
        began = time.monotonic()
        with (
            socket.create_connection(("127.0.0.1", port.grid.port), timeout=20.0) as line,
            suppress(ConnectionError),
        ):
            assert line.recv(1) == b""
        assert time.monotonic() - began < 15.0


def test_a_port_that_ran_out_of_files_goes_on_when_there_are_some_again(
    port: Port, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever opens connections until nothing is left stops nobody for good."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name.name) for name in Path("/proc/self/fd").iterdir())
    lines: list[socket.socket] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    try:
        with suppress(OSError):  # too many open files
            while True:
                lines.append(socket.create_connection(("127.0.0.1", port.grid.port), timeout=5.0))
        eventually(lambda: "out of system resource" in caplog.text)
    finally:
        for line in lines:
            line.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    port.ask()
    assert port.east.pull() is not None
    newcomer = Peer(port.world, port.grid.port, port.north.key, port.north.node)
    assert newcomer.pull() is not None
    newcomer.http.close()


def test_a_site_keeps_its_connection_between_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_HEAD_SECONDS", 0.5, raising=False)
    for port in open_port(tmp_path, {}):
        headers = port.east.headers()
        line = HTTPSConnection("127.0.0.1", port.grid.port, context=tls_context(port), timeout=10.0)
        line.connect()
        kept = line.sock
        for _ in range(3):
            line.request("GET", HEALTH, headers=headers)
            assert line.getresponse().read() == b""
            time.sleep(0.8)
        assert line.sock is kept
        line.close()


def test_an_answer_above_the_limit_is_refused_and_the_round_need_not_wait(tmp_path: Path) -> None:
    for port in open_port(tmp_path, {"max_reply_bytes": 2**20}):
        ids = port.ask()
        message, _ = port.east.pull()
        reply = reply_to(message, size=2_000_000)
        statuses = [
            response.status_code
            for response in port.east.upload(reply, port.east.announce(reply), port.grid.run.run_id)
        ]
        assert 413 in statuses
        assert statuses[-1] == 409
        (answer,) = port.grid.pull_messages(ids)
        assert messages.error_code(answer) == "DataError"


def test_large_requests_are_refused_before_they_are_read(tmp_path: Path) -> None:
    for port in open_port(tmp_path, {"max_request_bytes": 10_000}):
        sent = 0

        def stream() -> Iterator[bytes]:
            nonlocal sent
            while sent < 500 * 2**20:
                sent += 65_536
                yield bytes(65_536)

        # A length that is stated is refused at once; no byte of the body was sent.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=port.world.authority.pem.decode())
        line = HTTPSConnection("127.0.0.1", port.grid.port, context=context, timeout=10.0)
        line.putrequest("POST", "/v1/fleet/push-object")
        for name, value in {**port.east.headers(), "content-length": str(2**30)}.items():
            line.putheader(name, value)
        line.endheaders()
        assert line.getresponse().status == 413
        line.close()
        # One that is not stated is cut off soon after the limit.
        url = f"https://127.0.0.1:{port.grid.port}/v1/fleet/push-object"
        try:
            with port.east.http.stream(
                "POST", url, headers=port.east.headers(), content=stream()
            ) as cut:
                assert cut.status_code == 413
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            pass  # the connection was closed while we were still sending
        assert sent < 100 * 2**20
        assert port.east.pull() is None  # the port is well


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_garbage_is_a_bad_request(port: Port, path: str) -> None:
    garbage = b"\xff" * 50
    assert port.east.send(path, garbage).status_code == 400


def test_malformed_but_parsable_requests_are_no_server_errors(port: Port) -> None:
    port.ask()
    message, _ = port.east.pull()
    run_id = port.grid.run.run_id
    reply = reply_to(message)
    tree = get_object_tree(reply)
    strange = ObjectTree(object_id="no hash", children=[tree])
    full = PushMessagesRequest(
        node=port.east.proto, messages_list=[message_to_proto(reply)], message_object_trees=[tree]
    )
    outgoing = ObjectTree(object_id=reply.object_id)
    outgoing.children.add(object_id=message.metadata.message_id)
    statuses = [
        port.east.fleet("push-messages", PushMessagesRequest(node=port.east.proto)).status_code,
        port.east.fleet("push-messages", full).status_code,
        port.east.announce(reply, strange).status_code,
        port.east.announce(reply, ObjectTree(object_id="0" * 64)).status_code,
        port.east.announce(reply, outgoing).status_code,
        port.east.push_object(run_id + 1, "s", "k", b"").status_code,
        port.east.fleet(
            "send-node-heartbeat",
            SendNodeHeartbeatRequest(node=port.east.proto, heartbeat_interval=0.1),
        ).status_code,
    ]
    assert all(400 <= status < 500 for status in statuses), statuses


def test_plain_http_gets_nothing(port: Port) -> None:
    with (
        pytest.raises(httpx.TransportError),
        httpx.Client(trust_env=False, timeout=5.0) as plain,
    ):
        plain.get(f"http://127.0.0.1:{port.grid.port}/health")


def test_a_body_that_does_not_come_is_given_up(port: Port, monkeypatch) -> None:
    from synth_common.flower import gate

    monkeypatch.setattr(gate, "_BODY_SECONDS", 0.5)

    def slow() -> Iterator[bytes]:
        yield b"a"
        time.sleep(2.0)
        yield b"b"

    url = f"https://127.0.0.1:{port.grid.port}/v1/fleet/pull-messages"
    try:
        status = port.east.http.post(url, headers=port.east.headers(), content=slow()).status_code
    except httpx.TransportError:
        status = 408  # closed while we were sending
    assert status == 408


def test_a_site_has_a_bounded_number_of_requests_at_a_time(port: Port) -> None:
    body = PullMessagesRequest(node=port.east.proto).SerializeToString()
    lines = []
    for _ in range(16):  # every one announces a body and keeps it back
        line = HTTPSConnection("127.0.0.1", port.grid.port, context=tls_context(port), timeout=20.0)
        line.putrequest("POST", "/v1/fleet/pull-messages")
        for name, value in {**port.east.headers(), "content-length": str(len(body))}.items():
            line.putheader(name, value)
        line.endheaders()
        lines.append(line)

    def pulled(peer: Peer) -> int:
        return peer.fleet("pull-messages", PullMessagesRequest(node=peer.proto)).status_code

    eventually(lambda: pulled(port.east) == 503)
    assert pulled(port.north) == 200
    for line in lines:
        line.send(body)
        assert line.getresponse().status == 200
        line.close()
    assert pulled(port.east) == 200
