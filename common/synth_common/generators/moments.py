"""The embedding family: images from released moments, at no further cost.

Every class is a Gaussian over the cosine coefficients of its images: at the low frequencies with
the mean and covariance that one noisy release gave, cleaned of the noise (:mod:`denoising`); above
them independent, with the variances that the release or a power law gives. What is drawn so passes
a network that released random features have taught what such pictures look like (:mod:`refiner`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from synth_common.errors import TrainingError
from synth_common.generators.denoising import Gaussians, cleaned_gaussians
from synth_common.generators.embedding import CONSTANT, Released, cosine_basis
from synth_common.generators.interface import Generator, Health
from synth_common.generators.networks import diversity, normal_per_seed
from synth_common.generators.refiner import Lesson, Refiner, teach
from synth_common.plan import GeneratorPlan
from synth_common.randomness import derive_seed

_FEWEST = 4.0
"""A class whose noisy count is below this many standard deviations of its noise is not told
from the others."""
_LEAST_DIVERSITY = 0.01
_BATCH = 256
"""Pictures drawn at a time for the refiner to learn from."""


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
        refined = plan.features > 0 and plan.refine_steps > 0
        self.refiner = self._new_refiner(0) if refined else None

    def _new_refiner(self, seed: int) -> Refiner:
        """One that changes nothing yet; torch's own generator has no part in it."""
        told = len(self.plan.classes) if self.plan.refine_by_class else 0
        with torch.random.fork_rng(devices=[]):
            # The processor's alone: manual_seed would also seed every GPU, for good.
            torch.default_generator.manual_seed(derive_seed(seed, "refiner"))
            return Refiner(self.out_channels, self.plan.size, told)

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
        """See :class:`Generator`; the Gaussians take seconds, the refiner ``plan.refine_steps``."""
        embedding, told = released.embedding, class_gaussians(released, tell)
        found = told.gaussians
        self.get_buffer("mean").copy_(found.mean * embedding.unit)
        self.get_buffer("factor").copy_(found.factor * embedding.unit)
        self.get_buffer("detail").copy_(found.detail * embedding.unit)
        if self.refiner is None:
            return
        # Before anything else: what an earlier release taught would refine this one's draws.
        self.refiner = self._new_refiner(seed).to(self.get_buffer("mean").device)
        if bool(told.seen.any()):
            lesson = feature_lesson(released, told.seen, self.plan.refine_steps)
            teach(self.refiner, lesson, self._draw_from, seed, tell)
            self.refiner.lend(told.like)

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """See :class:`Generator`."""
        pictures = self._gaussian_pictures(labels, seeds)
        if self.refiner is not None:
            pictures = self.refiner(pictures, labels.to(pictures.device))
        return pictures.clamp(0.0, 1.0).cpu()

    def _draw_from(self, labels: Tensor, seed: int) -> Tensor:
        """Unrefined pictures of class numbers (B,), some at a time to save memory."""
        seeds = [derive_seed(seed, i) for i in range(len(labels))]
        parts = [slice(i, i + _BATCH) for i in range(0, len(labels), _BATCH)]
        return torch.cat([self._gaussian_pictures(labels[p], seeds[p]) for p in parts])

    @torch.no_grad()
    def _gaussian_pictures(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """One draw per label and seed, in [0, 1]."""
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
        return pictures.clamp(0.0, 1.0)

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


@dataclass(frozen=True)
class Told:
    """The classes as a release tells them apart.

    Attributes:
        gaussians: One of every class; one too small has the largest's.
        seen: bool (K,), classes with enough patients for the noise.
        like: int64 (K,), the class that each is drawn like; itself where it was seen.
    """

    gaussians: Gaussians
    seen: Tensor
    like: Tensor


def class_gaussians(released: Released, tell: Callable[[str], None]) -> Told:
    """What a release says of every class.

    Args:
        released: The noisy sum.
        tell: Says which classes are too few to be told from the others.
    """
    embedding, sums = released.embedding, released.embedding.sums(released.vector)
    sigma, itself = released.moment_sigma, torch.arange(embedding.classes)
    seen = sums.counts >= max(1.0, _FEWEST * sigma / CONSTANT**2)
    if not bool(seen.any()):
        tell("no class has enough patients for this noise; all classes are drawn alike")
        together = sums.together()
        whole = replace(together, counts=together.counts.clamp(min=1.0))
        found = cleaned_gaussians(whole, sigma * embedding.classes**0.5, embedding)
        nobody = torch.zeros_like(itself)
        return Told(found.of(nobody), seen, nobody)
    found = cleaned_gaussians(sums.of(seen), sigma, embedding)
    largest = int(torch.where(seen, sums.counts, 0.0).argmax())
    like = torch.where(seen, itself, largest)
    if not bool(seen.all()):
        few = (~seen).nonzero().flatten().tolist()
        tell(f"classes {few} have too few patients for this noise; they are drawn like the others")
    place = torch.cumsum(seen, 0) - 1
    return Told(found.of(place[like]), seen, like)


def feature_lesson(released: Released, seen: Tensor, steps: int) -> Lesson:
    """What a release teaches a refiner.

    Args:
        released: The noisy sum, with random features.
        seen: bool (K,), classes with enough patients for the noise.
        steps: Of the lesson.
    """
    embedding, sums = released.embedding, released.embedding.sums(released.vector)
    counts = sums.counts.clamp(min=1.0)
    # Each of the D features of a class's mean has noise of this standard deviation over its count.
    sigma = released.sigma / math.sqrt(embedding.feature_share)
    return Lesson(
        means=(sums.features / counts[:, None]).to(torch.float32),
        taught=seen,
        features=embedding.random_features,
        steps=steps,
        floor=embedding.features * sigma**2 * counts[seen].pow(-2).sum().item(),
    )
