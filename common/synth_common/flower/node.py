"""A site's end of a federation over a network.

The node dials out, asks for messages, runs the ClientApp that is installed here, in this
process, and sends the answers. It fetches no code and starts no other process. Whatever
happens to the network, it comes back: a finished answer is kept in hand until it is
delivered or the coordinator no longer waits for it.

The coordinator is not trusted with this machine's memory: what a message may weigh is said by
whoever runs the node, and nothing is unfolded that was not weighed.

Not public in Flower: the functions that move objects, and the conversions between messages
and protobuf.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    is_valid_sha256_hash,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_objects,
    push_objects,
)

from synth_common import messages
from synth_common.errors import ConfigError, DataError
from synth_common.flower.connection import (
    INTERVALS_PER_LEASE,
    Coordinator,
    FleetClient,
    Heartbeats,
    knock,
    raise_refusal,
)
from synth_common.flower.spool import ContentReader, HeldObjects
from synth_common.flower.trouble import Trouble, explain

__all__ = ["Coordinator", "NodeEvents", "Pace", "knock", "serve_node"]

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between attempts to come back
_LEASE = (20.0, 3600.0)  # Flower takes intervals from 10 to 1800 s
_NOT_WAITED_FOR = (404, 409)  # the answer, or what it answers, is gone
_PULL_TRIES = 4  # for an object that is announced and not there, with pauses of 1, 2 and 4 s
_MOST_MESSAGE = 2**30
_HEADS = 4 * 2**20  # bytes of a message beside its tensors
_MOST_OBJECTS = 50_000


class NodeEvents(Protocol):
    """What a node tells whoever runs it."""

    def connected(self) -> None:
        """The coordinator knows this node as online."""

    def disconnected(self, reason: str) -> None:
        """The connection is lost, for a reason that an operator can act on; it is retried."""

    def asked(self, message: Message) -> None:
        """A message came; work on it begins."""

    def answered(self, message: Message, reply: Message) -> None:
        """The coordinator has the whole answer."""

    def unwanted(self, message: Message) -> None:
        """The coordinator does not take the answer, or does not wait for it any more."""


@dataclass(frozen=True)
class Pace:
    """How a node spends its time.

    Attributes:
        poll_seconds: Between two questions for a message.
        lease_seconds: How long the coordinator takes this node for online after its last
            sign of life, from 20 to 3600 s.
        timeout_seconds: How long a connection may be silent before it is given up.
        most_bytes: Says at each message what its tensors may weigh; a larger one is answered
            with an error.
    """

    poll_seconds: float = 0.5
    lease_seconds: float = 60.0
    timeout_seconds: float = 30.0
    most_bytes: Callable[[], int] = lambda: _MOST_MESSAGE

    def __post_init__(self) -> None:
        if not _LEASE[0] <= self.lease_seconds <= _LEASE[1]:
            raise ConfigError(
                f"lease_seconds = {self.lease_seconds}: from {_LEASE[0]:.0f} to {_LEASE[1]:.0f}"
            )
        for name in ("poll_seconds", "timeout_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be more than 0")


_PACE = Pace()


def serve_node(
    coordinator: Coordinator,
    key: ec.EllipticCurvePrivateKey,
    app: ClientApp,
    events: NodeEvents,
    stopping: Callable[[], bool],
    pace: Pace = _PACE,
) -> None:
    """Take part in a federation until told to stop.

    Args:
        coordinator: Whom to dial.
        key: This site's key; its public half is enrolled.
        app: Answers the messages.
        events: Is told what goes on, from this thread.
        stopping: Asked between messages and while waiting; True ends the loop.
        pace: Polls, lease and time-outs.

    Raises:
        RefusedError: The coordinator turns this site away by name.
        ConfigError: The authority's certificate cannot be used.
    """
    with FleetClient(coordinator, key, pace.timeout_seconds) as client:
        node = _Serving(client, app, events, pace)
        wait = _FIRST_WAIT
        try:
            while not stopping():
                try:
                    idle = node.step()
                    wait = _FIRST_WAIT
                    if idle:
                        _rest(pace.poll_seconds, stopping)
                except (httpx.HTTPError, ObjectPullError, ObjectPushError) as err:
                    raise_refusal(err)
                    node.lost(explain(err, coordinator.address, coordinator.proxy))
                    _rest(wait * random.uniform(0.5, 1.0), stopping)
                    wait = min(2 * wait, _LONGEST_WAIT)
            node.leave()
        finally:
            node.abandon()


def _rest(seconds: float, stopping: Callable[[], bool]) -> None:
    """Sleep, but not through a wish to stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stopping():
        time.sleep(min(left, 0.25))


@dataclass
class _Answer:
    """A finished answer that is not delivered yet."""

    message: Message
    reply: Message
    seconds: float


def _head(pulled: PullMessagesResponse) -> tuple[Message, ObjectTree]:
    """The first message, without its content, and what its content is made of.

    Raises:
        httpx.RemoteProtocolError: What came is no message; it may come anew.
    """
    try:
        return message_from_proto(pulled.messages_list[0]), pulled.message_object_trees[0]
    except (ValueError, IndexError, TypeError, KeyError) as err:
        raise httpx.RemoteProtocolError("what the coordinator sent is no message") from err


