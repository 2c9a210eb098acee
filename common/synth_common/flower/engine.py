"""Flower's Ray simulation engine, as a grid to send messages with.

Not public in Flower: ``run_simulation``.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from synth_common.errors import ConfigError, FederationError
from synth_common.flower.records import PassingGrid

_START_SECONDS = 300.0  # Ray's first start on a loaded two-core machine takes 20 seconds.


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
