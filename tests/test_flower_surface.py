"""What strangers and enrolled sites can do at the public port, beyond what they should."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import httpx
import pytest
import torch
from fastapi.routing import APIRoute, iter_route_contexts
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectResponse,
)
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from link_peers import new_key, public_pem, questions
from surface_peers import Peer, Port, open_port, reply_to

from synth_common.errors import FederationError
from synth_common.flower import Message, RecordDict, arrays_of, state_of
from synth_common.flower.fleet import ROUTES
from synth_common.flower.gate import HEALTH


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    yield from open_port(tmp_path, {})


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
    asked, tried = GetRunRequest(node=peer.proto, run_id=port.grid.run.run_id), 0
    for method, path in _superlink_routes():
        if (method, path) not in kept:
            status = peer.send(path, asked if method == "POST" else b"", method).status_code
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
    forged = reply_to(message)  # its sender is north
    assert port.east.announce(forged).status_code == 403
    # In its own name, but to the other's message.
    forged.metadata.__dict__["_src_node_id"] = port.east.node
    assert port.east.announce(forged).status_code == 409
    assert port.grid.desk.take(ids, 0.2) is None
    honest = reply_to(message)
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
    reply = reply_to(message)
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
    reply = reply_to(message)
    port.east.upload(reply, port.east.announce(reply), port.grid.run.run_id)
    assert port.east.announce(reply).status_code == 409  # complete, not yet read
    (answer,) = port.grid.pull_messages(ids)
    assert answer.has_content()
    assert port.east.announce(reply).status_code == 409  # read
    assert port.east.announce(reply_to(message)).status_code == 409  # another one
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
    abandoned = reply_to(message)
    assert port.east.announce(abandoned).is_success
    port.east.activate()
    again, _ = port.east.pull()
    assert again.metadata.message_id == message.metadata.message_id
    reply = reply_to(again)
    port.east.upload(reply, port.east.announce(reply), run_id)
    (answer,) = port.grid.pull_messages(ids)
    assert answer.metadata.message_id == reply.object_id
    port.grid.desk.close(ids)
    assert not port.grid._store.store


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
    reply = reply_to(message)
    session = PushMessagesResponse.FromString(port.east.announce(reply).content)
    port.world.register.revoke("east")
    key = session.objects_to_push[0]
    content = get_all_nested_objects(reply)[key].deflate()
    response = port.east.push_object(port.grid.run.run_id, session.session_id, key, content)
    assert response.status_code == 403
