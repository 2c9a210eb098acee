"""What strangers and enrolled sites can do at the public port, beyond what they should."""

from __future__ import annotations

import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http.client import HTTPSConnection
from pathlib import Path

import httpx
import pytest
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.routing import APIRoute, iter_route_contexts
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import Message as Proto
from link_peers import World, eventually, make_world, new_key, public_pem, questions

from synth_common import messages
from synth_common.errors import FederationError
from synth_common.flower import ConfigRecord, Message, RecordDict, arrays_of, serving, state_of
from synth_common.flower.fleet import ROUTES
from synth_common.flower.gate import HEALTH
from synth_common.flower.link import LinkGrid, open_link


@dataclass
class Peer:
    """Somebody at the port who signs with a key, and sends whatever a test likes."""

    world: World
    port: int
    key: ec.EllipticCurvePrivateKey | None
    node: int = 0
    late: timedelta = timedelta()

    def __post_init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.world.authority.pem.decode())
        self.http = httpx.Client(verify=context, trust_env=False, timeout=20.0)

    def headers(self) -> dict[str, str]:
        if self.key is None:
            return {"content-type": PROTOBUF_MEDIA_TYPE}
        stamp = (datetime.now(UTC) - self.late).isoformat()
        signature = self.key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "content-type": PROTOBUF_MEDIA_TYPE,
            "flwr-timestamp": stamp,
            "flwr-public-key": b64encode(public_pem(self.key)).decode(),
            "flwr-signature": b64encode(signature).decode(),
        }

    def send(self, path: str, body=b"", method: str = "POST") -> httpx.Response:
        url = f"https://127.0.0.1:{self.port}{path}"
        content = body.SerializeToString() if isinstance(body, Proto) else body
        return self.http.request(method, url, content=content, headers=self.headers())

    def fleet(self, name: str, body: Proto) -> httpx.Response:
        return self.send(f"/v1/fleet/{name}", body)

    def activate(self) -> None:
        request = ActivateNodeRequest(public_key=public_pem(self.key), heartbeat_interval=10)
        response = self.fleet("activate-node", request).raise_for_status()
        self.node = ActivateNodeResponse.FromString(response.content).node_id

    @property
    def proto(self) -> NodeProto:
        return NodeProto(node_id=self.node)

    def pull(self) -> tuple[Message, ObjectTree] | None:
        response = self.fleet("pull-messages", PullMessagesRequest(node=self.proto))
        pulled = PullMessagesResponse.FromString(response.raise_for_status().content)
        if not pulled.messages_list:
            return None
        message = message_from_proto(pulled.messages_list[0])
        return message, pulled.message_object_trees[0]

    def announce(self, reply: Message, tree: ObjectTree | None = None) -> httpx.Response:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        request = PushMessagesRequest(
            node=self.proto,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[tree or get_object_tree(reply)],
        )
        return self.fleet("push-messages", request)

    def upload(
        self, reply: Message, announced: httpx.Response, run_id: int
    ) -> list[httpx.Response]:
        session = PushMessagesResponse.FromString(announced.raise_for_status().content)
        objects = get_all_nested_objects(reply)
        return [
            self.push_object(run_id, session.session_id, key, objects[key].deflate())
            for key in session.objects_to_push
        ]

    def push_object(self, run_id: int, session: str, key: str, content: bytes) -> httpx.Response:
        request = PushObjectRequest(
            node=self.proto,
            run_id=run_id,
            object_id=key,
            object_content=content,
            session_id=session,
        )
        return self.fleet("push-object", request)


@dataclass
class Port:
    """A coordinator, a stranger with the authority's certificate, and two enrolled sites."""

    grid: LinkGrid
    world: World
    stranger: Peer
    east: Peer
    north: Peer

    def ask(self, state=None) -> list[str]:
        return list(self.grid.push_messages(questions(self.grid, state or {"w": torch.ones(3)})))


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    yield from _open(tmp_path, {})


def _open(tmp_path: Path, limits: dict) -> Iterator[Port]:
    world = make_world(tmp_path, ("east", "north"), **limits)
    with open_link(world.listener, world.register) as grid:
        peers = [
            Peer(world, grid.port, key)
            for key in (None, world.register.keys["east"], world.register.keys["north"])
        ]
        for peer in peers[1:]:
            peer.activate()
        try:
            yield Port(grid, world, *peers)
        finally:
            for peer in peers:
                peer.http.close()


def _context(port: Port) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=port.world.authority.pem.decode())
    return context


