"""What one release says of images: public features whose noisy sum a generator learns from.

An embedding maps an image and its label to a vector of L2 norm at most 1, by public
constants alone. Sums of such vectors over patients are what a site may release once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from synth_common.generators.features import RandomFeatures, require_known_constants
from synth_common.plan import GeneratorPlan

CONSTANT = 0.5
"""The entry of an image's features that is the same in all: its square sums to the counts, its
products with the others to the means. A larger one has less noise in these and more in the
second moments."""
_ROOT = math.sqrt(2.0)
_LARGEST = math.sqrt(1.0 - CONSTANT**2)
"""Largest norm of an image's coefficients."""


@dataclass(frozen=True)
class Embedding:
    """Moments of every class's images, the fine detail by its energy, and random features.

    An image's coefficients are those of the orthonormal discrete cosine transform (DCT-II; Ahmed,
    Natarajan & Rao 1974), less those of a picture that is ``centre`` throughout, over ``radius``
    times the root of the number of pixels; scaled down where needed so that their norm x is at
    most sqrt(1 - c^2), where c is ``CONSTANT``. Its vector is 0 but for the block of its class:

    - c^2;
    - sqrt(2) c times the coefficients at the lowest ``mean_frequencies`` of each axis;
    - the products of any two of the lowest ``frequencies`` of each axis, over all channels: the
      upper triangle row by row, entries off the diagonal times sqrt(2), which keeps the norm;
    - per channel, the sum of squares of the coefficients in each band above those.

    The squares of these add up to at most c^4 + 2 c^2 x^2 + x^4 = (c^2 + x^2)^2 <= 1. With
    ``features``, all of this is multiplied by sqrt(1 - s), s being ``feature_share``, and

    - sqrt(s) times the image's random features (:mod:`features`), of norm at most 1,

    follow, so that the norm stays at most 1.

    Attributes:
        classes: Number of classes; other labels contribute nothing.
        shape: (C, H, W) of the images, with the mask channel.
        frequencies: Lowest frequencies of each axis whose second moments are kept.
        centre: Public value that pixels are taken relative to, in [0, 1].
        radius: Public bound on the root mean square of a picture less ``centre``; one beyond it
            is counted with less contrast.
        features: Number of random features; 0 for none.
        feature_share: Share of the squared norm that they have, 0 where there are none.
    """

    classes: int
    shape: tuple[int, int, int]
    frequencies: int
    centre: float
    radius: float
    features: int = 0
    feature_share: float = 0.0

    @property
    def mean_frequencies(self) -> int:
        """Frequencies of each axis whose means are kept: means are seen better than products."""
        return min(2 * self.frequencies, self.shape[1])

    @property
    def width(self) -> int:
        """Coefficients whose products are kept."""
        return self.shape[0] * self.frequencies**2

    @property
    def bands(self) -> int:
        """Bands of fine detail in each channel."""
        return int(self.band_of.max()) + 1

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.classes * sum(self._lengths)

    @property
    def unit(self) -> float:
        """What a coefficient is multiplied by to be one of pixels in [0, 1]."""
        return self.radius * math.sqrt(math.prod(self.shape)) / _LARGEST

    @cached_property
    def band_of(self) -> Tensor:
        """int64 (H, W): the band of each coefficient, half octaves; -1 where products are kept."""
        k = self.frequencies
        bands = (2.0 * torch.log2(rings(self.shape[1]) / k).clamp(min=0.0)).floor().long()
        bands[:k, :k] = -1
        return bands

    @property
    def moment_factor(self) -> float:
        """What moments are multiplied by, to leave room for features."""
        return math.sqrt(1.0 - self.feature_share)

    @cached_property
    def random_features(self) -> RandomFeatures:
        """What maps images to their features."""
        return RandomFeatures(self.shape, self.features, self.radius)

    @property
    def _lengths(self) -> tuple[int, int, int, int, int]:
        channels, width = self.shape[0], self.width
        means = channels * self.mean_frequencies**2
        return 1, means, width * (width + 1) // 2, channels * self.bands, self.features

    @cached_property
    def _basis(self) -> Tensor:
        return cosine_basis(self.shape[1], self.shape[1])

    @cached_property
    def _triangle(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns of the upper triangle, and the weight of its entries."""
        rows, columns = torch.triu_indices(self.width, self.width)
        return rows, columns, torch.where(rows == columns, 1.0, _ROOT)

    @cached_property
    def _members(self) -> Tensor:
        """float64 (H W, bands): 1 where a coefficient belongs to a band."""
        members: Tensor = self.band_of.flatten()[:, None] == torch.arange(self.bands)
        return members.to(torch.float64)

    def coefficients(self, images: Tensor) -> Tensor:
        """float32 (B, C, H, W) in [0, 1] to float64 of the same shape, norm at most 3^0.5 / 2."""
        pixels = images.to(torch.float64) - self.centre
        found = (pixels @ self._basis.T).transpose(2, 3) @ (self._basis.T / self.unit)
        found = found.transpose(2, 3)
        norm = found.flatten(1).norm(dim=1)[:, None, None, None]
        scaled: Tensor = found * (_LARGEST / norm.clamp(min=_LARGEST))
        return scaled

    def low(self, coefficients: Tensor) -> Tensor:
        """Those whose products are kept, (B, width) of (B, C, H, W)."""
        k = self.frequencies
        return coefficients[..., :k, :k].flatten(1)

    def weighted_sum(self, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Sum of the images' vectors, each times its weight.

        Args:
            images: float32 (B, C, H, W) in [0, 1], with the mask channel if there is one.
            labels: int64 (B,); labels from ``classes`` on contribute nothing.
            weights: (B,), 0 or more.

        Returns:
            float64 (size,), linear in the images' own contributions.
        """
        # Selected, not multiplied by 0: what is not finite must not get in.
        known = (labels >= 0) & (labels < self.classes)
        order = torch.argsort(labels[known])
        labels, weights = labels[known][order], weights[known][order].to(torch.float64)
        images = images[known][order]
        found, m = self.coefficients(images), self.mean_frequencies
        of_class = weights[:, None] * functional.one_hot(labels, self.classes)
        first = of_class.T @ found[..., :m, :m].flatten(1)
        energy = of_class.T @ (found.square().flatten(2) @ self._members).flatten(1)
        low, (rows, columns, scale) = self.low(found), self._triangle
        blocks, lengths = [], torch.bincount(labels, minlength=self.classes).tolist()
        for own, weight in zip(
            torch.split(low, lengths), torch.split(weights, lengths), strict=True
        ):
            second = (own * weight[:, None]).T @ own
            blocks.append(scale * second[rows, columns])
        counts = of_class.sum(0)[:, None]
        parts = [CONSTANT**2 * counts, _ROOT * CONSTANT * first, torch.stack(blocks), energy]
        moments = self.moment_factor * torch.cat(parts, dim=1)
        # In single precision, other patients in the batch would move an image's last bits.
        features = of_class.T @ self.random_features(images.to(torch.float64))
        return torch.cat([moments, math.sqrt(self.feature_share) * features], dim=1).flatten()

    def sums(self, vector: Tensor) -> Sums:
        """A sum (size,) taken apart, without the factors that the vector carries."""
        channels, m, width = self.shape[0], self.mean_frequencies, self.width
        rows_of, share = vector.view(self.classes, -1), self.feature_share
        *moments, features = torch.split(rows_of, list(self._lengths), dim=1)
        count, first, flat, energy = (part / self.moment_factor for part in moments)
        rows, columns, scale = self._triangle
        second = torch.zeros(self.classes, width, width, dtype=torch.float64)
        second[:, rows, columns] = flat / scale
        second[:, columns, rows] = flat / scale
        return Sums(
            counts=count[:, 0] / CONSTANT**2,
            first=first.reshape(-1, channels, m, m) / (_ROOT * CONSTANT),
            second=second,
            energy=energy.reshape(-1, channels, self.bands),
            features=features / math.sqrt(share) if self.features else features,
        )

    def class_counts(self, vector: Tensor) -> Tensor:
        """Images (weighted) per class that a sum holds, float64 (classes,)."""
        return vector.view(self.classes, -1)[:, 0] / (CONSTANT**2 * self.moment_factor)


@dataclass(frozen=True)
class Sums:
    """What a sum of vectors says, class by class; all float64.

    With noise of standard deviation s in every coordinate of the vector, that of an entry is
    s times the factor named here, over ``moment_factor`` of the embedding.

    Attributes:
        counts: (K,), images; 1 / c^2, c being ``CONSTANT``.
        first: (K, C, m, m), sums of coefficients; 1 / (sqrt(2) c).
        second: (K, width, width), sums of products; 1 / sqrt(2), on the diagonal 1.
        energy: (K, C, bands), sums of squares; 1.
        features: (K, D), sums of random features; 1 over the root of ``feature_share`` instead.
    """

    counts: Tensor
    first: Tensor
    second: Tensor
    energy: Tensor
    features: Tensor

    def together(self) -> Sums:
        """As if all classes were one, which keeps a leading axis of 1."""
        return Sums(*(part.sum(0, keepdim=True) for part in self._parts))

    def of(self, chosen: Tensor) -> Sums:
        """Those of some classes, bool (K,)."""
        return Sums(*(part[chosen] for part in self._parts))

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.counts, self.first, self.second, self.energy, self.features


@dataclass(frozen=True)
class Released:
    """A noisy sum, as the coordinator holds it: released, so public.

    Attributes:
        vector: float64 (size,), the sum over all patients of all sites.
        sigma: Standard deviation of the noise in every coordinate.
        embedding: What was summed.
    """

    vector: Tensor
    sigma: float
    embedding: Embedding

    @property
    def moment_sigma(self) -> float:
        """What ``sigma`` comes to in the vector of moments alone."""
        return self.sigma / self.embedding.moment_factor


def cosine_basis(size: int, frequencies: int) -> Tensor:
    """The first rows of the orthonormal DCT-II, float64 (frequencies, size)."""
    k = torch.arange(frequencies, dtype=torch.float64)[:, None]
    i = torch.arange(size, dtype=torch.float64)[None]
    rows = torch.cos(math.pi * (2 * i + 1) * k / (2 * size)) * math.sqrt(2.0 / size)
    rows[0] /= _ROOT
    return rows


def rings(size: int) -> Tensor:
    """Frequency of each coefficient, in half waves: float64 whole numbers (size, size)."""
    axis = torch.arange(size, dtype=torch.float64)
    return (axis[:, None].square() + axis[None].square()).sqrt().round()


def build_embedding(plan: GeneratorPlan) -> Embedding:
    """The embedding that a plan names; the same at every site and at the server.

    Raises:
        ConfigError: The installed NumPy draws other random features than theirs.
    """
    if plan.features:
        require_known_constants()
    channels = plan.channels + int(plan.with_mask)
    return Embedding(
        classes=len(plan.classes),
        shape=(channels, plan.size, plan.size),
        frequencies=min(plan.frequencies, plan.size),
        centre=plan.pixel_centre,
        radius=plan.pixel_radius,
        features=plan.features,
        feature_share=plan.feature_share if plan.features else 0.0,
    )
