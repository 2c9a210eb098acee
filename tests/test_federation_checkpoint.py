"""A checkpoint is whole and of this run, or it is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from synth_common.errors import CheckpointError, StorageError
from synth_server.checkpoint import Checkpoint, load_checkpoint, load_latest, save_checkpoint


def _checkpoint(number: int, run_id: str = "run", plan: str = "plan") -> Checkpoint:
    rng = torch.Generator().manual_seed(number)
    state = {"w": torch.randn(5, 3, generator=rng), "step": torch.tensor(float(number))}
    return Checkpoint(run_id, number, plan, state)


def test_the_newest_comes_back_bit_for_bit(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        save_checkpoint(tmp_path, _checkpoint(number))
    loaded = load_latest(tmp_path, "run", "plan")
    assert loaded is not None
    assert loaded.round == 10
    for name, value in _checkpoint(10).state.items():
        assert torch.equal(loaded.state[name], value)


def test_only_the_three_newest_are_kept(tmp_path: Path) -> None:
    for number in range(6):
        save_checkpoint(tmp_path, _checkpoint(number))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"round-{n:04d}.safetensors" for n in (3, 4, 5)]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "missing") is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "metadata"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, _checkpoint(1))
    path = save_checkpoint(tmp_path, _checkpoint(2))
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-7])
    elif damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(content.replace(b'"round":"2"', b'"round":"3"'))
        assert path.read_bytes() != content
    with pytest.raises(CheckpointError, match="delete it to resume") as caught:
        load_latest(tmp_path, "run", "plan")
    assert path.name in str(caught.value)
    path.unlink()
    earlier = load_latest(tmp_path, "run", "plan")
    assert earlier is not None
    assert earlier.round == 1


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, _checkpoint(2))
    path.rename(tmp_path / "round-0009.safetensors")
    with pytest.raises(CheckpointError, match="holds round 2"):
        load_latest(tmp_path)


@pytest.mark.parametrize(("run_id", "plan", "names"), [("x", "plan", "run"), ("run", "x", "plan")])
def test_another_runs_or_plans_checkpoint_is_refused(
    tmp_path: Path, run_id: str, plan: str, names: str
) -> None:
    save_checkpoint(tmp_path, _checkpoint(1))
    with pytest.raises(CheckpointError, match=f"belongs to {names}"):
        load_latest(tmp_path, run_id, plan)


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(StorageError, match="checkpoint"):
        save_checkpoint(tmp_path / "checkpoints", _checkpoint(1))


def test_a_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"round-0001\.safetensors"):
        load_checkpoint(tmp_path / "round-0001.safetensors")
