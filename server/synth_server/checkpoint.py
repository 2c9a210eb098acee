"""Checkpoints: the averaged tensors after a round, whole or refused.

A checkpoint holds public values only (outputs of DP-SGD). One file carries everything:
tensors, run, round and plan digest, and a SHA-256 over all of it, so a file that was cut
short, altered or belongs to another run is found when it is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from synth_common.errors import CheckpointError, StorageError
from synth_common.reporting.files import replace_bytes
from synth_server.strategy import Memory

_FILE = re.compile(r"round-(\d{4,})\.safetensors")
_KEEP = 3


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``round`` completed rounds (0: the initial weights).

    ``memory`` is what the coordinator knows of the sites' ledgers and released statistics.
    """

    run_id: str
    round: int
    plan_digest: str
    state: Mapping[str, Tensor]
    memory: Memory = field(default_factory=Memory)


def _digest(checkpoint: Checkpoint) -> str:
    """SHA-256 over the header and every tensor (name, dtype, shape, bytes) in sorted order."""
    hasher = hashlib.sha256()
    head = [checkpoint.run_id, checkpoint.round, checkpoint.plan_digest, asdict(checkpoint.memory)]
    hasher.update(json.dumps(head, sort_keys=True).encode())
    for name in sorted(checkpoint.state):
        value = checkpoint.state[name].detach().cpu().contiguous()
        hasher.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        hasher.update(value.numpy().tobytes())
    return hasher.hexdigest()


def _files(directory: Path) -> list[tuple[int, Path]]:
    """Rounds and files of a checkpoint directory, oldest first."""
    if not directory.is_dir():
        return []
    found = ((_FILE.fullmatch(path.name), path) for path in directory.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write ``round-0003.safetensors`` in one step; keeps the three newest. Returns the path.

    Raises:
        StorageError: The disk refuses.
    """
    from safetensors.torch import save

    metadata = {
        "run_id": checkpoint.run_id,
        "round": str(checkpoint.round),
        "plan_digest": checkpoint.plan_digest,
        "memory": json.dumps(asdict(checkpoint.memory), sort_keys=True),
        "sha256": _digest(checkpoint),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.state.items()}
    path = directory / f"round-{checkpoint.round:04d}.safetensors"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, save(tensors, metadata=metadata))
        for _, old in _files(directory)[:-_KEEP]:
            old.unlink(missing_ok=True)
    except OSError as err:
        raise StorageError(f"cannot write checkpoint {path}: {err.strerror}") from err
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: It cannot be read, or its SHA-256 does not match; names the file
            and the way out.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        checkpoint = Checkpoint(
            metadata["run_id"],
            int(metadata["round"]),
            metadata["plan_digest"],
            state,
            Memory(**json.loads(metadata["memory"])),
        )
        expected = metadata["sha256"]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as err:
        raise CheckpointError(_damaged(path, str(err) or type(err).__name__)) from err
    if _digest(checkpoint) != expected:
        raise CheckpointError(_damaged(path, "its SHA-256 does not match its content"))
    return checkpoint


def _damaged(path: Path, why: str) -> str:
    return (
        f"checkpoint {path} is damaged ({why}); delete it to resume from the checkpoint before it"
    )


def load_latest(
    directory: Path, run_id: str | None = None, plan_digest: str | None = None
) -> Checkpoint | None:
    """The newest checkpoint, verified; None where there is none.

    Args:
        directory: Where the run keeps its checkpoints.
        run_id: The run it must belong to; None accepts any.
        plan_digest: The plan it must have been made under; None accepts any.

    Raises:
        CheckpointError: The newest file is damaged, or belongs to another run or plan. An
            older one is never taken silently: its rounds would be spent twice.
    """
    files = _files(directory)
    if not files:
        return None
    number, path = files[-1]
    checkpoint = load_checkpoint(path)
    if checkpoint.round != number:
        raise CheckpointError(_damaged(path, f"it holds round {checkpoint.round}"))
    for name, expected, found in (
        ("run", run_id, checkpoint.run_id),
        ("plan", plan_digest, checkpoint.plan_digest),
    ):
        if expected is not None and found != expected:
            raise CheckpointError(
                f"checkpoint {path} belongs to {name} {found}, not to {expected}; "
                "start a new run in another directory"
            )
    return checkpoint
