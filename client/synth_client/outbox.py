"""What a site keeps of a round: the reply that was paid for, and the optimiser's moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from synth_client.site import Site
from synth_common.errors import PrivacyError, StorageError
from synth_common.privacy.egress import Outgoing, state_digest
from synth_common.privacy.ledger import RUN_ID, Commit, Ledger, Reservation, RoundKey
from synth_common.privacy.training import SITE
from synth_common.reporting.files import replace_bytes

_STATE, _STATISTIC = "state.", "statistic."
_DIGITS = 6


def require_run_id(run_id: str) -> None:
    """Refuse (PrivacyError) a run id that could not be a part of a file name."""
    if not RUN_ID.fullmatch(run_id):
        raise PrivacyError(f"run id {run_id[:80]!r} is not 1 to 64 letters, digits, - or _")


@dataclass(frozen=True)
class Outbox:
    """The kept files of one site. Files of earlier rounds go when a later one is kept.

    A reply's name tells the request, so that another request for the same round cannot take
    the place of a reply that was committed; runs have folders of their own.
    """

    site: Site

    def keep(self, key: RoundKey, reply: Outgoing, moments: Mapping[str, Tensor]) -> str:
        """Keep a reply (to send it again for free) and moments; returns the reply's digest.

        Both are on the disk when this returns, so that no commit can outlive its reply.

        Raises:
            StorageError: The disk refused.
        """
        tensors = _packed(reply)
        for path, kept in ((self._moments(key), moments), (self._reply(key), tensors)):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as err:
                raise StorageError(f"cannot write {path}: {err.strerror}") from err
            replace_bytes(path, save(dict(kept)), mode=0o600)
            for old in path.parent.glob("*.safetensors"):
                if int(old.stem[:_DIGITS]) < key.round - 1:
                    old.unlink(missing_ok=True)
        return state_digest(tensors)

    def reply(self, key: RoundKey, commit: Commit) -> Outgoing | None:
        """The reply of a committed round, public values apart; None if it is lost.

        Raises:
            PrivacyError: It is not what the ledger committed.
        """
        path = self._reply(key)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError):
            return None
        if state_digest(tensors) != commit.reply:
            raise PrivacyError(f"{path} is not the reply that the ledger committed")
        return Outgoing(_under(tensors, _STATE), {}, _under(tensors, _STATISTIC))

    def paid(self, ledger: Ledger, key: RoundKey) -> tuple[Outgoing, Reservation] | None:
        """The reply to exactly this request and what was charged for it; None if there is none.

        Raises:
            PrivacyError: It is not what the ledger committed.
        """
        done = ledger.committed(key)
        made = None if done is None else self.reply(key, done)
        if done is None or made is None:
            return None
        charged = ledger.reservations(key.run_id)
        return made, next(r for r in charged if r.number == done.reservation)

    def moments(self, run_id: str, number: int) -> dict[str, Tensor]:
        """Optimiser moments of a round; none for the first, or when they are gone."""
        path = self._moments(RoundKey(run_id, number, "", ""))
        try:
            return load_file(path) if path.is_file() else {}
        except SafetensorError:
            return {}

    def kept_before(self, run_id: str, number: int) -> dict[str, Tensor]:
        """Moments of the round before; without them the site's own normalisation kept last.

        A site that missed a round starts with fresh moments, but its scanner is the same.
        """
        moments = self.moments(run_id, number - 1)
        own = {} if moments else self.site_state(run_id, number - 1)
        return moments or {SITE + name: tensor for name, tensor in own.items()}

    def site_state(self, run_id: str, number: int) -> dict[str, Tensor]:
        """The site's own normalisation as it was kept last, up to round ``number``."""
        folder = self._moments(RoundKey(run_id, number, "", "")).parent
        rounds = [int(path.stem) for path in folder.glob("*.safetensors")]
        last = max((n for n in rounds if n <= number), default=0)
        return _under(self.moments(run_id, last), SITE)

    def _reply(self, key: RoundKey) -> Path:
        name = f"{key.round:0{_DIGITS}d}-{key.request[:16]}.safetensors"
        return self.site.outbox / key.run_id / name

    def _moments(self, key: RoundKey) -> Path:
        return self.site.directory / "kept" / key.run_id / f"{key.round:0{_DIGITS}d}.safetensors"


def _packed(reply: Outgoing) -> dict[str, Tensor]:
    """A reply's tensors in one file."""
    state = {_STATE + name: tensor for name, tensor in reply.tensors.items()}
    return {**state, **{_STATISTIC + name: t for name, t in reply.statistics.items()}}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
