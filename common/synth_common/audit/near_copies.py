"""Near-copies: synthetic images that are a real one, perhaps flipped, moved or re-exposed.

Two steps. A coarse search compares every synthetic image with every real one by blocked
matrix products, at 16 x 16 cells, over four flips and shifts of up to an eighth of the side,
half a cell apart; it keeps the few nearest. A fine comparison then takes the normalised
cross-correlation of their detail at full size over the same shifts (Lewis 1995, "Fast normalized
cross-correlation"), which no change of brightness or contrast alters. Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import gaussian_filter

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]

FLIPS = ("as it is", "mirrored", "upside down", "turned by 180 degrees")
_COARSE = 16  # side of the images of the first step
_CORE = 12  # side of the part of a synthetic image that is looked for
_MARGIN = _COARSE - _CORE  # half cells that it may be moved by; whole cells would miss it between
_KEPT = 16  # real images that the fine comparison sees of each synthetic one
_BLOCK = 512
_REAL_BLOCK = 4096  # real images whose windows are held at once: 190 MB
_PAIRS = 256
_FINE = 64  # larger images are reduced to about this for the fine comparison
_LEAST_DETAIL = 1e-3  # root mean square below which an image has no detail to compare
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class BestMatch:
    """The real image most like each synthetic one. SENSITIVE: names real images.

    Attributes:
        index: (S,) position of the real image.
        similarity: (S,) correlation of their detail, at most 1; 0 for images without detail.
        flip: (S,) position in :data:`FLIPS` of what was done to the synthetic image.
    """

    index: Index
    similarity: npt.NDArray[np.float64]
    flip: Index


def best_matches(synthetic: Floats, real: Floats) -> BestMatch:
    """Look for each synthetic image among the real ones.

    Args:
        synthetic: (S, C, H, W) in [0, 1], H = W >= 16.
        real: (N, C, H, W), N >= 1, of the same size.

    Returns:
        The best match of each synthetic image. Colour is compared as grey.
    """
    first, second = _grey(synthetic), _grey(real)
    nearest, flips = _coarse(first, second)
    similarity = _fine(first, second, nearest, flips)
    best = similarity.argmax(axis=1)
    rows = np.arange(len(first))
    return BestMatch(
        nearest[rows, best],
        similarity[rows, best].astype(np.float64),
        flips[rows, best],
    )


def _grey(images: Floats) -> Floats:
    """(N, C, H, W) to (N, H, W)."""
    grey = images[:, 0] if images.shape[1] == 1 else np.einsum("ncij,c->nij", images, _LUMA)
    return np.ascontiguousarray(grey, dtype=np.float32)


def _flipped(images: Floats, flip: int) -> Floats:
    """(N, H, W) after one of :data:`FLIPS`."""
    if flip & 1:
        images = images[:, :, ::-1]
    return images[:, ::-1] if flip & 2 else images


def _coarse(synthetic: Floats, real: Floats) -> tuple[Index, Index]:
    """(S, K) positions of the K most alike real images, and with which flip each."""
    small, large = (_softened(_half_cells(s)) for s in (synthetic, real))
    middle = slice(_MARGIN, _MARGIN + 2 * _CORE, 2)
    cores = small[:, middle, middle]
    # What all pictures of one kind share tells nothing: take the mean out, window by window, as
    # a moved picture shares with all others what lies at the place that it was moved to.
    centres = [window.mean(axis=0) for window in _windows(large)]
    parts = []
    for first in range(0, len(large), _REAL_BLOCK):
        found = _windows(large[first : first + _REAL_BLOCK])
        windows = [_centred(w, c) for w, c in zip(found, centres, strict=True)]
        rows = range(0, len(cores), _BLOCK)
        blocks = [_leading(*_block(cores[k : k + _BLOCK], windows, centres), first) for k in rows]
        parts.append([np.concatenate(columns) for columns in zip(*blocks, strict=True)])
    score, place, flip = (np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))
    kept = min(_KEPT, len(real))
    best = np.argpartition(-score, kept - 1, axis=1)[:, :kept]
    return np.take_along_axis(place, best, axis=1), np.take_along_axis(flip, best, axis=1)


def _windows(large: Floats) -> Iterator[Floats]:
    """(N, 144), every window of half cells that a synthetic image's middle may lie on."""
    starts = range(2 * _MARGIN + 1)
    for i, j in product(starts, starts):
        yield _normalised(large[:, i : i + 2 * _CORE : 2, j : j + 2 * _CORE : 2])


def _leading(
    score: Floats, flip: npt.NDArray[np.int8], first: int
) -> tuple[Floats, Index, npt.NDArray[np.int64]]:
    """Of (B, N), the K highest scores, their positions counted from ``first``, their flips."""
    kept = min(_KEPT, score.shape[1])
    place = np.argpartition(-score, kept - 1, axis=1)[:, :kept].astype(np.int64)
    chosen = np.take_along_axis(flip, place, axis=1).astype(np.int64)
    return np.take_along_axis(score, place, axis=1), place + first, chosen


def _block(
    core: Floats, windows: list[Floats], centres: list[Floats]
) -> tuple[Floats, npt.NDArray[np.int8]]:
    """Best correlation (B, N) over flips and shifts, and the flip that gave it."""
    best = np.full((len(core), len(windows[0])), -np.inf, dtype=np.float32)
    flip = np.zeros(best.shape, dtype=np.int8)
    for number in range(len(FLIPS)):
        cores = _normalised(_flipped(core, number))
        score = _centred(cores, centres[0]) @ windows[0].T
        for window, centre in zip(windows[1:], centres[1:], strict=True):
            np.maximum(score, _centred(cores, centre) @ window.T, out=score)
        better = score > best
        flip[better] = number
        np.maximum(best, score, out=best)
    return best, flip


