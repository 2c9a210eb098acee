"""Requests and kits: what is signed, what travels, what is refused."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from enrolment_scenario import NAMES, found

from synth_client.enrol import load_key, load_node_key, load_signing_key
from synth_common.certificates import from_pem, issue_signer, make_authority, read_certificate
from synth_common.enrolment import EnrolmentRequest, PublicKeys
from synth_common.errors import ConfigError, EnrolmentError
from synth_common.keys import load_node_key as load_p384
from synth_common.keys import node_public, signing_public
from synth_common.signed_files import KitSigner, read_kit, read_request, sign_kit, sign_request
from synth_server.authority import kit_signer
from synth_server.enrol import enrol, renew_member, renew_server, revoke
from synth_server.members import read_members


def _public(**changes):
    keys = {
        "node": node_public(ec.generate_private_key(ec.SECP384R1())),
        "agreement": X25519PrivateKey.generate().public_key().public_bytes_raw().hex(),
        "signing": signing_public(Ed25519PrivateKey.generate()),
    }
    return PublicKeys(**{**keys, **changes})


def _secrets(directory):
    """The private halves of a site's keys, in the spellings in which they could travel."""
    for key in (load_key(directory), load_signing_key(directory)):
        yield key.private_bytes_raw().hex()
    yield f"{load_node_key(directory).private_numbers().private_value:x}"
    for path in (directory / "keys").glob("*.key"):
        yield from (line for line in path.read_text().splitlines() if not line.startswith("-"))


def test_nothing_secret_travels(tmp_path):
    federation = found(tmp_path)
    federation.enrol(*NAMES)
    federation.accept("north")
    coordinator = federation.folder
    secrets = {secret for name in NAMES for secret in _secrets(federation.site(name))}
    own = {p.read_text().splitlines()[1] for p in coordinator.keys.glob("*.key")}
    assert len(secrets) >= 15
    travelled = [federation.site("north") / "request.json", coordinator.kits / "north.json"]
    kept = [p for p in coordinator.path.rglob("*") if p.is_file()]
    for path in {*travelled, *kept}:
        text = path.read_text()
        assert not any(secret in text for secret in secrets), path
        if path.suffix != ".key":
            assert "PRIVATE" not in text
            assert not any(secret in text for secret in own), path
    for path in federation.site("north").rglob("*"):
        if path.is_file():
            assert not any(secret in path.read_text() for secret in own), path


def test_the_node_key_is_spelt_as_flower_spells_it(tmp_path):
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    federation = found(tmp_path)
    federation.enrol("north")
    key = load_node_key(federation.site("north")).public_key()
    assert federation.kit("north").kit.member("north").keys.node.encode() == public_key_to_bytes(
        key
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["request"].update(site="south"),
        lambda v: v["request"].update(made="2031-01-01T00:00:00Z"),
        lambda v: v["request"]["keys"].update(json.loads(_public().model_dump_json())),
        lambda v: v["request"]["keys"].update(agreement=_public().agreement),
        lambda v: v["request"]["keys"].update(node=_public().node),
        lambda v: v["request"]["keys"].update(signing=_public().signing),
        lambda v: v["proofs"].pop("node"),
        lambda v: v["proofs"].pop("signing"),
        lambda v: v["proofs"].update(node=v["proofs"]["signing"]),
        lambda v: v["proofs"].update(node="zz"),
        lambda v: v["proofs"].update(signing=3),
        lambda v: v.update(proofs=[]),
    ],
)
def test_a_request_that_was_altered_is_refused(tmp_path, change):
    federation = found(tmp_path)
    path = federation.ask("north")
    values = json.loads(path.read_text())
    change(values)
    with pytest.raises(EnrolmentError, match="the proofs do not fit"):
        read_request(json.dumps(values), "r.json")
    path.write_text(json.dumps(values))
    with pytest.raises(EnrolmentError, match=r"request\.json: the proofs do not fit"):
        enrol(federation.folder, [path], 365)
    assert read_members(federation.folder) == []


