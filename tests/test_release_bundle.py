"""What is in a release, where it comes from, and what cannot be released."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from enrolment_scenario import found
from PIL import Image
from pydicom import dcmread
from release_bundles import COUNT, Released, request, restate, write_charter
from typer.testing import CliRunner

from synth_client.cli import app as client_app
from synth_common.errors import (
    ConfigError,
    EnrolmentError,
    PrivacyError,
    VerificationError,
)
from synth_common.facts import Fact, FactLog, read_facts
from synth_common.generators import build_generator
from synth_common.images.folder import FolderSource, load_folder
from synth_common.images.preprocess import Target
from synth_common.keys import load_signing_key, signing_public
from synth_common.plan import Plan
from synth_common.privacy.accounting import epsilon
from synth_common.privacy.ledger import Ledger
from synth_common.release.dicom import unmarked
from synth_common.release.drawing import draw, mix, splits
from synth_common.release.marks import marking_fact
from synth_common.release.metadata import scan
from synth_common.release.names import ReleaseName
from synth_common.release.statement import read_statement
from synth_common.release.verdict import read_keys
from synth_common.release.verify import verify_bundle
from synth_common.reporting.factbook import FactBook
from synth_server.checkpoint import load_latest, save_checkpoint
from synth_server.cli import app
from synth_server.enrol import revoke
from synth_server.finished import read_finished
from synth_server.publish import publish
from synth_sim.run import load_run

CLASSES = ("normal", "lesion")


def _rows(bundle: Path) -> list[dict[str, str]]:
    with (bundle / "images" / "metadata.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_bundle_holds_the_documented_files(released: Released) -> None:
    found = {p.relative_to(released.bundle).parts[0] for p in released.bundle.rglob("*")}
    assert found == {
        "images", "dicom", "lungs.npz", "croissant.json", "DATASHEET.md", "MODEL_CARD.md",
        "LICENSE", "report.html", "report.json", "ethics.html", "ethics.json", "plan.json",
        "statements", "SHA256SUMS", "release.intoto.jsonl",
    }  # fmt: skip
    assert sorted(p.name for p in released.keys.iterdir()) == [
        "alpha.pub", "beta.pub", "release.pub",
    ]  # fmt: skip


def test_the_images_are_in_classes_and_splits_with_a_seed_each(released: Released) -> None:
    rows = _rows(released.bundle)
    assert len(rows) == COUNT
    assert len({row["seed"] for row in rows}) == COUNT
    counts = {name: sum(row["label"] == name for row in rows) for name in CLASSES}
    assert counts == {"normal": 12, "lesion": 12}  # nothing was released of how common they are
    for row in rows:
        assert row["file_name"].startswith(f"{row['split']}/")
        assert _pixels(released.bundle / "images" / row["file_name"]).shape == (28, 28)
        assert set(np.unique(_pixels(released.bundle / "images" / row["mask"]))) <= {0, 255}
    assert {row["split"] for row in rows} == {"train", "val", "test"}


def test_every_image_comes_again_from_its_seed(released: Released) -> None:
    plan = load_run(released.run).plan
    kept = load_latest(released.run / "checkpoints")
    assert kept is not None
    generator = build_generator(plan.generator, seed=0)
    generator.load_shared_state(kept.state)
    generator.eval()
    row = _rows(released.bundle)[7]
    label = torch.tensor([CLASSES.index(row["label"])])
    drawn = generator.sample(label, [int(row["seed"])]).numpy()[0, 0]
    again = np.rint(np.clip(drawn, 0, 1) * 255).astype(np.uint8)
    assert np.array_equal(again, _pixels(released.bundle / "images" / row["file_name"]))


def test_arrays_and_dicom_hold_the_same_pixels(released: Released) -> None:
    rows = _rows(released.bundle)
    with np.load(released.bundle / "lungs.npz", allow_pickle=False) as arrays:
        for split in ("train", "val", "test"):
            own = [row for row in rows if row["split"] == split]
            assert arrays[f"{split}_images"].dtype == np.uint8
            assert [CLASSES[i] for i in arrays[f"{split}_labels"][:, 0]] == [
                r["label"] for r in own
            ]
            assert arrays[f"{split}_masks"].max() <= 1
            for row, image in zip(own, arrays[f"{split}_images"], strict=True):
                png = released.bundle / "images" / row["file_name"]
                assert np.array_equal(image, _pixels(png))
                data = dcmread(released.bundle / "dicom" / f"{row['file_name'][:-4]}.dcm")
                assert np.array_equal(data.pixel_array, image)


def test_dicom_objects_say_what_they_are_and_claim_no_scanner(released: Released) -> None:
    files = sorted((released.bundle / "dicom").rglob("*.dcm"))
    assert len(files) == COUNT
    read = [dcmread(path) for path in files]
    for path, data in zip(files, read, strict=True):
        assert unmarked(path) == []
        assert data[0x0008, 0x001C].value == "YES"
        assert data.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
        assert data.ConversionType == "SYN"
        assert list(data.ImageType) == ["DERIVED", "SECONDARY"]
        assert data.PatientID.startswith("SYN-")
        equipment = data.ContributingEquipmentSequence[0]
        assert equipment.SoftwareVersions.startswith("Synthward ")
        assert "epsilon" in equipment.ContributionDescription
        assert "SIMULATION" in equipment.ContributionDescription
        assert data.StudyDate == ""
    for uid in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        found = {str(getattr(data, uid)) for data in read}
        assert len(found) == COUNT
        assert all(value.startswith("2.25.") for value in found)


def test_a_bundle_holds_no_identifiers_that_the_scan_finds(released: Released) -> None:
    found = scan(released.bundle, pixels=False)
    assert list(found.findings) == []
    assert found.scanned == {"png": 2 * COUNT, "dicom": COUNT}


def test_a_bundle_is_a_source_for_another_run(released: Released) -> None:
    source = FolderSource(name="again", path=released.bundle / "images")
    target = Target(size=28, channels=1, classes=CLASSES, with_mask=True)
    collected = load_folder(source, target, released.bundle / "images")
    assert collected.offered == COUNT
    assert set(collected.images.class_names) == set(CLASSES)


def test_the_description_validates_and_reads_as_croissant(released: Released) -> None:
    """In a process of its own: the library warns of its own dependencies."""
    pytest.importorskip("mlcroissant")
    code = (
        "import sys, mlcroissant; data = mlcroissant.Dataset(jsonld=sys.argv[1]);"
        "assert not data.metadata.ctx.issues.errors, data.metadata.ctx.issues.report();"
        "rows = list(data.records('pictures'));"
        "print(len(rows), rows[0]['pictures/image'].size, rows[0]['pictures/label'])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(released.bundle / "croissant.json")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{COUNT} (28, 28) b'")


def test_the_papers_quote_the_statements_the_charter_and_the_facts(released: Released) -> None:
    sheet = (released.bundle / "DATASHEET.md").read_text()
    card = (released.bundle / "MODEL_CARD.md").read_text()
    statement, _ = read_statement((released.bundle / "statements" / "alpha.json").read_text(), "a")
    book = FactBook(read_facts(released.run / "facts.jsonl"))
    assert statement.epsilon == pytest.approx(book.value("privacy.site", "alpha")["epsilon"])
    assert statement.ledger_head == book.value("privacy.site", "alpha")["ledger_head"]
    assert "Drawn lungs" in sheet
    assert "**SIMULATION: do not publish" in sheet
    assert "| Purpose | NOT RECORDED |" in sheet
    assert "All classes have the same share" in sheet
    assert book.value("plan.digest") in card
    assert "SPDX-License-Identifier: CC-BY-4.0" in (released.bundle / "LICENSE").read_text()


def test_the_marks_are_read_again_and_recorded(released: Released, tmp_path: Path) -> None:
    report = json.loads((released.bundle / "report.json").read_text())
    recorded = [entry["value"] for entry in report["other"] if entry["name"] == "release.marking"]
    assert [value["verified"] for value in recorded] == [3 * COUNT]  # images, masks and objects
    plain = tmp_path / "000000.png"
    Image.fromarray(np.zeros((28, 28), dtype=np.uint8)).save(plain)
    with pytest.raises(VerificationError, match="not marked as synthetic"):
        marking_fact({"images/train/000000.png": plain})


def test_the_mix_follows_released_shares_and_nothing_else() -> None:
    plan = Plan()
    labels = mix(plan, 200, {"normal": 0.9, "lesion": 0.1}, seed=1).labels
    assert np.bincount(labels).tolist() == [180, 20]
    parts = splits(labels)
    assert [parts.count(s) for s in ("train", "val", "test")] == [140, 20, 40]
    assert len(set(labels[:20].tolist())) == 2  # shuffled


def test_a_release_before_the_first_round_counts_as_taking_part(
    released: Released, tmp_path: Path
) -> None:
    facts = [
        fact for fact in read_facts(released.run / "facts.jsonl") if fact.name != "federation.round"
    ]
    shares = {"normal": 0.75, "lesion": 0.25}
    facts += [
        Fact("release.embedding", {"sites": ["gamma", "beta"]}, "public", "t"),
        Fact("data.label_shares", shares, "released", "t"),
    ]
    FactLog(tmp_path / "facts.jsonl").extend(facts)
    run = read_finished(tmp_path)
    assert run.sites == ["beta", "gamma"]
    assert run.shares == shares
    assert read_finished(released.run).shares == {}


def test_a_site_states_what_its_ledger_holds(released: Released, tmp_path: Path) -> None:
    out, home = tmp_path / "alpha.json", released.run
    call = ["statement", "--site", "alpha", "--home", str(home), "--out", str(out)]
    done = CliRunner().invoke(client_app, call)
    assert done.exit_code == 0, done.output
    statement, key = read_statement(out.read_text(), "alpha")
    assert key == signing_public(released.site_key("alpha"))
    with Ledger.read(home / "sites" / "alpha" / "ledger.sqlite") as ledger:
        uses = ledger.history(statement.run_id)
        assert statement.ledger_head == ledger.head
        assert statement.ledger_entries == len(ledger.entries)
    assert statement.epsilon == epsilon(uses, statement.delta, statement.accountant)
    assert sum(use.steps for use in statement.uses) == sum(use.steps for use in uses)
    refused = CliRunner().invoke(client_app, [*call, "--run", "another"])
    assert isinstance(refused.exception, ConfigError)
    assert statement.run_id in str(refused.exception)


# --------------------------------------------------------------------- what is refused


@pytest.fixture
def run_copy(released: Released, tmp_path: Path) -> Path:
    """A finished run of which nothing was released yet."""
    copied = Path(shutil.copytree(released.run, tmp_path / "run"))
    (copied / "releases.jsonl").unlink()
    return copied


def _refused(run: Path, folder: Path, **changes: Any) -> None:
    publish(run, request(folder, **{"count": 2, "formats": frozenset(["png"]), **changes}))


def test_a_release_without_every_sites_statement_is_refused_by_name(
    run_copy: Path, tmp_path: Path
) -> None:
    (run_copy / "statements" / "beta.json").unlink()
    with pytest.raises(PrivacyError, match="no privacy statement of beta in"):
        _refused(run_copy, tmp_path)
    assert not (tmp_path / "releases").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run_id": "another"}, "run_id = 'another'"),
        ({"plan_digest": "0" * 64}, "plan_digest"),
        ({"unit": "image"}, "unit = 'image'"),
        ({"simulated": False}, "simulated = False"),
        ({"epsilon_all_runs": 0.01}, "older copy of the ledger"),
        ({"epsilon": 0.01}, "the uses that it lists cost at least"),
        ({"epsilon": 1e6}, "all runs cost epsilon"),
    ],
)
def test_a_statement_that_does_not_fit_the_run_is_refused(
    released: Released, run_copy: Path, tmp_path: Path, changes: Mapping[str, Any], words: str
) -> None:
    path = run_copy / "statements" / "beta.json"
    restate(path, released.site_key("beta"), changes)
    with pytest.raises(PrivacyError, match=words):
        _refused(run_copy, tmp_path)


def test_a_statement_that_was_edited_is_refused(run_copy: Path, tmp_path: Path) -> None:
    path = run_copy / "statements" / "beta.json"
    values = json.loads(path.read_text())
    values["payload"] = values["payload"][:-8] + "AAAAAAA="
    path.write_text(json.dumps(values))
    with pytest.raises(VerificationError, match=r"beta\.json"):
        _refused(run_copy, tmp_path)


def test_a_version_is_made_once(released: Released, run_copy: Path, tmp_path: Path) -> None:
    _refused(run_copy, tmp_path)
    with pytest.raises(ConfigError, match="a version is never changed"):
        _refused(run_copy, tmp_path)
    shutil.rmtree(tmp_path / "releases")
    with pytest.raises(ConfigError, match="was released on"):
        _refused(run_copy, tmp_path)
    _refused(run_copy, tmp_path, release=ReleaseName("lungs", "1.0.1"))
    before = _rows(released.bundle)[0]["seed"]
    assert _rows(tmp_path / "releases" / "lungs-1.0.1")[0]["seed"] != before


@pytest.mark.parametrize("version", ["1", "1.0", "01.0.0", "1.0.0+build", "v1.0.0", "1.0.0-", ""])
def test_versions_are_semantic(version: str) -> None:
    with pytest.raises(ConfigError, match="--version"):
        ReleaseName("lungs", version)


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("anonymous-lungs", "1.0.0", r"--name 'anonymous-lungs': says \"anonymous\".*what the"),
        ("lungs_ANONYMISED", "1.0.0", r"--name 'lungs_ANONYMISED': says"),
        ("lungs", "1.0.0-anonym.1", r"--version '1\.0\.0-anonym\.1': says \"anonym\""),
    ],
)
def test_a_name_claims_nothing(name: str, version: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ReleaseName(name, version)
    assert ReleaseName("pseudonym-lungs", "1.0.0-rc.1").folder == "pseudonym-lungs-1.0.0-rc.1"


def _refact(run: Path, **values: Any) -> None:
    FactLog(run / "facts.jsonl").extend(
        Fact(name.replace("__", "."), value, "public", "test") for name, value in values.items()
    )


def test_what_has_no_guarantee_is_not_released(run_copy: Path, tmp_path: Path) -> None:
    plan = load_run(run_copy).plan
    _refact(run_copy, run__simulation=False)
    with pytest.raises(PrivacyError, match=r"privacy\.noise = 'simulation'"):
        _refused(run_copy, tmp_path)
    open_plan = plan.model_copy(
        update={"privacy": plan.privacy.model_copy(update={"epsilon": float("inf")})}
    )
    _refact(
        run_copy,
        plan__settings=open_plan.model_dump(mode="json"),
        plan__digest=open_plan.digest(),
    )
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon = inf"):
        _refused(run_copy, tmp_path)


def _as_if_real(run: Path) -> Plan:
    """Turn a simulated run into what a coordinator of real sites would have."""
    plan = load_run(run).plan
    secure = plan.model_copy(
        update={"privacy": plan.privacy.model_copy(update={"noise": "secure"})}
    )
    _refact(
        run,
        run__simulation=False,
        plan__settings=secure.model_dump(mode="json"),
        plan__digest=secure.digest(),
    )
    kept = load_latest(run / "checkpoints")
    assert kept is not None
    save_checkpoint(run / "checkpoints", replace(kept, plan_digest=secure.digest()))
    return secure


def test_real_statements_count_under_the_keys_the_sites_were_enrolled_with(
    released: Released, run_copy: Path, tmp_path: Path
) -> None:
    secure = _as_if_real(run_copy)
    real = {"plan_digest": secure.digest(), "noise": "secure", "simulated": False}
    for name in ("alpha", "beta"):
        path = run_copy / "statements" / f"{name}.json"
        restate(path, released.site_key(name), real)
    with pytest.raises(ConfigError, match=r"holds no server\.toml"):
        _refused(run_copy, tmp_path)
    federation = found(tmp_path, plan=secure)
    federation.enrol("alpha", "beta")
    run = Path(shutil.move(run_copy, federation.folder.run))
    with pytest.raises(EnrolmentError, match="alpha is signed by another key"):
        _refused(run, tmp_path)
    for name in ("alpha", "beta"):
        key = load_signing_key(federation.site(name) / "keys" / "sign.key")
        restate(run / "statements" / f"{name}.json", key, real)
    made = publish(run, request(tmp_path, count=2, formats=frozenset(["png"])))
    verdict = verify_bundle(made.bundle, read_keys(made.keys))
    assert (verdict.problems, verdict.known, verdict.simulation) == ([], True, False)
    own = load_signing_key(federation.folder.keys / "sign.key")
    assert verdict.signers["release"] == signing_public(own)
    report = json.loads((made.bundle / "report.json").read_text())
    assert report["quality"]["metrics"] == []  # measured at the sites, and not charged
    assert report["privacy"]["sites"]
    assert "SIMULATION" not in (made.bundle / "DATASHEET.md").read_text()
    revoke(federation.folder, "beta", "left")
    with pytest.raises(EnrolmentError, match="beta was revoked"):
        _refused(run, tmp_path, release=ReleaseName("lungs", "1.0.1"))


def test_the_command_refuses_what_it_does_not_know(released: Released, tmp_path: Path) -> None:
    charter = write_charter(tmp_path)
    common = ["--name", "lungs", "--version", "2.0.0", "--charter", str(charter)]

    def call(run: Path, *more: str) -> BaseException | None:
        return CliRunner().invoke(app, ["release", str(run), *common, *more]).exception

    assert "none of png, npz, dicom" in str(call(released.run, "--n", "2", "--formats", "jpeg"))
    assert "must be 1 to" in str(call(released.run, "--n", "0"))
    assert "did you mean" in str(call(released.run.parent, "--n", "2"))


def test_drawing_is_the_same_whatever_is_drawn_with_it(released: Released) -> None:
    plan = load_run(released.run).plan
    generator = build_generator(plan.generator, seed=3)
    generator.eval()
    labels = np.array([0, 1, 0, 1, 1], dtype=np.int64)
    all_five = list(draw(generator, labels, seed=9))
    two = list(draw(generator, labels[:2], seed=9))
    assert np.array_equal(all_five[1].pixels, two[1].pixels)
