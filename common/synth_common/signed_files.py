"""Requests and kits as files: JSON that a person can read, with signatures that are verified.

A request is signed by the site's own keys. A kit is signed by the coordinator's, whose certificate
the federation's authority issued; a site knows that one by the fingerprint that was read to it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel

from synth_common.certificates import (
    certificate_fingerprint,
    from_pem,
    require_authority,
    require_current,
    require_issued,
    to_pem,
)
from synth_common.enrolment import EnrolmentRequest, Kit, canonical, canonical_json
from synth_common.errors import ConfigError, EnrolmentError
from synth_common.keys import read_node_public, read_signing_public
from synth_common.validation import validate

# What is signed begins with its purpose, so that no signature can serve another one.
_REQUEST = b"synthward enrolment request 1\n"
_KIT = b"synthward enrolment kit 1\n"
_MOST_BYTES = 4_000_000


@dataclass(frozen=True)
class SignedKit:
    """A kit whose signature was verified.

    Attributes:
        kit: The content.
        signer: The certificate of the key that signed it.
        authority: The certificate that issued that one. Whether it is the
            federation's own is for a person to compare.
        digest: SHA-256 of the signed content, hexadecimal.
        text: The file as it came.
    """

    kit: Kit
    signer: x509.Certificate
    authority: x509.Certificate
    digest: str
    text: str

    @property
    def fingerprint(self) -> str:
        """The authority's fingerprint, which the coordinator's IT reads out."""
        return certificate_fingerprint(self.authority)


@dataclass(frozen=True)
class KitSigner:
    """What signs kits: a key, its certificate, and the authority that issued that."""

    key: Ed25519PrivateKey
    certificate: x509.Certificate
    authority: x509.Certificate


def sign_request(
    request: EnrolmentRequest, node: ec.EllipticCurvePrivateKey, signing: Ed25519PrivateKey
) -> str:
    """The request as a file: JSON with a proof that its maker holds the private keys.

    An X25519 key cannot sign; the other two vouch for it. Nobody gains by claiming another's:
    without its private half there are no masks, and a key that two sites claim is refused.
    """
    message = _REQUEST + canonical(request)
    proofs = {
        "node": node.sign(message, ec.ECDSA(hashes.SHA384())).hex(),
        "signing": signing.sign(message).hex(),
    }
    return _file({"request": json.loads(canonical(request)), "proofs": proofs})


def read_request(text: str, where: str) -> EnrolmentRequest:
    """The request in a file of :func:`sign_request`; ``where`` names the file in errors.

    Raises:
        EnrolmentError: It is malformed, or a proof is missing or does not fit its key.
    """
    values, proofs = _parts(text, where, "request", "proofs")
    request = _validated(EnrolmentRequest, values, where)
    message = _REQUEST + canonical_json(values)
    public, signing = read_node_public(request.keys.node), read_signing_public(request.keys.signing)
    try:
        public.verify(_proof(proofs, "node"), message, ec.ECDSA(hashes.SHA384()))
        signing.verify(_proof(proofs, "signing"), message)
    except (InvalidSignature, ValueError) as err:
        raise EnrolmentError(
            f"{where}: the proofs do not fit the request of site {request.site}: it was altered, "
            "or its maker does not hold the keys. Have the site send its request.json again"
        ) from err
    return request


def sign_kit(kit: Kit, signer: KitSigner) -> str:
    """The kit as a file: JSON with the signature and the certificates that lead up to it."""
    return _file(
        {
            "kit": json.loads(canonical(kit)),
            "signature": signer.key.sign(_KIT + canonical(kit)).hex(),
            "signer": to_pem(signer.certificate),
            "authority": to_pem(signer.authority),
        }
    )


def read_kit(text: str, where: str) -> SignedKit:
    """The kit in a file of :func:`sign_kit`, once all signatures are verified.

    Whether the authority is the right one is for the caller to check, by its fingerprint. Dates
    are not judged here but by :func:`require_fresh`: an accepted kit stays readable.

    Raises:
        EnrolmentError: It is malformed, or a signature does not fit.
    """
    values, signature, signer, authority = _parts(
        text, where, "kit", "signature", "signer", "authority"
    )
    root = from_pem(str(authority), f"{where}: authority")
    certificate = from_pem(str(signer), f"{where}: signer")
    require_authority(root)
    require_issued(certificate, root)
    message = _KIT + canonical_json(values)
    try:
        public = certificate.public_key()
        if not isinstance(public, Ed25519PublicKey):  # the server's certificate signs no kits
            raise InvalidSignature
        public.verify(bytes.fromhex(str(signature)), message)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as err:
        raise EnrolmentError(
            f"{where}: the signature does not fit the kit: it was altered on its way; ask the "
            "coordinator to send it again"
        ) from err
    digest = hashlib.sha256(message).hexdigest()
    return SignedKit(_validated(Kit, values, where), certificate, root, digest, text)


def require_fresh(signed: SignedKit) -> None:
    """Refuse a kit whose signer's or authority's certificate is not valid now.

    Raises:
        EnrolmentError: Names the certificate and the date.
    """
    fix = "have the coordinator run synth-server renew and send the new kit"
    for certificate in (signed.authority, signed.signer):
        require_current(certificate, fix)


def read_file(path: Path) -> str:
    """The text of a request or kit.

    Raises:
        EnrolmentError: It cannot be read, or is far too large to be one.
    """
    try:
        with path.open("rb") as handle:
            content = handle.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise EnrolmentError(f"{path} is larger than {_MOST_BYTES:,} bytes; not a file of ours")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise EnrolmentError(f"cannot read {path}: {err}") from err


def _file(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


def _parts(text: str, where: str, *names: str) -> list[Any]:
    """The named entries of a JSON object."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise EnrolmentError(f"{where} is not JSON: {err}") from err
    if not isinstance(values, dict) or not set(names) <= set(values):
        raise EnrolmentError(f"{where} is not what was expected: it needs {', '.join(names)}")
    return [values[name] for name in names]


_Model = TypeVar("_Model", bound=BaseModel)


def _validated(model: type[_Model], values: Any, where: str) -> _Model:
    if not isinstance(values, dict):
        raise EnrolmentError(f"{where}: expected a JSON object, found {type(values).__name__}")
    try:
        return validate(model, values, where)
    except ConfigError as err:
        raise EnrolmentError(str(err)) from err


def _proof(proofs: Any, name: str) -> bytes:
    """One signature of a request. Raises ValueError where there is none."""
    if not isinstance(proofs, dict) or not isinstance(proofs.get(name), str):
        raise ValueError(f"no proof {name}")
    return bytes.fromhex(proofs[name])
