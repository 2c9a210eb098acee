"""The one module that knows Flower: its switches, its records and its simulation engine.

Every other module takes Flower's names from here, so that the switches below are set
before Flower is first imported (it reads some of them at import). Public Flower names are
passed on unchanged. What is not public in Flower 1.41 is used in this file only, and held
by a contract test: ``TaskIdentity`` (needed to build a message outside a Flower process),
the ``metadata`` argument of ``Message``, and ``run_simulation``.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Unset, Flower writes into the home directory. Nothing is created until it writes.
    "FLWR_HOME": str(Path(tempfile.gettempdir()) / f"synthward-flower-{secrets.token_hex(8)}"),
}
for _name, _value in _SWITCHES.items():
    os.environ.setdefault(_name, _value)

from flwr.app import (  # noqa: E402
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import Strategy  # noqa: E402
from flwr.supercore.run import Run  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from synth_common.errors import ConfigError, DataError, FederationError  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "Context",
    "Error",
    "Grid",
    "Message",
    "MetricRecord",
    "PassingGrid",
    "RecordDict",
    "Run",
    "Strategy",
    "arrays_of",
    "delivered",
    "open_run",
    "quiet_logs",
    "ray_grid",
    "require_ray",
    "state_of",
]

_START_SECONDS = 300.0  # Ray's first start on a loaded two-core machine takes 20 seconds.


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
    import torch

    state: dict[str, Tensor] = {}
    for name in list(arrays):
        array = arrays.pop(name) if empty else arrays[name]
        try:
            state[name] = torch.from_numpy(array.numpy())
        except (ValueError, TypeError, EOFError, OSError, MemoryError, SyntaxError) as err:
            raise DataError(f"array {name!r} cannot be decoded") from err
    return state


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


class PassingGrid(Grid):
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


class _EngineGrid(PassingGrid):
    """Flower's grid of a running simulation engine, which notices when the engine dies."""

    def __init__(self, inner: Grid, engine: threading.Thread) -> None:
        super().__init__(inner)
        self._engine = engine

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            if not self._engine.is_alive():
                raise FederationError("the Ray simulation engine ended before every site replied")
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            if waiting:
                time.sleep(0.05)
        return replies


def require_ray() -> None:
    """Refuse (ConfigError) the Ray engine where Ray is not installed."""
    if find_spec("ray") is None:
        raise ConfigError(
            "engine 'ray' needs Ray, which is not installed: make install (in a checkout), or "
            "pip install 'synthward[ray]'"
        )


@contextmanager
def ray_grid(client_app: ClientApp, sites: int, threads: int) -> Iterator[Grid]:
    """Flower's Ray simulation engine with ``sites`` nodes, as a grid to send messages with.

    Flower starts a server function in a thread of its own and keeps the main thread. Here
    the engine gets the extra thread, so that Ctrl-C and errors reach the caller and both
    transports are used in the same way.

    Args:
        client_app: Runs in Ray's worker processes; it must survive cloudpickle.
        sites: Number of nodes; node configs carry ``partition-id`` 0 .. sites - 1.
        threads: Processor threads (and Ray CPUs) of one worker.

    Raises:
        ConfigError: Ray is not installed.
        FederationError: The engine did not start.
    """
    require_ray()
    handed: queue.Queue[Grid | BaseException] = queue.Queue()
    stop = threading.Event()
    engine = threading.Thread(
        target=_engine, args=(client_app, sites, threads, handed, stop), daemon=True
    )
    engine.start()
    try:
        yield _EngineGrid(_first_grid(handed, sites), engine)
    finally:
        stop.set()
        engine.join(timeout=60.0)


def _engine(
    client_app: ClientApp,
    sites: int,
    threads: int,
    handed: queue.Queue[Grid | BaseException],
    stop: threading.Event,
) -> None:
    """Run Flower's simulation until ``stop`` is set, handing its grid out first."""
    from flwr.simulation import run_simulation

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        handed.put(grid)
        stop.wait()

    cpus = max(threads, os.cpu_count() or 1)
    try:
        run_simulation(
            server_app,
            client_app,
            num_supernodes=sites,
            backend_config={
                "init_args": {"num_cpus": cpus, "log_to_driver": False, "logging_level": 50},
                "client_resources": {"num_cpus": threads, "num_gpus": 0.0},
            },
        )
    except BaseException as err:  # handed to the caller's thread, which raises it
        handed.put(err)
        stop.set()


def _first_grid(handed: queue.Queue[Grid | BaseException], sites: int) -> Grid:
    """Wait until the engine has a grid whose nodes are all registered."""
    deadline = time.monotonic() + _START_SECONDS
    try:
        grid = handed.get(timeout=_START_SECONDS)
    except queue.Empty:
        raise FederationError(f"Ray did not start within {_START_SECONDS:.0f} s") from None
    while not isinstance(grid, BaseException):
        if len(list(grid.get_node_ids())) >= sites:
            return grid
        if time.monotonic() > deadline:
            raise FederationError(f"Ray registered fewer than {sites} sites")
        time.sleep(0.05)
    raise FederationError(f"the Ray simulation engine failed: {grid}") from grid
