"""A site's key for secure sums, and the keys of the peers it was enrolled with.

::

    DIRECTORY/keys/private.key   X25519, hexadecimal, readable by its owner only   SECRET
    DIRECTORY/keys/peers.json    public keys of the other sites, by name

The private key is made at the site and never leaves it. Peers' public keys are agreed upon
at enrolment, between the sites' operators: a coordinator that could hand out keys could
pose as every peer and take all masks off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from synth_common.errors import PrivacyError, StorageError
from synth_common.privacy.pairwise_masks import public_bytes
from synth_common.reporting.files import replace_bytes, replace_text

_OTHERS = 0o077


def make_key(directory: Path) -> str:
    """The public key (hexadecimal) of the site in ``directory``; makes its key if it has none.

    Raises:
        PrivacyError: There is a key, and it is damaged or others can read it.
        StorageError: The disk refused.
    """
    path = _private(directory)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as err:
            raise StorageError(f"cannot write {path}: {err.strerror}") from err
        secret = X25519PrivateKey.generate().private_bytes_raw()
        replace_bytes(path, f"{secret.hex()}\n".encode(), mode=0o600)
    return public_bytes(load_key(directory)).hex()


def load_key(directory: Path) -> X25519PrivateKey:
    """The private key of the site in ``directory``.

    Raises:
        PrivacyError: There is none, it is damaged, or others than its owner can read it.
    """
    path = _private(directory)
    try:
        mode = path.stat().st_mode
        text = path.read_text()
        key = X25519PrivateKey.from_private_bytes(bytes.fromhex(text))
    except (OSError, ValueError) as err:
        raise PrivacyError(
            f"{path} holds no key for secure aggregation; enrol this site with its peers"
        ) from err
    if mode & _OTHERS:
        raise PrivacyError(
            f"{path} has mode {mode & 0o777:o}: others can read the key that hides this site's "
            f"vector. Enrol the site again with a new key, and keep that one: chmod 600 {path}"
        )
    return key


def agree(directory: Path, peers: Mapping[str, str]) -> None:
    """Write down the peers' public keys (hexadecimal, by name) that the operators agreed upon.

    Raises:
        StorageError: The disk refused.
    """
    path = _peers(directory)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise StorageError(f"cannot write {path}: {err.strerror}") from err
    replace_text(path, json.dumps(dict(sorted(peers.items())), indent=2) + "\n")


def load_peers(directory: Path) -> dict[str, bytes]:
    """The peers' public keys by name.

    Raises:
        PrivacyError: None were agreed upon, or the file is damaged.
    """
    path = _peers(directory)
    try:
        values = json.loads(path.read_text())
        return {str(name): bytes.fromhex(key) for name, key in values.items()}
    except (OSError, ValueError, TypeError, AttributeError) as err:
        raise PrivacyError(
            f"{path} holds no keys of peers; enrol this site with its peers"
        ) from err


def _private(directory: Path) -> Path:
    return directory / "keys" / "private.key"


def _peers(directory: Path) -> Path:
    return directory / "keys" / "peers.json"
