"""``synth-client prepare``: what a hospital's images become, and what is never overwritten."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image
from site_scenario import deployed_plan, enrolled, prepare, site_values, write_settings
from small_sites import small_site

from synth_client import cli, lock
from synth_client.prepare import describe
from synth_client.site import load_site, save_site
from synth_common.errors import ConfigError, DataError, LimitError, PrivacyError, RunningError
from synth_common.facts import read_facts
from synth_common.privacy.accounting import Use
from synth_common.privacy.ledger import Ledger, RoundKey
from synth_common.terminal import guarded


def test_images_are_split_and_the_ledger_opened_with_the_budget(tmp_path: Path) -> None:
    _, directory = enrolled(tmp_path)
    prepared = prepare(directory, deployed_plan())
    site = load_site(directory)
    assert (site.train.unit_count(), site.holdout.unit_count()) == (30, 10)
    assert not set(site.train.patient_ids) & set(site.holdout.patient_ids)
    assert site.train.images.shape[1:] == (1, 28, 28)  # as the plan wants them
    assert not site.simulated
    with Ledger.read(site.ledger_path) as ledger:
        assert (ledger.budget.epsilon, ledger.budget.accountant) == (8.0, "rdp")
        assert ledger.approved() == {}  # a plan is the operator's to approve
    assert "train     30 patients" in "\n".join(describe(prepared))
    names = {fact.name: fact.scope for fact in read_facts(directory / "facts.jsonl")}
    assert names["data.split"] == "site-local"
    assert (directory / "data.npz").stat().st_mode & 0o077 == 0


def test_a_site_is_its_owner_s_from_the_first_byte(tmp_path: Path) -> None:
    site = small_site(tmp_path)
    site.directory.chmod(0o755)
    seen: list[int] = []
    save = np.savez

    def watched(file: IO[bytes], **arrays: Any) -> None:
        seen.append(os.fstat(file.fileno()).st_mode & 0o777)
        save(file, **arrays)

    before = os.umask(0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np, "savez", watched)
            save_site(site)
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert site.directory.stat().st_mode & 0o777 == 0o700
    for name in ("data.npz", "site.json"):
        assert (site.directory / name).stat().st_mode & 0o777 == 0o600, name
    assert load_site(site.directory).train.images.shape == site.train.images.shape


def test_preparing_again_draws_the_same_and_never_touches_the_ledger(tmp_path: Path) -> None:
    _, directory = enrolled(tmp_path)
    plan = deployed_plan()
    prepare(directory, plan)
    first = load_site(directory)
    with Ledger.hold(first.ledger_path) as ledger:
        key = RoundKey("run", 1, "asked", plan.digest())
        ledger.reserve(key, (Use(1.0, 0.1, 5),), "patient")
        head = ledger.head
    with pytest.raises(ConfigError, match="--replace"):
        prepare(directory, plan)
    values = site_values(budget={"epsilon": 80.0})
    values["data"]["source"]["patients"] = 48
    write_settings(directory, values)
    lines = "\n".join(describe(prepare(directory, plan, replace=True)))
    second = load_site(directory)
    assert second.train.unit_count() == 36
    with Ledger.read(second.ledger_path) as ledger:
        assert ledger.head == head
    assert "budget    epsilon 8 " in lines
    assert "site.toml names epsilon 80" in lines
    write_settings(directory, site_values())
    prepare(directory, plan, replace=True)
    assert np.array_equal(load_site(directory).train.images, first.train.images)


def test_a_ledger_that_was_removed_is_missed(tmp_path: Path) -> None:
    _, directory = enrolled(tmp_path)
    prepare(directory, deployed_plan())
    (directory / "ledger.sqlite").unlink()
    (directory / "data.npz").unlink()
    with pytest.raises(PrivacyError, match="is missing"):
        prepare(directory, deployed_plan())


def test_too_few_patients_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    _, directory = enrolled(tmp_path, limits={"min_patients": 30})
    values = site_values(limits={"min_patients": 30})
    values["data"]["source"]["patients"] = 39
    write_settings(directory, values)
    with pytest.raises(LimitError, match="min_patients = 30: the site has 29"):
        prepare(directory, deployed_plan())
    assert not (directory / "data.npz").exists()
    assert not (directory / "ledger.sqlite").exists()


def test_images_do_not_change_under_a_running_service(tmp_path: Path) -> None:
    _, directory = enrolled(tmp_path)
    with lock.hold(directory), pytest.raises(RunningError, match="runs already"):
        prepare(directory, deployed_plan())


def _folder(directory: Path, patients: int, *, ids: bool = True) -> None:
    """A folder of scans below the site's own, with one that cannot be read."""
    rng, rows = np.random.default_rng(0), ["file_name,patient_id" if ids else "file_name"]
    for i in range(patients):
        label = "normal" if i % 2 else "lesion"
        file = directory / "images" / label / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(file)
        rows.append(f"{label}/{i}.png" + (f",p{i}" if ids else ""))
    (directory / "images/normal/cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    rows.append("normal/cut.png" + (",p99" if ids else ""))
    (directory / "images/metadata.csv").write_text("\n".join(rows) + "\n")


def test_a_relative_folder_starts_at_the_site_and_rejects_are_counted(tmp_path: Path) -> None:
    _, directory = enrolled(tmp_path)
    values = site_values()
    values["data"]["source"] = {"kind": "folder", "name": "scans", "path": "images"}
    values["data"]["nominal_patients"] = 6
    write_settings(directory, values)
    with pytest.raises(DataError, match="no such folder"):
        prepare(directory, deployed_plan())
    _folder(directory, 12)
    lines = "\n".join(describe(prepare(directory, deployed_plan())))
    assert "13 offered, 12 accepted" in lines
    assert "1 set aside: " in lines
    assert "0.67 times the training patients: that spends the budget" in lines


def test_a_budget_per_patient_needs_patients(tmp_path: Path) -> None:
    _, directory = enrolled(tmp_path)
    values = site_values()
    values["data"]["source"] = {"kind": "folder", "name": "scans", "path": "images"}
    write_settings(directory, values)
    _folder(directory, 12, ids=False)
    with pytest.raises(PrivacyError, match=r"budget\.unit = 'patient'.*set budget\.unit = 'image'"):
        prepare(directory, deployed_plan())
    write_settings(directory, {**values, "budget": {"epsilon": 8.0, "unit": "image"}})
    prepare(directory, deployed_plan())
    assert load_site(directory).train.patient_ids is None


def test_the_command_takes_the_kit_s_plan_and_tells_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, directory = enrolled(tmp_path)
    home = str(directory.parents[1])
    code = guarded(lambda: cli.app(["prepare", "--site", "north", "--home", home]))
    out = capsys.readouterr().out
    assert code == 0
    assert "reading   source 'drawn' (phantom) as 1 x 28 x 28 px" in out
    assert "next: synth-client plan approve" in out
    plan = replace(load_site(directory), simulated=False)
    assert plan.name == "north"
