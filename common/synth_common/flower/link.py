"""The coordinator's end of a federation over a network.

Flower's SuperLink state and Fleet API run in this process, behind TLS and the gate, on one
port. The coordinator reaches the state through a grid, in process: the Control and Runtime
APIs of Flower are served nowhere, so there is no run to start, no token to steal and no
code to send.

Not public in Flower: ``InMemoryLinkState``, ``NoOpFederationManager``, the walk over a
message's objects, and the run's bookkeeping in ``_open_run``.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Protocol

from flwr.app import Message
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

from synth_common import messages as words
from synth_common.errors import ConfigError, DataError, FederationError, StorageError
from synth_common.flower.desk import Desk, Letter
from synth_common.flower.fleet import Fleet
from synth_common.flower.gate import Gate, Judge
from synth_common.flower.records import MessageGrid, quiet_logs
from synth_common.flower.serving import Listener, bound, serving
from synth_common.flower.spool import ContentReader, Spool, SpooledStore

__all__ = ["Doorkeeper", "LinkGrid", "Listener", "open_link"]

INSTALLED = "synthward/installed"  # the name of the bundle, and all there is of it
_FOREVER = 10 * 365 * 86400.0  # see LinkGrid: a deadline is not a time to live
_PASSING_BYTES = 4 * 2**20  # a body that comes slowly holds no more of the disk than that
_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 2**20  # mallopt(3)
_M_ARENA_MAX, _ARENAS = -8, 2


class Doorkeeper(Judge, Protocol):
    """Knows who is enrolled, and under which key."""

    def names(self) -> Mapping[str, bytes]:
        """Enrolled now: the public key (PEM, SubjectPublicKeyInfo) of every site, by name."""
        ...


class _RevokedError(FederationError):
    """A message is addressed to a site that was enrolled and is no more."""


class _Roster:
    """Nodes of Flower's state for the sites that are enrolled, and when each was heard."""

    def __init__(self, state: InMemoryLinkState, doorkeeper: Doorkeeper) -> None:
        self._state, self._doorkeeper = state, doorkeeper
        self._heard: dict[str, float] = {}
        self._names: dict[int, str] = {}  # of every node that ever was, also of revoked sites
        self._lock = threading.Lock()

    def heard(self, name: str, key: bytes) -> None:
        """Note a request; a site that was enrolled a moment ago gets its node."""
        self._heard[name] = time.monotonic()
        self._node(name, key)

    def _node(self, name: str, key: bytes) -> int:
        with self._lock:
            node = self._state.get_node_id_by_public_key(key)
            if node is None:
                node = self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0, name=name)
                # Flower keeps no message for a node that was never there: it has been, now.
                self._state.activate_node(node, 0)
                self._state.deactivate_node(node)
            self._names[node] = name
            return node

    def sites(self) -> dict[int, str]:
        """Site name by node id, of all enrolled sites, in the order of names."""
        keys = sorted(self._doorkeeper.names().items())
        return {self._node(name, key): name for name, key in keys}

    def named(self, node: int) -> str | None:
        """The site that has or had this node; None where nobody had."""
        return self._names.get(node)

    def online(self) -> dict[str, float]:
        """Seconds since each site was heard, of those whose lease holds."""
        sites = self.sites()
        now = time.monotonic()
        found = self._state.get_node_info(node_ids=list(sites), statuses=[NodeStatus.ONLINE])
        names = sorted(sites[int(node.node_id)] for node in found)
        return {name: now - self._heard[name] for name in names if name in self._heard}


