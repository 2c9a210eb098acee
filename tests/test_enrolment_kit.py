"""A site accepts a kit: once from the right coordinator, and never a peer's key unnoticed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from enrolment_scenario import NAMES, found
from small_sites import release_plan

from synth_client.enrol import init_site, load_key, load_peers
from synth_client.kit import load_kit
from synth_common.certificates import read_certificate
from synth_common.errors import ConfigError, EnrolmentError, PrivacyError, StorageError
from synth_common.plan import Plan
from synth_common.privacy.ledger import Decision
from synth_common.privacy.pairwise_masks import MaskContext, total_mask
from synth_common.signed_files import read_kit, sign_kit
from synth_server.authority import kit_signer
from synth_server.enrol import renew_member, renew_server, revoke

CONFIRMED = Decision("test", "river's operator read it to me")


@pytest.fixture
def federation(tmp_path, clock):
    """Three enrolled sites that have accepted nothing yet."""
    made = found(tmp_path, plan=release_plan().model_copy(update={"privacy": Plan().privacy}))
    made.enrol(*NAMES)
    return made


def _rotate(federation, clock, name="river"):
    """The peer really makes new keys."""
    clock.advance(days=1)
    file = federation.ask(name, new_keys=True)
    renew_member(federation.folder, name, file, 365)


def _state(directory):
    """All files of a site with their contents."""
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_sites_that_accepted_their_kits_can_sum_under_masks(federation):
    for name in NAMES:
        federation.accept(name)
    context = MaskContext("run", 1, NAMES, "digest")
    masks = [
        total_mask(
            name,
            load_key(federation.site(name)),
            load_peers(federation.site(name)),
            context,
            8,
        )
        for name in NAMES
    ]
    assert all(mask.any() for mask in masks)
    assert not np.sum(masks, axis=0, dtype=np.uint64).any()


def test_accepting_pins_the_authority_and_takes_over_plan_address_and_peers(federation):
    north = federation.site("north")
    peers = federation.accept("north")
    assert [(peer.name, peer.change) for peer in peers] == [("hill", "new"), ("river", "new")]
    assert load_peers(north).keys() == {"hill", "river"}
    assert read_certificate(north / "ca.crt") == federation.kit("north").authority
    kit = load_kit(north)
    assert (kit.address, kit.federation, kit.serial) == ("localhost:8443", "lungs", 1)
    assert Plan.from_json((north / "plan.json").read_text()).digest() == kit.plan.digest()
    before = _state(north)
    again = federation.accept("north", told=None)  # the same kit once more, pinned by now
    assert [peer.change for peer in again] == ["known", "known"]
    after = _state(north)
    history = north / "keys" / "history.jsonl"
    assert {p for p in after if after[p] != before[p]} == {history}


def test_the_fingerprint_must_be_told_and_be_the_right_one(federation):
    directory = federation.site("north")
    before = _state(directory)
    for told, words in (
        (None, "no fingerprint was given"),
        ("", "--fingerprint , but the kit's authority has"),
        (federation.fingerprint[:-1] + "?", "mistyped, or this kit is not the coordinator's"),
    ):
        with pytest.raises(EnrolmentError, match=words):
            federation.accept("north", told=told)
    assert _state(directory) == before
    federation.accept("north", told=federation.fingerprint.replace(":", " ").lower())


def test_a_pinned_authority_cannot_be_swapped_even_with_the_fingerprint_told(federation, tmp_path):
    federation.accept("north")
    (tmp_path / "other").mkdir()
    other = found(tmp_path / "other")
    other_kit = federation.kit("north").kit.model_copy(update={"serial": 9})
    signed = read_kit(sign_kit(other_kit, kit_signer(other.folder)), "k")
    before = _state(federation.site("north"))
    with pytest.raises(EnrolmentError, match=r"another federation, or somebody poses .* remove"):
        federation.accept("north", signed=signed, told=other.fingerprint)
    assert _state(federation.site("north")) == before
    (federation.site("north") / "ca.crt").unlink()  # as the message says, after a call
    federation.accept("north", signed=signed, told=other.fingerprint)


def test_the_sites_own_keys_stand_in_the_kit_as_they_are(federation):
    signed = federation.kit("north")
    init_site(federation.path / "north", "north", new_keys=True)
    with pytest.raises(EnrolmentError, match="other keys for site north than it has here"):
        federation.accept("north")
    (federation.path / "west").mkdir()
    federation.ask("west")
    with pytest.raises(EnrolmentError, match="does not name site west"):
        federation.accept("west", signed=signed)
    (federation.site("hill") / "keys" / "node.key").unlink()
    with pytest.raises(EnrolmentError, match=r"cannot read private key .*node\.key"):
        federation.accept("hill")
    assert not (federation.site("hill") / "keys" / "node.key").exists()
    (federation.site("river") / "keys" / "private.key").chmod(0o644)
    with pytest.raises(PrivacyError, match="mode 644"):
        federation.accept("river")


def test_older_kits_and_twins_of_an_accepted_one_are_refused(federation, clock):
    first = federation.kit("north")
    renew_server(federation.folder)
    second = federation.kit("north")
    federation.accept("north")
    with pytest.raises(EnrolmentError, match="kit number 1 is older than number 2"):
        federation.accept("north", signed=first)
    twin = second.kit.model_copy(update={"address": "evil.example.org:8443"})
    signed = read_kit(sign_kit(twin, kit_signer(federation.folder)), "k")
    with pytest.raises(EnrolmentError, match=r"number 2 was accepted on .* with other content"):
        federation.accept("north", signed=signed)
    (federation.site("north") / "kit.json").unlink()  # the history remembers, not the kit
    with pytest.raises(EnrolmentError, match="is older"):
        federation.accept("north", signed=first)


def test_expired_kits_are_refused_when_accepted_and_readable_once_they_are(federation, clock):
    federation.accept("north")
    clock.advance(days=366)
    with pytest.raises(EnrolmentError, match="the enrolment of site north expired on"):
        federation.accept("north")
    clock.advance(days=32)
    with pytest.raises(EnrolmentError, match=r"'CN=lungs kits' expired .* synth-server renew"):
        federation.accept("river")
    assert load_kit(federation.site("north")).serial == 1


def test_a_peers_changed_key_is_refused_until_the_operator_says_why(federation, clock):
    federation.accept("north")
    north, known = federation.site("north"), load_peers(federation.site("north"))
    _rotate(federation, clock)
    before = _state(north)
    with pytest.raises(EnrolmentError, match=r"another key for river \((..:){31}..\)"):
        federation.accept("north")
    with pytest.raises(ConfigError, match="reason is empty"):
        Decision("test", " ")
    assert _state(north) == before
    peers = federation.accept("north", replacing=CONFIRMED)
    assert [(p.name, p.change) for p in peers] == [("hill", "known"), ("river", "CHANGED")]
    now = load_peers(north)
    assert (now["hill"], now["river"] != known["river"]) == (known["hill"], True)
    last = json.loads((north / "keys" / "history.jsonl").read_text().splitlines()[-1])
    assert (last["operator"], last["reason"]) == ("test", CONFIRMED.reason)
    assert [p.change for p in federation.accept("north")] == ["known", "known"]


def test_dropping_a_peer_does_not_make_a_site_forget_its_key(federation, clock):
    federation.accept("north")
    revoke(federation.folder, "river", "pause")
    peers = federation.accept("north")
    assert [(p.name, p.change) for p in peers] == [("hill", "known"), ("river", "gone")]
    assert load_peers(federation.site("north")).keys() == {"hill"}
    _rotate(federation, clock)
    with pytest.raises(EnrolmentError, match="another key for river"):
        federation.accept("north")


def test_keys_agreed_on_before_there_was_a_kit_are_known_too(federation):
    from synth_client.enrol import agree

    agree(federation.site("north"), {"river": "00" * 32})
    with pytest.raises(EnrolmentError, match="another key for river"):
        federation.accept("north")


def test_operators_notice_a_coordinator_that_poses_as_a_peer(federation, tmp_path):
    """Each site finds its own keys in its kit, and yet both were told different peers."""
    (tmp_path / "spy").mkdir()
    _, request = init_site(tmp_path / "spy", "river")
    honest = federation.kit("north")
    hill, north, river = honest.kit.members
    river = river.model_copy(update={"keys": request.keys})
    posed = honest.kit.model_copy(update={"members": (hill, north, river)})
    signed = read_kit(sign_kit(posed, kit_signer(federation.folder)), "k")
    federation.accept("north", signed=signed)  # nothing at north alone can tell
    federation.accept("river")
    prints = {load_kit(federation.site(n)).members_fingerprint() for n in ("north", "river")}
    assert len(prints) == 2
    federation.accept("hill")
    fine = {load_kit(federation.site(n)).members_fingerprint() for n in ("hill", "river")}
    assert fine == {honest.kit.members_fingerprint()}


def test_the_accepted_kit_is_verified_whenever_it_is_read(federation):
    directory = federation.site("north")
    with pytest.raises(EnrolmentError, match=r"site north has accepted no kit: send .*request"):
        load_kit(directory)
    federation.accept("north")
    file = directory / "kit.json"
    whole = file.read_text()
    file.write_text(whole.replace("localhost:8443", "evil.example:8443"))
    with pytest.raises(EnrolmentError, match=r"kit\.json: the signature does not fit"):
        load_kit(directory)
    file.write_text(whole)
    (federation.path / "elsewhere").mkdir()
    other = found(federation.path / "elsewhere")
    (directory / "ca.crt").write_bytes((other.folder.keys / "ca.crt").read_bytes())
    with pytest.raises(EnrolmentError, match="of different federations"):
        load_kit(directory)


def test_what_was_seen_is_remembered_even_if_the_disk_fails_after_it(federation, monkeypatch):
    def full(*_):
        raise StorageError("cannot write: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("synth_client.kit.agree", full)
        with pytest.raises(StorageError):
            federation.accept("north")
    assert not (federation.site("north") / "kit.json").exists()
    assert [peer.change for peer in federation.accept("north")] == ["known", "known"]


def test_a_damaged_history_is_refused_by_name(federation):
    federation.accept("north")
    (federation.site("north") / "keys" / "history.jsonl").write_text("{}\n")
    with pytest.raises(EnrolmentError, match=r"history\.jsonl is damaged"):
        federation.accept("north")


def test_a_request_is_made_anew_with_the_keys_and_settings_that_are_there(tmp_path, clock):
    directory, first = init_site(tmp_path, "north")
    settings = directory / "site.toml"
    assert 'name = "north"' in settings.read_text()
    assert (settings.stat().st_mode & 0o777, directory.stat().st_mode & 0o777) == (0o600, 0o700)
    settings.write_text("mine")
    clock.advance(days=1)
    _, second = init_site(tmp_path, "north")
    assert second.keys == first.keys
    assert second.made > first.made
    assert settings.read_text() == "mine"
    _, third = init_site(tmp_path, "north", new_keys=True)
    for part in ("node", "agreement", "signing"):
        assert getattr(third.keys, part) != getattr(first.keys, part)


def test_new_keys_replace_the_old_ones_only_when_they_are_on_the_disk(tmp_path, monkeypatch):
    directory, _ = init_site(tmp_path, "north")
    before = _state(directory)

    def full(*_, **__):
        raise StorageError("cannot write: No space left on device")

    for writer in ("synth_client.enrol.replace_bytes", "synth_common.keys.replace_bytes"):
        monkeypatch.setattr(writer, full)
    with pytest.raises(StorageError):
        init_site(tmp_path, "north", new_keys=True)
    assert _state(directory) == before


@pytest.mark.parametrize("name", ["", "../north", "a/b", ".", "-x", "north\n", "n" * 65, "nörd"])
def test_names_that_are_no_names_make_nothing(tmp_path, name):
    with pytest.raises(ConfigError, match="--site"):
        init_site(tmp_path / "home", name)
    assert not (tmp_path / "home").exists()
