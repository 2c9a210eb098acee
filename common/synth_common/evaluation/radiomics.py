"""A feature space without weights: 72 radiomics-style features of the grey image.

Every constant below is public and fixed, so the space is the same at every hospital. The
families follow the Image Biomarker Standardisation Initiative (Zwanenburg 2020) where it
defines them (intensity statistics, histogram, GLCM) and add local binary patterns (Ojala
2002), Haar wavelet energies, Fourier bands and a coarse layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_CHUNK_PIXELS = 65_536  # images of a chunk together: its arrays stay in the cache
_EPS = 1e-8
_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_BINS = 32
_GREY_LEVELS = 16
_GLCM_DISTANCES = (1, 3)
_GLCM_DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1))
_WAVELET_LEVELS = 3
_FOURIER_BANDS = 8
_BLOCKS = 3
_LUMA = np.array([0.299, 0.587, 0.114])


def radiomics_features(images: npt.NDArray[np.float32]) -> Array:
    """The features of each image, whatever the batch it comes in.

    Args:
        images: float32, (N, C, H, W) in [0, 1], C in {1, 3}, H = W >= 16.

    Returns:
        float64, (N, 72) for one channel; (N, 81) for three, where the last nine are the
        mean and spread of each channel and the correlations between channels.
    """
    step = max(1, _CHUNK_PIXELS // (images.shape[2] * images.shape[3]))
    parts = [_chunk(images[i : i + step]) for i in range(0, len(images), step)]
    if not parts:
        return np.empty((0, 72 if images.shape[1] == 1 else 81))
    return np.concatenate(parts)


def definition_sha256() -> str:
    """SHA-256 of this file: the space has no weights, its definition is its identity."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _chunk(images: npt.NDArray[np.float32]) -> Array:
    """All families for a few images, side by side."""
    colour = images.astype(np.float64)
    grey = colour[:, 0] if images.shape[1] == 1 else np.einsum("ncij,c->nij", colour, _LUMA)
    families: list[Callable[[Array], Array]] = [
        _intensity,
        _gradient,
        _cooccurrence,
        _binary_patterns,
        _wavelet,
        _fourier,
        _layout,
    ]
    columns = [family(grey) for family in families]
    if images.shape[1] == 3:
        columns.append(_colour(colour))
    return np.concatenate(columns, axis=1)


def _moments(values: Array) -> Array:
    """Mean, standard deviation, skewness and log kurtosis along the last axis: (N, 4)."""
    mean = values.mean(axis=1, keepdims=True)
    centred = values - mean
    square = centred * centred
    std = np.sqrt(square.mean(axis=1))
    # A spread below one grey level of 8-bit images has no shape worth measuring.
    safe = np.maximum(std, 1 / 255)
    skew = (square * centred).mean(axis=1) / safe**3
    kurtosis = (square * square).mean(axis=1) / safe**4
    return np.stack([mean[:, 0], std, skew, np.log1p(kurtosis)], axis=1)


def _intensity(grey: Array) -> Array:
    """Moments, percentiles, histogram entropy and uniformity, share of background: 16."""
    flat = np.sort(grey.reshape(len(grey), -1), axis=1)
    last = flat.shape[1] - 1
    percentiles = flat[:, [round(p / 100 * last) for p in _PERCENTILES]]
    histogram = _histogram(np.minimum((flat * _BINS).astype(np.int64), _BINS - 1), _BINS)
    entropy = -(histogram * np.log2(histogram + _EPS)).sum(axis=1)
    uniformity = (histogram**2).sum(axis=1)
    background = (flat < 0.05).mean(axis=1)
    return np.concatenate(
        [_moments(flat), percentiles, np.stack([entropy, uniformity, background], axis=1)], axis=1
    )


def _histogram(codes: npt.NDArray[np.int64], bins: int) -> Array:
    """Per-row share of every code 0..bins-1: (N, P) -> (N, bins)."""
    n = len(codes)
    offsets = (np.arange(n) * bins)[:, None]
    counts = np.bincount((codes + offsets).ravel(), minlength=n * bins).reshape(n, bins)
    share: Array = counts / codes.shape[1]
    return share


def _gradient(grey: Array) -> Array:
    """Moments and high percentiles of the gradient, and Laplacian energy: 8."""
    dy = 0.5 * (grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1])
    dx = 0.5 * (grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2])
    magnitude = np.sort(np.sqrt(dx**2 + dy**2).reshape(len(grey), -1), axis=1)
    last = magnitude.shape[1] - 1
    high = magnitude[:, [round(p * last) for p in (0.5, 0.9, 0.99)]]
    laplacian = (
        grey[:, 2:, 1:-1] + grey[:, :-2, 1:-1] + grey[:, 1:-1, 2:] + grey[:, 1:-1, :-2]
    ) - 4 * grey[:, 1:-1, 1:-1]
    energy = np.log(np.mean(laplacian**2, axis=(1, 2)) + 1e-6)
    return np.concatenate([_moments(magnitude), high, energy[:, None]], axis=1)


