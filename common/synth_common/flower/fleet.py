"""Flower's Fleet API as the coordinator offers it: the eight requests that a node needs.

Flower's handlers do the work. Around them stands what they leave to others: that the node
in a request is the one whose key signed it, and, by the desk, that the message, the object
or the session in it is that node's own. They are called without Flower's web application:
its middlewares hold every body several times over, and it mounts more than is needed. What
is not in ``ROUTES`` does not exist here: registering a node is enrolment, and no code
travels.

Not public in Flower: ``fleet_handlers``, the requests, and the table of errors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.superlink.servicer.fleet import fleet_handlers
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto

from synth_common.flower.desk import Desk, Refusal

_LOG = logging.getLogger(__name__)
_Handler = Callable[[Proto, InMemoryLinkState], Proto]


@dataclass(frozen=True)
class _Route:
    kind: type[Proto]
    handler: _Handler


def _pull_messages(request: Proto, state: InMemoryLinkState) -> Proto:
    return fleet_handlers.pull_messages(request, state, state.object_store)


def _confirm(request: Proto, state: InMemoryLinkState) -> Proto:
    return fleet_handlers.confirm_message_received(request, state, state.object_store)


ROUTES = {
    f"/v1/fleet/{name}": _Route(kind, handler)
    for name, kind, handler in (
        ("activate-node", ActivateNodeRequest, fleet_handlers.activate_node),
        ("deactivate-node", DeactivateNodeRequest, fleet_handlers.deactivate_node),
        ("send-node-heartbeat", SendNodeHeartbeatRequest, fleet_handlers.send_node_heartbeat),
        ("pull-messages", PullMessagesRequest, _pull_messages),
        ("push-messages", PushMessagesRequest, fleet_handlers.push_messages),
        ("pull-object", PullObjectRequest, fleet_handlers.pull_object),
        ("push-object", PushObjectRequest, fleet_handlers.push_object),
        ("confirm-message-received", ConfirmMessageReceivedRequest, _confirm),
    )
}
"""All that a node needs, by path."""


class Fleet:
    """Answers requests of nodes.

    Args:
        state: Flower's state.
        desk: Knows what is whose.
    """

    def __init__(self, state: InMemoryLinkState, desk: Desk) -> None:
        self._state, self._desk = state, desk

    def answer(self, path: str, key: bytes, body: bytes) -> bytes | Refusal:
        """The serialised response to a request, or why there is none.

        Args:
            path: One of ``ROUTES``.
            key: The public key (PEM) that signed the request.
            body: The serialised request.
        """
        route = ROUTES[path]
        try:
            request = route.kind.FromString(body)
        except DecodeError:
            return Refusal(400, "the body is not the protobuf message of this path")
        node = self._state.get_node_id_by_public_key(key)
        if node is None or not _signed_by_its_node(request, node, key):
            return Refusal(401, "the request names another node than the key's")
        refusal = self._desk.admit(node, request)
        if refusal is not None:
            return refusal
        try:
            response = route.handler(request, self._state)
        except FlowerError as err:
            known = API_ERROR_MAP[err.code]
            return Refusal(known.http_status_code, known.public_message)
        except Exception:  # a fault of ours or of Flower's; a peer learns nothing of it
            _LOG.exception("request %s failed", path)
            return Refusal(500, "internal error")
        self._desk.note(node, request, response)
        answered: bytes = response.SerializeToString()
        return answered


def _signed_by_its_node(request: Proto, node: int, key: bytes) -> bool:
    """Whether the node that a request speaks of is the one that signed it."""
    if isinstance(request, ActivateNodeRequest):
        return bool(request.public_key == key)
    if isinstance(request, DeactivateNodeRequest):
        return bool(request.node_id == node)
    return bool(request.node.node_id == node)
