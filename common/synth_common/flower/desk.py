"""The coordinator's book of letters: who was asked what, who may say what about it.

Flower's handlers check that a request is signed by the node it names. They do not check
that the message, the object or the upload session in it is that node's own, that a message
comes with the objects it announces, or what an answer may weigh. That is done here, before
a handler sees the request, and what was answered is noted here after it.

Not public in Flower: ``InMemoryLinkState`` (methods of its ``LinkState`` interface, and that
it keeps the very message it is given), the protobuf requests and responses of the Fleet API,
and ``message_from_proto``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.inflatable.inflatable_object import (
    is_valid_sha256_hash,
    iterate_object_tree,
)
from google.protobuf.message import Message as Proto

from synth_common.flower.spool import SpooledStore

_CHUNK_HEADS = 256  # bytes of head that an object may have beside its content


@dataclass(frozen=True)
class Refusal:
    """Why a request is not passed on: an HTTP status and one sentence for the peer."""

    status: int
    reason: str


@dataclass
class Letter:
    """One message on its way to one site, until it is answered or withdrawn.

    Attributes:
        message: The message without its content.
        objects: Ids of the objects that the site may pull.
        reply: The answer without its content, once announced.
        tree: Ids of the answer's objects, the message itself first.
        session: Flower's upload session of the answer.
        pending: Ids of objects still to come.
        received: Bytes of objects that came.
        complete: Whether the answer is here.
        fault: Why the answer cannot be used; then it counts as complete.
    """

    message: Message
    objects: frozenset[str]
    reply: Message | None = None
    tree: tuple[str, ...] = ()
    session: str = ""
    pending: set[str] = field(default_factory=set)
    received: int = 0
    complete: bool = False
    fault: str | None = None

    @property
    def id(self) -> str:
        """The message's id."""
        return str(self.message.metadata.message_id)

    @property
    def node(self) -> int:
        """The node the message is for."""
        return int(self.message.metadata.dst_node_id)


