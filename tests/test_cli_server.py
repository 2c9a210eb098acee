"""``synth-server`` and the enrolment commands of ``synth-client``, as people type them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from synth_client import cli as client_cli
from synth_common.plan import Plan
from synth_common.terminal import guarded
from synth_server import cli
from synth_server.settings import ServerFolder, load_plan, load_settings

FINGERPRINT = re.compile(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}")
SCENARIO = """
name = "mine"
title = "A scenario"
seed = 3

[data]
holdout_share = 0.25

[[partition.sites]]
name = "north"

[generator]
size = 28

[privacy]
epsilon = 4.0

[federation]
min_sites = 3
"""


@pytest.fixture
def run(capsys):
    """Runs a command; returns (code, stdout, stderr)."""

    def call(command, *arguments):
        app = cli.app if command == "synth-server" else client_cli.app
        code = guarded(lambda: app([str(a) for a in arguments], standalone_mode=True))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def coordinator(tmp_path, run, clock):
    """A coordinator's folder, and the fingerprint that was printed."""
    (tmp_path / "plan.toml").write_text(SCENARIO)
    code, out, _ = run("synth-server", "init", tmp_path / "c", *_options(tmp_path))
    assert code == 0
    return tmp_path / "c", FINGERPRINT.search(out).group()


def _options(tmp_path, **changes):
    values = {"name": "lungs", "address": "localhost:8443", "plan": tmp_path / "plan.toml"}
    return [x for key, value in {**values, **changes}.items() for x in (f"--{key}", value)]


def _request(run, tmp_path, name, *more):
    """The site makes its keys; returns its directory and what was printed."""
    code, out, err = run("synth-client", "init", "--site", name, "--home", tmp_path / name, *more)
    assert code == 0, err
    return tmp_path / name / "sites" / name, out


def test_a_federation_is_made_and_joined_by_what_the_commands_print(tmp_path, run, coordinator):
    folder, fingerprint = coordinator
    printed = {}
    for name in ("north", "river", "hill"):
        directory, out = _request(run, tmp_path, name)
        printed[name] = FINGERPRINT.findall(out)
        assert f"send {directory / 'request.json'}" in out
    files = [tmp_path / n / "sites" / n / "request.json" for n in printed]
    code, out, _ = run("synth-server", "enrol", folder, *files)
    assert code == 0
    for name in printed:
        assert f"enrolled {name} until" in out
        assert printed[name][0] in out  # what the hospital reads out is what is shown
    assert "kits number 1" in out
    assert "missing" not in out
    together = FINGERPRINT.findall(out)[-1]
    for name in printed:
        kit = folder / "kits" / f"{name}.json"
        home = ("--site", name, "--home", tmp_path / name)
        code, out, err = run("synth-client", "accept", kit, *home, "--fingerprint", fingerprint)
        assert code == 0, err
        assert "accepted kit 1 of lungs, server localhost:8443" in out
        assert f"{name} is enrolled until 2031-01-02" in out
        for other in printed.keys() - {name}:
            assert f"new      {other}  X25519 {printed[other][1]}" in out
        assert f"fingerprint of all members: {together}" in out
        assert "NOT by way of the coordinator" in out
        assert "synth-client plan approve" in out


def test_the_fingerprint_is_asked_for_the_first_time_only(tmp_path, run, coordinator, monkeypatch):
    folder, fingerprint = coordinator
    directory, _ = _request(run, tmp_path, "north")
    run("synth-server", "enrol", folder, directory / "request.json")
    command = ("accept", folder / "kits" / "north.json", "--site", "north")
    command = (*command, "--home", tmp_path / "north")
    asked = []
    answers = iter([fingerprint[::-1], fingerprint.lower()])
    monkeypatch.setattr("typer.prompt", lambda text: asked.append(text) or next(answers))
    code, _, err = run("synth-client", *command)
    assert (code, "mistyped" in err) == (16, True)
    assert not (directory / "ca.crt").exists()
    assert run("synth-client", *command)[0] == 0
    assert run("synth-client", *command)[0] == 0
    assert len(asked) == 2