class LinkGrid(MessageGrid):
    """Flower's Grid over the network.

    A message waits for its site as long as the caller waits for the answer: whoever is
    offline may come back. The time to live that a message names is not used, because it
    compares the clocks of two machines, and a clock that jumps would throw messages away;
    the caller's timeout is kept by this machine's steady clock.
    """

    def __init__(
        self, state: InMemoryLinkState, store: SpooledStore, roster: _Roster, listener: Listener
    ) -> None:
        self._state, self._store, self._roster = state, store, roster
        self._run = _open_run(state)
        self._max_reply_bytes = listener.max_reply_bytes
        self.desk = Desk(state, store, self._run.run_id, listener.max_reply_bytes)
        self.port = listener.port

    @property
    def sites(self) -> Mapping[int, str]:
        """Site name by node id, of all enrolled sites."""
        return self._roster.sites()

    def online(self) -> Mapping[str, float]:
        """Seconds since each site was heard; only sites whose lease holds."""
        return self._roster.online()

    def set_run(self, run: Run) -> None:
        """The run is this grid's own; see Flower's Grid."""
        if run.run_id != self._run.run_id:
            raise ConfigError(f"run {run.run_id}: a link serves one run, {self._run.run_id}")

    @property
    def run(self) -> Run:
        """See Flower's Grid."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """Nodes of the sites that are online."""
        online = self.online()
        return [node for node, name in self.sites.items() if name in online]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Put messages where their sites will find them; returns their ids.

        A site that was revoked meanwhile is asked nothing: there is no id for it.

        Raises:
            FederationError: A message is addressed to a node that no site ever had.
            StorageError: A message cannot be kept (full disk).
        """
        pushed = []
        for message in messages:
            with suppress(_RevokedError):
                pushed.append(self._push(message))
        return pushed

    def _push(self, message: Message) -> str:
        node = message.metadata.dst_node_id
        name = self.sites.get(node)
        if name is None:
            if (former := self._roster.named(node)) is not None:
                raise _RevokedError(f"message to {former}, which is enrolled no more")
            raise FederationError(f"message to node {node}, which belongs to no enrolled site")
        sent = make_message(_addressed(message, self._run.run_id), content=message.content)
        with no_object_id_recompute():
            sent.metadata.__dict__["_message_id"] = sent.object_id
            tree = get_object_tree(sent)
            letter = remove_content_from_message(sent)
            self.desk.post(letter, tree)
            missing = set(self._store.preregister(self._run.run_id, tree))
            try:
                for key, part in get_all_nested_objects(sent).items():
                    if key in missing:
                        self._store.put(key, part.deflate())
            except OSError as err:
                self.desk.close([tree.object_id])
                raise StorageError(f"a message cannot be kept: {err.strerror}") from err
        if self._state.store_message_ins(letter) is None:
            self.desk.close([tree.object_id])
            raise FederationError(f"the message to {name} was not taken by Flower")
        return str(tree.object_id)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Give out the answers that are here; each is given out once."""
        waiting = set(message_ids)
        while waiting and (letter := self.desk.take(waiting, 0.0)) is not None:
            waiting.discard(letter.id)
            yield self._opened(letter)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send messages and yield the answers as they come, until the time is up.

        The time runs from the first ``next``. Answers that were there in time are given
        out even when the caller took long over the ones before. What is not answered then
        is withdrawn: a later answer is refused. A site that was revoked meanwhile is asked
        nothing, and so answers nothing.

        Raises:
            FederationError: A message is addressed to a node that no site ever had.
            StorageError: A message cannot be kept (full disk).
        """
        until = None if timeout is None else time.monotonic() + timeout
        waiting: set[str] = set()
        try:
            for message in messages:
                with suppress(_RevokedError):
                    waiting.add(self._push(message))
                del message
            del messages  # the generator behind it holds the tensors
            while waiting:
                left = None if until is None else max(0.0, until - time.monotonic())
                letter = self.desk.take(waiting, left)
                if letter is None:
                    return
                waiting.discard(letter.id)
                yield self._opened(letter)
        finally:
            self.desk.close(waiting)

    def _opened(self, letter: Letter) -> Message:
        """The answer to a letter, under the metadata that were checked; closes the letter."""
        metadata = _answer_to(letter)
        try:
            if letter.reply is None or letter.fault is not None:
                raise DataError(letter.fault or "no answer")
            if letter.reply.has_error():
                return make_message(metadata, error=letter.reply.error)
            reader = ContentReader(self._store, self._max_reply_bytes)
            return make_message(metadata, content=reader.read(letter.tree[0]))
        except DataError:
            return make_message(metadata, error=words.error_of(DataError))
        finally:
            self.desk.close([letter.id])


