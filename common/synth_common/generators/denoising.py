"""Moments that were released with noise of known strength, cleaned of it.

Every estimate is an empirical Wiener filter: what is expected plus a share S / (S + N) of what
was found beyond it, where N is the variance of the noise and S that of the truth, estimated
from entries that should be alike: coefficients of one frequency, and pairs of coefficients whose
expected variances have a like product. A class is expected to have the covariance of all classes,
and these no correlations and variances that fall with the frequency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from synth_common.generators.embedding import CONSTANT, Embedding, Sums, rings

_SIGNIFICANT = 2.5
"""A variance is believed from this many of its standard errors on."""
_FALL = 3.0
"""Exponent of the power spectrum beyond what is seen: about 2 in photographs (Field 1987), 3 in
radiographs (Burgess, Jacobson & Judy 2001)."""
_FLOOR = 0.05
"""Least variance of a direction, relative to what is expected of it."""
_PROJECTIONS = 20
_CLOSE = 1e-3
_SMALLEST_GROUP = 8
_GROWTH = 1.5
_TINY = 1e-30
_TO_MEANS = 1.0 / (math.sqrt(2.0) * CONSTANT)
"""Noise in a class's means, in that of a coordinate of the sum over the class's count."""
_TO_PRODUCTS = 1.0 / math.sqrt(2.0)
"""The same in its products off the diagonal."""


@dataclass(frozen=True)
class Gaussians:
    """Gaussians over the coefficients of an embedding, float64.

    Attributes:
        mean: (K, C, H, W).
        factor: (K, width, width); times its transpose the covariance of the low frequencies.
        detail: (C, H, W), standard deviations of the others in every class; 0 at the low ones.
    """

    mean: Tensor
    factor: Tensor
    detail: Tensor

    def of(self, like: Tensor) -> Gaussians:
        """One for each of the int64 indices."""
        return Gaussians(self.mean[like], self.factor[like], self.detail)


def cleaned_gaussians(sums: Sums, sigma: float, embedding: Embedding) -> Gaussians:
    """The Gaussian of each of K classes.

    Args:
        sums: Of the K classes; every count positive.
        sigma: Standard deviation of the noise in each coordinate of the sum.
        embedding: What was summed.
    """
    counts, low = sums.counts, embedding.low
    weights, own = counts / counts.sum(), sigma / counts
    common = sigma * math.sqrt(len(counts)) / counts.sum()
    seen = sums.first / counts[:, None, None, None]
    # The square of a noisy mean is too large by the variance of its noise.
    within = sums.second / counts[:, None, None] - low(seen)[:, :, None] * low(seen)[:, None]
    within.diagonal(dim1=1, dim2=2).add_((_TO_MEANS * own).square()[:, None])

    ring = rings(embedding.mean_frequencies).expand(seen.shape[1:])
    middle = torch.tensordot(weights, seen, dims=1)
    mean = torch.zeros(len(counts), *embedding.shape, dtype=torch.float64)
    m = embedding.mean_frequencies
    mean[..., :m, :m] = _wiener_by_ring(middle, _TO_MEANS * common, ring)
    for to, found, level in zip(mean, seen - middle, own, strict=True):
        to[:, :m, :m] += _wiener_by_ring(found, _TO_MEANS * level, ring)

    middle = torch.tensordot(weights, within, dims=1)
    bands = torch.tensordot(weights, _detail_energy(sums, mean, embedding), dims=1)
    variances = _spectrum(middle.diagonal(), bands, common, embedding)
    expected, level = low(variances[None])[0], _TO_PRODUCTS * common
    shared = _clean_covariance(middle, torch.diag(expected), level, expected)
    factors = []
    for found, level in zip(within, own, strict=True):
        cleaned = _clean_covariance(found, shared, _TO_PRODUCTS * level, expected)
        values, vectors = torch.linalg.eigh(cleaned)
        factors.append(vectors * values.clamp(min=0.0).sqrt())
    detail = torch.where(embedding.band_of < 0, 0.0, variances.sqrt())
    return Gaussians(mean, torch.stack(factors), detail)


def _wiener_by_ring(found: Tensor, level: Tensor, ring: Tensor) -> Tensor:
    """``found`` with the noise filtered out, the truth's strength taken from each ring."""
    cleaned = torch.empty_like(found)
    for radius in range(int(ring.max()) + 1):
        mine = ring == radius
        signal = (found[mine].square().mean() - level.square()).clamp(min=0.0)
        cleaned[mine] = found[mine] * signal / (signal + level.square() + _TINY)
    return cleaned


def _detail_energy(sums: Sums, mean: Tensor, embedding: Embedding) -> Tensor:
    """Sum of the variances of a band's coefficients, (K, C, bands)."""
    of_means = [
        torch.where(embedding.band_of == band, mean, 0.0).square().sum((2, 3))
        for band in range(embedding.bands)
    ]
    return sums.energy / sums.counts[:, None, None] - torch.stack(of_means, dim=2)


