"""The one package that knows Flower: its switches, records, engine, and both ends of the link.

Every other module takes Flower's names from here, so that the switches below are set
before Flower is first imported (it reads some of them at import). Public Flower names are
passed on unchanged. What is not public in Flower is used in this package only, each module
says what, and ``tests/test_flower_contract.py`` holds it to the installed version:

- ``records``: tensors and messages; a grid around a grid;
- ``engine``: the Ray simulation engine;
- ``link``: the coordinator's end of a federation over a network (its parts, from the port
  inwards: ``serving``, ``gate``, ``fleet``, ``desk``, ``spool``,
  ``bodies``);
- ``node``: a site's end of it (``connection``, and ``trouble``, which says in words what is
  wrong with one).

The ends of the link are not imported here: a simulation needs neither.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Tensors travel in pieces; both ends hold several pieces per site at a time.
    "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(2**20),
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
from flwr.serverapp import Grid  # noqa: E402
from flwr.serverapp.strategy import Strategy  # noqa: E402
from flwr.supercore.run import Run  # noqa: E402

from synth_common.flower.engine import ray_grid, require_ray  # noqa: E402
from synth_common.flower.records import (  # noqa: E402
    MessageGrid,
    PassingGrid,
    arrays_of,
    delivered,
    open_run,
    quiet_logs,
    state_of,
    tensor_in,
)

__all__ = [
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "Context",
    "Error",
    "Grid",
    "Message",
    "MessageGrid",
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
    "tensor_in",
]