def _reply(message: Message, size: int = 3) -> Message:
    return Message(RecordDict({"arrays": arrays_of({"w": torch.rand(size)})}), reply_to=message)


@lru_cache(maxsize=1)
def _superlink_routes() -> list[tuple[str, str]]:
    """Method and path of everything that Flower's own program would serve."""
    from flwr.superlink.main import create_app

    found = [
        (method, context.route.path)
        for context in iter_route_contexts(create_app().routes)
        if isinstance(context.route, APIRoute)
        for method in context.route.methods
    ]
    assert len(found) > 60
    return [*found, ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/")]


@pytest.mark.parametrize("who", ["stranger", "east"])
def test_no_route_but_the_needed_ones_answers(port: Port, who: str) -> None:
    peer = getattr(port, who)
    kept = {("POST", path) for path in ROUTES} | {("GET", HEALTH), ("HEAD", HEALTH)}
    tried = 0
    for method, path in _superlink_routes():
        if (method, path) not in kept:
            for body in (b"", GetRunRequest(node=peer.proto, run_id=port.grid.run.run_id)):
                status = peer.send(path, body, method).status_code
                assert status in (401, 404), f"{who}: {method} {path} answered {status}"
            tried += 1
    assert tried > 50
    names = ("/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/get-fab")
    assert {path for _, path in _superlink_routes()} >= set(names)


def test_without_a_key_every_fleet_route_is_closed_and_health_is_not(port: Port) -> None:
    for path in ROUTES:
        assert port.stranger.send(path).status_code == 401
    assert port.stranger.send(HEALTH, method="GET").status_code == 200


def test_a_site_registers_and_unregisters_nobody(port: Port) -> None:
    other = public_pem(new_key())
    requests = {
        "register-node": RegisterNodeFleetRequest(public_key=other),
        "unregister-node": UnregisterNodeFleetRequest(node_id=port.north.node),
    }
    for name, request in requests.items():
        assert port.east.fleet(name, request).status_code == 404
    assert set(port.grid.sites.values()) == {"east", "north"}
    assert set(port.grid.online()) == {"east", "north"}


def test_a_request_for_another_node_is_refused(port: Port) -> None:
    port.ask()
    port.east.node = port.north.node
    heartbeat = SendNodeHeartbeatRequest(node=port.north.proto, heartbeat_interval=10)
    assert port.east.fleet("send-node-heartbeat", heartbeat).status_code == 401
    assert port.east.fleet("pull-messages", PullMessagesRequest(node=port.north.proto)).is_error
    assert port.north.pull() is not None  # it is still there


def test_a_reply_in_another_sites_name_is_refused(port: Port) -> None:
    ids = port.ask()
    message, _ = port.north.pull()
    forged = _reply(message)  # its sender is north
    assert port.east.announce(forged).status_code == 403
    # In its own name, but to the other's message.
    forged.metadata.__dict__["_src_node_id"] = port.east.node
    assert port.east.announce(forged).status_code == 409
    assert port.grid.desk.take(ids, 0.2) is None
    honest = _reply(message)
    announced = port.north.announce(honest)
    responses = port.north.upload(honest, announced, port.grid.run.run_id)
    assert all(PushObjectResponse.FromString(r.content).stored for r in responses)
    (answer,) = port.grid.pull_messages(ids)
    assert port.grid.sites[answer.metadata.src_node_id] == "north"
    sent = honest.content.array_records["arrays"]
    assert torch.equal(state_of(answer.content.array_records["arrays"])["w"], state_of(sent)["w"])


def test_anothers_objects_and_messages_are_out_of_reach(port: Port) -> None:
    run_id = port.grid.run.run_id
    (node,) = (node for node, name in port.grid.sites.items() if name == "north")
    content = RecordDict({"arrays": arrays_of({"w": torch.ones(3)})})
    list(port.grid.push_messages([Message(content, node, "train")]))
    message, tree = port.north.pull()
    identity = message.metadata.message_id

    def pull(peer: Peer, key: str) -> httpx.Response:
        request = PullObjectRequest(node=peer.proto, run_id=run_id, object_id=key)
        return peer.fleet("pull-object", request)

    def confirm(peer: Peer, run: int = run_id) -> httpx.Response:
        request = ConfirmMessageReceivedRequest(
            node=peer.proto, run_id=run, message_object_id=identity
        )
        return peer.fleet("confirm-message-received", request)

    for key in (identity, tree.children[0].object_id):
        assert pull(port.east, key).status_code == 404
        found = PullObjectResponse.FromString(pull(port.north, key).raise_for_status().content)
        assert found.object_found
    assert confirm(port.east).status_code == 404
    assert confirm(port.north, run_id + 1).status_code == 404
    assert confirm(port.north).status_code == 200
    # Confirmed is not answered: a site that is killed now can still fetch it again.
    assert PullObjectResponse.FromString(pull(port.north, identity).content).object_available


def test_anothers_upload_is_out_of_reach(port: Port) -> None:
    port.ask()
    run_id = port.grid.run.run_id
    message, _ = port.north.pull()
    reply = _reply(message)
    session = PushMessagesResponse.FromString(port.north.announce(reply).content)
    key = session.objects_to_push[0]
    content = get_all_nested_objects(reply)[key].deflate()
    for name in (session.session_id, ""):
        assert port.east.push_object(run_id, name, key, content).status_code == 409
    assert port.north.push_object(run_id, "", key, content).status_code == 409
    good = port.north.push_object(run_id, session.session_id, key, content)
    assert PushObjectResponse.FromString(good.content).stored


def test_an_answer_is_taken_once(port: Port) -> None:
    ids = port.ask()
    message, _ = port.east.pull()
    reply = _reply(message)
    port.east.upload(reply, port.east.announce(reply), port.grid.run.run_id)
    assert port.east.announce(reply).status_code == 409  # complete, not yet read
    (answer,) = port.grid.pull_messages(ids)
    assert answer.has_content()
    assert port.east.announce(reply).status_code == 409  # read
    assert port.east.announce(_reply(message)).status_code == 409  # another one
    assert list(port.grid.pull_messages(ids)) == []


def test_messages_are_withdrawn_when_another_cannot_be_sent(port: Port) -> None:
    good, bad = questions(port.grid, {"w": torch.ones(3)})
    bad.metadata.dst_node_id = 7
    with pytest.raises(FederationError, match="no enrolled site"):
        list(port.grid.send_and_receive([good, bad], timeout=5.0))
    assert port.east.pull() is None
    assert port.north.pull() is None


def test_a_half_sent_answer_can_be_replaced_by_a_whole_one(port: Port) -> None:
    ids = port.ask()
    run_id = port.grid.run.run_id
    message, _ = port.east.pull()
    abandoned = _reply(message)
    assert port.east.announce(abandoned).is_success
    port.east.activate()
    again, _ = port.east.pull()
    assert again.metadata.message_id == message.metadata.message_id
    reply = _reply(again)
    port.east.upload(reply, port.east.announce(reply), run_id)
    (answer,) = port.grid.pull_messages(ids)
    assert answer.metadata.message_id == reply.object_id
    port.grid.desk.close(ids)
    assert not port.grid._store.store


def test_objects_that_are_not_what_they_say_spoil_the_answer_by_name(port: Port) -> None:
    ids = port.ask()
    run_id = port.grid.run.run_id
    message, _ = port.east.pull()
    reply = _reply(message)
    session = PushMessagesResponse.FromString(port.east.announce(reply).content)
    bad = port.east.push_object(run_id, session.session_id, session.objects_to_push[0], b"x")
    assert not PushObjectResponse.FromString(bad.content).stored
    (answer,) = port.grid.pull_messages(ids)
    assert port.grid.sites[answer.metadata.src_node_id] == "east"
    assert messages.error_code(answer) == "DataError"


def test_an_array_that_unfolds_to_more_than_was_sent_is_refused(tmp_path: Path) -> None:
    for port in _open(tmp_path, {"max_reply_bytes": 2**20}):
        ids = port.ask()
        run_id = port.grid.run.run_id
        message, _ = port.east.pull()
        reply = _reply(message, size=100_000)
        array = reply.content.array_records["arrays"]["w"]
        chunk = array.slice_array()[0]
        array.__dict__["_chunks"] = [chunk] * 1000  # 400 kB, named a thousand times
        responses = port.east.upload(reply, port.east.announce(reply), run_id)
        assert all(PushObjectResponse.FromString(r.content).stored for r in responses)
        (answer,) = port.grid.pull_messages(ids)
        assert messages.error_code(answer) == "DataError"


def test_a_record_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    for port in _open(tmp_path, {"max_reply_bytes": 2**24}):
        ids = port.ask()
        message, _ = port.east.pull()
        numbers = ConfigRecord({"numbers": [1] * 1_100_000})  # a byte each on the way
        reply = Message(RecordDict({"values": numbers}), reply_to=message)
        port.east.upload(reply, port.east.announce(reply), port.grid.run.run_id)
        (answer,) = port.grid.pull_messages(ids)
        assert messages.error_code(answer) == "DataError"


def test_a_stranger_keeps_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_HEAD_SECONDS", 0.5, raising=False)
    for port in _open(tmp_path, {}):
        context = _context(port)
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


def test_a_site_keeps_its_connection_between_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_HEAD_SECONDS", 0.5, raising=False)
    for port in _open(tmp_path, {}):
        headers = port.east.headers()
        line = HTTPSConnection("127.0.0.1", port.grid.port, context=_context(port), timeout=10.0)
        line.connect()
        kept = line.sock
        for _ in range(3):
            line.request("GET", HEALTH, headers=headers)
            assert line.getresponse().read() == b""
            time.sleep(0.8)
        assert line.sock is kept
        line.close()


def test_a_key_has_one_node_however_it_is_spelt(port: Port) -> None:
    headers, spelt = port.east.headers(), public_pem(port.east.key)
    for other in (spelt + b"\n", b"\n" + spelt, spelt.strip()):
        own = headers | {"flwr-public-key": b64encode(other).decode()}
        request = PullMessagesRequest(node=port.east.proto).SerializeToString()
        url = f"https://127.0.0.1:{port.grid.port}/v1/fleet/pull-messages"
        assert port.east.http.post(url, content=request, headers=own).status_code == 200


def test_a_key_of_an_unknown_kind_is_no_server_error(port: Port) -> None:
    # SubjectPublicKeyInfo of an algorithm that nobody knows: 1.2.3.4.5
    der = bytes.fromhex("3010300606042a0304050306003003020101")
    strange = b"-----BEGIN PUBLIC KEY-----\n" + b64encode(der) + b"\n-----END PUBLIC KEY-----\n"
    own = port.east.headers() | {"flwr-public-key": b64encode(strange).decode()}
    url = f"https://127.0.0.1:{port.grid.port}{HEALTH}"
    assert port.east.http.get(url, headers=own).status_code == 401


def test_an_answer_above_the_limit_is_refused_and_the_round_need_not_wait(tmp_path: Path) -> None:
    for port in _open(tmp_path, {"max_reply_bytes": 2**20}):
        ids = port.ask()
        message, _ = port.east.pull()
        reply = _reply(message, size=2_000_000)
        statuses = [
            response.status_code
            for response in port.east.upload(reply, port.east.announce(reply), port.grid.run.run_id)
        ]
        assert 413 in statuses
        assert statuses[-1] == 409
        (answer,) = port.grid.pull_messages(ids)
        assert messages.error_code(answer) == "DataError"


def test_large_requests_are_refused_before_they_are_read(tmp_path: Path) -> None:
    for port in _open(tmp_path, {"max_request_bytes": 10_000}):
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
    reply = _reply(message)
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


@pytest.mark.parametrize("late", [timedelta(hours=1), timedelta(minutes=-1)])
def test_an_old_or_future_signature_is_refused_as_a_matter_of_the_clock(
    port: Port, late: timedelta
) -> None:
    port.east.late = late
    response = port.east.fleet("pull-messages", PullMessagesRequest(node=port.east.proto))
    assert (response.status_code, response.json()["detail"]) == (401, "clock")


def test_only_the_keys_owner_learns_why_it_is_turned_away(port: Port) -> None:
    port.world.register.revoke("east")
    told = port.east.fleet("pull-messages", PullMessagesRequest(node=port.east.proto))
    assert told.status_code == 403
    assert told.json()["refusal"] == "east was revoked on 2026-01-01"
    # Somebody who knows the public key but cannot sign with it learns nothing.
    forged = {**port.east.headers(), "flwr-signature": b64encode(b"x" * 70).decode()}
    url = f"https://127.0.0.1:{port.grid.port}/v1/fleet/pull-messages"
    answer = port.stranger.http.post(url, headers=forged)
    assert answer.status_code == 401
    assert "revoked" not in answer.text
    assert port.north.pull() is None


def test_a_revoked_site_is_turned_away_in_the_middle_of_an_upload(port: Port) -> None:
    port.ask()
    message, _ = port.east.pull()
    reply = _reply(message)
    session = PushMessagesResponse.FromString(port.east.announce(reply).content)
    port.world.register.revoke("east")
    key = session.objects_to_push[0]
    content = get_all_nested_objects(reply)[key].deflate()
    response = port.east.push_object(port.grid.run.run_id, session.session_id, key, content)
    assert response.status_code == 403


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
        line = HTTPSConnection("127.0.0.1", port.grid.port, context=_context(port), timeout=20.0)
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
