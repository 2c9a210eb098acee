"""Distances between real and synthetic images: pure functions of features or of images.

Features are float64 (N, D), real first. Bring both sides into a common scale with
:func:`standardise` before a distance: raw features have unlike units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import NearestNeighbors
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from synth_common.errors import DataError

Array = npt.NDArray[np.float64]

_MIN_SPREAD = 0.01
_CELLS = 2**21  # entries of a distance or kernel matrix held at once (16 MiB), whatever N is
_GAUSSIAN_WINDOW = 11
# Wang, Simoncelli, Bovik 2003, section 3.2: weight of each scale from fine to coarse.
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@dataclass(frozen=True)
class Neighbourhood:
    """Precision and recall (Kynkaanniemi 2019), density and coverage (Naeem 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


def standardise(basis: Array, *features: Array) -> tuple[Array, ...]:
    """Centre and scale features by the mean and spread that ``basis`` has.

    A spread below 0.01 counts as 0.01: a feature that hardly varies among real images
    must not decide the distance by its last digits.
    """
    mean = basis.mean(axis=0)
    spread = np.maximum(basis.std(axis=0), _MIN_SPREAD)
    return tuple((f - mean) / spread for f in features)


def frechet_distance(real: Array, synthetic: Array) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)`` (Dowson and Landau 1982;
    Heusel 2017). Both sets need two rows; with few rows the estimate is biased upwards,
    so compare it only with a floor of the same N.
    """
    _require(real, synthetic, 2)
    gap = real.mean(axis=0) - synthetic.mean(axis=0)
    first, second = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ second @ root)
    trace = np.trace(first) + np.trace(second) - 2 * np.sqrt(np.maximum(cross, 0.0)).sum()
    return max(0.0, float(gap @ gap + trace))


def kernel_distance(real: Array, synthetic: Array) -> float:
    """Unbiased squared MMD with the kernel ``(x.y / D + 1)^3`` (Binkowski 2018).

    Near 0 for two samples of one distribution at any N, and then as often below 0 as above.
    The kernel matrix is summed in blocks and never held.
    """
    _require(real, synthetic, 2)
    between = sum(_cubes(real[rows], synthetic).sum() for rows in _blocks(real, synthetic))
    between /= len(real) * len(synthetic)
    return _kernel_within(real) + _kernel_within(synthetic) - 2 * float(between)


def _kernel_within(features: Array) -> float:
    """Mean of the kernel over pairs of two rows; the matrix is symmetric, half is enough."""
    n, total = len(features), 0.0
    for rows in _blocks(features, features):
        block, later = features[rows], features[rows.stop :]
        own = _cubes(block, block)
        total += float(own.sum() - np.trace(own)) + 2 * float(_cubes(block, later).sum())
    return total / (n * (n - 1))


def _cubes(first: Array, second: Array) -> Array:
    """The kernel between all rows of two sets."""
    inner = first @ second.T
    inner /= first.shape[1]
    inner += 1.0
    square = inner * inner
    square *= inner
    return square


def _blocks(features: Array, against: Array) -> list[slice]:
    """Rows of ``features`` in blocks whose matrix against the other set fits the memory."""
    step = max(1, _CELLS // max(1, len(against)))
    return [slice(i, min(i + step, len(features))) for i in range(0, len(features), step)]


def neighbourhood(real: Array, synthetic: Array, k: int) -> Neighbourhood:
    """Precision, recall, density and coverage with the ``k`` nearest neighbours.

    Distances are taken in blocks: memory does not grow with N squared.

    Raises:
        DataError: A set has ``k`` images or fewer.
    """
    _require(real, synthetic, k + 1)
    real_radius, synthetic_radius = _radii(real, k), _radii(synthetic, k)
    length = np.einsum("nd,nd->n", real, real)
    balls = np.zeros(len(synthetic))  # real balls around each synthetic row
    covered = np.zeros((2, len(real)), dtype=bool)  # by a synthetic ball; by its own ball
    for rows in _blocks(synthetic, real):
        block = synthetic[rows]
        distance = block @ real.T
        distance *= -2.0
        distance += length
        distance += np.einsum("nd,nd->n", block, block)[:, None]
        inside = distance <= real_radius
        balls[rows] = inside.sum(axis=1)
        covered[0] |= (distance <= synthetic_radius[rows, None]).any(axis=0)
        covered[1] |= inside.any(axis=0)
    return Neighbourhood(
        precision=float((balls > 0).mean()),
        recall=float(covered[0].mean()),
        density=float(balls.mean() / k),
        coverage=float(covered[1].mean()),
    )


def _radii(features: Array, k: int) -> Array:
    """Squared distance of each row to its k-th nearest other row."""
    model = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(features)
    radius: Array = model.kneighbors()[0][:, -1]  # without an argument, a row is not its own
    # The two ways to a distance round differently; a copy must lie inside.
    return radius * radius * (1 + 1e-9) + 1e-9


def _require(real: Array, synthetic: Array, least: int) -> None:
    """Refuse sets too small for a metric."""
    if min(len(real), len(synthetic)) < least:
        raise DataError(
            f"{len(real)} real and {len(synthetic)} synthetic images; "
            f"this metric needs {least} of each"
        )


def ms_ssim_scales(size: int) -> int:
    """How many MS-SSIM scales images of ``size`` pixels allow with an 11-pixel window: 1 to 5."""
    return max(
        s
        for s in range(1, len(_MS_SSIM_WEIGHTS) + 1)
        if s == 1
        or (
            size // 2 ** (s - 1) >= _GAUSSIAN_WINDOW
            # The second condition is torchmetrics' own, stricter for coarse scales.
            and size > (_GAUSSIAN_WINDOW - 1) * (s - 1) ** 2
        )
    )


def mean_ms_ssim(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Mean MS-SSIM of image pairs (N, C, H, W) in [0, 1] with as many scales as fit.

    The weights of the scales in use are rescaled to add up to 1.
    """
    weights = np.array(_MS_SSIM_WEIGHTS[: ms_ssim_scales(first.shape[2])])
    value = multiscale_structural_similarity_index_measure(
        torch.from_numpy(first),
        torch.from_numpy(second),
        data_range=1.0,
        betas=tuple(float(w) for w in weights / weights.sum()),
        normalize="relu",
    )
    return float(value)


def diversity_pairs(
    labels: npt.NDArray[np.int64],
    units: npt.NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Random pairs of images of one class and of two units, equally many per class.

    Two images of one patient resemble each other without telling of diversity. A class
    without two units gives no pair.
    """
    first, second = [], []
    classes = np.unique(labels)
    for label in classes:
        members = np.flatnonzero(labels == label)
        # Draw with spares, drop pairs of one unit, keep at most the share of this class.
        a, b = rng.choice(members, (2, 4 * count))
        good = units[a] != units[b]
        share = max(1, count // len(classes))
        first.append(a[good][:share])
        second.append(b[good][:share])
    empty = np.empty(0, dtype=np.int64)
    return np.concatenate([empty, *first]), np.concatenate([empty, *second])


def inception_score(probabilities: Array) -> float:
    """``exp(E KL(p(y|x) || p(y)))`` of class probabilities (N, K): 1 to K (Salimans 2016)."""
    if not len(probabilities):
        raise DataError("no probabilities given; the Inception Score needs at least one image")
    p = np.clip(probabilities, 1e-12, 1.0)
    divergence = (p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1)
    return float(np.exp(divergence.mean()))
