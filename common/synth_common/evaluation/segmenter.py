"""The small U-Net that segmentation utility rests on. It is never released."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from synth_common.errors import DataError
from synth_common.evaluation.encoders import Images, weights_sha256
from synth_common.images.imageset import ImageSet
from synth_common.randomness import derive_seed, numpy_stream

_WIDTHS = (8, 16, 32)  # at full, half and quarter size: sizes are multiples of 4
_GROUPS = 4
_BATCH = 64


@dataclass(frozen=True)
class Segmenter:
    """A trained segmenter.

    Attributes:
        name: As printed beside every number that rests on it.
        sha256: Of its weights.
        network: Images (B, C, H, W) in [0, 1] to logits (B, 1, H, W).
    """

    name: str
    sha256: str
    network: nn.Module

    def masks(self, images: Images) -> npt.NDArray[np.uint8]:
        """Masks (N, H, W) in {0, 1} of images (N, C, H, W): inside where more likely than not."""
        found = np.zeros((len(images), *images.shape[2:]), dtype=np.uint8)
        with torch.no_grad():
            for start in range(0, len(images), _BATCH):
                part = slice(start, start + _BATCH)
                found[part] = (self.network(torch.from_numpy(images[part]))[:, 0] > 0.0).numpy()
        return found


def segmenter_name(steps: int, batch: int) -> str:
    """What the segmenter is, in one line."""
    layers = "-".join(map(str, _WIDTHS))
    return f"U-Net {layers}, GroupNorm, {steps} steps of {batch}"


def train_segmenter(train: ImageSet, steps: int, batch: int, seed: int) -> Segmenter:
    """Train from scratch on images and masks, every image as likely as any other.

    The loss is cross entropy plus the soft Dice loss (Milletari et al. 2016, equation 1,
    with a plain sum below the line), so that small structures count. Deterministic for equal
    arguments on one machine. The step count is fixed, so training on more images takes no
    longer.

    Raises:
        DataError: ``train`` has no masks.
    """
    if train.masks is None:
        raise DataError("train has no masks; a segmenter needs one per image")
    picks = numpy_stream(seed, "segmenter", "batches")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "segmenter", "weights"))
        network = _UNet(train.channels)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=max(steps, 2))
    network.train()
    for _ in range(steps):
        chosen = picks.integers(len(train), size=batch)
        wanted = torch.from_numpy(train.masks[chosen][:, None].astype(np.float32))
        loss = _loss(network(torch.from_numpy(train.images[chosen])), wanted)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    network.eval()
    digest = weights_sha256(network.state_dict().values(), "segmenter")
    return Segmenter(segmenter_name(steps, batch), digest, network)


def _loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Cross entropy per pixel, plus 1 - soft Dice of each image.

    One pixel is added above and below the line: an empty mask answered by an empty one is right.
    """
    inside = torch.sigmoid(logits)
    shared = (inside * wanted).sum(dim=(1, 2, 3))
    total = inside.sum(dim=(1, 2, 3)) + wanted.sum(dim=(1, 2, 3))
    dice = (2.0 * shared + 1.0) / (total + 1.0)
    return functional.binary_cross_entropy_with_logits(logits, wanted) + (1.0 - dice).mean()


class _UNet(nn.Module):
    """Two reductions down, two enlargements up, with skips (Ronneberger et al. 2015)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        before = (channels, *_WIDTHS[:-1])
        self.down = nn.ModuleList(_block(b, w) for b, w in zip(before, _WIDTHS, strict=True))
        pairs = list(pairwise(_WIDTHS))[::-1]
        self.up = nn.ModuleList(_block(fine + coarse, fine) for fine, coarse in pairs)
        self.head = nn.Conv2d(_WIDTHS[0], 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # [0, 1] to about [-2, 2]: public constants, no statistics of anybody's images.
        x = (images - 0.5) / 0.25
        skips: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else functional.max_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            wide = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([skip, wide], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits


def _block(before: int, width: int) -> nn.Module:
    """Two convolutions. GroupNorm: batches are small, and synthetic and real ones differ."""
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
