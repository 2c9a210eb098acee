"""The list of releases that were taken back, signed by whoever signed them.

A bundle cannot say of itself that it was withdrawn: its copies are everywhere. So the list lies
where the coordinator publishes it, and who checks a bundle fetches it anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AwareDatetime, Field

from synth_common import wall_clock
from synth_common.errors import ConfigError, StorageError, VerificationError
from synth_common.file_lock import take
from synth_common.keys import signing_public
from synth_common.plan import StrictModel
from synth_common.release import dsse
from synth_common.release.names import ReleaseName
from synth_common.reporting.files import replace_text
from synth_common.validation import validate

KIND = "urn:synthward:withdrawals:1"
_MOST_REASON = 500


class Withdrawal(StrictModel):
    """One release that must not be used any more, why, and since when."""

    name: str
    version: str
    reason: Annotated[str, Field(min_length=1, max_length=_MOST_REASON)]
    time: AwareDatetime


class Withdrawals(StrictModel):
    """The whole list, oldest first."""

    withdrawn: tuple[Withdrawal, ...]


def withdraw(path: Path, release: ReleaseName, reason: str, key: Ed25519PrivateKey) -> int:
    """Add a release to the list at ``path``, begun if missing. Returns how many it names.

    Raises:
        ConfigError: No reason, the release is on the list already, or another process adds to it.
        VerificationError: The list there is damaged, or signed by another key.
        StorageError: The disk refused.
    """
    if not 1 <= len(reason.strip()) <= _MOST_REASON:
        raise ConfigError(f"--reason has {len(reason.strip())} characters, expected 1 to 500")
    with _held(path):
        return _add(path, release, reason.strip(), key)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold the list at ``path``: runs share it, and each reads, adds and writes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("a")
    except OSError as err:
        raise StorageError(f"cannot write into {path.parent}: {err.strerror}") from err
    with lock:
        try:
            take(lock)
        except OSError:
            raise ConfigError(
                f"another process is adding to {path}; nothing was written. Wait for it to end"
            ) from None
        yield


def _add(path: Path, release: ReleaseName, reason: str, key: Ed25519PrivateKey) -> int:
    """Read the list, add to it and write it."""
    before: Sequence[Withdrawal] = ()
    if path.exists():
        before, signer = read_withdrawals(path)
        if signer != signing_public(key):
            raise VerificationError(
                f"{path} is signed by another key: give the --key that signed it, or another --out"
            )
    if find(before, release) is not None:
        raise ConfigError(f"{release} is on the list already; nothing was written")
    new = Withdrawal(
        name=release.name, version=release.version, reason=reason, time=wall_clock.now()
    )
    whole = Withdrawals(withdrawn=(*before, new))
    replace_text(path, dsse.sign(KIND, {}, whole.model_dump(mode="json"), key))
    return len(whole.withdrawn)


def read_withdrawals(path: Path) -> tuple[Sequence[Withdrawal], str]:
    """The list at ``path``, and the public key that signed it.

    Raises:
        VerificationError: It is malformed or was edited.
        ConfigError: It cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"cannot read list {path}: {err}") from err
    signed = dsse.read_signed(text, KIND, str(path))
    try:
        return validate(Withdrawals, signed.predicate, str(path)).withdrawn, signed.key
    except ConfigError as err:
        raise VerificationError(str(err)) from err


def find(withdrawn: Sequence[Withdrawal], release: ReleaseName) -> Withdrawal | None:
    """The entry of a release; None if it was not withdrawn."""
    for entry in withdrawn:
        if (entry.name, entry.version) == (release.name, release.version):
            return entry
    return None