class Desk:
    """Letters in transit.

    Args:
        state: Flower's state; its object store is ``store``.
        store: Where contents lie.
        run_id: The one run that is served.
        max_reply_bytes: Most bytes that the objects of one answer may have.
    """

    def __init__(
        self, state: InMemoryLinkState, store: SpooledStore, run_id: int, max_reply_bytes: int
    ) -> None:
        self._state, self._store, self._run_id = state, store, run_id
        self._max_reply_bytes = max_reply_bytes
        self._letters: dict[str, Letter] = {}
        self._changed = threading.Condition(threading.RLock())

    def post(self, message: Message, tree: ObjectTree) -> None:
        """Note a message that is stored, or about to be stored, for its site."""
        objects = frozenset(node.object_id for node in iterate_object_tree(tree))
        letter = Letter(message, objects)
        with self._changed:
            self._letters[letter.id] = letter
            self._store.kept.add(letter.id)

    def take(self, ids: Iterable[str], timeout: float | None) -> Letter | None:
        """Wait for a complete answer to one of these messages; None when the time is up."""
        wanted = list(ids)
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                for key in wanted:
                    letter = self._letters.get(key)
                    if letter is not None and letter.complete:
                        return letter
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)

    def close(self, ids: Iterable[str]) -> None:
        """Forget messages and everything stored for them and their answers."""
        with self._changed:
            for key in list(ids):
                letter = self._letters.pop(key, None)
                if letter is not None:
                    self._drop_reply(letter)
                    self._state.delete_messages({key})
                    self._store.kept.discard(key)
                    self._store.delete(key)
            if not self._letters:
                self._state.delete_sessions_in_run(self._run_id)

    def returned(self, node: int) -> None:
        """Give a node that begins anew its unanswered messages once more.

        What it sent of an answer is kept: it may go on with it.
        """
        with self._changed:
            for letter in self._of(node):
                if not letter.complete:
                    letter.message.metadata.delivered_at = ""

    def _drop_reply(self, letter: Letter) -> None:
        for object_id in letter.tree:  # the root first: it holds the others
            self._store.delete(object_id)
        letter.reply, letter.tree, letter.session = None, (), ""
        letter.pending, letter.received = set(), 0

    def _begin_again(self, letter: Letter) -> None:
        """Forget a half-sent answer; Flower's state takes one answer to a message only."""
        metadata = letter.message.metadata
        self._drop_reply(letter)
        self._state.delete_messages({letter.id})
        delivered, metadata.delivered_at = metadata.delivered_at, ""
        self._state.store_message_ins(letter.message)
        metadata.delivered_at = delivered

    def admit(self, node: int, request: Proto) -> Refusal | None:
        """Prepare for a node's request, or say why it is refused.

        Args:
            node: The node whose key signed the request.
            request: A parsed request of the Fleet API.
        """
        if isinstance(request, ActivateNodeRequest):
            # Flower activates nobody whose lease holds; a site that was killed would wait for it.
            self._state.deactivate_node(node)
            return None
        if isinstance(request, PushMessagesRequest):
            return self._against_answer(node, request)
        run_id = getattr(request, "run_id", self._run_id)
        if run_id != self._run_id:
            return Refusal(404, "there is no such run")
        with self._changed:
            if isinstance(request, PushObjectRequest):
                return self._against_object(node, request)
            if isinstance(request, PullObjectRequest):
                own = any(request.object_id in letter.objects for letter in self._of(node))
                return None if own else Refusal(404, "no such object was sent to this site")
            if isinstance(request, ConfirmMessageReceivedRequest):
                own = any(letter.id == request.message_object_id for letter in self._of(node))
                return None if own else Refusal(404, "no such message was sent to this site")
        return None

    def _of(self, node: int) -> Iterator[Letter]:
        return (letter for letter in self._letters.values() if letter.node == node)

    def _against_answer(self, node: int, request: PushMessagesRequest) -> Refusal | None:
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            return Refusal(400, "one message and its object tree are expected")
        message, tree = request.messages_list[0], request.message_object_trees[0]
        if message.metadata.src_node_id != node:
            return Refusal(403, "the message names another sender")
        if message.metadata.run_id != self._run_id:
            return Refusal(404, "there is no such run")
        if message.content.ByteSize() > 0 or message.HasField("error") == message.HasField(
            "content"
        ):
            return Refusal(400, "content travels as objects")
        ids = [part.object_id for part in iterate_object_tree(tree)]
        if not all(map(is_valid_sha256_hash, ids)) or tree.object_id != message.metadata.message_id:
            return Refusal(400, "the object tree is not that of the message")
        with self._changed:
            letter = self._letters.get(message.metadata.reply_to_message_id)
            if letter is None or letter.node != node or letter.complete:
                return Refusal(409, "this answer is not waited for")
            if any(part in self._letters for part in ids):
                return Refusal(400, "the object tree holds a message of the coordinator")
            if letter.reply is not None and letter.tree[0] != tree.object_id:
                self._begin_again(letter)  # a site that was killed answers anew
        return None

    def _against_object(self, node: int, request: PushObjectRequest) -> Refusal | None:
        letter = self._uploading(node, request.session_id)
        if letter is None or request.object_id not in letter.pending:
            return Refusal(409, "no such object is waited for")
        letter.received += len(request.object_content)
        if letter.received > self._max_reply_bytes + _CHUNK_HEADS * len(letter.tree):
            self._spoil(letter, "the answer is larger than max_reply_bytes")
            return Refusal(413, f"the answer is larger than {self._max_reply_bytes} bytes")
        return None

    def _uploading(self, node: int, session: str) -> Letter | None:
        found = (own for own in self._of(node) if session and own.session == session)
        return next(found, None)

    def _spoil(self, letter: Letter, fault: str) -> None:
        """End waiting for an answer that cannot become whole."""
        self._drop_reply(letter)
        letter.fault, letter.complete = fault, True
        letter.message.metadata.delivered_at = "answered"
        self._changed.notify_all()

    def note(self, node: int, request: Proto, response: Proto) -> None:
        """Note what a handler did with a request that was passed on."""
        with self._changed:
            if isinstance(request, ActivateNodeRequest):
                self.returned(node)
            elif isinstance(request, PushMessagesRequest) and isinstance(
                response, PushMessagesResponse
            ):
                self._announced(request, response)
            elif isinstance(request, PushObjectRequest) and isinstance(
                response, PushObjectResponse
            ):
                self._arrived(node, request, response.stored)

    def _announced(self, request: PushMessagesRequest, response: PushMessagesResponse) -> None:
        reply = message_from_proto(request.messages_list[0])
        letter = self._letters.get(reply.metadata.reply_to_message_id)
        if letter is None:
            return
        tree = list(iterate_object_tree(request.message_object_trees[0]))
        letter.reply = reply
        letter.tree = tuple(part.object_id for part in reversed(tree))
        letter.session = response.session_id
        letter.pending = set(response.objects_to_push)
        if letter.tree[0] not in self._store:
            self._spoil(letter, "the answer's dates or addresses are malformed")
            return
        self._settle(letter)

    def _arrived(self, node: int, request: PushObjectRequest, stored: bool) -> None:
        letter = self._uploading(node, request.session_id)
        if letter is None:
            return
        if not stored:
            self._spoil(letter, "an object of the answer is malformed, or the disk is full")
            return
        letter.pending.discard(request.object_id)
        self._settle(letter)

    def _settle(self, letter: Letter) -> None:
        if not letter.pending:
            letter.complete = True
            letter.message.metadata.delivered_at = "answered"
            self._changed.notify_all()