def test_only_who_holds_a_key_can_ask_in_its_name(tmp_path):
    """A thief of public keys signs with keys of its own, and is found out."""
    federation = found(tmp_path)
    federation.enrol("north")
    theirs = federation.kit("north").kit.member("north").keys
    node, signing = ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate()
    for claimed in (
        theirs,
        _public(node=theirs.node, signing=signing_public(signing)),
        _public(node=node_public(node), signing=theirs.signing),
    ):
        request = EnrolmentRequest(site="thief", made="2031-01-01T00:00:00Z", keys=claimed)
        with pytest.raises(EnrolmentError, match="the proofs do not fit"):
            read_request(sign_request(request, node, signing), "r.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "needs request, proofs"),
        ("{}", "needs request, proofs"),
        ('{"request": 3, "proofs": {}}', "expected a JSON object"),
        ('{"request": {}, "proofs": {}}', "site: required"),
        ('{"request": {"site": "../north"}, "proofs": {}}', r"site = '\.\./north'"),
        ('{"request": {"site": "north", "password": "x"}, "proofs": {}}', "password: unknown key"),
    ],
)
def test_what_is_no_request_is_refused_by_name(text, words):
    with pytest.raises(EnrolmentError, match=words):
        read_request(text, "r.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"agreement": "00" * 32}, "agreement"),  # a point of low order: every secret is zero
        ({"agreement": "01" + "00" * 31}, "agreement"),
        ({"agreement": "AB" * 32}, "agreement"),
        ({"signing": "00"}, "signing"),
        ({"node": "-----BEGIN PUBLIC KEY-----"}, "node"),
        ({"node": "p256"}, "node"),
        ({"node": "ed25519"}, "node"),
    ],
)
def test_weak_and_wrong_keys_are_refused(changes, words):
    other = {
        "p256": ec.generate_private_key(ec.SECP256R1()).public_key(),
        "ed25519": Ed25519PrivateKey.generate().public_key(),
    }.get(changes.get("node", ""))
    if other is not None:
        kind = serialization.PublicFormat.SubjectPublicKeyInfo
        changes = {"node": other.public_bytes(serialization.Encoding.PEM, kind).decode()}
    with pytest.raises(ValueError, match=words):
        _public(**changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["kit"].update(address="evil.example.org:8443"),
        lambda v: v["kit"].update(serial=9),
        lambda v: v["kit"]["plan"]["privacy"].update(epsilon=80.0),
        lambda v: v["kit"]["members"].pop(),
        lambda v: v["kit"]["members"][0]["keys"].update(agreement=_public().agreement),
        lambda v: v["kit"]["members"][0].update(valid_until="2099-01-01T00:00:00Z"),
        lambda v: v.update(signature="00" * 64),
        lambda v: v.update(signature="no"),
        lambda v: v.update(signature=None),
    ],
)
def test_a_kit_that_was_altered_is_refused(tmp_path, change):
    federation = found(tmp_path)
    federation.enrol("north", "river")
    values = json.loads(federation.kit("north").text)
    change(values)
    with pytest.raises(EnrolmentError, match="the signature does not fit the kit"):
        read_kit(json.dumps(values), "k.json")


def test_only_the_authoritys_signing_key_signs_kits(tmp_path):
    federation = found(tmp_path)
    federation.enrol("north")
    kit, signer = federation.kit("north").kit, kit_signer(federation.folder)
    assert read_kit(sign_kit(kit, signer), "k").authority == signer.authority
    stranger = make_authority("lungs", ec.generate_private_key(ec.SECP384R1()))
    key = Ed25519PrivateKey.generate()
    foreign = issue_signer(stranger, "lungs", key.public_key())
    # A stranger's certificate below our authority.
    forged = sign_kit(kit, KitSigner(key, foreign, signer.authority))
    with pytest.raises(EnrolmentError, match="was not issued by"):
        read_kit(forged, "k")
    # A whole federation of its own is consistent, and has another fingerprint.
    other = read_kit(sign_kit(kit, KitSigner(key, foreign, stranger.certificate)), "k")
    assert other.fingerprint != federation.fingerprint
    with pytest.raises(EnrolmentError, match="kit's authority has"):
        federation.accept("north", signed=other)
    # Another key below our certificate; and the certificate of the server, which signs no kits.
    with pytest.raises(EnrolmentError, match="the signature does not fit"):
        read_kit(sign_kit(kit, KitSigner(key, signer.certificate, signer.authority)), "k")
    values = json.loads(sign_kit(kit, signer))
    values["signer"] = (federation.folder.keys / "server.crt").read_text()
    with pytest.raises(EnrolmentError, match="the signature does not fit"):
        read_kit(json.dumps(values), "k")
    # A signer that calls itself the authority.
    values = json.loads(sign_kit(kit, signer))
    values["authority"] = values["signer"]
    with pytest.raises(EnrolmentError, match="is not an authority's"):
        read_kit(json.dumps(values), "k")
    with pytest.raises(EnrolmentError, match="is not a certificate"):
        from_pem("no", "k: signer")


