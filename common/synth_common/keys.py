"""Private keys on disk, and how people compare public ones.

A private key is a file that its owner alone can read, in a folder that is closed to others;
every reader here refuses anything else. It is made where it is used and has no way to travel.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from synth_common.errors import EnrolmentError, PrivacyError, StorageError
from synth_common.reporting.files import replace_bytes

_OTHERS = 0o077


def make_private_folder(path: Path) -> Path:
    """Make a folder that is closed to others, unless it is there; returns ``path``.

    Raises:
        PrivacyError: It is there, and open to others.
        StorageError: The disk refused.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise StorageError(f"cannot make folder {path}: {err.strerror}") from err
    require_closed(path)
    return path


def require_closed(folder: Path) -> None:
    """Refuse a folder of keys that others can enter: they could replace what is in it.

    Raises:
        PrivacyError: Names the folder and the command that closes it; or it belongs to another
            user.
    """
    try:
        found = folder.stat()
    except OSError as err:
        raise EnrolmentError(f"cannot read folder {folder}: {err.strerror}") from err
    _require_own(folder, found)
    mode = found.st_mode
    if mode & _OTHERS:
        raise PrivacyError(
            f"{folder} has mode {mode & 0o777:o}: others can enter it, and read or replace the "
            f"keys in it. Close it: chmod 700 {folder}"
        )


def read_private(path: Path) -> bytes:
    """The content of a private file.

    Raises:
        PrivacyError: Others than its owner can read it, or enter its folder; or it belongs to
            another user than this one or root.
        FileNotFoundError, OSError: As :meth:`Path.open`.
    """
    with path.open("rb") as handle:
        found = os.fstat(handle.fileno())  # of what is read, whatever the name becomes
        _require_own(path, found)
        mode = found.st_mode
        if mode & _OTHERS:
            raise PrivacyError(
                f"{path} has mode {mode & 0o777:o}: others can read this private key. It may be "
                f"known by now: make a new one, enrol again, and keep that one: chmod 600 {path}"
            )
        require_closed(path.parent)
        return handle.read()


def _require_own(path: Path, found: os.stat_result) -> None:
    """Refuse (PrivacyError) what another user owns: that user can read and replace it."""
    me = os.geteuid()
    if found.st_uid not in (me, 0):
        raise PrivacyError(
            f"{path} belongs to user {found.st_uid}, who can read and replace it, and this is user "
            f"{me}: run as that user, or give it over: chown {me} {path}"
        )


def make_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a private key on the curve P-384 and keep it at ``path``, for its owner only."""
    key = ec.generate_private_key(ec.SECP384R1())
    _save(path, key)
    return key


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key on P-384 at ``path``.

    Raises:
        EnrolmentError: There is none, or it is another kind of key.
        PrivacyError: Others than its owner can read it.
    """
    key = _load(path)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1):
        return key
    raise EnrolmentError(f"{path} holds no key on the curve P-384; restore it, or enrol again")


def make_signing_key(path: Path) -> Ed25519PrivateKey:
    """Make an Ed25519 private key and keep it at ``path``, for its owner only."""
    key = Ed25519PrivateKey.generate()
    _save(path, key)
    return key


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 private key at ``path``. Errors as :func:`load_node_key`."""
    key = _load(path)
    if isinstance(key, Ed25519PrivateKey):
        return key
    raise EnrolmentError(f"{path} holds no Ed25519 key; restore it, or enrol again")


def node_public(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half as PEM (SubjectPublicKeyInfo), byte for byte as Flower writes it."""
    return pem_of(key.public_key())


def pem_of(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as PEM (SubjectPublicKeyInfo)."""
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, kind).decode()


def read_node_public(pem: str) -> ec.EllipticCurvePublicKey:
    """The public key on P-384 in a PEM text. Raises ValueError for anything else."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except UnsupportedAlgorithm as err:
        raise ValueError("not a public key on the curve P-384") from err
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        return key
    raise ValueError("not a public key on the curve P-384")


def signing_public(key: Ed25519PrivateKey) -> str:
    """The public half, hexadecimal (32 bytes)."""
    return key.public_key().public_bytes_raw().hex()


def read_signing_public(text: str) -> Ed25519PublicKey:
    """The Ed25519 public key of a hexadecimal text. Raises ValueError for anything else."""
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))


def fingerprint(content: bytes) -> str:
    """SHA-256 as people compare it: ``AB:CD:...``, 32 pairs."""
    return hashlib.sha256(content).digest().hex(":").upper()


def same_fingerprint(one: str, other: str) -> bool:
    """Whether two fingerprints are the same, however their digits are written and grouped."""
    return _digits(one) == _digits(other)


def _digits(text: str) -> str:
    return re.sub(r"[\s:.-]", "", text.casefold()).removeprefix("sha256")


def _save(path: Path, key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> None:
    """Write a private key as PEM (PKCS 8)."""
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    replace_bytes(path, content, mode=0o600)


def _load(path: Path) -> object:
    """The private key in a PEM file."""
    try:
        return serialization.load_pem_private_key(read_private(path), password=None)
    except OSError as err:
        raise EnrolmentError(f"cannot read private key {path}: {err.strerror}") from err
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise EnrolmentError(
            f"{path} is not a private key in PEM; restore it, or enrol again"
        ) from err
