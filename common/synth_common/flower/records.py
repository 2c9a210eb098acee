"""Flower's records and messages as Synthward uses them, and a grid to build others on.

Not public in Flower: ``TaskIdentity``, needed to build a message outside a Flower process,
and the ``metadata`` argument of ``Message``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from synth_common.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


def quiet_logs(level: int = logging.CRITICAL) -> None:
    """Keep Flower's own log off the terminal; Synthward reports failures itself."""
    logging.getLogger("flwr").setLevel(level)


def arrays_of(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors by name as a Flower record, in sorted order; shapes and dtypes are kept."""
    return ArrayRecord({name: state[name] for name in sorted(state)})


def state_of(arrays: ArrayRecord, *, empty: bool = False) -> dict[str, Tensor]:
    """The tensors of a Flower record by name, on the CPU.

    Args:
        arrays: The record.
        empty: Take the arrays out of the record. Flower's records are reference cycles,
            so their bytes otherwise stay in memory until the garbage collector runs.

    Raises:
        DataError: An array cannot be decoded. The bytes came over a network: they are read
            without pickle, and whatever is wrong with them ends here.
    """
    state = {}
    for name in list(arrays):
        state[name] = tensor_in(arrays, name)
        if empty:
            del arrays[name]
    return state


def tensor_in(arrays: ArrayRecord, name: str) -> Tensor:
    """One tensor of a Flower record, on the CPU; for what must not hold them all.

    Raises:
        DataError: As :func:`state_of`.
    """
    import torch

    try:
        return torch.from_numpy(arrays[name].numpy())
    except Exception as err:  # numpy raises whatever a malformed header causes
        raise DataError(f"array {name!r} cannot be decoded") from err


def open_run(run_id: int = 1) -> Run:
    """Give this process the identity that Flower asks for when it builds a message."""
    TaskIdentity.run_id = run_id
    TaskIdentity.task_id = 1
    TaskIdentity.node_id = 1
    return Run.create_empty(run_id=run_id)


def delivered(message: Message, message_id: str, *, move: bool = False) -> Message:
    """The message as its receiver gets it: own records, and an id.

    A receiver may change records in place; without the copy it would change the sender's
    (and, in process, every other site's). The array bytes are immutable and shared.
    ``move`` empties the sender's records, which frees a sent reply at once.
    """
    build: Any = Message  # its ``metadata`` argument is not in its public signatures
    metadata = copy(message.metadata)
    metadata.__dict__["_message_id"] = message_id
    if message.has_error():
        failed: Message = build(error=message.error, metadata=metadata)
        return failed
    content = RecordDict()
    for name, record in message.content.items():
        kind: Any = type(record)
        content[name] = kind(dict(record.items()))
        if move:
            record.clear()
    copied: Message = build(content=content, metadata=metadata)
    return copied


class MessageGrid(Grid):
    """A grid whose messages are made by their constructor, as Flower advises."""

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See Flower's Grid."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


class PassingGrid(MessageGrid):
    """A grid around another one, for what watches or guards the messages that pass.

    Subclasses change :meth:`send_and_receive`.
    """

    def __init__(self, inner: Grid) -> None:
        self._inner = inner

    def set_run(self, run: Run) -> None:
        """See Flower's Grid."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """See Flower's Grid."""
        return self._inner.run

    def get_node_ids(self) -> Iterable[int]:
        """See Flower's Grid."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Flower's Grid."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Flower's Grid."""
        return self._inner.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See Flower's Grid."""
        return self._inner.send_and_receive(messages, timeout=timeout)
