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

from synth_common.plan import EmbeddingPlan, GeneratorPlan

CONSTANT = 0.5
"""The entry of an image's features that is the same in all: its squares sum to the counts, its
products with the others to the means. A larger one has less noise in these and more in the
second moments."""
_ROOT = math.sqrt(2.0)


@dataclass(frozen=True)
class Embedding:
    """Count, mean and second moments of the low frequencies of every class's images.

    The features of an image are ``CONSTANT`` and its coefficients of the orthonormal discrete
    cosine transform (DCT-II; Ahmed, Natarajan & Rao 1974) at the ``frequencies`` lowest
    frequencies of each axis and every channel, less those of a picture that is ``centre``
    throughout, over ``radius`` times the root of the number of pixels; scaled down where needed
    so that the norm of all of them is at most 1. The image's vector is the outer product of the
    features with themselves, in the block of its class: its norm is the square of theirs.

    Layout of the flat vector: class by class, the upper triangle of the symmetric matrix
    row by row, entries off the diagonal times sqrt(2), which keeps the norm.

    Attributes:
        classes: Number of classes; other labels contribute nothing.
        shape: (C, H, W) of the images, with the mask channel.
        frequencies: Frequencies kept along each axis.
        centre: Public value that pixels are taken relative to, in [0, 1].
        radius: Public bound on the root mean square of a picture less ``centre``; one beyond it
            is counted with less contrast.
    """

    classes: int
    shape: tuple[int, int, int]
    frequencies: int
    centre: float
    radius: float

    @property
    def width(self) -> int:
        """Features of an image, the constant included."""
        return 1 + self.shape[0] * self.frequencies**2

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.classes * self.width * (self.width + 1) // 2

    @cached_property
    def _basis(self) -> Tensor:
        return cosine_basis(self.shape[1], self.frequencies)

    @cached_property
    def _triangle(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the upper triangle."""
        rows, columns = torch.triu_indices(self.width, self.width)
        return rows, columns

    def features(self, images: Tensor) -> Tensor:
        """float32 (B, C, H, W) in [0, 1] to float64 (B, width), of norm at most 1."""
        basis, pixels = self._basis, images.to(torch.float64) - self.centre
        coefficients = (basis @ pixels @ basis.T).flatten(1)
        coefficients *= math.sqrt(1.0 - CONSTANT**2) / self.unit
        largest = math.sqrt(1.0 - CONSTANT**2)
        norm = coefficients.norm(dim=1, keepdim=True)
        coefficients *= (largest / norm.clamp(min=largest)).clamp(max=1.0)
        constant = torch.full((len(images), 1), CONSTANT, dtype=torch.float64)
        return torch.cat([constant, coefficients], dim=1)

    @property
    def unit(self) -> float:
        """The norm of coefficients that ``radius`` allows."""
        return self.radius * math.sqrt(math.prod(self.shape))

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
        features, labels = self.features(images[known]), labels[known]
        weighted = features * weights[known].to(torch.float64)[:, None]
        rows, columns = self._triangle
        parts = []
        for label in range(self.classes):
            mine = labels == label
            matrix = weighted[mine].T @ features[mine]
            parts.append(torch.where(rows == columns, 1.0, _ROOT) * matrix[rows, columns])
        return torch.cat(parts)

    def matrices(self, vector: Tensor) -> Tensor:
        """A sum (size,) as symmetric matrices, float64 (classes, width, width)."""
        rows, columns = self._triangle
        entries = vector.reshape(self.classes, -1) / torch.where(rows == columns, 1.0, _ROOT)
        whole = torch.zeros(self.classes, self.width, self.width, dtype=torch.float64)
        whole[:, rows, columns] = entries
        whole[:, columns, rows] = entries
        return whole

    def class_counts(self, vector: Tensor) -> Tensor:
        """Images (weighted) per class that a sum holds, float64 (classes,)."""
        return self.matrices(vector)[:, 0, 0] / CONSTANT**2


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


def cosine_basis(size: int, frequencies: int) -> Tensor:
    """The first rows of the orthonormal DCT-II, float64 (frequencies, size)."""
    k = torch.arange(frequencies, dtype=torch.float64)[:, None]
    i = torch.arange(size, dtype=torch.float64)[None]
    rows = torch.cos(math.pi * (2 * i + 1) * k / (2 * size)) * math.sqrt(2.0 / size)
    rows[0] /= _ROOT
    return rows


def build_embedding(plan: GeneratorPlan, settings: EmbeddingPlan) -> Embedding:
    """The embedding that a plan names; the same at every site and at the server."""
    channels = plan.channels + int(plan.with_mask)
    return Embedding(
        classes=len(plan.classes),
        shape=(channels, plan.size, plan.size),
        frequencies=plan.frequencies,
        centre=settings.centre,
        radius=settings.radius,
    )
