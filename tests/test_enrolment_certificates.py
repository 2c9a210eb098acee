"""Keys and certificates: what TLS accepts, what expires, what others can read."""

from __future__ import annotations

import hashlib
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from enrolment_scenario import Clock, found

from synth_client.enrol import load_key, load_node_key, load_signing_key
from synth_common import keys
from synth_common.address import Address, parse_address
from synth_common.certificates import (
    certificate_fingerprint,
    days_left,
    read_certificate,
    require_authority,
    require_current,
    require_issued,
)
from synth_common.errors import ConfigError, EnrolmentError, PrivacyError
from synth_server.authority import kit_signer, renew_identity, require_identity
from synth_server.settings import load_settings


def _check(federation):
    return require_identity(federation.folder, load_settings(federation.folder))


def _readdress(federation, address):
    file = federation.folder.settings
    file.write_text(file.read_text().replace("localhost:8443", address))


def _handshake(folder, host, authority=None):
    """A TLS handshake in memory, as strict as Python can be; returns the server's certificate."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder.keys / "server.crt", folder.keys / "server.key")
    client = ssl.create_default_context(cafile=authority or folder.keys / "ca.crt")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=host),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[0].getpeercert()


@pytest.mark.parametrize(
    ("address", "host", "other"),
    [
        ("localhost:8443", "localhost", "localhost.example.org"),
        ("127.0.0.1:8443", "127.0.0.1", "127.0.0.2"),
        ("[::1]:8443", "::1", "::2"),
    ],
)
def test_sites_reach_the_host_that_the_certificate_names_and_no_other(
    tmp_path, address, host, other
):
    federation = found(tmp_path, address)
    found_certificate = _handshake(federation.folder, host)
    assert found_certificate["issuer"] == ((("commonName", "lungs authority"),),)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        _handshake(federation.folder, other)


def test_another_federations_authority_vouches_for_nothing(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = found(tmp_path / "one"), found(tmp_path / "two")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        _handshake(one.folder, "localhost", two.folder.keys / "ca.crt")
    foreign = read_certificate(two.folder.keys / "server.crt")
    with pytest.raises(EnrolmentError, match="was not issued by 'CN=lungs authority'"):
        require_issued(foreign, read_certificate(one.folder.keys / "ca.crt"))
    for part in ("server.crt", "server.key"):
        (one.folder.keys / part).write_bytes((two.folder.keys / part).read_bytes())
    with pytest.raises(EnrolmentError, match="was not issued by"):
        _check(one)


def test_the_servers_certificate_is_no_authority(tmp_path):
    federation = found(tmp_path)
    server = read_certificate(federation.folder.keys / "server.crt")
    with pytest.raises(EnrolmentError, match="is not an authority's"):
        require_authority(server)
    require_authority(read_certificate(federation.folder.keys / "ca.crt"))


def test_a_fingerprint_is_what_other_tools_print_and_people_may_write_it_as_they_like(tmp_path):
    federation = found(tmp_path)
    der = ssl.PEM_cert_to_DER_cert((federation.folder.keys / "ca.crt").read_text())
    digits = hashlib.sha256(der).hexdigest()
    assert federation.fingerprint.replace(":", "").lower() == digits
    for written in (digits, digits.upper(), f"SHA256:{digits}", " ".join(digits)):
        assert keys.same_fingerprint(written, federation.fingerprint)
    for wrong in ("", "AB:CD", digits[:-1], digits[:-1] + ("0" if digits[-1] != "0" else "1")):
        assert not keys.same_fingerprint(wrong, federation.fingerprint)


def test_days_are_counted_down_warned_of_and_refused(tmp_path, clock):
    federation = found(tmp_path)
    server = read_certificate(federation.folder.keys / "server.crt")
    assert days_left(server) == 397
    assert _check(federation) == ()
    clock.advance(days=367)
    assert _check(federation) == ()
    clock.advance(days=1)
    assert days_left(server) == 29
    warnings = _check(federation)
    assert ["expires in 29 days" in line for line in warnings] == [True, True]
    assert "synth-server renew" in warnings[0]
    clock.advance(days=29)
    assert _check(federation)[0].startswith("the server's certificate expires in 0 days")
    clock.advance(days=1)
    assert days_left(server) == -1
    with pytest.raises(EnrolmentError, match=r"'CN=localhost' expired on 2031-02-03.* renew"):
        _check(federation)
    with pytest.raises(EnrolmentError, match="'CN=lungs kits' expired"):
        kit_signer(federation.folder)


def test_a_renewed_certificate_has_a_new_key_and_the_old_authority(tmp_path, clock):
    federation = found(tmp_path)
    before = (federation.folder.keys / "server.key").read_bytes()
    clock.advance(days=400)
    renewed = renew_identity(federation.folder, load_settings(federation.folder))
    assert days_left(renewed) == 397
    assert _check(federation) == ()
    assert (federation.folder.keys / "server.key").read_bytes() != before
    authority = read_certificate(federation.folder.keys / "ca.crt")
    assert certificate_fingerprint(authority) == federation.fingerprint
    clock.advance(days=20 * 365)
    with pytest.raises(EnrolmentError, match=r"'CN=lungs authority' expired .*new federation"):
        renew_identity(federation.folder, load_settings(federation.folder))


def test_an_expired_certificate_is_refused_by_tls_too(tmp_path, monkeypatch):
    """The dates that our checks read are those that TLS enforces."""
    past = Clock()
    past.time = datetime.now(UTC).replace(microsecond=0) - timedelta(days=398)
    with monkeypatch.context() as patch:
        patch.setattr("synth_common.wall_clock.now", past)
        federation = found(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        _handshake(federation.folder, "localhost")
    with pytest.raises(EnrolmentError, match="expired"):
        _check(federation)
    renew_identity(federation.folder, load_settings(federation.folder))
    assert _handshake(federation.folder, "localhost")


def test_a_clock_that_is_behind_is_told_so(tmp_path, clock):
    federation = found(tmp_path)
    server = read_certificate(federation.folder.keys / "server.crt")
    clock.advance(minutes=-59)
    require_current(server, "")
    clock.advance(minutes=-2)
    with pytest.raises(EnrolmentError, match=r"valid from 2030-01-02 02:04 .*clock"):
        require_current(server, "")


def test_an_address_the_certificate_does_not_name_is_refused_until_it_is_renewed(tmp_path):
    federation = found(tmp_path)
    _readdress(federation, "server.example.org:8443")
    with pytest.raises(EnrolmentError, match=r"certificate names localhost.*synth-server renew"):
        _check(federation)
    renew_identity(federation.folder, load_settings(federation.folder))
    assert _check(federation) == ()


@pytest.mark.parametrize("part", ["server.key", "sign.key"])
def test_a_key_beside_anothers_certificate_is_refused(tmp_path, part):
    federation = found(tmp_path)
    path = federation.folder.keys / part
    path.unlink()
    (keys.make_node_key if part == "server.key" else keys.make_signing_key)(path)
    with pytest.raises(EnrolmentError, match=rf"{part} is not the key of the certificate"):
        _check(federation)


def test_the_authoritys_key_may_be_kept_elsewhere_between_renewals(tmp_path):
    federation = found(tmp_path)
    elsewhere = (federation.folder.keys / "ca.key").rename(tmp_path / "safe.key")
    assert _check(federation) == ()
    federation.enrol("north")
    with pytest.raises(EnrolmentError, match=r"cannot read private key .*ca\.key"):
        renew_identity(federation.folder, load_settings(federation.folder))
    elsewhere.rename(federation.folder.keys / "ca.key")
    renew_identity(federation.folder, load_settings(federation.folder))


_READERS = {
    "server.key": _check,
    "sign.key": lambda federation: kit_signer(federation.folder),
    "ca.key": lambda federation: renew_identity(
        federation.folder, load_settings(federation.folder)
    ),
    "private.key": lambda federation: load_key(federation.site("north")),
    "node.key": lambda federation: load_node_key(federation.site("north")),
    "sign.key at the site": lambda federation: load_signing_key(federation.site("north")),
}


def _another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the file belong to neither this user nor root."""
    if os.geteuid() == 0:
        os.chown(path, 4711, -1)
    else:
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)


