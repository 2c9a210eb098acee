"""Two ways for a server and its sites to talk on one machine, behind Flower's Grid.

``inprocess`` calls the same ClientApp that a deployed site runs, one site after the other,
in this process. ``ray`` is Flower's own simulation engine: worker processes, several sites
at a time. Both give the same result for the same seed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from synth_client.app import SiteApp, make_client_app
from synth_client.site import Site, load_site
from synth_common.flower import (
    ClientApp,
    Context,
    Grid,
    Message,
    MessageGrid,
    RecordDict,
    Run,
    delivered,
    open_run,
    quiet_logs,
    ray_grid,
)

Engine = Literal["inprocess", "ray"]


class InProcessGrid(MessageGrid):
    """Flower's Grid where every node is a call of one ClientApp in this process.

    Messages are copied on their way in and out, as a network would. A site runs when its
    reply is pulled; :meth:`send_and_receive` yields replies one by one, so a caller that
    adds them up holds one reply at a time. Sites take turns, so a timeout could only
    punish the last in line: it is not applied.
    """

    def __init__(self, client_app: ClientApp, sites: int) -> None:
        self._app = client_app
        self._run = open_run()
        self._contexts = {
            partition + 1: Context(
                run_id=self._run.run_id,
                node_id=partition + 1,
                node_config={"partition-id": partition, "num-partitions": sites},
                state=RecordDict(),
                run_config={},
            )
            for partition in range(sites)
        }
        self._ids = count(1)
        self._pending: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """See Flower's Grid."""
        self._run = run

    @property
    def run(self) -> Run:
        """See Flower's Grid."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """See Flower's Grid."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take copies of messages for their nodes; returns one id per message.

        Raises:
            ValueError: A message is addressed to a node that does not exist.
        """
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        node = message.metadata.dst_node_id
        if node not in self._contexts:
            raise ValueError(f"message to node {node}; nodes are {list(self._contexts)}")
        message_id = str(next(self._ids))
        self._pending[message_id] = delivered(message, message_id)
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the sites these messages went to; each reply is given out once."""
        return [self._reply(key) for key in message_ids if key in self._pending]

    def _reply(self, message_id: str) -> Message:
        message = self._pending.pop(message_id)
        answer = self._app(message, self._contexts[message.metadata.dst_node_id])
        return delivered(answer, str(next(self._ids)), move=True)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield the reply to each message, in the order of the messages."""
        for message in messages:
            yield self._reply(self._push(message))


@functools.lru_cache(maxsize=1)
def _opened(directories: tuple[Path, ...]) -> dict[Path, Site]:
    """The sites of one federation, each read once per process; those of the one before go."""
    return {}


@dataclass(frozen=True)
class PartitionSites:
    """Finds a node's site by the ``partition-id`` that both engines give a node."""

    directories: tuple[Path, ...]

    def __call__(self, context: Context) -> Site:
        """The site of this node."""
        opened = _opened(self.directories)
        directory = self.directories[int(context.node_config["partition-id"])]
        if directory not in opened:
            opened[directory] = load_site(directory)
        return opened[directory]


@contextmanager
def open_grid(engine: Engine, app: SiteApp, sites: int) -> Iterator[Grid]:
    """A grid of ``sites`` nodes running ``app`` on the chosen engine.

    Raises:
        ConfigError: The engine is not installed.
        FederationError: The engine did not start.
    """
    quiet_logs()
    client_app = make_client_app(app)
    if engine == "inprocess":
        yield InProcessGrid(client_app, sites)
        return
    with ray_grid(client_app, sites, threads=app.threads or 1) as grid:
        yield grid
