"""Random views of an image, averaged with its other draws before the clip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augmented(images: Tensor, shift: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Each row moved and mirrored at random, on its own.

    Args:
        images: (R, C, H, W); a mask among the channels moves with its image.
        shift: Most pixels along each axis; the border is repeated. 0 moves nothing.
        flip: Mirror left and right with probability 1/2.
        rng: Where the moves are drawn, on the CPU.

    Returns:
        (R, C, H, W); row i depends on row i and ``rng`` alone.
    """
    count, _, height, width = images.shape
    if shift > 0:
        moves = torch.randint(0, 2 * shift + 1, (2, count, 1, 1, 1), generator=rng)
        down, right = moves.to(images.device)
        padded = F.pad(images, (shift, shift, shift, shift), mode="replicate")
        rows = down + torch.arange(height, device=images.device).view(1, 1, -1, 1)
        columns = right + torch.arange(width, device=images.device).view(1, 1, 1, -1)
        padded = padded.gather(2, rows.expand(-1, images.shape[1], -1, padded.shape[3]))
        images = padded.gather(3, columns.expand(-1, images.shape[1], height, -1))
    if flip:
        mirrored = torch.rand(count, 1, 1, 1, generator=rng).to(images.device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    return images