def _spectrum(diagonal: Tensor, bands: Tensor, noise: Tensor, embedding: Embedding) -> Tensor:
    """Variance expected at each coefficient, (C, H, W).

    It falls with the frequency: as what stands out of the noise says, in straight lines on
    logarithmic axes between, and beyond the last by the power ``_FALL``.

    Args:
        diagonal: Variances at the low frequencies, (width,).
        bands: Sums of the variances in each band, (C, bands).
        noise: Standard deviation of the noise in an entry of either.
        embedding: What was summed.
    """
    channels, k, size = embedding.shape[0], embedding.frequencies, embedding.shape[1]
    ring = rings(size)
    places = [(embedding.band_of < 0) & (ring == radius) for radius in range(1, 2 * k)]
    expected = torch.empty(embedding.shape, dtype=torch.float64)
    for channel, own in enumerate(diagonal.view(channels, k, k)):
        whole = torch.zeros(size, size, dtype=torch.float64)
        whole[:k, :k] = own
        cells = [(p, whole[p].mean(), noise / p.sum().sqrt()) for p in places if bool(p.any())]
        for band, energy in enumerate(bands[channel]):
            place = embedding.band_of == band
            cells.append((place, energy / place.sum(), noise / place.sum()))
        at = [(ring[place].log().mean().exp(), found, error) for place, found, error in cells]
        expected[channel] = _interpolated(at, ring)
        expected[channel, 0, 0] = torch.maximum(own[0, 0], expected[channel, 0, 0])
    return expected


def _interpolated(cells: list[tuple[Tensor, Tensor, Tensor]], ring: Tensor) -> Tensor:
    """Variances at ``ring`` from (frequency, variance, standard error) at some.

    Cells that noise makes rise are averaged, the surer ones counting more, until none rises: an
    isotonic regression. A single cell that noise lifted would otherwise lift all before it.
    """
    frequency, found, error = np.array(sorted(tuple(map(float, cell)) for cell in cells)).T
    weights = 1.0 / (error + _TINY) ** 2
    weights /= weights.max()
    fitted = isotonic_regression(found, weights=weights, increasing=False)
    at, values = [], []
    for start, end in pairwise(fitted.blocks):
        block = slice(start, end)
        sure = _SIGNIFICANT / math.sqrt(float((1.0 / (error[block] + _TINY) ** 2).sum()))
        if fitted.x[start] > sure:
            at.append(float(np.average(np.log(frequency[block]), weights=weights[block])))
            values.append(math.log(fitted.x[start]))
    if not at:
        at, values = [math.log(frequency[0])], [math.log(max(found[0], error[0], _TINY))]
    wanted = ring.clamp(min=1.0).log().numpy()
    inside = np.interp(wanted, at, values)
    beyond = np.maximum(wanted - at[-1], 0.0) + np.minimum(wanted - at[0], 0.0)
    return torch.from_numpy(np.exp(inside - _FALL * beyond))


def _clean_covariance(found: Tensor, expected: Tensor, level: Tensor, variances: Tensor) -> Tensor:
    """``found`` (d, d) without its noise, and positive definite.

    Args:
        found: Symmetric, with noise of standard deviation ``level``, sqrt(2) times that on the
            diagonal.
        expected: What it is pulled to, symmetric.
        level: Of the noise.
        variances: (d,) expected; no direction gets far below them.
    """
    beyond = found - expected
    rows, columns = torch.triu_indices(len(found), len(found), 1)
    product = variances[rows] * variances[columns]
    pull = torch.zeros_like(found)
    pull[rows, columns] = _wiener_by_size(beyond[rows, columns], level, product)
    pull = pull + pull.T
    # Variances themselves are expected to be right within a factor of about 2.
    signal = 0.5 * variances.square()
    pull.diagonal().copy_(beyond.diagonal() * signal / (signal + 2.0 * level.square() + _TINY))
    scale = variances.sqrt()
    whole = _nearest_definite((expected + pull) / scale[:, None] / scale[None])
    return whole * scale[:, None] * scale[None]


def _nearest_definite(whole: Tensor) -> Tensor:
    """Near ``whole`` (d, d), with its diagonal and no eigenvalue below ``_FLOOR``.

    Alternating projections with Dykstra's correction (Higham 2002, algorithm 3.3). Raising the
    negative eigenvalues alone would raise the variances, and make the picture of noise.
    """
    diagonal = whole.diagonal().clamp(min=_FLOOR)
    found, correction = whole.clone(), torch.zeros_like(whole)
    for _ in range(_PROJECTIONS):
        wanted = found - correction
        definite = _floored(wanted)
        correction = definite - wanted
        found = definite.clone()
        found.diagonal().copy_(diagonal)
        if (found - definite).norm() <= _CLOSE * diagonal.norm():
            break
    definite = _floored(found)
    shrink = (diagonal / definite.diagonal()).clamp(max=1.0).sqrt()
    return definite * shrink[:, None] * shrink[None]


def _floored(symmetric: Tensor) -> Tensor:
    """``symmetric`` with eigenvalues of at least ``_FLOOR``."""
    values, vectors = torch.linalg.eigh(symmetric)
    definite: Tensor = (vectors * values.clamp(min=_FLOOR)) @ vectors.T
    return definite


def _wiener_by_size(found: Tensor, level: Tensor, size: Tensor) -> Tensor:
    """``found`` (n,) with the noise filtered out; the truth is the stronger the larger ``size``.

    Its strength is the isotonic regression of the squares, less the noise's, in groups that
    grow from the largest on.
    """
    order = torch.argsort(size, descending=True)
    lengths, left, length = [], len(order), float(_SMALLEST_GROUP)
    while left > 0:
        lengths.append(min(int(length), left))
        left, length = left - lengths[-1], length * _GROWTH
    excess = found[order].square() - level.square()
    groups = np.array([group.mean().item() for group in torch.split(excess, lengths)])
    fitted = isotonic_regression(groups, weights=np.array(lengths), increasing=False).x
    signal = torch.from_numpy(np.maximum(fitted, 0.0)).repeat_interleave(torch.tensor(lengths))
    cleaned = torch.empty_like(found)
    cleaned[order] = found[order] * signal / (signal + level.square() + _TINY)
    return cleaned