def _cooccurrence(grey: Array) -> Array:
    """GLCM (IBSI 3.6) of 16 fixed grey levels, four directions merged, two distances: 12."""
    levels = np.minimum((grey * _GREY_LEVELS).astype(np.int64), _GREY_LEVELS - 1)
    columns = []
    for distance in _GLCM_DISTANCES:
        codes = []
        for dy, dx in _GLCM_DIRECTIONS:
            first, second = _shifted(levels, dy * distance, dx * distance)
            codes.append((first * _GREY_LEVELS + second).reshape(len(grey), -1))
        one_way = _histogram(np.concatenate(codes, axis=1), _GREY_LEVELS**2)
        table = one_way.reshape(-1, _GREY_LEVELS, _GREY_LEVELS)
        # Every pair counts both ways: the opposite direction is the transpose.
        columns.append(_cooccurrence_statistics((table + table.transpose(0, 2, 1)) / 2))
    return np.concatenate(columns, axis=1)


def _shifted(
    levels: npt.NDArray[np.int64], dy: int, dx: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The overlapping parts of an image and of its copy moved by (dy, dx), dy >= 0."""
    height, width = levels.shape[1:]
    left, right = max(0, -dx), width - max(0, dx)
    return (
        levels[:, : height - dy, left:right],
        levels[:, dy:, left + dx : right + dx],
    )


def _cooccurrence_statistics(table: Array) -> Array:
    """Contrast, homogeneity, energy, correlation, entropy, dissimilarity of (N, L, L): 6."""
    level = np.arange(_GREY_LEVELS)
    gap = np.abs(level[:, None] - level[None, :])
    contrast = (table * gap**2).sum(axis=(1, 2))
    homogeneity = (table / (1 + gap**2)).sum(axis=(1, 2))
    energy = (table**2).sum(axis=(1, 2))
    marginal = table.sum(axis=2)
    mean = marginal @ level
    variance = marginal @ level**2 - mean**2
    # For a symmetric table: correlation = 1 - contrast / (2 variance).
    correlation = np.where(variance > 1e-3, 1 - contrast / (2 * np.maximum(variance, 1e-3)), 1.0)
    entropy = -(table * np.log2(table + _EPS)).sum(axis=(1, 2))
    dissimilarity = (table * gap).sum(axis=(1, 2))
    return np.stack(
        [np.log1p(contrast), homogeneity, energy, correlation, entropy, dissimilarity], axis=1
    )


def _binary_patterns(grey: Array) -> Array:
    """Rotation-invariant uniform local binary patterns, 8 neighbours (Ojala 2002): 10."""
    centre = grey[:, 1:-1, 1:-1]
    height, width = grey.shape[1:]
    around = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
    bits = [
        (grey[:, 1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx] >= centre).astype(np.int64)
        for dy, dx in around
    ]
    ones = sum(bits, np.zeros_like(bits[0]))
    changes = sum((np.abs(bits[i] - bits[i - 1]) for i in range(8)), np.zeros_like(bits[0]))
    codes = np.where(changes <= 2, ones, 9)
    return _histogram(codes.reshape(len(grey), -1), 10)


def _wavelet(grey: Array) -> Array:
    """Log energy of the three detail bands of three Haar levels: 9."""
    columns = []
    low = grey
    for _ in range(_WAVELET_LEVELS):
        side = low.shape[1] // 2 * 2
        a, b = low[:, 0:side:2, 0:side:2], low[:, 0:side:2, 1:side:2]
        c, d = low[:, 1:side:2, 0:side:2], low[:, 1:side:2, 1:side:2]
        low = (a + b + c + d) / 4
        for band in (a + b - c - d, a - b + c - d, a - b - c + d):
            columns.append(np.log(np.mean((band / 4) ** 2, axis=(1, 2)) + 1e-6))
    return np.stack(columns, axis=1)


def _fourier(grey: Array) -> Array:
    """Log mean power in eight rings of equal width up to the Nyquist frequency: 8."""
    side = grey.shape[1]
    power = np.abs(np.fft.fft2(grey - grey.mean(axis=(1, 2), keepdims=True)) / side**2) ** 2
    frequency = np.fft.fftfreq(side)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    ring = np.minimum((radius / 0.5 * _FOURIER_BANDS).astype(np.int64), _FOURIER_BANDS - 1)
    columns = [
        np.log(power[:, ring == band].mean(axis=1) * side**2 + 1e-6)
        for band in range(_FOURIER_BANDS)
    ]
    return np.stack(columns, axis=1)


def _layout(grey: Array) -> Array:
    """Mean brightness of the blocks of a 3 x 3 grid: 9."""
    rows = np.array_split(grey, _BLOCKS, axis=1)
    blocks = [block for row in rows for block in np.array_split(row, _BLOCKS, axis=2)]
    return np.stack([block.mean(axis=(1, 2)) for block in blocks], axis=1)


def _colour(colour: Array) -> Array:
    """Mean and spread of each channel, and correlations between channels: 9."""
    flat = colour.reshape(len(colour), 3, -1)
    mean, std = flat.mean(axis=2), flat.std(axis=2)
    centred = (flat - mean[:, :, None]) / np.maximum(std, 1 / 255)[:, :, None]
    pairs = [(centred[:, i] * centred[:, j]).mean(axis=1) for i, j in ((0, 1), (0, 2), (1, 2))]
    return np.concatenate([mean, std, np.stack(pairs, axis=1)], axis=1)
