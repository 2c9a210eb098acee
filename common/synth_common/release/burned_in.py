"""Text-like marks near the border of an image: a heuristic, with a known rate of misses.

Burned-in text is thin, of one brightness, and stands in a row. So: what is brighter (or darker)
than everything within a stroke's width around it (a top-hat transform: Serra 1982, chapter XII),
in pieces as high as letters, of which some of like height stand beside each other, near the border.
What it misses and what it takes for text is measured by ``simulations/benchmarks/burned_in.py``
and stated in docs/known-limits.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_STROKE = 5
"""Pixels: wider marks are not strokes of letters."""
_CONTRAST = 0.15
"""Of the range of grey values: fainter marks are not looked at."""
_LOWEST, _HIGHEST = 4, 40
"""Pixels: heights of letters."""
_LETTERS, _PIECES = 4, 3
"""A row has at least so many letters, in so many pieces."""
_WIDEST = 4.0
"""Times its height: what is wider is no row of letters that run into each other."""
_NARROW = 0.8
"""Width over height of a letter."""
_BORDER, _LEAST_BORDER = 0.25, 24
"""Share of a side that counts as border, and the fewest pixels."""


@dataclass(frozen=True)
class _Box:
    """A piece: rows ``top`` to ``bottom``, columns ``left`` to ``right``, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def letters(self) -> int:
        """How many letters have run together in it."""
        return max(1, round(self.width / (_NARROW * self.height)))


def text_like(image: npt.NDArray[np.float64]) -> list[tuple[int, int, int, int]]:
    """Rows of letter-like marks near the border: (top, bottom, left, right) in pixels, each.

    Args:
        image: (H, W), any range; what is not finite counts as the darkest value.
    """
    finite = np.isfinite(image)
    if not finite.any():
        return []
    low, high = float(image[finite].min()), float(image[finite].max())
    if high <= low or min(image.shape) < 2 * _LOWEST:
        return []
    plain = (np.where(finite, image, low) - low) / (high - low)
    found = []
    for grey in (plain, 1.0 - plain):
        for line in _lines(_letters(grey)):
            box = _around(line)
            if _near_border(box, image.shape):
                found.append((box.top, box.bottom, box.left, box.right))
    return found


def _letters(grey: npt.NDArray[np.float64]) -> list[_Box]:
    """Pieces as thin and as high as letters, brighter than what is around them."""
    from scipy import ndimage

    strokes = ndimage.white_tophat(grey, size=(_STROKE, _STROKE)) > _CONTRAST
    labels, _ = ndimage.label(strokes, structure=np.ones((3, 3)))
    boxes = []
    for rows, columns in ndimage.find_objects(labels):
        box = _Box(rows.start, rows.stop, columns.start, columns.stop)
        if _LOWEST <= box.height <= _HIGHEST and box.width <= _WIDEST * box.height:
            boxes.append(box)
    return boxes


def _lines(boxes: list[_Box]) -> Iterator[list[_Box]]:
    """Pieces of like height that stand beside each other, enough of them for a word."""
    left = sorted(boxes, key=lambda box: box.left)
    while left:
        line = [left.pop(0)]
        for box in list(left):
            if _follows(line[-1], box):
                line.append(box)
                left.remove(box)
        if sum(box.letters for box in line) >= _LETTERS and len(line) >= _PIECES:
            yield line


def _follows(before: _Box, box: _Box) -> bool:
    """Whether a piece can be the next letter."""
    higher = max(before.height, box.height)
    gap = box.left - before.right
    beside = -1 <= gap <= 1.2 * higher
    alike = min(before.height, box.height) >= 0.6 * higher
    level = abs(before.bottom - box.bottom) <= 0.3 * higher
    return beside and alike and level


def _around(line: list[_Box]) -> _Box:
    """The smallest box around all."""
    return _Box(
        min(b.top for b in line),
        max(b.bottom for b in line),
        min(b.left for b in line),
        max(b.right for b in line),
    )


def _near_border(box: _Box, shape: tuple[int, ...]) -> bool:
    """Whether all of a line stands within the border band of one side."""
    height, width = shape[:2]
    rows, columns = (max(_BORDER * side, _LEAST_BORDER) for side in (height, width))
    return (
        box.bottom <= rows
        or box.top >= height - rows
        or box.right <= columns
        or box.left >= width - columns
    )
