"""Shared fixtures: quiet libraries, few threads, and the real images where they are."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from needs import CHROMIUM, missing

if TYPE_CHECKING:
    from enrolment_scenario import Clock
    from release_bundles import Released

for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(_name, _value)

_DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before anything is made for it: a test of a browser needs one."""
    if CHROMIUM is None and item.get_closest_marker("browser") is not None:
        missing("no Chromium on this machine: install chromium, chromium-browser or google-chrome")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real images; skips where it is missing, and fails in CI."""
    root = Path(os.environ.get("SYNTHWARD_DATA") or _DEFAULT_DATA)
    if not (root / "README.md").is_file():
        missing(f"no real images at {root}; set SYNTHWARD_DATA to the folder that holds them")
    return root


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one, for tests that write much and kill processes.

    A killed process loses nothing that the kernel has, whether or not it is on a disk.
    """
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < 2**28:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replaces the time of day for everything that has to do with enrolment."""
    from enrolment_scenario import Clock

    fixed = Clock()
    monkeypatch.setattr("synth_common.wall_clock.now", fixed)
    return fixed


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A finished small run with its release; tests copy what they change."""
    from release_bundles import make

    return make(tmp_path_factory.mktemp("released"))
