"""Peers at a coordinator's public port who send whatever a test likes."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (
    ObjectTree,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import Message as Proto
from link_peers import World, make_world, public_pem, questions

from synth_common.flower import Message, RecordDict, arrays_of
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


def open_port(tmp_path: Path, limits: dict) -> Iterator[Port]:
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


def tls_context(port: Port) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=port.world.authority.pem.decode())
    return context


def reply_to(message: Message, size: int = 3) -> Message:
    return Message(RecordDict({"arrays": arrays_of({"w": torch.rand(size)})}), reply_to=message)
