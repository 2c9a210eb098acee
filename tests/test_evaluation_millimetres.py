"""Distances in millimetres: only of a stated spacing, each image by its own factor of resizing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reporting_facts import run_facts
from small_sets import blob_set
from small_sites import small_site

from synth_client.site import load_site, save_site
from synth_common.errors import ConfigError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.segmentation import evaluate_segmentation
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet, concatenate
from synth_common.images.preprocess import Target
from synth_common.images.sources import FolderSource, NpzSource, TilesSource, load_source
from synth_common.reporting.html import render_report
from synth_common.reporting.report import build_report
from synth_common.validation import validate

TARGET = Target(size=32, channels=1, classes=("normal",), with_mask=True)
RNG = np.random.default_rng(0)


def _write(file: Path, width: int, height: int, shade: tuple[int, int] = (60, 256)) -> None:
    Image.fromarray(RNG.integers(*shade, (height, width), dtype=np.uint8)).save(file)


def _pairs() -> ImageSet:
    """Two images; the second observer drew the first's square two pixels to the right."""
    images = blob_set(2, 4)
    masks = np.zeros((2, 32, 32), dtype=np.uint8)
    masks[:, 2:5, 2:5] = 1
    second = np.stack([np.roll(masks[0], 2, axis=1), np.roll(masks[1], 2, axis=0)])
    return replace(images, masks=masks, second_masks=second)


def _observer(holdout: ImageSet) -> list[Fact]:
    """The facts of the second observer: distances that are known by hand."""
    config = EvaluationConfig(segmenter_steps=1, utility_seeds=1, bootstrap=20)
    facts = evaluate_segmentation(holdout, holdout, holdout, config, 0)
    return [f for f in facts if f.detail["trained_on"] == "second observer"]


def test_files_of_different_size_have_factors_of_their_own(tmp_path: Path) -> None:
    lines = ["file_name,label,mask"]
    for name, width, height in (("a", 48, 64), ("b", 32, 32), ("c", 160, 40)):
        _write(tmp_path / f"{name}.png", width, height)
        _write(tmp_path / f"{name}-mask.png", width, height)
        lines.append(f"{name}.png,normal,{name}-mask.png")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    stated = FolderSource(name="s", path=tmp_path, pixel_spacing_mm=0.5)
    spacings = load_source(stated, TARGET, None).images.spacings
    assert spacings is not None
    # The longer side is brought to 32 pixels.
    assert spacings.tolist() == [1.0, 0.5, 2.5]
    unknown = FolderSource(name="s", path=tmp_path)
    assert load_source(unknown, TARGET, None).images.spacings is None


def test_an_archive_and_tiles_have_one_factor(tmp_path: Path) -> None:
    raw = RNG.integers(0, 256, (3, 40, 64), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=raw, masks=raw > 99)
    stated = {"name": "s", "single_class": "normal", "pixel_spacing_mm": 0.3}
    archive = NpzSource(path=tmp_path / "a.npz", **stated)
    spacings = load_source(archive, TARGET, None).images.spacings
    assert spacings is not None
    assert spacings.tolist() == pytest.approx([0.6] * 3)
    _write(tmp_path / "1.jpg", 130, 140)
    _write(tmp_path / "1-mask.png", 130, 140)
    tiles = TilesSource(
        path=tmp_path, mask_suffix="-mask.png", patient_pattern=r"(\d)", reduce=2, **stated
    )
    spacings = load_source(tiles, TARGET, None).images.spacings
    assert spacings is not None
    assert spacings.tolist() == pytest.approx([0.6] * 4)  # reduced, then cut and not resized


@pytest.mark.parametrize("wrong", [0, -0.5, "nan", "inf", 101])
def test_an_impossible_spacing_is_refused_by_name(wrong: object) -> None:
    values = {"name": "s", "path": ".", "pixel_spacing_mm": wrong}
    with pytest.raises(ConfigError, match="pixel_spacing_mm"):
        validate(FolderSource, values, "source")


def test_each_image_counts_in_its_own_millimetres() -> None:
    holdout = replace(_pairs(), spacings=np.array([2.0, 0.25]))
    (fact,) = _observer(holdout)
    # By hand: squares two pixels apart have a surface distance of 1 pixel and an HD95 of 2.
    assert (fact.value["surface_distance"], fact.value["hausdorff_95"]) == (1.0, 2.0)
    assert fact.value["surface_distance_mm"] == pytest.approx((2.0 + 0.25) / 2)
    assert fact.value["hausdorff_95_mm"] == pytest.approx(2.0 + 0.25)
    assert fact.detail["distance_unit"] == "pixels"
    assert fact.detail["pixel_mm"] == [0.25, 2.0]
    # Resamples hold one image, the other, or both.
    assert fact.detail["surface_mm_interval"] == pytest.approx([0.25, 2.0])
    assert fact.detail["hausdorff_mm_interval"] == pytest.approx([0.5, 4.0])
    assert fact.detail["surface_interval"] == [1.0, 1.0]


def test_each_site_counts_its_own_images() -> None:
    one, other = (_pairs().subset(np.array([i])) for i in (0, 1))
    north = replace(one, sites=np.array(["north"]), spacings=np.array([2.0]))
    south = replace(other, sites=np.array(["south"]), spacings=np.array([0.25]))
    facts = {f.site: f.value["surface_distance_mm"] for f in _observer(concatenate([north, south]))}
    assert facts == {None: pytest.approx(1.125), "north": 2.0, "south": 0.25}


def test_an_empty_mask_has_no_millimetres_either() -> None:
    holdout = replace(_pairs(), spacings=np.array([2.0, 0.25]))
    assert holdout.masks is not None
    holdout.masks[0] = 0
    (fact,) = _observer(holdout)
    assert fact.value["surface_distance_mm"] == pytest.approx(0.25)


def test_what_nobody_stated_is_in_pixels_only() -> None:
    north = replace(_pairs(), sites=np.array(["north"] * 2), spacings=np.array([2.0, 0.25]))
    south = replace(_pairs(), sites=np.array(["south"] * 2))
    both = concatenate([north, south])
    assert both.spacings is None
    for fact in [*_observer(both), *_observer(south)]:
        assert fact.value["surface_distance"] == 1.0
        assert not [name for name in (*fact.value, *fact.detail) if "mm" in name.split("_")]


def test_a_site_keeps_its_spacings(tmp_path: Path) -> None:
    site = small_site(tmp_path)
    spacings = np.linspace(0.1, 0.9, len(site.holdout))
    known = replace(
        site, directory=tmp_path / "known", holdout=replace(site.holdout, spacings=spacings)
    )
    save_site(known)
    found = load_site(known.directory)
    assert found.holdout.spacings is not None
    np.testing.assert_array_equal(found.holdout.spacings, spacings)
    assert found.train.spacings is None


def test_a_report_has_millimetres_where_they_were_recorded(tmp_path: Path) -> None:
    facts = run_facts()
    page = render_report(build_report(facts), tmp_path)
    assert "Surface distance ↓, interval" in page
    assert "Surface distance ↓, mm" not in page
    value = {"surface_distance_mm": 7.125, "hausdorff_95_mm": 9.375}
    detail = {"surface_mm_interval": [6.5, 7.5], "pixel_mm": [0.25, 0.75]}
    measured = [
        replace(f, value={**f.value, **value}, detail={**f.detail, **detail})
        if f.name == "utility.segmentation"
        else f
        for f in facts
    ]
    page = render_report(build_report(measured), tmp_path)
    for text in ("Surface distance ↓, mm", "7.13", "6.50 to 7.50", "9.38", "0.250 to 0.750"):
        assert text in page
