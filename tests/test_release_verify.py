"""A tampered release is caught, and what was done to it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian
from release_bundles import Released, edit_signed, resign, restate
from typer.testing import CliRunner

from synth_common.errors import ConfigError, UnknownSignerError, VerificationError
from synth_common.keys import make_signing_key, signing_public
from synth_common.release import dsse
from synth_common.release.names import PAPERS, RELEASE_KIND, SIGNATURE, SUMS, ReleaseName
from synth_common.release.png import encode
from synth_common.release.recomputed import least_epsilon
from synth_common.release.statement import read_statement
from synth_common.release.verdict import Verdict, read_keys
from synth_common.release.verify import verify_bundle
from synth_common.release.withdrawal import withdraw
from synth_server.publish import take_back
from synth_sim.audit_cli import app

OTHER = "0" * 64


def _image(bundle: Path) -> Path:
    return min((bundle / "images" / "train").glob("0*.png"))


def _name(bundle: Path, path: Path) -> str:
    return path.relative_to(bundle).as_posix()


def _problems(verdict: Verdict) -> set[tuple[str, str]]:
    return {(problem.code, problem.where) for problem in verdict.problems}


def _change_pixel(bundle: Path) -> None:
    pixels = np.asarray(Image.open(_image(bundle))).copy()
    pixels[3, 3] ^= 1
    _image(bundle).write_bytes(encode(pixels[None]))


def _remove_mark(bundle: Path) -> None:
    Image.open(_image(bundle)).save(_image(bundle))


def _unmark_dicom(bundle: Path) -> None:
    path = min((bundle / "dicom" / "train").glob("*.dcm"))
    data = dcmread(path)
    data.SyntheticData = "NO"
    data.save_as(path)


def _deflate_dicom(bundle: Path, damage: Callable[[bytes], bytes]) -> None:
    """Write one object deflated (PS3.5, A.5), with a damaged stream."""
    path = min((bundle / "dicom" / "train").glob("*.dcm"))
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)
    content = path.read_bytes()
    at = 132 + 12 + data.file_meta.FileMetaInformationGroupLength
    path.write_bytes(content[:at] + damage(content[at:]))


def _break_dicom(bundle: Path) -> None:
    """Add a sequence that never ends."""
    path = min((bundle / "dicom" / "train").glob("*.dcm"))
    endless = b"\xe1\x7f\x10\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    path.write_bytes(path.read_bytes() + endless)


def _swap_report(bundle: Path) -> None:
    path = bundle / "report.json"
    report = json.loads(path.read_text())
    report["run"]["id"] = "another"
    path.write_text(json.dumps(report))


def _drop_row(bundle: Path) -> None:
    path = bundle / "images" / "metadata.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:1], *lines[2:]]) + "\n")


def _swap_plan(bundle: Path) -> None:
    path = bundle / "plan.json"
    path.write_text(path.read_text().replace('"rounds":2', '"rounds":3'))


def _link(bundle: Path) -> None:
    path = _image(bundle)
    path.unlink()
    path.symlink_to(bundle / "LICENSE")


def _alter_sums(bundle: Path) -> None:
    path = bundle / "SHA256SUMS"
    path.write_text(path.read_text().replace("LICENSE", "LICENCE"))


def _lower_epsilon(path: Path) -> None:
    edit_signed(path, lambda said: said.update(epsilon=0.1))


IMAGE = "images/train/000000.png"
TAMPERINGS: dict[str, tuple[Callable[[Path], object], set[tuple[str, str]]]] = {
    "a changed pixel": (_change_pixel, {("changed", IMAGE), ("sums", IMAGE)}),
    "a swapped report": (
        _swap_report,
        {("changed", "report.json"), ("sums", "report.json"), ("report", "report.json")},
    ),
    "a missing file": (
        lambda b: (b / "DATASHEET.md").unlink(),
        {("missing", "DATASHEET.md")},
    ),
    "an extra file": (
        lambda b: (b / "images" / "train" / "readme.txt").write_text("hello"),
        {(code, "images/train/readme.txt") for code in ("extra", "sums", "marking")},
    ),
    "a missing statement": (
        lambda b: (b / "statements" / "beta.json").unlink(),
        {("missing", "statements/beta.json"), ("statement-missing", "beta")},
    ),
    "an edited statement": (
        lambda b: _lower_epsilon(b / "statements" / "beta.json"),
        {
            ("changed", "statements/beta.json"),
            ("sums", "statements/beta.json"),
            ("statement-forged", "beta"),
        },
    ),
    "altered sums": (
        _alter_sums,
        {("changed", "SHA256SUMS"), ("sums", "LICENSE")},
    ),
    "a removed mark": (
        _remove_mark,
        {("changed", IMAGE), ("sums", IMAGE), ("marking", IMAGE)},
    ),
    "a row less in the table": (
        _drop_row,
        {
            ("changed", "images/metadata.csv"),
            ("sums", "images/metadata.csv"),
            ("metadata", "train/000000.png"),
            ("metadata", "train/mask-000000.png"),
        },
    ),
    "another plan": (
        _swap_plan,
        {("changed", "plan.json"), ("sums", "plan.json"), ("plan", "plan.json")},
    ),
    "an edited signature": (
        lambda b: edit_signed(b / SIGNATURE, lambda said: said.update(simulation=False)),
        {("signature", SIGNATURE)},
    ),
    "no signature": (lambda b: (b / SIGNATURE).unlink(), {("signature", SIGNATURE)}),
    "another name": (
        lambda b: b.rename(b.with_name("lungs-2.0.0")),
        {("name", "lungs-2.0.0")},
    ),
}


def test_a_release_as_it_was_signed_verifies(released: Released) -> None:
    verdict = verify_bundle(released.bundle, read_keys(released.keys))
    assert verdict.problems == []
    assert verdict.known
    assert verdict.simulation
    assert verdict.release == "lungs 1.0.0"
    assert set(verdict.epsilons) == {"alpha", "beta"}
    assert verdict.images == 48  # with the masks


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_caught_by_name(released: Released, tmp_path: Path, name: str) -> None:
    bundle = released.copy(tmp_path)
    assert _name(bundle, _image(bundle)) == IMAGE
    tamper, expected = TAMPERINGS[name]
    tamper(bundle)
    bundle = next(tmp_path.iterdir())
    assert _problems(verify_bundle(bundle, read_keys(released.keys))) == expected


def test_a_link_in_the_place_of_a_file_is_caught(released: Released, tmp_path: Path) -> None:
    bundle = released.copy(tmp_path)
    _link(bundle)
    found = _problems(verify_bundle(bundle))
    assert {("extra", IMAGE), ("missing", IMAGE)} <= found


def _of_another_run(released: Released, bundle: Path) -> None:
    path = bundle / "statements" / "beta.json"
    restate(path, released.site_key("beta"), {"run_id": "another"})


def _of_another_plan(released: Released, bundle: Path) -> None:
    path = bundle / "statements" / "beta.json"
    restate(path, released.site_key("beta"), {"plan_digest": OTHER})


def _of_another_delta(released: Released, bundle: Path) -> None:
    restate(bundle / "statements" / "beta.json", released.site_key("beta"), {"delta": 1e-9})


def _of_another_site(released: Released, bundle: Path) -> None:
    text = (bundle / "statements" / "alpha.json").read_text()
    (bundle / "statements" / "beta.json").write_text(text)


def _not_simulated(released: Released, bundle: Path) -> None:
    restate(bundle / "statements" / "beta.json", released.site_key("beta"), {"simulated": False})


def _edited(released: Released, bundle: Path) -> None:
    _lower_epsilon(bundle / "statements" / "beta.json")


def _by_the_coordinator(released: Released, bundle: Path) -> None:
    """The coordinator cannot state a smaller epsilon in a site's name."""
    restate(bundle / "statements" / "beta.json", released.key, {"epsilon": 0.1})


