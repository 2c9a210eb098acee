"""Distances between real and synthetic images: pure functions of features or of images.

Features are float64 (N, D), real first. Bring both sides into a common scale with
:func:`standardise` before a distance: raw features have unlike units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from synth_common.errors import DataError

Array = npt.NDArray[np.float64]

_MIN_SPREAD = 0.01
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
    """
    _require(real, synthetic, 2)

    def within(features: Array) -> float:
        kernel = polynomial_kernel(features, degree=3, coef0=1.0)
        n = len(features)
        return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))

    between = polynomial_kernel(real, synthetic, degree=3, coef0=1.0).mean()
    return within(real) + within(synthetic) - 2 * float(between)


def neighbourhood(real: Array, synthetic: Array, k: int) -> Neighbourhood:
    """Precision, recall, density and coverage with the ``k`` nearest neighbours.

    Raises:
        DataError: A set has ``k`` images or fewer.
    """
    _require(real, synthetic, k + 1)
    real_radius, synthetic_radius = _radii(real, k), _radii(synthetic, k)
    distance = pairwise_distances(real, synthetic)
    inside_real = distance <= real_radius[:, None]
    inside_synthetic = distance <= synthetic_radius[None, :]
    return Neighbourhood(
        precision=float(inside_real.any(axis=0).mean()),
        recall=float(inside_synthetic.any(axis=1).mean()),
        density=float(inside_real.sum(axis=0).mean() / k),
        coverage=float((distance.min(axis=1) <= real_radius).mean()),
    )


def _radii(features: Array, k: int) -> Array:
    """Distance of each row to its k-th nearest other row."""
    model = NearestNeighbors(n_neighbors=k).fit(features)
    radius: Array = model.kneighbors()[0][:, -1]  # without an argument, a row is not its own
    # pairwise_distances and the search round differently; a copy must lie inside.
    return radius * (1 + 1e-9) + 1e-9


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
