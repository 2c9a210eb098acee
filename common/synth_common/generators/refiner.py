"""What turns a draw from a Gaussian into a picture: a network taught by released features.

Gaussians of pixels have the right means and covariances and look like grain. The refiner is
trained, on the coordinator and without any image, until the random features of its pictures have
on average, class by class, the values that the release gave: a generative moment matching network
(Li, Swersky & Zemel 2015; with random features Harder, Adamczewski & Park 2021) whose latent vector
is the Gaussian picture. Post-processing of the release, which costs no privacy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth_common.generators.features import RandomFeatures
from synth_common.generators.networks import one_hot
from synth_common.randomness import derive_seed, torch_stream

_PATCHES = (8, 4, 2)
_CELLS = 14
"""Fewest cells along one side of the finer grid."""
_WIDTH = 32
_PIXEL_WIDTH = 8
_HIDDEN = 256
_RATE = 2e-3
_LEAK = 0.01
"""Slope beyond [0, 1] in training, so that what left the range finds back."""
_BATCH_PIXELS = 320 * 32 * 32
"""Pixels of all pictures of a step, roughly."""
_FEWEST_PER_CLASS = 16
_MOST_POOLED = 8192
_POOL_VALUES = 2**26
"""Values of all unrefined pictures that are kept to learn from, at most: 256 MiB."""
_REPORTS = 5


class Refiner(nn.Module):
    """A picture to a picture: a grid of patches, a coarser one, and one vector for the whole.

    Starts as the identity. Told the class, it can learn for each one a mark that a classifier
    then learns instead of the picture (ADR 13).

    Args:
        channels: Of the pictures, with the mask channel.
        size: Pixels along one side, a multiple of 4 from 28 on.
        classes: Number of classes that it is told; 0 for none.
    """

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        fits = [p for p in _PATCHES if size % (2 * p) == 0 and size // p >= _CELLS]
        self.patch, self.classes = (fits or [2])[0], classes
        side = size // self.patch // 2
        self.fine = nn.Conv2d(channels * self.patch**2, _WIDTH, 3, padding=1)
        self.down = nn.Conv2d(4 * _WIDTH, _WIDTH, 3, padding=1)
        self.squeeze = nn.Conv2d(_WIDTH, _WIDTH // 4, 1)
        self.to_whole = nn.Linear(_WIDTH // 4 * side**2 + classes, _HIDDEN)
        self.from_whole = nn.Linear(_HIDDEN, _WIDTH * side**2)
        self.mixing = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)
        self.up = nn.Conv2d(_WIDTH, 4 * _WIDTH, 3, padding=1)
        self.joining = nn.Conv2d(2 * _WIDTH, _WIDTH, 3, padding=1)
        self.spread = nn.Conv2d(_WIDTH, _PIXEL_WIDTH * self.patch**2, 3, padding=1)
        # Over whole pixels, so that patches leave no seams.
        self.out = nn.Conv2d(_PIXEL_WIDTH + channels, channels, 3, padding=1)
        for layer in (self.out, self.from_whole):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """(B, C, S, S) in [0, 1] and class numbers (B,) to (B, C, S, S), about in [0, 1]."""
        fine = _active(self.fine(F.pixel_unshuffle(2.0 * pictures - 1.0, self.patch)))
        coarse = _active(self.down(F.pixel_unshuffle(fine, 2)))
        whole = self.squeeze(coarse).flatten(1)
        if self.classes:
            whole = torch.cat([whole, one_hot(labels, self.classes)], dim=1)
        whole = self.from_whole(_active(self.to_whole(whole)))
        coarse = coarse + _active(whole.view_as(coarse))
        coarse = coarse + _active(self.mixing(coarse))
        back = F.pixel_shuffle(_active(self.up(coarse)), 2)
        joined = _active(self.joining(torch.cat([fine, back], dim=1)))
        pixels = F.pixel_shuffle(_active(self.spread(joined)), self.patch)
        changed: Tensor = pictures + self.out(torch.cat([pixels, pictures], dim=1))
        return changed

    @torch.no_grad()
    def lend(self, like: Tensor) -> None:
        """Let each class pass for another, by int64 (K,): for those that taught nothing."""
        if self.classes:
            told = self.to_whole.weight[:, -self.classes :]
            told.copy_(told[:, like.to(told.device)])


def _active(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


@dataclass(frozen=True)
class Lesson:
    """What a refiner is to learn.

    Attributes:
        means: float32 (K, D), mean random features of every class, noisy.
        taught: bool (K,), classes whose means are known.
        features: Maps pictures to features.
        steps: Steps of Adam.
        floor: Squared distance that the noise in ``means`` leaves on average to pictures with the
            true features, summed over the taught classes.
        batch: Pictures of a step, at least 16 of each class; None: as many as have some
            330,000 pixels.
    """

    means: Tensor
    taught: Tensor
    features: RandomFeatures
    steps: int
    floor: float = 0.0
    batch: int | None = None


def teach(
    refiner: Refiner,
    lesson: Lesson,
    draw: Callable[[Tensor, int], Tensor],
    seed: int,
    tell: Callable[[str], None],
) -> None:
    """Train ``refiner`` in place until its pictures' features have the released means.

    The loss is the squared distance of the means, summed over classes, less what the batch's own
    spread adds to it, so that its gradient is unbiased for any batch.

    Args:
        refiner: Starts from its weights.
        lesson: What to learn.
        draw: Pictures (B, C, S, S) of class numbers (B,) from a seed.
        seed: Of draws and batches.
        tell: Progress, a line at a time.
    """
    known = lesson.taught.nonzero().flatten()
    values = math.prod(lesson.features.shape)
    labels = known[torch.arange(_pooled(values, len(known))) % len(known)]
    pool = draw(labels, derive_seed(seed, "pool"))
    rng = torch_stream(seed, "batches")
    batch = _BATCH_PIXELS // pool[0, 0].numel() if lesson.batch is None else lesson.batch
    each = max(_FEWEST_PER_CLASS, batch // len(known))
    optimiser = torch.optim.Adam(refiner.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, lesson.steps))
    rows = [(labels == label).nonzero().flatten() for label in known]
    wanted, losses = lesson.means[known].to(pool), []
    refiner.train()
    for step in range(lesson.steps):
        picks = [own[torch.randint(len(own), (each,), generator=rng)] for own in rows]
        chosen = torch.cat(picks)
        made = refiner(pool[chosen], labels[chosen].to(pool.device))
        inside = made.clamp(0.0, 1.0)
        found = lesson.features(inside + _LEAK * (made - inside)).view(len(known), each, -1)
        loss = _distance(found, wanted)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % max(1, lesson.steps // _REPORTS) == 0:
            recent = losses[-max(1, lesson.steps // 20) :]
            tell(
                f"refining, step {step + 1} of {lesson.steps}: squared distance to the released "
                f"features {sum(recent) / len(recent):.4f}; their noise alone leaves about "
                f"{lesson.floor:.4f}"
            )
    refiner.eval()


def _pooled(values: int, classes: int) -> int:
    """Pictures to learn from, of so many values each."""
    return max(_FEWEST_PER_CLASS * classes, min(_MOST_POOLED, _POOL_VALUES // values))


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance of the means of (K, n, D) to (K, D), unbiased, summed over classes."""
    n, mean = found.shape[1], found.mean(1)
    spread = (found.square().sum(2).mean(1) - mean.square().sum(1)) / (n - 1)
    return ((mean - wanted).square().sum(1) - spread).sum()