def _early(released: Released, bundle: Path) -> None:
    """A statement of before the run's last rounds: true, and of less than is in the images."""
    path = bundle / "statements" / "beta.json"
    statement, _ = read_statement(path.read_text(), "old")
    one = statement.uses[0].model_copy(update={"steps": 1})
    spent = 1.001 * least_epsilon([one], statement.delta)
    assert spent < statement.epsilon
    changes = {"epsilon": spent, "epsilon_all_runs": spent, "uses": [one.model_dump()]}
    restate(path, released.site_key("beta"), changes)


def _too_little(released: Released, bundle: Path) -> None:
    """The site's own key, and an epsilon below what the uses beside it cost."""
    restate(bundle / "statements" / "beta.json", released.site_key("beta"), {"epsilon": 0.01})


def _all_less_than_one(released: Released, bundle: Path) -> None:
    path = bundle / "statements" / "beta.json"
    statement, _ = read_statement(path.read_text(), "old")
    changes = {"epsilon": 2 * statement.epsilon_all_runs}
    restate(path, released.site_key("beta"), changes)


def _left_out(released: Released, bundle: Path) -> None:
    (bundle / "statements" / "beta.json").unlink()


SIGNED_AGAIN: dict[str, tuple[Callable[[Released, Path], object], set[tuple[str, str]]]] = {
    "another run's statement": (_of_another_run, {("statement-run", "beta")}),
    "another plan's statement": (_of_another_plan, {("statement-plan", "beta")}),
    "a statement against the plan": (
        _of_another_delta,
        {("statement-plan", "beta"), ("statement-epsilon", "beta")},
    ),
    "less than the uses cost": (_too_little, {("statement-epsilon", "beta")}),
    "all runs cost less than one": (_all_less_than_one, {("statement-epsilon", "beta")}),
    "a picture that is no PNG": (
        lambda _, b: (b / "images" / "train" / "x.jpg").write_bytes(b"x"),
        {("marking", "images/train/x.jpg")},
    ),
    "a PNG by another ending": (
        lambda _, b: (b / "images" / "train" / "X.PNG").write_bytes(b"x"),
        {("marking", "images/train/X.PNG")},
    ),
    "another site's statement": (
        _of_another_site,
        {("statement-forged", "beta"), ("unknown-key", "beta")},
    ),
    "a real site in a simulation": (_not_simulated, {("statement-run", "beta")}),
    "an edited statement": (_edited, {("statement-forged", "beta")}),
    "the coordinator's own statement": (
        _by_the_coordinator,
        {("unknown-key", "beta"), ("statement-epsilon", "beta")},
    ),
    "an early statement": (_early, {("statement-run", "beta")}),
    "no statement": (_left_out, {("statement-missing", "beta")}),
    "no mark": (lambda _, b: _remove_mark(b), {("marking", IMAGE)}),
    "no mark in DICOM": (lambda _, b: _unmark_dicom(b), {("marking", "dicom/train/000000.dcm")}),
    "noise in DICOM": (
        lambda _, b: _deflate_dicom(b, lambda stream: b"\xff" * len(stream)),
        {("marking", "dicom/train/000000.dcm")},
    ),
    "a cut stream in DICOM": (
        lambda _, b: _deflate_dicom(b, lambda stream: stream[: len(stream) // 2]),
        {("marking", "dicom/train/000000.dcm")},
    ),
    "a broken sequence in DICOM": (
        lambda _, b: _break_dicom(b),
        {("marking", "dicom/train/000000.dcm")},
    ),
    "another run's report": (lambda _, b: _swap_report(b), {("report", "report.json")}),
}


@pytest.mark.parametrize("name", SIGNED_AGAIN)
def test_whoever_released_it_cannot_deceive_either(
    released: Released, tmp_path: Path, name: str
) -> None:
    """The same with a signature that fits: what the sites signed, and the marks, still tell."""
    bundle = released.copy(tmp_path)
    tamper, expected = SIGNED_AGAIN[name]
    tamper(released, bundle)
    resign(bundle, released.key)
    assert _problems(verify_bundle(bundle, read_keys(released.keys))) == expected


@pytest.mark.parametrize("name", PAPERS)
def test_a_release_without_one_of_its_papers_is_none(
    released: Released, tmp_path: Path, name: str
) -> None:
    """Left out before it was signed, so that nothing was changed afterwards."""
    bundle = released.copy(tmp_path)
    (bundle / name).unlink()
    resign(bundle, released.key)
    if name == SUMS:
        signed = dsse.read_signed((bundle / SIGNATURE).read_text(), RELEASE_KIND, "old")
        rest = {k: v for k, v in signed.subject.items() if k != SUMS}
        (bundle / SUMS).unlink()
        text = dsse.sign(RELEASE_KIND, rest, dict(signed.predicate), released.key)
        (bundle / SIGNATURE).write_text(text)
    assert _problems(verify_bundle(bundle, read_keys(released.keys))) == {("missing", name)}


def test_images_are_as_many_as_were_signed_for(released: Released, tmp_path: Path) -> None:
    bundle = released.copy(tmp_path)
    for images in ({"train": 999, "val": 0, "test": 0}, None, []):
        resign(bundle, released.key, images=images)
        found = verify_bundle(bundle, read_keys(released.keys))
        assert _problems(found) == {("metadata", "images")}


def test_names_in_a_strangers_bundle_do_not_steer_the_terminal(
    released: Released, tmp_path: Path
) -> None:
    bundle = released.copy(tmp_path)
    (bundle / "a\x1b[2Jb").write_text("x")
    done = CliRunner().invoke(app, ["verify", str(bundle)])
    assert "\\x1b[2Jb was added" in done.output
    assert "\x1b" not in done.output + str(done.exception)


def test_a_stranger_can_sign_but_is_not_known(released: Released, tmp_path: Path) -> None:
    bundle = released.copy(tmp_path)
    _change_pixel(bundle)
    resign(bundle, make_signing_key(tmp_path / "strange.key"))
    assert verify_bundle(bundle).whole  # without keys nobody can tell
    verdict = verify_bundle(bundle, read_keys(released.keys))
    assert _problems(verdict) == {("unknown-key", "release")}
    assert not verdict.known


def test_a_site_that_is_left_out_is_named(released: Released, tmp_path: Path) -> None:
    """Whoever releases it drops a site's statement and name; the report still tells."""
    bundle = released.copy(tmp_path)
    (bundle / "statements" / "beta.json").unlink()
    resign(bundle, released.key, sites=["alpha"])
    verdict = verify_bundle(bundle, read_keys(released.keys))
    assert _problems(verdict) == {("statement-missing", "beta")}
    assert verdict.silent == ["beta"]


@pytest.mark.parametrize("sites", [None, 5, "alpha", []])
def test_a_signed_text_that_names_no_sites_is_refused(
    released: Released, tmp_path: Path, sites: object
) -> None:
    bundle = released.copy(tmp_path)
    resign(bundle, released.key, sites=sites)
    problems = _problems(verify_bundle(bundle, read_keys(released.keys)))
    assert ("statement-missing", "statements") in problems


def test_a_site_cannot_stand_in_for_who_released_it(released: Released, tmp_path: Path) -> None:
    """A stranger's release, and a statement of a site called ``release`` by a key that is known."""
    bundle = released.copy(tmp_path)
    text = (bundle / "statements" / "alpha.json").read_text()
    (bundle / "statements" / "release.json").write_text(text)
    restate(bundle / "statements" / "release.json", released.key, {"site": "release"})
    resign(bundle, make_signing_key(tmp_path / "strange.key"), sites=["alpha", "beta", "release"])
    problems = _problems(verify_bundle(bundle, read_keys(released.keys)))
    assert problems == {("statement-forged", "release"), ("unknown-key", "release")}


def test_a_key_that_nobody_told_is_named(released: Released) -> None:
    keys = read_keys(released.keys)
    del keys["alpha"]
    assert _problems(verify_bundle(released.bundle, keys)) == {("unknown-key", "alpha")}


def test_a_folder_without_keys_is_refused_and_so_is_what_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no NAME\.pub"):
        read_keys(tmp_path)
    (tmp_path / "alpha.pub").write_text("hello")
    with pytest.raises(ConfigError, match=r"alpha\.pub is no Ed25519 public key"):
        read_keys(tmp_path)


def test_a_withdrawn_version_is_named_and_another_is_not(
    released: Released, tmp_path: Path
) -> None:
    path, keys = tmp_path / "withdrawn.json", read_keys(released.keys)
    assert withdraw(path, ReleaseName("lungs", "0.9.0"), "blurred", released.key) == 1
    assert verify_bundle(released.bundle, keys, path).whole
    assert withdraw(path, ReleaseName("lungs", "1.0.0"), "a patient objected", released.key) == 2
    verdict = verify_bundle(released.bundle, keys, path)
    assert _problems(verdict) == {("withdrawn", "lungs 1.0.0")}
    assert "a patient objected" in verdict.problems[0].text
    with pytest.raises(ConfigError, match="already"):
        withdraw(path, ReleaseName("lungs", "1.0.0"), "again", released.key)


def test_what_was_never_released_cannot_be_withdrawn(released: Released, tmp_path: Path) -> None:
    """A typo in the version would leave the bad one in use."""
    path = tmp_path / "withdrawn.json"
    with pytest.raises(ConfigError, match=r"lungs --version 1\.0\.1: was never .* lungs 1\.0\.0"):
        take_back(released.run, ReleaseName("lungs", "1.0.1"), "blurred", path, None)
    assert not path.exists()
    assert take_back(released.run, ReleaseName("lungs", "1.0.0"), "blurred", path, None) == 1
    assert _problems(verify_bundle(released.bundle, withdrawn=path)) == {
        ("withdrawn", "lungs 1.0.0")
    }


def test_only_who_released_it_can_withdraw_it(released: Released, tmp_path: Path) -> None:
    strange, path = make_signing_key(tmp_path / "strange.key"), tmp_path / "withdrawn.json"
    withdraw(path, ReleaseName("lungs", "1.0.0"), "out of spite", strange)
    verdict = verify_bundle(released.bundle, withdrawn=path)
    assert _problems(verdict) == {("withdrawn", "withdrawn.json")}
    assert "not signed by the key that signed the release" in verdict.problems[0].text
    with pytest.raises(VerificationError, match="signed by another key"):
        withdraw(path, ReleaseName("lungs", "1.1.0"), "mine", released.key)
    edit_signed(path, lambda said: said.update(withdrawn=[]))
    assert _problems(verify_bundle(released.bundle, withdrawn=path)) == {
        ("withdrawn", "withdrawn.json")
    }


def test_the_command_says_what_it_knows_and_ends_with_its_codes(
    released: Released, tmp_path: Path
) -> None:
    run = CliRunner().invoke
    bundle, keys = str(released.bundle), str(released.keys)
    known = run(app, ["verify", bundle, "--keys", keys])
    assert known.exit_code == 0, known.output
    assert "every file is as it was signed" in known.output
    unknown = run(app, ["verify", bundle])
    assert isinstance(unknown.exception, UnknownSignerError)
    assert "NOT KNOWN" in unknown.output
    tampered = released.copy(tmp_path)
    _change_pixel(tampered)
    wrong = run(app, ["verify", str(tampered), "--keys", keys, "--json"])
    assert isinstance(wrong.exception, VerificationError)
    found = json.loads(wrong.output)
    assert not found["whole"]
    assert [p["where"] for p in found["problems"] if p["code"] == "changed"] == [IMAGE]
    assert found["signers"]["release"] == signing_public(released.key)