def _reduced(images: Floats, side: int) -> Floats:
    """(N, H, W) to (N, side, side) by means over equal areas."""
    weights = _area_weights(images.shape[1], side)
    return np.asarray(np.einsum("ai,nij,bj->nab", weights, images, weights, optimize=True))


def _half_cells(images: Floats) -> Floats:
    """Means (N, 31, 31) over cells of a 16th of the side, half a cell apart."""
    halves = _reduced(images, 2 * _COARSE)
    rows = halves[:, :-1] + halves[:, 1:]
    return np.asarray((rows[:, :, :-1] + rows[:, :, 1:]) / 4)


def _area_weights(size: int, side: int) -> Floats:
    """(side, size): the share of every pixel in every cell; rows sum to 1."""
    edges = np.linspace(0, size, side + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: Floats = (np.maximum(overlap, 0) * side / size).astype(np.float32)
    return weights


def _softened(cells: Floats) -> Floats:
    """Blurred by less than half a cell, so that a shift by a quarter is not missed."""
    return np.asarray(gaussian_filter(cells, (0, 0.6, 0.6), truncate=2.0))


def _normalised(windows: Floats) -> Floats:
    """(N, h, w) to (N, h * w) of mean 0 and length 1; a plain window becomes 0."""
    flat = windows.reshape(len(windows), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(length, 1e-6), dtype=np.float32)


def _centred(units: Floats, centre: Floats) -> Floats:
    """Rows without the common part, of length 1 again."""
    rest = units - centre
    return np.asarray(rest / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-6))


def _fine(synthetic: Floats, real: Floats, nearest: Index, flips: Index) -> Floats:
    """(S, K) correlation of detail, the best over shifts of up to an eighth of the side."""
    if synthetic.shape[1] > _FINE:
        synthetic, real = _reduced(synthetic, _FINE), _reduced(real, _FINE)
    side = synthetic.shape[1]
    margin = side // 8
    images = _Searched.prepare(_detail(real), margin)
    middle = slice(margin, side - margin)
    cores = [_detail(_flipped(synthetic, n))[:, middle, middle] for n in range(len(FLIPS))]
    scores = np.zeros(nearest.shape, dtype=np.float32)
    for rows, columns in _pair_blocks(nearest.shape):
        chosen = flips[rows, columns]
        core = np.stack([cores[f][r] for f, r in zip(chosen, rows, strict=True)])
        scores[rows, columns] = images.correlation(core, nearest[rows, columns])
    return scores


def _pair_blocks(shape: tuple[int, ...]) -> Iterator[tuple[Index, Index]]:
    """Rows and columns of all cells, a block at a time."""
    rows, columns = (grid.ravel() for grid in np.indices(shape))
    for start in range(0, len(rows), _PAIRS):
        yield rows[start : start + _PAIRS], columns[start : start + _PAIRS]


def _detail(images: Floats) -> Floats:
    """(N, H, W) without what is smooth (a 32nd of the side) and without single-pixel noise.

    The filters end near, so that the border of a moved copy does not reach into its middle.
    """
    wide = images.shape[1] / 32
    fine = gaussian_filter(images, (0, 0.6, 0.6), truncate=2.0)
    return np.asarray(fine - gaussian_filter(images, (0, wide, wide), truncate=2.0))


@dataclass(frozen=True)
class _Searched:
    """Images made ready to be searched for the middles of others.

    Attributes:
        spectrum: (N, L, L / 2 + 1) their Fourier transforms.
        spread: (N, W, W) root sum of squares about the mean of every window that a middle
            can lie on, W = 2 * margin + 1.
    """

    spectrum: npt.NDArray[np.complex64]
    spread: Floats

    @classmethod
    def prepare(cls, images: Floats, margin: int) -> _Searched:
        """From the detail (N, H, W) of images."""
        side = images.shape[1]
        length = next_fast_len(side, real=True)
        core = side - 2 * margin
        total = _window_sums(images, core, margin)
        energy = _window_sums(images**2, core, margin) - total**2 / core**2
        spread = np.sqrt(np.maximum(energy, 0)).astype(np.float32)
        return cls(rfft2(images, s=(length, length)), spread)

    def correlation(self, cores: Floats, index: Index) -> Floats:
        """(P,) largest normalised correlation of each core (P, h, w) with its image."""
        cores = cores - cores.mean(axis=(1, 2), keepdims=True)
        length, window = self.spectrum.shape[1], self.spread.shape[1]
        spectrum = rfft2(cores, s=(length, length)).conj()
        product = irfft2(self.spectrum[index] * spectrum, s=(length, length))
        # At (i, j): the core laid on the image with its corner i rows down and j to the right.
        cross = product[:, :window, :window]
        own = np.sqrt((cores**2).sum(axis=(1, 2)))[:, None, None]
        plain = _LEAST_DETAIL * cores.shape[1]  # root of the number of pixels, times the least
        usable = (self.spread[index] > plain) & (own > plain)
        norm = np.where(usable, self.spread[index] * own, 1.0)
        return np.asarray(np.where(usable, cross / norm, 0.0).max(axis=(1, 2)), dtype=np.float32)


def _window_sums(images: Floats, side: int, margin: int) -> npt.NDArray[np.float64]:
    """(N, W, W) sums over the windows of a side, W = 2 * margin + 1."""
    total = np.zeros((len(images), images.shape[1] + 1, images.shape[2] + 1))
    total[:, 1:, 1:] = images.cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    start, end = slice(0, 2 * margin + 1), slice(side, side + 2 * margin + 1)
    whole = total[:, end, end] - total[:, start, end] - total[:, end, start]
    return np.asarray(whole + total[:, start, start])
