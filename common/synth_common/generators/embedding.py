"""What one release says of images: public features whose noisy sum a generator learns from.

An embedding maps an image and its label to a vector of L2 norm at most 1, by public
constants alone. Sums of such vectors over patients are what a site may release once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from synth_common.plan import EmbeddingPlan, GeneratorPlan


@dataclass(frozen=True)
class Embedding:
    """Class counts and mean images, per class.

    Layout of the flat vector: first one entry per class, 1 / sqrt(2) for each image of it;
    then per class the image (C, H, W) itself, mask channel included, divided by
    sqrt(2 C H W). With values in [0, 1] both blocks of one image have a norm of at most
    1 / sqrt(2), and the whole of at most 1.

    Attributes:
        classes: Number of classes; other labels contribute nothing.
        shape: (C, H, W) of the images, with the mask channel.
    """

    classes: int
    shape: tuple[int, int, int]

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.classes * (1 + math.prod(self.shape))

    def weighted_sum(self, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Sum of the images' vectors, each times its weight.

        Args:
            images: float32 (B, C, H, W) in [0, 1], with the mask channel if there is one.
            labels: int64 (B,); labels from ``classes`` on contribute nothing.
            weights: (B,), 0 or more.

        Returns:
            float64 (size,), linear in the images' own contributions.
        """
        known = (labels >= 0) & (labels < self.classes)
        # Selected, not multiplied by 0: what is not finite must not get in.
        hot = torch.zeros(int(known.sum()), self.classes, dtype=torch.float64)
        hot[torch.arange(len(hot)), labels[known]] = weights[known].to(torch.float64)
        flat = images[known].to(torch.float64).flatten(1)
        counts = hot.sum(0) * self._count_scale
        means = (hot.T @ flat) * self._image_scale
        return torch.cat([counts, means.flatten()])

    def class_counts(self, vector: Tensor) -> Tensor:
        """Images (weighted) per class that a sum holds, float64 (classes,)."""
        return vector[: self.classes] / self._count_scale

    def class_sums(self, vector: Tensor) -> Tensor:
        """Sum of the images (weighted) of each class, float64 (classes, C, H, W)."""
        sums = vector[self.classes :] / self._image_scale
        return sums.reshape(self.classes, *self.shape)

    @property
    def _count_scale(self) -> float:
        return math.sqrt(0.5)

    @property
    def _image_scale(self) -> float:
        return math.sqrt(0.5 / math.prod(self.shape))


def build_embedding(plan: GeneratorPlan, settings: EmbeddingPlan) -> Embedding:
    """The embedding that a plan names; the same at every site and at the server."""
    channels = plan.channels + int(plan.with_mask)
    return Embedding(len(plan.classes), (channels, plan.size, plan.size))
