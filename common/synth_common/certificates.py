"""The federation's own small public-key infrastructure (X.509, RFC 5280).

One authority on P-384 that lives long and signs two kinds of certificate: that of the server,
which sites check in the TLS handshake, and that of the key that signs kits. Sites know the
authority by its fingerprint, which people read to each other; no public authority is involved.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from synth_common import wall_clock
from synth_common.address import Address
from synth_common.errors import EnrolmentError
from synth_common.keys import fingerprint

AUTHORITY_DAYS = 20 * 365
SERVER_DAYS = 397
"""The longest that browsers and their authorities allow; a habit that keeps renewal in practice."""
WARN_DAYS = 30

_SKEW = timedelta(hours=1)
"""New certificates are valid at sites whose clocks are up to this much behind."""


@dataclass(frozen=True)
class Authority:
    """A certificate and the private key that signs others in its name."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(name: str, key: ec.EllipticCurvePrivateKey) -> Authority:
    """A self-signed authority for the federation ``name``, which may sign certificates only."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
    draft = (
        _draft(subject, subject, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(draft.sign(key, hashes.SHA384()), key)


def issue_server(
    authority: Authority, address: Address, public_key: ec.EllipticCurvePublicKey
) -> x509.Certificate:
    """A certificate for the TLS server at ``address.host``, a DNS name or an IP address."""
    ip = address.ip
    host: x509.GeneralName = x509.DNSName(address.host) if ip is None else x509.IPAddress(ip)
    draft = (
        _issued(authority, address.host[:64], public_key)
        .add_extension(x509.SubjectAlternativeName([host]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return draft.sign(authority.key, hashes.SHA384())


def issue_signer(authority: Authority, name: str, public_key: Ed25519PublicKey) -> x509.Certificate:
    """A certificate for the key that signs the kits of federation ``name``; names no host."""
    return _issued(authority, f"{name} kits", public_key).sign(authority.key, hashes.SHA384())


def require_authority(certificate: x509.Certificate) -> None:
    """Refuse a certificate that is no authority, or not signed by its own key.

    Raises:
        EnrolmentError: Says which.
    """
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        basic = x509.BasicConstraints(ca=False, path_length=None)
    if not basic.ca:
        raise EnrolmentError(f"certificate {_name(certificate)} is not an authority's")
    require_issued(certificate, certificate)


def require_issued(certificate: x509.Certificate, authority: x509.Certificate) -> None:
    """Refuse a certificate that ``authority`` did not issue.

    Raises:
        EnrolmentError: Names both.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as err:
        raise EnrolmentError(
            f"certificate {_name(certificate)} was not issued by {_name(authority)}, whose "
            f"fingerprint is {certificate_fingerprint(authority)}"
        ) from err


def require_current(certificate: x509.Certificate, fix: str, now: datetime | None = None) -> None:
    """Refuse a certificate that has expired or is not valid yet.

    Args:
        certificate: Any.
        fix: What the reader should do about an expired one.
        now: The time to judge at; default: the present.

    Raises:
        EnrolmentError: Names the certificate and the date.
    """
    at = now or wall_clock.now()
    if at > certificate.not_valid_after_utc:
        raise EnrolmentError(
            f"certificate {_name(certificate)} expired on "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, and it is {at:%Y-%m-%d} here; {fix}"
        )
    if at < certificate.not_valid_before_utc:
        raise EnrolmentError(
            f"certificate {_name(certificate)} is valid from "
            f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and it is "
            f"{at:%Y-%m-%d %H:%M} here; correct this machine's clock"
        )


def days_left(certificate: x509.Certificate, now: datetime | None = None) -> int:
    """Whole days until a certificate expires; negative once it has."""
    return (certificate.not_valid_after_utc - (now or wall_clock.now())).days


Distrust = Literal["name", "expired", "not yet valid", "authority"]
"""What TLS finds wrong with a server's certificate."""
# OpenSSL's X509_V_ERR_*: https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
_FOUND: Mapping[int, Distrust] = {
    9: "not yet valid",
    10: "expired",
    62: "name",  # of the host
    64: "name",  # an IP address
}


def distrust(err: ssl.SSLCertVerificationError) -> Distrust:
    """Why a handshake failed; ``authority`` for whatever is not the name or a date."""
    return _FOUND.get(err.verify_code, "authority")


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, as ``openssl x509 -fingerprint -sha256`` prints it."""
    return fingerprint(certificate.public_bytes(serialization.Encoding.DER))


def to_pem(certificate: x509.Certificate) -> str:
    """A certificate as PEM text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def from_pem(text: str, where: str) -> x509.Certificate:
    """The certificate in a PEM text; ``where`` names its place in errors.

    Raises:
        EnrolmentError: It is none.
    """
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except ValueError as err:
        raise EnrolmentError(f"{where} is not a certificate in PEM: {err}") from err


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file.

    Raises:
        EnrolmentError: There is none, or it is damaged.
    """
    try:
        return from_pem(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as err:
        raise EnrolmentError(f"cannot read certificate {path}: {err}") from err


def _issued(
    authority: Authority, name: str, public_key: ec.EllipticCurvePublicKey | Ed25519PublicKey
) -> x509.CertificateBuilder:
    """A draft of a certificate that signs no others."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    parent = authority.certificate
    own = parent.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _draft(subject, parent.subject, public_key, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False
        )
    )


def _draft(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    days: int,
) -> x509.CertificateBuilder:
    now = wall_clock.now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    """What a key may do: sign certificates, or sign anything else."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(certificate: x509.Certificate) -> str:
    return repr(certificate.subject.rfc4514_string())
