"""The coordinator's keys and certificates: made, renewed, and checked before a start."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificatePublicKeyTypes as PublicKeyTypes,
)

from synth_common.address import parse_address
from synth_common.certificates import (
    WARN_DAYS,
    Authority,
    days_left,
    issue_server,
    issue_signer,
    make_authority,
    read_certificate,
    require_authority,
    require_current,
    require_issued,
    to_pem,
)
from synth_common.errors import EnrolmentError
from synth_common.keys import (
    load_node_key,
    load_signing_key,
    make_node_key,
    make_private_folder,
    make_signing_key,
    require_closed,
)
from synth_common.reporting.files import replace_text
from synth_common.signed_files import KitSigner
from synth_server.settings import ServerFolder, ServerSettings

_NEW_FEDERATION = (
    "an authority cannot be renewed: make a new federation, and enrol every site in it"
)


def make_identity(folder: ServerFolder, settings: ServerSettings) -> x509.Certificate:
    """Make the federation's authority, its signing key and the server's certificate.

    Returns:
        The authority's certificate, whose fingerprint sites compare.

    Raises:
        PrivacyError, StorageError: The folder of keys is open to others, or the disk refused.
    """
    make_private_folder(folder.keys)
    authority = make_authority(settings.name, make_node_key(folder.keys / "ca.key"))
    make_signing_key(folder.keys / "sign.key")
    replace_text(folder.keys / "ca.crt", to_pem(authority.certificate))
    _issue(folder, settings, authority)
    return authority.certificate


def renew_identity(folder: ServerFolder, settings: ServerSettings) -> x509.Certificate:
    """Give the server a new key and certificate, and the signing key a new certificate.

    Returns:
        The server's certificate. A running server goes on with the old one until it is restarted.

    Raises:
        EnrolmentError: The authority's key or certificate is missing, damaged or expired.
        PrivacyError: Others can read a private key.
        StorageError: The disk refused.
    """
    certificate = read_certificate(folder.keys / "ca.crt")
    key = load_node_key(folder.keys / "ca.key")
    _require_pair(certificate, key.public_key(), folder.keys / "ca.key")
    require_current(certificate, _NEW_FEDERATION)
    return _issue(folder, settings, Authority(certificate, key))


def kit_signer(folder: ServerFolder) -> KitSigner:
    """What signs kits.

    Raises:
        EnrolmentError: A key or certificate is missing, damaged, expired, or does not belong.
        PrivacyError: Others can read the private key.
    """
    authority = read_certificate(folder.keys / "ca.crt")
    certificate = read_certificate(folder.keys / "sign.crt")
    key = load_signing_key(folder.keys / "sign.key")
    _require_pair(certificate, key.public_key(), folder.keys / "sign.key")
    require_issued(certificate, authority)
    require_current(certificate, _renew(folder))
    return KitSigner(key, certificate, authority)


def require_identity(folder: ServerFolder, settings: ServerSettings) -> tuple[str, ...]:
    """Check what the server needs of keys and certificates before it starts.

    Returns:
        Warnings: certificates with few days left.

    Raises:
        EnrolmentError: A key or certificate is missing, damaged, expired, or does not belong: to
            its key, to the authority, or to the host that sites dial.
        PrivacyError: Others can read a private key, or enter their folder.
    """
    require_closed(folder.keys)
    authority = read_certificate(folder.keys / "ca.crt")
    server = read_certificate(folder.keys / "server.crt")
    require_authority(authority)
    require_issued(server, authority)
    key = load_node_key(folder.keys / "server.key")
    _require_pair(server, key.public_key(), folder.keys / "server.key")
    require_current(authority, _NEW_FEDERATION)
    require_current(server, _renew(folder))
    _require_host(server, settings, folder)
    if (folder.keys / "ca.key").exists():  # it may be kept elsewhere between renewals
        load_node_key(folder.keys / "ca.key")
    signer = kit_signer(folder)
    renew = _renew(folder)
    dates = [
        ("the server's", server, renew),
        ("the kit signer's", signer.certificate, renew),
        ("the authority's", authority, _NEW_FEDERATION),
    ]
    return tuple(
        f"{whose} certificate expires in {days_left(certificate)} days, on "
        f"{certificate.not_valid_after_utc:%Y-%m-%d}; {fix}"
        for whose, certificate, fix in dates
        if days_left(certificate) < WARN_DAYS
    )


def _issue(
    folder: ServerFolder, settings: ServerSettings, authority: Authority
) -> x509.Certificate:
    """Write the server's key and certificate and the signing key's certificate."""
    signing = load_signing_key(folder.keys / "sign.key").public_key()
    replace_text(folder.keys / "sign.crt", to_pem(issue_signer(authority, settings.name, signing)))
    key = make_node_key(folder.keys / "server.key")
    server = issue_server(authority, parse_address(settings.address), key.public_key())
    replace_text(folder.keys / "server.crt", to_pem(server))
    return server


def _require_pair(certificate: x509.Certificate, public: PublicKeyTypes, path: Path) -> None:
    """Refuse a certificate that was made for another key than the one beside it."""
    if certificate.public_key() != public:
        raise EnrolmentError(
            f"{path} is not the key of the certificate beside it; restore both from one backup, or "
            "make new ones with synth-server renew"
        )


def _require_host(server: x509.Certificate, settings: ServerSettings, folder: ServerFolder) -> None:
    """Refuse a certificate that names another host than the sites dial."""
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    address = parse_address(settings.address)
    hosts = [str(host) for host in names.get_values_for_type(x509.DNSName)]
    hosts += [str(host) for host in names.get_values_for_type(x509.IPAddress)]
    wanted = str(address.ip) if address.ip is not None else address.host
    if wanted not in hosts:
        raise EnrolmentError(
            f"address = {settings.address!r}, but the server's certificate names "
            f"{', '.join(hosts)}, so that sites would refuse it; {_renew(folder)}"
        )


def _renew(folder: ServerFolder) -> str:
    return f"renew it: synth-server renew {folder.path}"
