"""The embedding family: images from released moments, at no further cost.

Every class is a Gaussian over the low frequencies of its images, with the mean and the
covariance that one noisy release gave, cleaned of the noise, whose strength is known: the
covariance that all classes share is compared with one without correlations whose variances
fall with the frequency, that of a class with the shared one, and of the difference only what
stands out of the noise is kept. Means are pulled towards the mean of all classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from synth_common.errors import TrainingError
from synth_common.generators.embedding import CONSTANT, Embedding, Released, cosine_basis
from synth_common.generators.interface import Generator, Health
from synth_common.generators.networks import diversity, normal_per_seed
from synth_common.plan import GeneratorPlan

_EDGE = 0.1
"""Least variance expected of a ring of coefficients, in standard deviations of its noise."""
_TINY = 1e-20
_FEWEST = 4.0
"""A class whose noisy count is below this many standard deviations of its noise is not told
from the others."""
_LEAST_DIVERSITY = 0.01


class MomentGenerator(Generator):
    """Draws from a Gaussian per class; nothing of it is trained on patients."""

    def __init__(self, plan: GeneratorPlan) -> None:
        super().__init__()
        self.plan = plan
        classes, width = len(plan.classes), self.out_channels * plan.frequencies**2
        self.register_buffer("mean", torch.zeros(classes, width))
        self.register_buffer("factor", torch.zeros(classes, width, width))

    @property
    def private_module(self) -> nn.Module:
        """Nothing: the release is the only thing that meets patients."""
        return nn.ModuleList()

    def private_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """There is none. Raises TrainingError."""
        raise TrainingError(
            "generator.family = 'embedding' takes no private steps; set training.rounds = 0"
        )

    def learn_release(self, released: Released, seed: int, tell: Callable[[str], None]) -> None:
        """See :class:`Generator`; takes seconds, and nothing of it is random."""
        embedding, plan = released.embedding, self.plan
        mean, factor = class_gaussians(released, tell)
        scale = embedding.unit / math.sqrt(1.0 - CONSTANT**2)
        flat = torch.full((plan.size, plan.size), embedding.centre, dtype=torch.float64)
        basis = cosine_basis(plan.size, plan.frequencies)
        offset = (basis @ flat @ basis.T).flatten().repeat(self.out_channels)
        self.get_buffer("mean").copy_(mean * scale + offset)
        self.get_buffer("factor").copy_(factor * scale)

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """See :class:`Generator`."""
        mean, factor, plan = self.get_buffer("mean"), self.get_buffer("factor"), self.plan
        draws = normal_per_seed(seeds, mean.shape[1]).to(mean.device)
        rows = torch.empty_like(draws)
        for label in sorted(set(labels.tolist())):
            mine = (labels == label).to(mean.device)
            rows[mine] = mean[label] + draws[mine] @ factor[label].T
        basis = cosine_basis(plan.size, plan.frequencies).to(rows)
        grid = rows.view(len(rows), self.out_channels, plan.frequencies, plan.frequencies)
        return (basis.T @ grid @ basis).clamp(0.0, 1.0).cpu()

    def health(self, images: Tensor, labels: Tensor) -> Health:
        """Diversity within a class, and how many directions the noise left."""
        spread = diversity(images, labels)
        factor = self.get_buffer("factor")
        left = (factor.norm(dim=1) > 0).sum(1).to(torch.float32).mean().item()
        warnings = []
        if spread < _LEAST_DIVERSITY:
            warnings.append(
                f"mode collapse: samples of one class differ by {spread:.4f} per pixel "
                f"(warned below {_LEAST_DIVERSITY}); the release's noise drowned the variances"
            )
        return Health({"diversity": spread, "directions": left}, warnings)


def class_gaussians(released: Released, tell: Callable[[str], None]) -> tuple[Tensor, Tensor]:
    """Mean (classes, d) and a factor (classes, d, d) of the covariance, of scaled coefficients.

    Args:
        released: The noisy sum; d is its embedding's width less 1.
        tell: Says which classes are too few to be told from the others.
    """
    embedding, sums = released.embedding, released.embedding.matrices(released.vector)
    counts = sums[:, 0, 0] / CONSTANT**2
    seen = counts >= max(1.0, _FEWEST * released.sigma / CONSTANT**2)
    if not bool(seen.any()):
        tell("no class has enough patients for this noise; all classes are drawn alike")
        sums, counts = sums.sum(0, keepdim=True), counts.sum(0, keepdim=True).clamp(min=1.0)
        noise = released.sigma * math.sqrt(embedding.classes / 2.0) / counts
        mean, factor = _filtered(_moments(sums, counts), noise, embedding)
        return mean.expand(embedding.classes, -1), factor.expand(embedding.classes, -1, -1)
    noise = released.sigma / math.sqrt(2.0) / counts[seen]
    mean, factor = _filtered(_moments(sums[seen], counts[seen]), noise, embedding)
    if bool(seen.all()):
        return mean, factor
    few = (~seen).nonzero().flatten().tolist()
    tell(f"classes {few} have too few patients for this noise; they are drawn like the others")
    like = torch.zeros(embedding.classes, dtype=torch.int64)
    like[seen] = torch.arange(int(seen.sum()))
    like[~seen] = int(counts[seen].argmax())
    return mean[like], factor[like]


def _moments(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Means (K, d) and covariances (K, d, d) from noisy sums (K, 1 + d, 1 + d)."""
    mean = sums[:, 0, 1:] / CONSTANT / counts[:, None]
    second = sums[:, 1:, 1:] / counts[:, None, None]
    return mean, second - mean[:, :, None] * mean[:, None, :]