def test_a_signature_serves_its_own_purpose_only(tmp_path):
    """The signing key of a site signs requests; a kit of the same bytes is none."""
    federation = found(tmp_path)
    federation.enrol("north")
    kit, signer = federation.kit("north").kit, kit_signer(federation.folder)
    values = json.loads(sign_kit(kit, signer))
    plain = json.dumps(values["kit"], sort_keys=True, separators=(",", ":")).encode()
    values["signature"] = signer.key.sign(plain).hex()
    with pytest.raises(EnrolmentError, match="the signature does not fit"):
        read_kit(json.dumps(values), "k")


# ------------------------------------------------------------------ the coordinator's side


def test_names_and_keys_are_unique_and_nobody_is_enrolled_if_one_is_refused(tmp_path):
    federation = found(tmp_path)
    federation.enrol("north")
    again = federation.ask("north")
    with pytest.raises(EnrolmentError, match="site north is enrolled already, until"):
        enrol(federation.folder, [federation.ask("river"), again], 365)
    with pytest.raises(EnrolmentError, match="'north' and 'NORTH' share their name"):
        enrol(federation.folder, [federation.ask("river"), federation.ask("NORTH")], 365)
    with pytest.raises(EnrolmentError, match="'river' and 'river' share"):
        enrol(federation.folder, [federation.ask("river")] * 2, 365)
    for part in ("private.key", "node.key", "sign.key"):
        stolen = federation.site("north") / "keys" / part
        federation.ask("south", new_keys=True)
        (federation.site("south") / "keys" / part).write_bytes(stolen.read_bytes())
        with pytest.raises(EnrolmentError, match="sites 'north' and 'south' share a"):
            enrol(federation.folder, [federation.ask("south")], 365)
    assert [member.name for member in read_members(federation.folder)] == ["north"]
    assert federation.kit("north").kit.serial == 1


def test_every_change_writes_the_same_kit_for_all_under_the_next_number(tmp_path, clock):
    federation = found(tmp_path)
    kits = federation.folder.kits
    federation.enrol("north")
    federation.enrol("river", "hill")
    assert len({path.read_text() for path in kits.glob("*.json")}) == 1
    assert [m.name for m in federation.kit("hill").kit.members] == ["hill", "north", "river"]
    assert federation.kit("hill").kit.serial == 2
    together = federation.kit("hill").kit.members_fingerprint()
    revoke(federation.folder, "hill", "left")
    assert sorted(path.name for path in kits.glob("*.json")) == ["north.json", "river.json"]
    assert federation.kit("north").kit.serial == 3
    assert federation.kit("north").kit.members_fingerprint() != together
    renew_server(federation.folder)
    assert federation.kit("north").kit.serial == 4
    clock.advance(days=366)  # who has expired is in no kit
    federation.ask("north")
    renew_member(federation.folder, "north", federation.site("north") / "request.json", 365)
    assert sorted(path.name for path in kits.glob("*.json")) == ["north.json"]
    (kits / "serial").write_text("x")
    with pytest.raises(EnrolmentError, match="serial is missing or damaged"):
        renew_server(federation.folder)


