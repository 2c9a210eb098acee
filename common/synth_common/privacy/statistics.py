"""Statistics of patients, released once through a Gaussian mechanism."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from synth_common.images.imageset import ImageSet
from synth_common.randomness import NoiseSource


def label_histogram(
    data: ImageSet, classes: int, noise_multiplier: float, noise: NoiseSource
) -> Tensor:
    """Patients per class, noised: what sampling with the sites' own mix of classes needs.

    A patient's vote is shared among the classes of the patient's images, so that one patient
    moves the histogram by at most 1 in L1 and so in L2, however many images there are.
    Charged as ``Use(noise_multiplier, sample_rate=1, steps=1)``.

    Args:
        data: The site's training images. SENSITIVE.
        classes: Labels from here on (an audit's canaries) have no vote.
        noise_multiplier: Standard deviation of the noise in every class.
        noise: Where the noise is drawn.

    Returns:
        float32 (classes,); entries may be negative.
    """
    votes = torch.from_numpy(_votes(data, classes).sum(axis=0).astype(np.float32))
    return votes + noise_multiplier * noise.gaussian(tuple(votes.shape))


def _votes(data: ImageSet, classes: int) -> npt.NDArray[np.float64]:
    """(U, classes): each unit's share of every class; rows sum to 1, or to 0. SENSITIVE."""
    votes = np.zeros((data.unit_count(), classes))
    known = data.labels < classes
    np.add.at(votes, (data.units()[known], data.labels[known]), 1.0)
    shares: npt.NDArray[np.float64] = votes / np.maximum(votes.sum(axis=1, keepdims=True), 1.0)
    return shares
