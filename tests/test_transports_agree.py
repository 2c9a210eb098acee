"""The same plan and seed give the same model in process, on Ray and over the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transport_scenario as scenario
from deployment_scenario import NAMES

from synth_common.privacy.ledger import Ledger
from synth_server.checkpoint import Checkpoint, load_checkpoint
from synth_server.release_store import load_release


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    scenario.federation(folder)
    return folder


def _copy(fresh: Path, folder: Path) -> scenario.Federation:
    shutil.copytree(fresh, folder)
    return scenario.Federation(folder, "")


@pytest.fixture(scope="module")
def in_process(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenario.simulate(_copy(fresh, tmp_path_factory.mktemp("one") / "f"), "inprocess")


def _rounds(folder: Path) -> list[Checkpoint]:
    return [load_checkpoint(path) for path in sorted(folder.glob("round-*.safetensors"))]


def _require_same(one: Path, other: Path) -> None:
    """Every tensor of every checkpoint, and the sum of the release, bit for bit."""
    first, second = _rounds(one), _rounds(other)
    assert [made.round for made in first] == [made.round for made in second]
    assert first[-1].round == scenario.ROUNDS
    for left, right in zip(first, second, strict=True):
        assert list(left.state) == list(right.state)
        for name, tensor in left.state.items():
            assert tensor.dtype == right.state[name].dtype
            assert torch.equal(tensor, right.state[name]), f"round {left.round}: {name}"
    sums = [load_release(folder, first[0].run_id, first[0].plan_digest) for folder in (one, other)]
    assert sums[0] is not None
    assert sums[1] is not None
    assert torch.equal(sums[0].vector, sums[1].vector)
    assert sums[0].epsilons == sums[1].epsilons


def test_what_is_compared_was_learnt_from_the_sites(in_process: Path) -> None:
    rounds = _rounds(in_process)
    assert any(not torch.equal(t, rounds[-1].state[n]) for n, t in rounds[0].state.items())


@pytest.mark.slow
def test_hospitals_over_the_network_make_the_model_of_one_process(
    fresh: Path, in_process: Path, tmp_path: Path
) -> None:
    made = _copy(fresh, tmp_path / "f")
    _require_same(in_process, scenario.deploy(made))
    for name in NAMES:
        with Ledger.read(made.site(name) / "ledger.sqlite") as ledger:
            assert len(ledger.commits()) == 1 + scenario.ROUNDS


@pytest.mark.slow
def test_ray_makes_the_model_of_one_process(fresh: Path, in_process: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'synthward[ray]')")
    made = _copy(fresh, tmp_path / "f")
    program = Path(scenario.__file__)
    done = subprocess.run(  # in a process of its own: Ray warns in threads
        [sys.executable, "-W", "ignore", str(program), str(made.path)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    _require_same(in_process, made.folder.run / "checkpoints")
