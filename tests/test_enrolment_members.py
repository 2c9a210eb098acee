"""The doorkeeper: who is let in, who is turned away with which words, and how soon."""

from __future__ import annotations

import threading

import pytest
from enrolment_scenario import NAMES, found

from synth_client.enrol import load_node_key
from synth_common.enrolment import Verdict
from synth_common.errors import ConfigError, EnrolmentError, PrivacyError
from synth_common.keys import node_public
from synth_server.enrol import renew_member, revoke
from synth_server.members import Members, read_members


@pytest.fixture
def federation(tmp_path, clock):
    made = found(tmp_path)
    made.enrol(*NAMES)
    return made


def _key(federation, name):
    return node_public(load_node_key(federation.site(name))).encode()


def _members(federation):
    return Members(federation.folder.path)


def test_enrolled_sites_are_known_by_their_keys(federation):
    members = _members(federation)
    keys = {name: _key(federation, name) for name in NAMES}
    assert dict(members.names()) == keys
    for name, key in keys.items():
        assert members.verdict(key) == Verdict(name, None)


@pytest.mark.parametrize("key", [b"", b"\xff\xfe", b"-----BEGIN PUBLIC KEY-----\n", b"x" * 10_000])
def test_strangers_are_refused_whatever_they_bring(federation, key):
    verdict = _members(federation).verdict(key)
    assert verdict.name is None
    assert "no site is enrolled with this node key" in verdict.refusal
    assert "synth-server enrol" in verdict.refusal


def test_a_site_that_only_asked_is_a_stranger(federation):
    federation.ask("west")
    assert _members(federation).verdict(_key(federation, "west")).name is None


def test_a_revocation_holds_at_the_next_request_without_a_restart(federation):
    members = _members(federation)
    key = _key(federation, "river")
    assert members.verdict(key).name == "river"
    revoke(federation.folder, "river", "left the study")
    refusal = "site river was revoked on 2030-01-02: left the study"
    assert members.verdict(key) == Verdict(None, refusal)
    assert members.names().keys() == {"hill", "north"}
    with pytest.raises(EnrolmentError, match=r"was revoked on .* nothing was written"):
        revoke(federation.folder, "river", "again")
    with pytest.raises(EnrolmentError, match="no site 'west' was enrolled"):
        revoke(federation.folder, "west", "x")


def test_a_site_is_revoked_whatever_else_is_broken(federation, clock):
    members, key = _members(federation), _key(federation, "river")
    (federation.folder.sites / "hill.json").write_text("{")
    with pytest.raises(EnrolmentError, match=r"site river IS revoked, .*hill\.json is damaged"):
        revoke(federation.folder, "river", "stolen")
    assert "was revoked on" in members.verdict(key).refusal
    clock.advance(days=400)  # nor does an expired signing certificate keep a site in
    with pytest.raises(EnrolmentError, match=r"site north IS revoked, .*expired"):
        revoke(federation.folder, "north", "stolen")
    assert "was revoked on" in members.verdict(_key(federation, "north")).refusal


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501])
def test_a_revocation_needs_a_reason_of_a_sentence_or_two(federation, reason):
    with pytest.raises(ConfigError, match=r"--reason has \d+ characters"):
        revoke(federation.folder, "river", reason)
    assert _members(federation).names().keys() == set(NAMES)


def test_an_enrolment_expires_by_the_clock_and_is_renewed_without_a_restart(federation, clock):
    members, key = _members(federation), _key(federation, "north")
    clock.advance(days=365)
    assert members.verdict(key) == Verdict("north", None)
    clock.advance(seconds=1)
    verdict = members.verdict(key)
    assert verdict.name is None
    assert "the enrolment of site north expired on 2031-01-02" in verdict.refusal
    assert "synth-client init --site north" in verdict.refusal
    assert members.names() == {}
    assert {member.state() for member in read_members(federation.folder)} == {"expired"}
    renew_member(federation.folder, "north", federation.ask("north"), 10)
    assert members.verdict(key) == Verdict("north", None)
    assert members.names().keys() == {"north"}


def test_a_site_that_comes_with_a_key_it_gave_up_is_told_so(federation, clock):
    members, old = _members(federation), _key(federation, "north")
    clock.advance(days=1)
    renew_member(federation.folder, "north", federation.ask("north", new_keys=True), 365)
    verdict = members.verdict(old)
    assert "site north gave this key up on 2030-01-03" in verdict.refusal
    assert members.verdict(_key(federation, "north")) == Verdict("north", None)


def test_a_new_site_is_let_in_without_a_restart(federation):
    members = _members(federation)
    federation.enrol("west")
    assert members.verdict(_key(federation, "west")) == Verdict("west", None)
    (federation.folder.sites / "west.json").unlink()
    assert members.verdict(_key(federation, "west")).name is None


def test_a_damaged_record_turns_its_site_away_and_no_other(federation):
    members = _members(federation)
    path = federation.folder.sites / "north.json"
    whole = path.read_text()
    assert members.verdict(_key(federation, "north")).name == "north"
    for damage in ("", whole[:-20], whole.replace('"north"', '"south"')):
        path.write_text(damage)
        verdict = members.verdict(_key(federation, "north"))
        assert verdict == Verdict(
            None, "the coordinator's record of site north is damaged; tell it so"
        )
        assert members.verdict(_key(federation, "river")) == Verdict("river", None)
        assert members.names().keys() == {"hill", "river"}
        with pytest.raises(EnrolmentError, match=r"north\.json is"):
            _members(federation)  # a start is refused
    path.write_text(whole)
    assert members.verdict(_key(federation, "north")) == Verdict("north", None)


def test_a_disk_that_fails_for_a_moment_gives_no_verdict(federation, monkeypatch):
    """A refusal would end the site's service; an error makes it try again."""
    members, key = _members(federation), _key(federation, "north")
    assert members.verdict(key).name == "north"
    federation.enrol("west")

    def fail(*_, **__):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_text", fail)
        with pytest.raises(OSError, match="Too many open files"):
            members.verdict(key)
        assert members.names().keys() == {"hill", "north", "river"}  # as before; no run ends
    assert members.verdict(key).name == "north"
    assert "west" in members.names()


def test_a_folder_that_others_can_write_into_is_refused(federation):
    federation.folder.sites.chmod(0o770)
    with pytest.raises(PrivacyError, match="mode 770"):
        _members(federation)


def test_nobody_is_refused_by_accident_while_the_files_change(federation):
    """Requests come in many threads; none may see a half-read list."""
    members, key = _members(federation), _key(federation, "north")
    stop, wrong = threading.Event(), []

    def ask():
        while not stop.is_set():
            if members.verdict(key).name != "north" or "north" not in members.names():
                wrong.append(members.verdict(key))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(6):
        federation.enrol(f"more-{number}")
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_files_are_read_again_only_when_one_changed(federation, monkeypatch):
    members = _members(federation)
    members.verdict(_key(federation, "north"))
    read = []
    original = Members.__init__.__globals__["_read"]
    monkeypatch.setattr(
        "synth_server.members._read", lambda path: read.append(path.stem) or original(path)
    )
    for _ in range(3):
        members.verdict(_key(federation, "north"))
    assert read == []
    revoke(federation.folder, "hill", "x")
    read.clear()
    members.names()
    assert read == ["hill"]