def test_members_are_listed_in_words_and_as_json(tmp_path, run, coordinator):
    folder, fingerprint = coordinator
    _, out, _ = run("synth-server", "members", folder)
    assert "nobody is enrolled" in out
    assert f"fingerprint of its authority: {fingerprint}" in out
    for name in ("north", "river"):
        _request(run, tmp_path, name)
    files = [tmp_path / n / "sites" / n / "request.json" for n in ("north", "river")]
    code, out, _ = run("synth-server", "enrol", folder, *files, "--days", 30)
    assert (code, "the plan needs 3 sites; 2 enrolled, 1 missing" in out) == (0, True)
    code, out, _ = run("synth-server", "revoke", folder, "river", "--reason", "left the study")
    assert (code, "kits number 2" in out) == (0, True)
    _, out, _ = run("synth-server", "members", folder)
    assert re.search(r"north  enrolled until \d{4}-", out)
    assert re.search(r"river  revoked \d{4}-\d\d-\d\d: left the study", out)
    rows = json.loads(run("synth-server", "members", folder, "--json")[1])
    assert [(row["name"], row["state"]) for row in rows] == [
        ("north", "enrolled"),
        ("river", "revoked"),
    ]
    assert FINGERPRINT.fullmatch(rows[0]["fingerprint"])
    assert rows[1]["revoked"]["reason"] == "left the study"


def test_certificates_and_members_are_renewed(tmp_path, run, coordinator, clock):
    folder, fingerprint = coordinator
    code, _, err = run("synth-server", "renew", folder, "--site", "north")
    assert (code, "--site and --request go together" in err) == (2, True)
    clock.advance(days=1)
    directory, _ = _request(run, tmp_path, "north")
    run("synth-server", "enrol", folder, directory / "request.json")
    code, out, _ = run("synth-server", "renew", folder)
    assert code == 0
    assert "valid until 2031-02-04" in out
    assert "that is for 397 days; restart the server" in out
    clock.advance(days=1)
    _, out = _request(run, tmp_path, "north", "--new-keys")
    request = directory / "request.json"
    code, new, _ = run("synth-server", "renew", folder, "--site", "north", "--request", request)
    assert code == 0
    assert f"NEW KEYS, fingerprint: {FINGERPRINT.search(out).group()}" in new
    home = ("--site", "north", "--home", tmp_path / "north")
    kit = folder / "kits" / "north.json"
    assert run("synth-client", "accept", kit, *home, "--fingerprint", fingerprint)[0] == 0


def test_changed_keys_of_peers_need_a_reason(tmp_path, run, coordinator, clock):
    folder, fingerprint = coordinator
    for name in ("north", "river"):
        directory, _ = _request(run, tmp_path, name)
        run("synth-server", "enrol", folder, directory / "request.json")
    command = ("accept", folder / "kits" / "north.json", "--site", "north")
    command = (*command, "--home", tmp_path / "north", "--fingerprint", fingerprint)
    assert run("synth-client", *command)[0] == 0
    clock.advance(days=1)
    directory, _ = _request(run, tmp_path, "river", "--new-keys")
    request = directory / "request.json"
    run("synth-server", "renew", folder, "--site", "river", "--request", request)
    code, _, err = run("synth-client", *command)
    assert (code, "another key for river" in err) == (16, True)
    for half in (("--replace-peers",), ("--reason", "x")):
        code, _, err = run("synth-client", *command, *half)
        assert (code, "go together" in err) == (2, True)
    code, out, _ = run("synth-client", *command, "--replace-peers", "--reason", "Dr Ito called")
    assert (code, "CHANGED  river" in out) == (0, True)
    history = (tmp_path / "north/sites/north/keys/history.jsonl").read_text()
    assert "Dr Ito called" in history


