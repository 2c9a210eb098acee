"""What the coordinator keeps of a release, so that nobody is asked, and charged, again.

Beside the checkpoints: ``release.safetensors``, the sum and its facts, whole or refused; and
``release-attempts.json``, every attempt that was asked for, written before its messages leave,
so that no number is used for two different attempts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from synth_common.errors import CheckpointError, StorageError
from synth_common.messages import Attempt
from synth_common.reporting.files import replace_bytes, replace_text

_SUM = "release.safetensors"
_ATTEMPTS = "release-attempts.json"


@dataclass(frozen=True)
class Release:
    """A finished release.

    Attributes:
        run_id: The run.
        plan_digest: The plan it was made under.
        vector: float64 (size,): the sum over the sites, with its noise. Released.
        attempts: How many it took.
        noise_shares: Standard deviation of the noise that each site added, per coordinate, in
            units of the vector.
        noise_multipliers: What each site was charged for one attempt.
        sigma: Standard deviation of the noise in the sum, per coordinate.
        messages: Requests sent, roll-calls apart.
        bytes_up: Bytes of the vectors received, over all attempts.
        seconds: What all attempts took.
        epsilons: What each site's ledger stated with its vector, over all of the site's runs.
    """

    run_id: str
    plan_digest: str
    vector: Tensor
    attempts: int
    noise_shares: Mapping[str, float]
    noise_multipliers: Mapping[str, float]
    sigma: float
    messages: int
    bytes_up: int
    seconds: float
    epsilons: Mapping[str, float] = field(default_factory=dict)

    @property
    def sites(self) -> list[str]:
        """Who is in the sum."""
        return sorted(self.noise_shares)

    def facts(self) -> dict[str, Any]:
        """Everything but the vector."""
        named = {item.name: getattr(self, item.name) for item in fields(self)}
        del named["vector"]
        by_site = ("noise_shares", "noise_multipliers", "epsilons")
        return {**named, **{key: dict(named[key]) for key in by_site}}


def save_release(directory: Path, release: Release) -> Path:
    """Write the sum and its facts in one step; returns the file.

    Raises:
        StorageError: The disk refuses.
    """
    from safetensors.torch import save

    head = json.dumps(release.facts(), sort_keys=True)
    path = directory / _SUM
    _make(directory)
    metadata = {"facts": head, "sha256": _digest(head, release.vector)}
    return replace_bytes(path, save({"sum": release.vector.contiguous()}, metadata=metadata))


def load_release(directory: Path, run_id: str, plan_digest: str) -> Release | None:
    """The kept release of a run; None where there is none.

    Raises:
        CheckpointError: It is damaged, or belongs to another run or plan.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / _SUM
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            vector = handle.get_tensor("sum")
        head, expected = metadata["facts"], metadata["sha256"]
        release = Release(vector=vector, **json.loads(head))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as err:
        raise CheckpointError(_damaged(path, str(err) or type(err).__name__)) from err
    if _digest(head, vector) != expected:
        raise CheckpointError(_damaged(path, "its SHA-256 does not match its content"))
    if (release.run_id, release.plan_digest) != (run_id, plan_digest):
        raise CheckpointError(
            f"{path} belongs to run {release.run_id} under plan {release.plan_digest[:12]}, not to "
            f"{run_id} under {plan_digest[:12]}; start a new run in another directory"
        )
    return release


class AttemptBook:
    """Attempts at a release, in a file.

    Args:
        directory: Where the run keeps its checkpoints.

    Raises:
        CheckpointError: The file is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _ATTEMPTS
        self._attempts: list[Attempt] = []
        if self._path.exists():
            try:
                read = json.loads(self._path.read_text(encoding="utf-8"))
                self._attempts = [Attempt(int(n["number"]), tuple(n["participants"])) for n in read]
            except (OSError, ValueError, KeyError, TypeError) as err:
                raise CheckpointError(
                    f"{self._path} is damaged ({err}); delete it: sites refuse attempts that they "
                    "began before, and the next number is found again"
                ) from err

    @property
    def next_number(self) -> int:
        """A number that no attempt in the book has."""
        return 1 + max((attempt.number for attempt in self._attempts), default=0)

    def unfinished(self, known: set[str]) -> Attempt | None:
        """The last attempt, if all its participants are known; None without any."""
        last = self._attempts[-1] if self._attempts else None
        return last if last is not None and known.issuperset(last.participants) else None

    def add(self, attempt: Attempt) -> None:
        """Write an attempt down; once is enough.

        Raises:
            StorageError: The disk refuses.
        """
        if attempt in self._attempts:
            return
        self._attempts.append(attempt)
        _make(self._path.parent)
        values = [asdict(item) for item in self._attempts]
        replace_text(self._path, json.dumps(values, indent=2) + "\n")


def _make(directory: Path) -> None:
    """The directory, made if missing."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise StorageError(f"cannot write {directory}: {err.strerror}") from err


def _digest(head: str, vector: Tensor) -> str:
    """SHA-256 over the facts, and the vector's type, shape and bytes."""
    hasher = hashlib.sha256(head.encode())
    hasher.update(json.dumps([str(vector.dtype), list(vector.shape)]).encode())
    hasher.update(vector.contiguous().numpy().tobytes())
    return hasher.hexdigest()


def _damaged(path: Path, why: str) -> str:
    return (
        f"{path} is damaged ({why}); delete it, and the sites are asked for the same attempt "
        "again, which they answer for nothing as long as they keep their replies"
    )
