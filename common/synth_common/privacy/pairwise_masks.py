"""Pairwise masks that cancel in a sum (Bonawitz et al. 2017, without the recovery of dropouts).

Every two sites share a secret: X25519 (RFC 7748) of the one's private and the other's public
key. HKDF-SHA256 (RFC 5869) turns it, together with everything that tells one use from
another, into a key; ChaCha20 (RFC 8439) stretches the key into a vector of words. The site
whose name comes first adds the vector, the other one subtracts it, so that over all sites the
masks add up to 0 modulo 2^64, and so modulo every smaller power of two.

A mask is a one-time pad: it hides a vector as long as it hides one only. So every use has its
own context, and a site answers no context twice with different vectors (the site's ledger
sees to that).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from synth_common.errors import PrivacyError

Words = npt.NDArray[np.uint64]
_PURPOSE = "synthward pairwise mask 1"


@dataclass(frozen=True)
class MaskContext:
    """What one use of the masks is for; two contexts have independent masks.

    Attributes:
        run_id: The run.
        attempt: Which attempt at the sum, from 1.
        participants: Every site whose vector is in the sum, sorted.
        plan_digest: The plan under which it is asked for.
    """

    run_id: str
    attempt: int
    participants: tuple[str, ...]
    plan_digest: str

    def __post_init__(self) -> None:
        if list(self.participants) != sorted(set(self.participants)):
            raise PrivacyError(
                f"participants = {list(self.participants)[:8]}: must be sorted, each named once"
            )

    def __str__(self) -> str:
        """Canonical JSON, so that no two contexts read alike."""
        return json.dumps(
            [self.run_id, self.attempt, self.participants, self.plan_digest],
            separators=(",", ":"),
        )


def public_bytes(key: X25519PrivateKey) -> bytes:
    """The 32 bytes that peers get of a private key."""
    return key.public_key().public_bytes_raw()


def total_mask(
    name: str,
    key: X25519PrivateKey,
    peers: Mapping[str, bytes],
    context: MaskContext,
    size: int,
) -> Words:
    """The sum of a site's masks with all other participants, uint64 (size,).

    Args:
        name: The site's own name.
        key: Its private key.
        peers: Public keys (32 bytes) by name, as agreed at enrolment.
        context: What the masks are for.
        size: Length of the vector.

    Raises:
        PrivacyError: The site is not among the participants, or has no key of one of them,
            or a key that is none.
    """
    if name not in context.participants:
        raise PrivacyError(f"participants = {list(context.participants)}: {name} is not among them")
    total: Words = np.zeros(size, dtype=np.uint64)
    for other in context.participants:
        if other == name:
            continue
        if other not in peers:
            raise PrivacyError(
                f"participant {other!r} is not enrolled at {name}: its masks would be unknown"
            )
        words = _pair_mask((name, key), (other, peers[other]), context, size)
        if name < other:
            total += words
        else:
            total -= words
    return total


def _pair_mask(
    own: tuple[str, X25519PrivateKey],
    peer: tuple[str, bytes],
    context: MaskContext,
    size: int,
) -> Words:
    """What two sites both can make and nobody else: uniform words, uint64 (size,)."""
    (name, key), (other, public) = own, peer
    try:
        shared = key.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as err:  # wrong length, or a point of low order
        raise PrivacyError(f"the public key of {other!r} cannot be used: {err}") from err
    ends = sorted([(name, public_bytes(key).hex()), (other, public.hex())])
    info = json.dumps([_PURPOSE, str(context), ends], separators=(",", ":")).encode()
    secret = HKDF(hashes.SHA256(), length=32, salt=None, info=info).derive(shared)
    # The key is used for this stream only, so its nonce need not differ from others.
    stream = Cipher(algorithms.ChaCha20(secret, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(8 * size)), dtype="<u8")
