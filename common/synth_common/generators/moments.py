"""The embedding family: images from released moments, at no further cost.

Every class is a Gaussian over the cosine coefficients of its images: at the low frequencies with
the mean and covariance that one noisy release gave, cleaned of the noise (:mod:`denoising`); above
them independent, with the variances that the release or a power law gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from synth_common.errors import TrainingError
from synth_common.generators.denoising import Gaussians, cleaned_gaussians
from synth_common.generators.embedding import CONSTANT, Released, Sums, cosine_basis
from synth_common.generators.interface import Generator, Health
from synth_common.generators.networks import diversity, normal_per_seed
from synth_common.plan import GeneratorPlan

_FEWEST = 4.0
"""A class whose noisy count is below this many standard deviations of its noise is not told
from the others."""
_LEAST_DIVERSITY = 0.01


class MomentGenerator(Generator):
    """Draws from a Gaussian per class; nothing of it is trained on patients."""

    def __init__(self, plan: GeneratorPlan) -> None:
        super().__init__()
        self.plan = plan
        classes, channels, size = len(plan.classes), self.out_channels, plan.size
        low = channels * min(plan.frequencies, size) ** 2
        self.register_buffer("mean", torch.zeros(classes, channels, size, size))
        self.register_buffer("factor", torch.zeros(classes, low, low))
        self.register_buffer("detail", torch.zeros(channels, size, size))

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
        embedding = released.embedding
        found = class_gaussians(released, tell)
        self.get_buffer("mean").copy_(found.mean * embedding.unit)
        self.get_buffer("factor").copy_(found.factor * embedding.unit)
        self.get_buffer("detail").copy_(found.detail * embedding.unit)

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """See :class:`Generator`."""
        mean, factor = self.get_buffer("mean"), self.get_buffer("factor")
        shape, low = mean.shape[1:], factor.shape[1]
        draws = normal_per_seed(seeds, low + shape.numel()).to(mean.device)
        rows = torch.empty(len(draws), low, device=mean.device)
        for label in sorted(set(labels.tolist())):
            mine = (labels == label).to(mean.device)
            rows[mine] = draws[mine, :low] @ factor[label].T
        grid = mean[labels.to(mean.device)]
        grid = grid + draws[:, low:].view(-1, *shape) * self.get_buffer("detail")
        k = min(self.plan.frequencies, self.plan.size)
        grid[..., :k, :k] += rows.view(-1, shape[0], k, k)
        basis = cosine_basis(self.plan.size, self.plan.size).to(grid)
        pictures = basis.T @ grid @ basis + self.plan.pixel_centre
        return pictures.clamp(0.0, 1.0).cpu()

    def health(self, images: Tensor, labels: Tensor) -> Health:
        """Diversity within a class, and how much of a picture's spread is fine detail."""
        spread = diversity(images, labels)
        detail = self.get_buffer("detail").square().sum()
        low = self.get_buffer("factor").square().sum((1, 2)).mean()
        share = (detail / (detail + low).clamp(min=torch.finfo(torch.float32).tiny)).item()
        warnings = []
        if spread < _LEAST_DIVERSITY:
            warnings.append(
                f"mode collapse: samples of one class differ by {spread:.4f} per pixel "
                f"(warned below {_LEAST_DIVERSITY}); the release's noise drowned the variances"
            )
        return Health({"diversity": spread, "detail_share": share}, warnings)


def class_gaussians(released: Released, tell: Callable[[str], None]) -> Gaussians:
    """The Gaussian of every class that a release has; one too small gets the largest's.

    Args:
        released: The noisy sum.
        tell: Says which classes are too few to be told from the others.
    """
    embedding, sums = released.embedding, released.embedding.sums(released.vector)
    seen = sums.counts >= max(1.0, _FEWEST * released.sigma / CONSTANT**2)
    if not bool(seen.any()):
        tell("no class has enough patients for this noise; all classes are drawn alike")
        whole = _at_least_one(sums.together())
        noise = released.sigma * embedding.classes**0.5
        like = torch.zeros(embedding.classes, dtype=torch.int64)
        return cleaned_gaussians(whole, noise, embedding).of(like)
    found = cleaned_gaussians(sums.of(seen), released.sigma, embedding)
    if bool(seen.all()):
        return found
    few = (~seen).nonzero().flatten().tolist()
    tell(f"classes {few} have too few patients for this noise; they are drawn like the others")
    like = torch.zeros(embedding.classes, dtype=torch.int64)
    like[seen] = torch.arange(int(seen.sum()))
    like[~seen] = int(sums.counts[seen].argmax())
    return found.of(like)


def _at_least_one(sums: Sums) -> Sums:
    return Sums(sums.counts.clamp(min=1.0), sums.first, sums.second, sums.energy)
