"""A coordinator that is killed, stopped, or whose disk is full goes on, and nobody pays twice."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from service_sites import Hospitals, run, small_plan

from synth_common.errors import ConfigError, StorageError
from synth_common.privacy.ledger import Ledger
from synth_server.coordination import Coordination
from synth_server.lock import locked
from synth_server.rounds import State
from synth_server.service import ServiceOptions, run_state

HERE = Path(__file__).parent
PLAN = small_plan(accountant="rdp")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_coordinator_killed_anywhere_goes_on_to_the_same_model_and_nobody_pays_twice(
    memory_path: Path,
) -> None:
    """Between rounds and in the middle of aggregation; see ``check`` for what must hold."""
    done = subprocess.run(
        [sys.executable, str(HERE / "crash_coordinator.py"), str(memory_path), "60"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    kills, places = done.stdout.split(" kills in ")
    assert int(kills) > 40
    assert {"add", "aggregate_train", "keep", "run_rounds", "save_checkpoint"} <= set(
        places.split()
    )


@contextmanager
def _full_disk() -> Iterator[None]:
    """No file can grow beyond a kilobyte: the kernel's own refusal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_at_a_checkpoint_is_named_and_the_round_costs_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospitals = Hospitals(tmp_path / "h", PLAN)
    keep = Coordination.keep

    def refused(self: Coordination, number: int, state: State) -> Path:
        if number < 2:
            return keep(self, number, state)
        with _full_disk():
            return keep(self, number, state)

    with monkeypatch.context() as patch:
        patch.setattr(Coordination, "keep", refused)
        with pytest.raises(StorageError, match=r"round-0002\.safetensors"):
            run(tmp_path / "server", hospitals, PLAN)
    state = run_state(tmp_path / "server")
    assert state is not None
    assert state["phase"] == "failed"
    assert "round-0002" in state["error"]
    names = [path.name for path in (tmp_path / "server/run/checkpoints").iterdir()]
    assert names == ["round-0001.safetensors"]  # and no half-written one
    run(tmp_path / "server", hospitals, PLAN, ServiceOptions(resume=True))
    for directory in hospitals.directories.values():
        with Ledger.read(directory / "ledger.sqlite") as ledger:
            assert [made.key.round for made in ledger.reservations()] == [1, 2, 3]


def test_two_processes_do_not_run_one_folder(tmp_path: Path) -> None:
    (tmp_path / "server" / "run").mkdir(parents=True)
    with locked(tmp_path / "server" / "run"), pytest.raises(ConfigError, match="another process"):
        run(tmp_path / "server", Hospitals(tmp_path / "h", PLAN), PLAN)


_ALONE = """
import sys
from pathlib import Path
from service_sites import Hospitals, run, settings, small_plan
from synth_common.terminal import guarded

folder, plan = Path(sys.argv[1]), small_plan(accountant="rdp")
hospitals = Hospitals(folder / "h", plan)
hospitals.away = {"north", "west"}
chosen = settings(run={"patience_s": 300})
sys.exit(guarded(lambda: run(folder / "server", hospitals, plan, None, chosen)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_at_once_with_the_way_to_go_on(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _ALONE, str(tmp_path)],
        cwd=HERE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while (run_state(tmp_path / "server") or {}).get("phase") != "waiting":
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    state = run_state(tmp_path / "server")
    assert state is not None
    assert state["running"] is True
    assert state["pid"] == process.pid
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130, told
    assert "synth-server resume" in told
    state = run_state(tmp_path / "server")
    assert state is not None
    assert (state["phase"], state["running"]) == ("stopped", False)


@pytest.mark.slow
def test_a_killed_process_is_told_from_a_running_one(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _ALONE, str(tmp_path)], cwd=HERE
    )
    deadline = time.monotonic() + 120
    while (run_state(tmp_path / "server") or {}).get("phase") != "waiting":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    state = run_state(tmp_path / "server")
    assert state is not None
    assert (state["phase"], state["running"]) == ("killed", False)
