"""Preprocessing: fixed constants, kept proportions, documented refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from synth_common.errors import DataError
from synth_common.images.preprocess import (
    Target,
    constant_images,
    preprocess_images,
    preprocess_masks,
)


def _target(size: int = 64, channels: int = 1) -> Target:
    return Target(size=size, channels=channels, classes=("a",))


def _disc(height: int, width: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) <= radius


@pytest.mark.parametrize(("height", "width"), [(100, 200), (200, 100), (200, 200), (40, 64)])
def test_a_circle_stays_a_circle(height: int, width: int) -> None:
    raw = (_disc(height, width, 0.45 * min(height, width)) * 255).astype(np.uint8)
    out = preprocess_images(raw[None], _target(), "images")[0, 0]
    inside = out > 0.5
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    tall, wide = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert abs(tall - wide) <= 1
    expected = 0.9 * min(height, width) / max(height, width) * 64
    assert abs(tall - expected) <= 2


def test_the_shorter_side_is_padded_with_black_evenly() -> None:
    raw = np.full((1, 32, 64), 255, dtype=np.uint8)
    out = preprocess_images(raw, _target(64), "images")[0, 0]
    assert (out[:16] == 0).all()
    assert (out[48:] == 0).all()
    np.testing.assert_allclose(out[18:46], 1.0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "white"), [("bool", 1), ("uint8", 255), ("uint16", 65535)])
def test_white_of_each_type_is_one_and_black_zero(dtype: str, white: int) -> None:
    raw = np.zeros((1, 64, 64), dtype=dtype)
    raw[0, :32] = white
    out = preprocess_images(raw, _target(64), "images")
    assert out.dtype == np.float32
    assert (out[0, 0, :32] == 1.0).all()
    assert (out[0, 0, 32:] == 0.0).all()


@given(add=st.integers(1, 100), size=st.sampled_from([28, 32, 64]))
@settings(max_examples=15, deadline=None)
def test_a_brighter_image_stays_brighter_by_as_much(add: int, size: int) -> None:
    """Per-image or per-set scaling would cancel the difference."""
    dark = np.random.default_rng(0).integers(40, 100, (2, 48, 48), dtype=np.uint8)
    bright = dark + np.uint8(add)
    gain = preprocess_images(bright, _target(size), "i") - preprocess_images(
        dark, _target(size), "i"
    )
    np.testing.assert_allclose(gain.mean(), add / 255, rtol=0.02)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    raw = np.random.default_rng(1).integers(0, 256, (5, 50, 40), dtype=np.uint8)
    raw[3] = raw[3] // 8
    together = preprocess_images(raw, _target(32), "i")
    for i in range(5):
        np.testing.assert_array_equal(
            together[i], preprocess_images(raw[i : i + 1], _target(32), "i")[0]
        )


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (11, 40, 40), dtype=np.uint8)
    whole = preprocess_images(raw, _target(32), "i")
    monkeypatch.setattr("synth_common.images.preprocess._BLOCK", 4)
    np.testing.assert_array_equal(whole, preprocess_images(raw, _target(32), "i"))


def test_reduction_is_anti_aliased() -> None:
    """A fine chessboard becomes grey; picking pixels would leave it black and white."""
    raw = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    out = preprocess_images(raw[None], _target(32), "images")[0, 0]
    assert np.abs(out[2:-2, 2:-2] - 0.5).max() < 0.05


def test_colour_to_grey_uses_the_luma_weights_and_grey_to_colour_repeats() -> None:
    colours = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    for c in range(3):
        colours[c, ..., c] = 255
    grey = preprocess_images(colours, _target(64, 1), "images")
    np.testing.assert_allclose(grey.mean(axis=(1, 2, 3)), [0.299, 0.587, 0.114], atol=1e-5)
    raw = np.random.default_rng(0).integers(0, 256, (2, 30, 30), dtype=np.uint8)
    three, one = (
        preprocess_images(raw, _target(32, 3), "i"),
        preprocess_images(raw, _target(32, 1), "i"),
    )
    assert three.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(three, np.repeat(one, 3, axis=1))


def test_masks_are_resized_to_whole_values_in_step_with_images() -> None:
    disc = _disc(90, 120, 36)
    mask = preprocess_masks((disc * 7).astype(np.int16)[None], 64)[0]
    image = preprocess_images((disc * 255).astype(np.uint8)[None], _target(64), "i")[0, 0]
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    both, either = ((image > 0.5) & (mask == 1)).sum(), ((image > 0.5) | (mask == 1)).sum()
    assert both / either > 0.93


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint32"])
def test_types_without_a_public_white_are_refused(dtype: str) -> None:
    with pytest.raises(DataError, match=dtype):
        preprocess_images(np.zeros((1, 32, 32), dtype=dtype), _target(), "images")


@pytest.mark.parametrize("shape", [(32, 32), (1, 32, 32, 2), (1, 0, 32), (1, 2, 3, 4, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="shape"):
        preprocess_images(np.zeros(shape, dtype=np.uint8), _target(), "images")


def test_constant_images_are_found_in_grey_and_colour() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    grey[1] = 9
    assert constant_images(grey).tolist() == [False, True, False]
    colour = np.broadcast_to(np.uint8([1, 2, 3]), (2, 8, 8, 3)).copy()
    colour[0, 4, 4, 2] = 0
    assert constant_images(colour).tolist() == [False, True]


@pytest.mark.parametrize(
    "values",
    [{"size": 24}, {"size": 132}, {"size": 30}, {"channels": 2}, {"classes": ("a", "a")}, {"x": 1}],
)
def test_impossible_targets_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Target.model_validate({"size": 32, "channels": 1, "classes": ("a",), **values})