@pytest.mark.parametrize("what", ["key", "folder"])
def test_private_keys_of_another_user_are_refused(tmp_path, what, monkeypatch):
    folder = keys.make_private_folder(tmp_path / "keys")
    path = folder / "node.key"
    keys.make_node_key(path)
    keys.load_node_key(path)
    _another_user(path if what == "key" else folder, monkeypatch)
    with pytest.raises(PrivacyError, match=r"belongs to user \d+.*chown"):
        keys.load_node_key(path)


@pytest.mark.parametrize("name", _READERS)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_private_keys_that_others_can_read_are_refused(tmp_path, name, mode):
    federation = found(tmp_path)
    federation.ask("north")
    at_site = name in {"private.key", "node.key", "sign.key at the site"}
    folder = federation.site("north") / "keys" if at_site else federation.folder.keys
    path = folder / name.split()[0]
    assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    _READERS[name](federation)
    path.chmod(mode)
    with pytest.raises(PrivacyError, match=f"mode {mode:o}") as caught:
        _READERS[name](federation)
    assert f"chmod 600 {path}" in str(caught.value)
    path.chmod(0o600)
    folder.chmod(0o750)
    with pytest.raises(PrivacyError, match="mode 750") as caught:
        _READERS[name](federation)
    assert f"chmod 700 {folder}" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAA\n"])
def test_damaged_and_missing_keys_are_named(tmp_path, content):
    federation = found(tmp_path)
    federation.ask("north")
    path = federation.site("north") / "keys" / "node.key"
    path.write_bytes(content)
    with pytest.raises(EnrolmentError, match=r"node\.key is not a private key"):
        load_node_key(federation.site("north"))
    path.unlink()
    with pytest.raises(EnrolmentError, match=r"cannot read private key .*node\.key"):
        load_node_key(federation.site("north"))
    path.write_bytes((federation.site("north") / "keys" / "sign.key").read_bytes())
    path.chmod(0o600)
    with pytest.raises(EnrolmentError, match="no key on the curve P-384"):
        load_node_key(federation.site("north"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("synth.example.org:8443", Address("synth.example.org", 8443)),
        ("10.0.0.7:1", Address("10.0.0.7", 1)),
        ("[fe80::1]:65535", Address("fe80::1", 65535)),
    ],
)
def test_addresses_are_read_and_written(text, address):
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":8443",
        "host:0",
        "host:65536",
        "host:-1",
        "host:x",
        "https://host:8443",
        "::1:8443",
        "[host]:8443",
        "[10.0.0.7]:8443",
        "ho st:8443",
        "host:8443/",
        "a..b:8443",
        "user@host:8443",
        "x" * 64 + ":8443",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        parse_address(text)
