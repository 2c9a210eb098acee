"""Sample grids: pixels unsmoothed, in their places, with outlines and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synth_common.errors import DataError
from synth_common.reporting.grids import GridLook, write_grid

_LOOK = GridLook(cell=16, gap=3, text=12)


def _drawn(
    tmp_path: Path, images: np.ndarray, rows: list[str], masks: np.ndarray | None = None
) -> np.ndarray:
    path = tmp_path / "deep" / "grid.png"
    write_grid(images, rows, path, "A title", masks, _LOOK)
    with Image.open(path) as picture:
        assert picture.info["Title"] == "A title"
        return np.asarray(picture.convert("RGB")).astype(int)


def _cells(sheet: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Cut the 16-pixel cells from the bottom right corner (12 px margin, 3 px gaps)."""
    height, width = sheet.shape[:2]
    out = np.zeros((rows, columns, 16, 16, 3), int)
    for r in range(rows):
        for c in range(columns):
            y = height - 12 - 16 - (rows - 1 - r) * 19
            x = width - 12 - 16 - (columns - 1 - c) * 19
            out[r, c] = sheet[y : y + 16, x : x + 16]
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_enlarged_without_smoothing_in_row_order(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(3).random((20, channels, 8, 8)).astype(np.float32)
    cells = _cells(_drawn(tmp_path, images, ["one", "two"]), 2, 10)
    expected = np.rint(images * 255).astype(int).repeat(2, 2).repeat(2, 3)
    expected = np.broadcast_to(expected, (20, 3, 16, 16)).transpose(0, 2, 3, 1)
    assert (cells.reshape(20, 16, 16, 3) == expected).all()


def test_masks_are_outlines_and_leave_the_inside_alone(tmp_path: Path) -> None:
    images = np.full((12, 1, 16, 16), 0.5, np.float32)
    masks = np.zeros((12, 16, 16), np.uint8)
    masks[0, 4:12, 4:12] = 1
    cells = _cells(_drawn(tmp_path, images, ["a"], masks), 1, 12)[0]
    amber = (cells[0] == (255, 176, 0)).all(-1)
    expected = np.zeros((16, 16), bool)
    expected[4:12, 4:12] = True
    expected[6:10, 6:10] = False
    assert (amber == expected).all()
    assert (cells[1:] == 128).all()


def test_a_mask_that_touches_the_edge_is_closed_there(tmp_path: Path) -> None:
    images = np.zeros((12, 1, 16, 16), np.float32)
    masks = np.ones((12, 16, 16), np.uint8)
    cell = _cells(_drawn(tmp_path, images, ["a"], masks), 1, 12)[0, 0]
    assert (cell[0] == (255, 176, 0)).all()
    assert (cell[8, 8] == 0).all()


def test_labels_are_drawn_left_of_their_rows(tmp_path: Path) -> None:
    images = np.ones((24, 1, 16, 16), np.float32)
    blank = _drawn(tmp_path, images, [" ", "pneumonia"])
    ink = (blank < 128).all(-1)
    left = ink[:, : blank.shape[1] - 12 - 12 * 19]
    bottom = blank.shape[0] - 12 - 16
    assert left[bottom:].any()  # the second row is labelled
    assert not left[bottom - 19 : bottom - 3].any()  # the first one's label is empty


@pytest.mark.parametrize(
    ("shape", "rows", "masks", "message"),
    [
        ((5, 1, 8, 8), ["a", "b"], None, "5 images cannot fill 2 rows"),
        ((4, 2, 8, 8), ["a"], None, "1 or 3"),
        ((4, 1, 8, 8), [], None, "cannot fill 0 rows"),
        ((4, 1, 8, 8), ["a"], (4, 1, 8, 8), "masks have shape"),
        ((0, 1, 8, 8), ["a"], None, "none of them 0"),
    ],
)
def test_what_is_no_grid_is_refused(
    tmp_path: Path,
    shape: tuple[int, ...],
    rows: list[str],
    masks: tuple[int, ...] | None,
    message: str,
) -> None:
    mask = None if masks is None else np.zeros(masks, np.uint8)
    with pytest.raises(DataError, match=message):
        write_grid(np.zeros(shape, np.float32), rows, tmp_path / "g.png", "t", mask)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, 1.01, -0.01])
def test_values_outside_an_image_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(DataError, match="leave"):
        write_grid(np.full((2, 1, 8, 8), value), ["a"], tmp_path / "g.png", "t")


def test_headings_stand_above_their_columns_and_must_fit_them(tmp_path: Path) -> None:
    images = np.full((6, 1, 16, 16), 0.5, np.float32)
    plain, path = _drawn(tmp_path, images, ["a", "b"]), tmp_path / "headed.png"
    look = GridLook(cell=16, gap=3, text=12, headings=("-1", "", "+1"))
    write_grid(images, ["a", "b"], path, "A title", look=look)
    with Image.open(path) as picture:
        headed = np.asarray(picture.convert("RGB")).astype(int)
    assert (_cells(headed, 2, 3) == _cells(plain, 2, 3)).all()
    band = headed[-(12 + 16 + 19 + 12 + 12) : -(12 + 16 + 19), :]
    inked = [(band[:, x : x + 19] < 200).any() for x in range(headed.shape[1] - 12 - 54, 0, -1)]
    assert any(inked)
    with pytest.raises(DataError, match="2 headings cannot stand above 3 columns"):
        write_grid(images, ["a", "b"], path, "", look=GridLook(cell=16, headings=("1", "2")))