def test_commands_at_the_same_time_do_not_lose_each_others_members(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    federation = found(tmp_path)
    names = [f"site-{number}" for number in range(8)]
    files = [federation.ask(name) for name in names]
    with ThreadPoolExecutor(8) as pool:
        issued = list(pool.map(lambda file: enrol(federation.folder, [file], 30)[1], files))
    assert sorted(one.serial for one in issued) == list(range(1, 9))
    assert [m.name for m in federation.kit("site-0").kit.members] == names


def test_a_member_is_renewed_by_a_fresh_request_of_its_own(tmp_path, clock):
    federation = found(tmp_path)
    old = federation.ask("north")
    federation.enrol("north", "river")
    clock.advance(days=300)

    def renew(file, name="north"):
        return renew_member(federation.folder, name, file, 365)

    with pytest.raises(EnrolmentError, match="not after the request of"):
        renew(old)
    with pytest.raises(EnrolmentError, match="is a request of site river"):
        renew(federation.ask("river"))
    with pytest.raises(EnrolmentError, match="no site 'west' was enrolled here; there is north"):
        renew(federation.ask("west"), "west")
    member, changed, issued = renew(federation.ask("north"))
    assert (changed, member.former, issued.serial) == (False, (), 2)
    assert (member.valid_until - clock()).days == 365
    clock.advance(days=1)
    member, changed, _ = renew(federation.ask("north", new_keys=True))
    assert (changed, len(member.former)) == (True, 1)
    assert federation.kit("north").kit.member("north").keys == member.keys


def test_a_request_from_the_future_is_refused(tmp_path, clock):
    federation = found(tmp_path)
    clock.advance(hours=25)
    ahead = federation.ask("north")
    clock.advance(hours=-25)
    with pytest.raises(EnrolmentError, match=r"made 2030-01-03 .* have the site correct its clock"):
        enrol(federation.folder, [ahead], 365)
    federation.enrol("north")
    clock.advance(hours=25)
    ahead = federation.ask("north")
    clock.advance(hours=-25)
    with pytest.raises(EnrolmentError, match="correct its clock"):
        renew_member(federation.folder, "north", ahead, 365)
    clock.advance(hours=1)
    renew_member(federation.folder, "north", ahead, 365)


def test_keys_that_were_given_up_never_come_back(tmp_path, clock):
    federation = found(tmp_path)
    federation.enrol("north", "river")
    folder, keys = federation.folder, federation.site("north") / "keys"
    first = {path.name: path.read_bytes() for path in keys.glob("*.key")}
    revoke(folder, "north", "laptop stolen")
    clock.advance(days=1)
    with pytest.raises(EnrolmentError, match="was revoked on 2030-01-02: laptop stolen; to let"):
        enrol(folder, [federation.ask("north")], 365)
    with pytest.raises(EnrolmentError, match=r"that it gave up on .*laptop stolen"):
        renew_member(folder, "north", federation.ask("north"), 365)
    for kept in first:  # nor with one of them
        for path in keys.glob("*.key"):
            path.unlink()
        (keys / kept).write_bytes(first[kept])
        (keys / kept).chmod(0o600)
        with pytest.raises(EnrolmentError, match=r"that it gave up on .*laptop stolen"):
            renew_member(folder, "north", federation.ask("north"), 365)
    # Nor may another site come with one.
    (federation.path / "thief").mkdir()
    federation.ask("thief")
    (federation.site("thief") / "keys" / "private.key").write_bytes(first["private.key"])
    with pytest.raises(EnrolmentError, match=r"'north' and 'thief' share an X25519 key"):
        enrol(folder, [federation.ask("thief")], 365)
    member, _, _ = renew_member(folder, "north", federation.ask("north", new_keys=True), 365)
    assert member.revoked is None
    with pytest.raises(EnrolmentError, match=r"'north \(before .* share an X25519 key"):
        enrol(folder, [federation.ask("thief")], 365)


def test_a_site_may_change_one_key_and_keep_the_others(tmp_path, clock):
    federation = found(tmp_path)
    federation.enrol("north")
    for _ in range(2):
        clock.advance(days=1)
        (federation.site("north") / "keys" / "node.key").unlink()
        file = federation.ask("north")
        member, changed, _ = renew_member(federation.folder, "north", file, 365)
        assert changed
    assert len({former.keys.node for former in member.former}) == 2
    assert {former.keys.agreement for former in member.former} == {member.keys.agreement}


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_days_out_of_range_are_refused(tmp_path, days):
    federation = found(tmp_path)
    with pytest.raises(ConfigError, match=f"--days {days}"):
        federation.enrol("north", days=days)


def test_the_signing_certificate_is_checked_before_anybody_is_enrolled(tmp_path, clock):
    federation = found(tmp_path)
    clock.advance(days=400)
    with pytest.raises(EnrolmentError, match="expired"):
        federation.enrol("north")
    assert read_members(federation.folder) == []
    renew_server(federation.folder)
    federation.enrol("north")
    signed = federation.kit("north")
    assert signed.signer == read_certificate(federation.folder.keys / "sign.crt")
    assert (
        load_p384(federation.folder.keys / "ca.key").public_key() == signed.authority.public_key()
    )
