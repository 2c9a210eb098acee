"""Latent traversals: what each direction of a latent space does to an image.

Computed from a generator's released weights alone, so it costs no privacy. The directions
are the principal axes of the decoder's Jacobian over the prior: along the first, images
change most (the pull-back metric of Arvanitidis et al. 2018, arXiv 1710.11379, averaged over
the prior as in Wang & Ponce 2021, arXiv 2101.06006).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synth_common.errors import ConfigError
from synth_common.generators.interface import Generator

POSITIONS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""Where a traversal stops, in standard deviations of the prior."""
_ANCHORS = 8
_STEP = 0.25


@dataclass(frozen=True)
class Direction:
    """One direction of a latent space.

    Attributes:
        axis: (latent_dim,) of length 1.
        share: Share of the decoder's mean squared change that lies along it, in [0, 1].
    """

    axis: Tensor
    share: float


def active_directions(generator: Generator, count: int, seed: int) -> list[Direction]:
    """The directions along which images change most, the most active first.

    Args:
        generator: With its weights loaded.
        count: At most so many; a latent space has no more than ``latent_dim``.
        seed: Decides the latents at which the decoder's change is taken.

    Returns:
        Orthogonal directions; none for a family that has no latent space, or where no
        direction changes anything. An axis and its negative are the same direction: the
        largest coordinate is made positive.

    Raises:
        ConfigError: ``count`` is negative.
    """
    if count < 0:
        raise ConfigError(f"count = {count}: the number of directions must be 0 or more")
    metric = _change(generator, seed)
    if metric is None:
        return []
    total = metric.trace().item()
    if not total > 0:  # also where it is not a number
        return []
    values, vectors = torch.linalg.eigh(metric)
    found = []
    for position in reversed(range(max(0, len(values) - count), len(values))):
        axis = vectors[:, position]
        axis = axis * torch.sign(axis[axis.abs().argmax()])
        found.append(Direction(axis.to(torch.float32), values[position].item() / total))
    return found


def _change(generator: Generator, seed: int) -> Tensor | None:
    """Mean of J^T J (latent_dim, latent_dim) over the prior and the classes, J by differences."""
    width, classes = generator.plan.latent_dim, len(generator.plan.classes)
    rng = torch.Generator().manual_seed(seed)
    metric = torch.zeros(width, width, dtype=torch.float64)
    for label in range(classes):
        for _ in range(_ANCHORS):
            anchor = torch.randn(width, generator=rng)
            steps = _STEP * torch.eye(width)
            latent = torch.cat([anchor + steps, anchor - steps])
            images = generator.decode(latent, torch.full((2 * width,), label))
            if images is None:
                return None
            ahead, behind = images.flatten(1).to(torch.float64).chunk(2)
            slopes = (ahead - behind) / (2 * _STEP)
            metric += slopes @ slopes.mT / (classes * _ANCHORS)
    return metric


def traverse(
    generator: Generator, direction: Direction, positions: Sequence[float] = POSITIONS
) -> Tensor | None:
    """Images along a direction through the middle of the latent space, one row per class.

    Returns:
        (classes * positions, out_channels, H, W) in [0, 1], class by class; None for a family
        that has no latent space.
    """
    classes = len(generator.plan.classes)
    steps = torch.tensor(positions)[:, None] * direction.axis
    labels = torch.arange(classes).repeat_interleave(len(positions))
    return generator.decode(steps.repeat(classes, 1), labels)
