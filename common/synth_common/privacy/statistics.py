"""Statistics of patients, released once through a Gaussian mechanism."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from synth_common.generators.embedding import Embedding
from synth_common.images.imageset import ImageSet
from synth_common.plan import GeneratorPlan
from synth_common.privacy.sampling import PatientSampler, physical_batches
from synth_common.privacy.training import image_tensor
from synth_common.randomness import NoiseSource

_BATCH = 256


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


def embedding_sum(
    data: ImageSet,
    embedding: Embedding,
    plan: GeneratorPlan,
    max_images: int,
    noise: NoiseSource,
) -> npt.NDArray[np.float64]:
    """Sum over patients of the mean embedding of at most ``max_images`` images. SENSITIVE.

    One patient moves it by at most 1 in L2, as no image's embedding is longer, but for
    floating point, which ``secure_sum.SLACK`` covers. What leaves of it gets noise first
    (``secure_sum.noisy``).

    Args:
        data: The site's training images. SENSITIVE.
        embedding: What is summed.
        plan: Its classes (labels from there on, an audit's canaries, are left out) and
            whether the mask is a channel.
        max_images: Most images of a patient; which ones is drawn in secret.
        noise: Where the choice is drawn.

    Returns:
        float64 (embedding.size,).
    """
    known = data.subset(data.labels < len(plan.classes))
    images, labels = image_tensor(known, plan.with_mask), torch.from_numpy(known.labels)
    total = torch.zeros(embedding.size, dtype=torch.float64)
    chosen = PatientSampler(known.units(), 1.0, max_images, noise).draw()
    for draw in physical_batches(chosen, _BATCH):
        rows = torch.from_numpy(draw.images)
        counts = torch.tensor(draw.counts)
        weights = (1.0 / counts.to(torch.float64)).repeat_interleave(counts)
        total += embedding.weighted_sum(images[rows], labels[rows], weights)
    return total.numpy()


def _votes(data: ImageSet, classes: int) -> npt.NDArray[np.float64]:
    """(U, classes): each unit's share of every class; rows sum to 1, or to 0. SENSITIVE."""
    votes = np.zeros((data.unit_count(), classes))
    known = data.labels < classes
    np.add.at(votes, (data.units()[known], data.labels[known]), 1.0)
    shares: npt.NDArray[np.float64] = votes / np.maximum(votes.sum(axis=1, keepdims=True), 1.0)
    return shares
