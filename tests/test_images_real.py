"""The documented contents of real sets, read through the public door."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from synth_common.images.preprocess import Target
from synth_common.images.sources import FolderSource, Intake, NpzSource, load_source
from synth_common.images.split import split_patients
from synth_sim.partition import PartitionConfig, SiteShare, deal

pytestmark = pytest.mark.data

CHEST = ("normal", "pneumonia")
KINDS = {"bacterial_pneumonia": "pneumonia", "viral_pneumonia": "pneumonia"}


def _chest(root: Path) -> dict[str, Intake]:
    target = Target(size=64, channels=1, classes=CHEST)
    a = NpzSource(name="a", path=Path("cxr_site_a_guangzhou/cxr_site_a_64.npz"), label_map=KINDS)
    b = NpzSource(
        name="b", path=Path("cxr_site_b_nih/cxr_site_b_128.npz"), label_map={"no_finding": "normal"}
    )
    return {s.name: load_source(s, target, root) for s in (a, b)}


def test_pneumoniamnist(data_root: Path) -> None:
    source = NpzSource(
        name="p", path=Path("pneumoniamnist28/pneumoniamnist.npz"), labels=CHEST, splits=("train",)
    )
    intake = load_source(source, Target(size=28, channels=1, classes=CHEST), data_root)
    assert np.bincount(intake.images.labels).tolist() == [1214, 3494]
    assert intake.report.duplicates.groups == 18
    with np.load(data_root / source.path) as archive:
        raw = archive["train_images"]
    np.testing.assert_allclose(intake.images.images[:, 0], raw / 255, atol=1e-6)


def test_two_hospitals_of_one_source_and_a_third(data_root: Path) -> None:
    intakes = _chest(data_root)
    assert intakes["a"].images.unit_count() == 4082
    assert np.bincount(intakes["a"].images.labels).tolist() == [1575, 2772 + 1493]
    assert np.bincount(intakes["b"].images.labels).tolist() == [247, 238]
    config = PartitionConfig(
        kind="sources",
        sites=(
            SiteShare(name="east", source="a", nominal_patients=1600),
            SiteShare(name="west", source="a", nominal_patients=1600),
            SiteShare(name="nih", source="b", nominal_patients=260),
        ),
    )
    sites = deal({k: v.images for k, v in intakes.items()}, config, 0)
    assert abs(sites["east"].unit_count() - sites["west"].unit_count()) <= 2
    assert sites["nih"].unit_count() == 330
    assert not set(sites["east"].patient_ids) & set(sites["west"].patient_ids)
    for site in sites.values():
        train, holdout = split_patients(site, 0.2, 0)
        assert not set(train.patient_ids) & set(holdout.patient_ids)
        share = [float((s.labels == 0).mean()) for s in (train, holdout)]
        assert abs(share[0] - share[1]) < 0.06


def test_mednist_is_quick_and_its_flat_images_are_set_aside(data_root: Path) -> None:
    classes = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
    source = NpzSource(name="m", path=Path("mednist64/mednist64.npz"))
    start = time.perf_counter()
    intake = load_source(source, Target(size=32, channels=1, classes=classes), data_root)
    assert time.perf_counter() - start < 15  # about one second; the machine may be busy
    assert intake.report.offered == 12000
    assert intake.report.set_aside == {"constant": 16}
    shares = tuple(SiteShare(name=f"h{k}", nominal_patients=1500) for k in range(5))
    config = PartitionConfig(kind="dirichlet", alpha=0.5, sites=shares)
    sites = deal({"m": intake.images}, config, 0)
    assert sum(len(s) for s in sites.values()) == len(intake.images)
    tables = np.stack([np.bincount(s.labels, minlength=6) for s in sites.values()])
    assert (tables / tables.sum(axis=1, keepdims=True)).std(axis=0).mean() > 0.08


def test_nuclei_by_laboratory_with_masks(data_root: Path) -> None:
    source = NpzSource(
        name="n",
        path=Path("nuclei_seg128/nuclei_dsb2018_128.npz"),
        single_class="nuclei",
        site_key="acquisition_group",
        site_names=("fluorescence", "bright", "stained"),
    )
    target = Target(size=64, channels=3, classes=("nuclei",), with_mask=True)
    images = load_source(source, target, data_root).images
    sites = tuple(
        SiteShare(name=n, nominal_patients=k)
        for n, k in (("fluorescence", 430), ("stained", 85), ("bright", 12))
    )
    dealt = deal({"n": images}, PartitionConfig(kind="column", sites=sites), 0)
    assert {n: len(s) for n, s in dealt.items()} == {
        "fluorescence": 540,
        "stained": 107,
        "bright": 16,
    }
    # Nuclei shine in fluorescence and are dark in stains: image and mask are in step.
    for name, sign in (("fluorescence", 1), ("stained", -1)):
        grey, mask = dealt[name].images.mean(axis=1), dealt[name].masks
        assert mask is not None
        assert sign * (grey[mask == 1].mean() - grey[mask == 0].mean()) > 0.1


def test_a_folder_of_real_jpegs(data_root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(
        data_root / "cxr_site_a_guangzhou/cxr_site_a_224_jpeg_subset.zip"
    ) as files:
        names = [n for n in files.namelist() if n.startswith("test/")][:60]
        files.extractall(tmp_path, names)
    found = sorted(p.name for p in (tmp_path / "test").iterdir())
    maps = {name: name.lower() for name in found}
    source = FolderSource(name="f", path=tmp_path / "test", label_map=maps)
    intake = load_source(source, Target(size=64, channels=1, classes=CHEST), None)
    assert intake.report.accepted == len(names)
    assert 0.2 < intake.images.images.mean() < 0.7
