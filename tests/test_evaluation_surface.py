"""Surface distances by hand and by a slow version; tiles of images with two observers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synth_common.errors import ConfigError, DataError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.segmentation import dice_scores, evaluate_segmentation
from synth_common.evaluation.surface import surface_scores
from synth_common.images.preprocess import Target
from synth_common.images.sources import TilesSource, load_source
from synth_common.validation import validate
from synth_sim.prepare import load_private
from synth_sim.scenario import load_scenario

TARGET = Target(size=32, channels=1, classes=("retina",), with_mask=True)


def _outline(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inner)


def _slowly(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    a, b = _outline(first), _outline(second)
    there = [min(np.hypot(*(p - q)) for q in b) for p in a]
    back = [min(np.hypot(*(p - q)) for q in a) for p in b]
    far = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(np.mean(there + back)), float(far)


def test_distances_by_hand_and_without_an_outline() -> None:
    masks = np.zeros((4, 8, 8), dtype=np.uint8)
    masks[0, 2:5, 2:5] = 1
    masks[1, 2:5, 4:7] = 1  # the same square two to the right
    masks[2, 0, 0] = 1
    surface, far = surface_scores(masks[[0, 0, 3, 3, 2]], masks[[0, 1, 0, 3, 0]])
    np.testing.assert_array_equal(np.isnan(surface), [False, False, True, True, False])
    assert surface[0] == far[0] == 0.0
    # Of eight outline pixels on each side three lie two, two lie one, and three none away.
    assert surface[1] == pytest.approx((3 * 2 + 2 * 1) / 8)
    assert far[1] == 2.0
    assert far[4] == pytest.approx(np.percentile(np.hypot(*(_outline(masks[0] > 0)).T), 95))


def test_distances_agree_with_a_slow_version() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.random((6, 12, 12)) < 0.3).astype(np.uint8), rng.random((6, 12, 12)) < 0.5
    got = surface_scores(first, second.astype(np.uint8))
    for i in range(6):
        expected = _slowly(first[i] > 0, second[i])
        assert (got[0][i], got[1][i]) == pytest.approx(expected)


def _write(folder: Path, stem: str, shade: int, mask: np.ndarray) -> None:
    rng = np.random.default_rng(shade)
    pixels = rng.integers(shade, 255, (140, 132, 3), dtype=np.uint8)
    pixels[:, :64] = 0  # the dark frame
    Image.fromarray(pixels).save(folder / f"{stem}.jpg")
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(folder / f"{stem}_1st.png")
    Image.fromarray(np.roll(mask, 4, axis=1).astype(np.uint8) * 255).save(
        folder / f"{stem}_2nd.png"
    )


def _source(**other: object) -> TilesSource:
    values = {
        "name": "eyes",
        "path": ".",
        "single_class": "retina",
        "mask_suffix": "_1st.png",
        "second_mask_suffix": "_2nd.png",
        "patient_pattern": r"(\d+)[LR]",
        "reduce": 2,
        **other,
    }
    return validate(TilesSource, values, "source")


def test_tiles_carry_masks_of_both_observers_and_the_patient(tmp_path: Path) -> None:
    mask = np.zeros((140, 132), dtype=bool)
    mask[4:9, 70:120] = True
    for stem in ("Image_01L", "Image_01R", "Image_02L"):
        _write(tmp_path, stem, 90, mask)
    intake = load_source(_source(), TARGET, tmp_path)
    images = intake.images
    # 70 x 66 after halving: two by two tiles of 32; the left column is the frame.
    assert (intake.report.offered, intake.report.set_aside) == (12, {"constant": 6})
    assert images.patient_ids is not None
    assert images.patient_ids.tolist() == ["01"] * 4 + ["02"] * 2
    assert images.masks is not None
    assert images.second_masks is not None
    # Rows 4 to 8 halve to rows 2 and 3, and half of row 4, which counts as inside.
    np.testing.assert_array_equal(np.flatnonzero(images.masks[0].any(axis=1)), [2, 3, 4])
    np.testing.assert_array_equal(np.flatnonzero(images.masks[0].any(axis=0)), range(3, 28))
    np.testing.assert_array_equal(np.flatnonzero(images.second_masks[0].any(axis=0)), range(5, 30))
    assert not images.masks[1].any()


def test_tiles_refuse_what_they_cannot_use_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file ends in image_suffix = '\.jpg'"):
        load_source(_source(), TARGET, tmp_path)
    _write(tmp_path, "Image_01L", 90, np.ones((140, 132), dtype=bool))
    with pytest.raises(
        DataError, match=r"single_class = 'eye' is none of generator\.classes retina"
    ):
        load_source(_source(single_class="eye"), TARGET, tmp_path)
    with pytest.raises(
        DataError, match=r"patient_pattern = .* does not match the name 'Image_01L'"
    ):
        load_source(_source(patient_pattern=r"(\d+)X"), TARGET, tmp_path)
    with pytest.raises(DataError, match=r"Image_01L_3rd\.png is missing"):
        load_source(_source(second_mask_suffix="_3rd.png"), TARGET, tmp_path)
    Image.new("1", (9, 9)).save(tmp_path / "Image_01L_2nd.png")
    with pytest.raises(DataError, match="is 9 x 9 pixels, its image 132 x 140"):
        load_source(_source(), TARGET, tmp_path)
    with pytest.raises(ConfigError, match="has 0 groups; expected one"):
        _source(patient_pattern="Image")


def test_the_second_observer_stands_beside_the_segmenters(tmp_path: Path) -> None:
    mask = np.zeros((140, 132), dtype=bool)
    mask[4:60, 70:120] = True
    for number in range(6):
        _write(tmp_path, f"Image_{number:02}L", 90 + number, mask)
    images = load_source(_source(), TARGET, tmp_path).images
    config = EvaluationConfig(segmenter_steps=2, utility_seeds=2, bootstrap=40)
    bare = replace(images, second_masks=None)
    assert len(evaluate_segmentation(images, bare, images, config, 0)) == 3
    observer = evaluate_segmentation(images, images, images, config, 0)[3]
    assert images.second_masks is not None
    assert images.masks is not None
    assert observer.detail["trained_on"] == "second observer"
    assert (observer.detail["seeds"], observer.detail["n_train"]) == (1, 0)
    expected = dice_scores(images.second_masks, images.masks).mean()
    assert observer.value["dice"] == pytest.approx(expected)
    surface = surface_scores(images.second_masks, images.masks)[0]
    assert observer.value["surface_distance"] == pytest.approx(np.nanmean(surface))
    assert observer.detail["distance_unit"] == "pixels"
    low, high = observer.detail["surface_interval"]
    assert low <= observer.value["surface_distance"] <= high
    assert observer.scope == "site-local"


@pytest.mark.data
def test_two_observers_of_the_retina_agree_less_than_wholly(data_root: Path) -> None:
    images = load_private(load_scenario("retina", [f"data.root={data_root}"]))["chasedb1"]
    assert images.unit_count() == 14
    assert images.second_masks is not None
    assert images.masks is not None
    agreed = dice_scores(images.second_masks, images.masks).mean()
    assert 0.65 < agreed < 0.85  # papers find about 0.78 on whole images