def _addressed(message: Message, run_id: int) -> Metadata:
    """The metadata of a message as it is sent."""
    given = message.metadata
    return _metadata(
        run_id=run_id,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=given.dst_node_id,
        reply_to_message_id="",
        group_id=given.group_id,
        created_at=given.created_at,
        ttl=_FOREVER,
        message_type=given.message_type,
    )


def _answer_to(letter: Letter) -> Metadata:
    """The metadata of an answer; nothing in them is the peer's word."""
    asked = letter.message.metadata
    return _metadata(
        run_id=asked.run_id,
        message_id=letter.tree[0] if letter.tree else f"{letter.id}:unusable",
        src_node_id=asked.dst_node_id,
        dst_node_id=asked.src_node_id,
        reply_to_message_id=letter.id,
        group_id=asked.group_id,
        created_at=time.time(),
        ttl=_FOREVER,
        message_type=asked.message_type,
    )


def _metadata(**fields: object) -> Metadata:
    made = Metadata(**fields)  # type: ignore[arg-type]
    made.delivered_at = ""
    return made


def _open_run(state: InMemoryLinkState) -> Run:
    """The one run that the sites take part in, running from here on.

    Flower ends a run whose process stops sending heartbeats. This run's process is the one
    that holds the state: the token that would expire is thrown away.
    """
    run_id = state.create_run(
        fab_id=INSTALLED,
        fab_version="",
        fab_hash="",
        override_config={},
        federation_id=NOOP_FEDERATION_ID,
        federation_config=None,
        flwr_aid=NOOP_FLWR_AID,
        primary_task_type=TaskType.SERVER_APP,
    )
    (run,) = state.get_run_info(run_ids=[run_id])
    task = run.primary_task_id or 0
    token = state.claim_task(task)
    if token is None or not state.activate_task(task):
        raise FederationError("Flower's state did not start the run; is this version tested?")
    state.task_token_store.pop(task)
    state.task_token_to_task_id.pop(token)
    TaskIdentity.run_id = run_id
    TaskIdentity.task_id = task
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    (run,) = state.get_run_info(run_ids=[run_id])
    return run


def _return_large_blocks() -> None:
    """Have the C library give large blocks back to the system as soon as they are free.

    glibc does so from 128 KiB on, until the first such block is freed: then it raises the
    bound, up to 32 MiB, and tensors that come and go fragment the heap by more than a model.
    Naming the bound keeps it. Threads share few heaps: each keeps what it needed at its most.
    Elsewhere than on glibc nothing is done.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        library.mallopt(_M_ARENA_MAX, _ARENAS)


@contextmanager
def open_link(listener: Listener, doorkeeper: Doorkeeper) -> Iterator[LinkGrid]:
    """Serve the sites on the public port, and hand out the grid that reaches them.

    Args:
        listener: The port and its limits.
        doorkeeper: Decides at every request whose key is let in.

    Raises:
        ConfigError: The port is taken, or the certificate or its key cannot be used.
    """
    quiet_logs()
    _return_large_blocks()
    # What goes wrong with a request is logged by the gate; peers that hang up are no errors.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    store = SpooledStore(Spool(listener.spool))
    state = InMemoryLinkState(NoOpFederationManager(), store)
    roster = _Roster(state, doorkeeper)
    grid = LinkGrid(state, store, roster, listener)
    passing = Spool(listener.spool, _PASSING_BYTES)
    fleet = Fleet(state, grid.desk)
    gate = Gate(fleet, doorkeeper, roster.heard, listener.max_request_bytes, passing)
    with bound(listener) as port, closing(gate), serving(listener, gate, port):
        grid.port = port.getsockname()[1]
        yield grid