class _Scale:
    """Weighs what comes of one message, in whatever threads it comes."""

    def __init__(self, most_bytes: int) -> None:
        self._left, self._lock = most_bytes, threading.Lock()

    def weigh(self, content: bytes) -> bytes:
        """The content. Raises DataError when it is too much."""
        with self._lock:
            self._left -= len(content)
            if self._left < 0:
                raise DataError("the coordinator's message is larger than this site allows")
        return content


class _Serving:
    """The loop's state: whether the coordinator knows this node, and the answer in hand."""

    def __init__(self, client: FleetClient, app: ClientApp, events: NodeEvents, pace: Pace) -> None:
        self._client, self._app, self._events = client, app, events
        self._lease, self._most_bytes = pace.lease_seconds, pace.most_bytes
        self._node: Node | None = None
        self._heartbeats: Heartbeats | None = None
        self._answer: _Answer | None = None

    def step(self) -> bool:
        """Do the next thing; True when there was nothing to do.

        Raises:
            httpx.HTTPError: The connection failed. The step can be taken again.
        """
        if self._node is None:
            self._activate()
        elif self._answer is not None:
            self._deliver(self._answer)
        else:
            return not self._pull()
        return False

    def lost(self, trouble: Trouble) -> None:
        """Note that the coordinator may no longer know this node, nor what it gave it."""
        self._forget_node()
        self._events.disconnected(str(trouble))

    def leave(self) -> None:
        """Tell the coordinator that this node goes; whether it hears it does not matter."""
        node = self._node
        self._forget_node()  # first: a heartbeat after the farewell would take it back
        if node is not None:
            with suppress(httpx.HTTPError):
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))

    def abandon(self) -> None:
        """Give no more signs of life; waits for nothing."""
        if self._heartbeats is not None:
            self._heartbeats.stop()

    def _forget_node(self) -> None:
        self._node = None
        if self._heartbeats is not None:
            self._heartbeats.stop()
            self._heartbeats.join()
            self._heartbeats = None

    def _activate(self) -> None:
        request = ActivateNodeRequest(
            public_key=self._client.public_key,
            heartbeat_interval=self._lease / INTERVALS_PER_LEASE,
        )
        self._node = Node(node_id=self._client.ActivateNode(request).node_id)
        self._heartbeats = Heartbeats(self._client, self._node, self._lease)
        self._events.connected()

    def _pull(self) -> bool:
        """Take a message and work on it; False when there is none."""
        node = self._node
        pulled = self._client.PullMessages(PullMessagesRequest(node=node))
        if not pulled.messages_list or node is None:
            return False
        began = time.perf_counter()
        message, tree = _head(pulled)
        try:
            message = self._fetch(message, tree)
        except DataError as err:
            reply = messages.error_reply(message, err)
        else:
            self._events.asked(message)
            began = time.perf_counter()
            reply = self._run(message, node)
        self._answer = _Answer(message, reply, time.perf_counter() - began)
        return True

    def _fetch(self, head: Message, tree: ObjectTree) -> Message:
        """A message with its content.

        Raises:
            DataError: The objects are no message, or weigh too much.
            ObjectPullError: One that was announced does not come.
        """
        node, run_id = self._node or Node(), head.metadata.run_id
        ids = [part.object_id for part in iterate_object_tree(tree)]
        if len(ids) > _MOST_OBJECTS or not all(map(is_valid_sha256_hash, ids)):
            raise DataError("the coordinator's message is no tree of objects, or too large a one")
        most_bytes = self._most_bytes()
        scale = _Scale(most_bytes + _HEADS)
        pull = make_pull_object_fn_protobuf(self._client.PullObject, node, run_id)
        found = pull_objects(
            ids, lambda key: scale.weigh(pull(key)), max_tries_per_object=_PULL_TRIES
        )
        confirm = make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, node, run_id
        )
        confirm(tree.object_id)
        content = ContentReader(HeldObjects(found), most_bytes).read(tree.object_id)
        message = make_message(head.metadata, content=content)
        message.metadata.__dict__["_message_id"] = tree.object_id  # an object cannot hold it
        return message

    def _run(self, message: Message, node: Node) -> Message:
        context = Context(
            run_id=message.metadata.run_id,
            node_id=node.node_id,
            node_config={},
            state=RecordDict(),
            run_config={},
        )
        try:
            return self._app(message, context)
        except Exception as err:  # whatever it is, its text must stay here
            return messages.error_reply(message, err)

    def _deliver(self, answer: _Answer) -> None:
        """Send the answer in hand; it is put down once the coordinator has it or wants it not."""
        node = self._node
        if node is None:
            return
        try:
            self._push(answer, node)
        except httpx.HTTPStatusError as err:
            status = err.response.status_code
            if 400 <= status < 500 and status != httpx.codes.UNAUTHORIZED:
                self._answer = None  # it will not be taken at the next attempt either
                self._events.unwanted(answer.message)
            if status not in _NOT_WAITED_FOR:
                raise
            return
        self._answer = None
        self._events.answered(answer.message, answer.reply)

    def _push(self, answer: _Answer, node: Node) -> None:
        reply = answer.reply
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[answer.seconds],
                )
            )
            push_objects(
                get_all_nested_objects(reply),
                make_push_object_fn_protobuf(
                    self._client.PushObject, node, reply.metadata.run_id, response.session_id
                ),
                object_ids_to_push=set(response.objects_to_push),
            )
