"""What a site keeps of a round: the reply that was paid for, and the optimiser's moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from synth_client.site import Site
from synth_common.errors import PrivacyError, StorageError
from synth_common.privacy.egress import Outgoing, state_digest
from synth_common.privacy.ledger import Commit, RoundKey

_STATE, _STATISTIC = "state.", "statistic."
_DIGITS = 6


@dataclass(frozen=True)
class Outbox:
    """The kept files of one site. Files of earlier rounds go when a later one is kept.

    A reply's name tells the request, so that another request for the same round cannot take
    the place of a reply that was committed.
    """

    site: Site

    def keep(self, key: RoundKey, reply: Outgoing, moments: Mapping[str, Tensor]) -> str:
        """Keep a reply (to send it again for free) and moments; returns the reply's digest.

        Raises:
            StorageError: The disk refused.
        """
        tensors = _packed(reply)
        for path, kept in ((self._moments(key), moments), (self._reply(key), tensors)):
            partial = path.with_suffix(".partial")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(dict(kept), partial)
                partial.replace(path)
                for old in path.parent.glob(f"{key.run_id}-*.safetensors"):
                    if int(old.stem.removeprefix(f"{key.run_id}-")[:_DIGITS]) < key.round - 1:
                        old.unlink()
            except OSError as err:
                raise StorageError(f"cannot write {path}: {err.strerror}") from err
        return state_digest(tensors)

    def reply(self, key: RoundKey, commit: Commit) -> Outgoing:
        """The reply of a committed round, checked against the ledger; public values apart.

        Raises:
            StorageError: It is lost.
            PrivacyError: It is not what the ledger committed.
        """
        path = self._reply(key)
        try:
            tensors = load_file(path)
        except OSError as err:
            raise StorageError(
                f"round {key.round} was paid for, but its reply {path} is lost"
            ) from err
        if state_digest(tensors) != commit.reply:
            raise PrivacyError(f"{path} is not the reply that the ledger committed")
        return Outgoing(_under(tensors, _STATE), {}, _under(tensors, _STATISTIC))

    def moments(self, run_id: str, number: int) -> dict[str, Tensor]:
        """Optimiser moments of a round; none for the first, or when they are gone."""
        path = self._moments(RoundKey(run_id, number, ""))
        return load_file(path) if path.is_file() else {}

    def _reply(self, key: RoundKey) -> Path:
        name = f"{key.run_id}-{key.round:0{_DIGITS}d}-{key.request[:16]}.safetensors"
        return self.site.outbox / name

    def _moments(self, key: RoundKey) -> Path:
        name = f"{key.run_id}-{key.round:0{_DIGITS}d}.safetensors"
        return self.site.directory / "kept" / name


def _packed(reply: Outgoing) -> dict[str, Tensor]:
    """A reply's tensors in one file."""
    state = {_STATE + name: tensor for name, tensor in reply.tensors.items()}
    return {**state, **{_STATISTIC + name: t for name, t in reply.statistics.items()}}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