def _filtered(
    moments: tuple[Tensor, Tensor], noise: Tensor, embedding: Embedding
) -> tuple[Tensor, Tensor]:
    """Means and factors of the covariances of K classes, the noise (K,) filtered out."""
    mean, covariance = moments
    classes = len(mean)
    together = noise.square().sum().sqrt() / classes
    middle = covariance.mean(0)
    variances = _spectrum(middle.diagonal(), together, embedding)
    shared = _cleaned(middle, torch.diag(variances), together)
    factors = []
    for own, level in zip(covariance, noise * math.sqrt(1.0 - 1.0 / classes), strict=True):
        values, vectors = torch.linalg.eigh(_cleaned(own, shared, level))
        factors.append(vectors * values.clamp(min=0.0).sqrt())
    centre = mean.mean(0)
    level = (noise / CONSTANT).square()[:, None] * (1.0 - 1.0 / classes)
    apart = (mean - centre) * variances / (variances + level + _TINY)
    return centre + apart, torch.stack(factors)


def _cleaned(found: Tensor, expected: Tensor, noise: Tensor) -> Tensor:
    """``found`` (d, d), symmetric, with the part of ``found - expected`` that is noise taken out.

    The eigenvalues of symmetric noise s reach to 2 s sqrt(d) (Wigner 1955). Smaller ones are
    dropped, and a larger one shrinks to sqrt(value^2 - edge^2), what is right for a direction
    seen through such noise (Benaych-Georges & Nadakuditi 2011; Gavish & Donoho 2017).
    """
    values, vectors = torch.linalg.eigh(found - expected)
    edge = 2.0 * noise * math.sqrt(len(values))
    kept = values.sign() * (values.square() - edge.square()).clamp(min=0.0).sqrt()
    cleaned: Tensor = expected + (vectors * kept) @ vectors.T
    return cleaned


def _spectrum(diagonal: Tensor, noise: Tensor, embedding: Embedding) -> Tensor:
    """Variance expected at each coefficient (d,): the mean over its channel and ring.

    Pictures have less variance the higher the frequency (Field 1987), so a ring has at most
    that of the ring inside it; a mean over many coefficients hardly feels the noise.
    """
    k, channels = embedding.frequencies, embedding.shape[0]
    axis = torch.arange(k)
    rings = (axis[:, None] ** 2 + axis[None] ** 2).to(torch.float64).sqrt().round().long()
    expected = torch.zeros(channels, k, k, dtype=torch.float64)
    for channel, own in enumerate(diagonal.view(channels, k, k)):
        bound = torch.tensor(math.inf, dtype=torch.float64)
        for ring in range(int(rings.max()) + 1):
            mine = rings == ring
            least = _TINY + _EDGE * noise / math.sqrt(float(mine.sum()))
            bound = torch.minimum(bound, own[mine].mean().clamp(min=float(least)))
            expected[channel][mine] = bound
    return expected.flatten()