def test_a_folder_is_made_once_and_never_over_another(tmp_path, run, coordinator):
    folder, _ = coordinator
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    code, _, err = run("synth-server", "init", folder, *_options(tmp_path))
    assert (code, "holds a coordinator already" in err) == (2, True)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    for path in (folder, folder / "keys", folder / "sites", folder / "kits"):
        assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"address": "localhost"}, "expected HOST:PORT"),
        ({"name": 'a"b'}, "name = 'a\"b'"),
        ({"name": ""}, "name = ''"),
        ({"plan": "no.json"}, "cannot read plan"),
    ],
)
def test_impossible_values_make_nothing(tmp_path, run, changes, words):
    (tmp_path / "plan.toml").write_text(SCENARIO)
    code, _, err = run("synth-server", "init", tmp_path / "c", *_options(tmp_path, **changes))
    assert (code, words in err) == (2, True), err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[privcy]\nepsilon = 1", "privcy: unknown key"),
        ("[privacy]\nepsilom = 1", "privacy.epsilom: unknown key"),
        ("[privacy]\nepsilon = -1", "privacy.epsilon = -1"),
        ('[privacy]\nnoise = "simulation"', "privacy.noise = 'simulation' is for simulations"),
        ("[generator]\ncanaries = 2", "generator.canaries = 2"),
        ("[privacy", "is not TOML"),
    ],
)
def test_a_plan_that_sites_would_refuse_is_refused_first(tmp_path, run, text, words):
    (tmp_path / "plan.toml").write_text(text)
    code, _, err = run("synth-server", "init", tmp_path / "c", *_options(tmp_path))
    assert (code, words in err) == (2, True), err


def test_a_plan_is_read_from_json_and_from_a_scenario(tmp_path, coordinator):
    plan = load_plan(tmp_path / "plan.toml")
    assert (plan.generator.size, plan.privacy.epsilon, plan.federation.min_sites) == (28, 4.0, 3)
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert load_plan(tmp_path / "plan.json") == plan
    kept = coordinator[0] / "plan.json"
    assert Plan.from_json(kept.read_text()).digest() == plan.digest()


def test_settings_are_strict_and_readable(tmp_path, run, coordinator):
    folder, _ = coordinator
    settings = load_settings(ServerFolder(folder))
    assert (settings.name, settings.address, settings.bind) == (
        "lungs",
        "localhost:8443",
        "0.0.0.0:8443",
    )
    assert settings.limits.max_request_bytes == 8_388_608
    file = folder / "server.toml"
    whole = file.read_text()
    for change, words in (
        (("[limits]", "[limit]"), "limit: unknown key"),
        (("8_388_608", "10"), "limits.max_request_bytes = 10"),
        (('"localhost:8443"', '"localhost"'), "expected HOST:PORT"),
        (("name =", "nom ="), "nom: unknown key"),
        (("[limits]", "[limits"), "is not TOML"),
    ):
        file.write_text(whole.replace(*change))
        code, _, err = run("synth-server", "members", folder)
        assert (code, words in err) == (2, True), err
    file.unlink()
    code, _, err = run("synth-server", "members", folder)
    assert (code, "synth-server init DIR" in err) == (2, True)


def test_a_site_without_keys_is_named_with_those_that_have_some(tmp_path, run):
    _request(run, tmp_path, "north")
    file = tmp_path / "kit.json"
    file.write_text("{}")
    home = ("--home", tmp_path / "north")
    code, _, err = run("synth-client", "accept", file, "--site", "nroth", *home)
    assert (code, "holds north" in err) == (2, True)
    code, _, err = run("synth-client", "accept", file, "--site", "north", *home)
    assert (code, "it needs kit, signature" in err) == (16, True)
    code, _, err = run("synth-client", "accept", tmp_path, "--site", "north", *home)
    assert (code, "cannot read" in err) == (16, True)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path, run, coordinator):
    folder, _ = coordinator
    file = tmp_path / "large.json"
    with file.open("wb") as handle:
        handle.truncate(5_000_000_000)  # sparse
    code, _, err = run("synth-server", "enrol", folder, file)
    assert (code, "is larger than 4,000,000 bytes" in err) == (16, True)


def test_the_coordinators_commands_need_no_machine_learning(tmp_path, coordinator):
    """A machine that only enrols starts quickly, and loads neither torch nor Flower."""
    code = (
        "import sys; from synth_server.cli import app; "
        f"app(['members', {str(coordinator[0])!r}], standalone_mode=False); "
        "print([name for name in ('torch', 'flwr', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
