"""Building blocks that are safe under DP-SGD and cheap to take per-example gradients of.

Resolution changes by pixel (un)shuffle between stride-1 3x3 convolutions, so that the
convolutions run on small grids, where per-example gradient norms are cheap. There is no
batch normalisation anywhere and group normalisation has no weights of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth_common.errors import CheckpointError
from synth_common.plan import GeneratorPlan

PATCH = 4
"""Pixels along one side of the square that becomes one cell of the finest grid."""


def grids(size: int) -> list[int]:
    """Grid sides from the finest (``size`` / 4) down to one of at most 8 cells.

    >>> grids(64)
    [16, 8]
    """
    sides = [size // PATCH]
    while sides[-1] > 8 and sides[-1] % 2 == 0:
        sides.append(sides[-1] // 2)
    return sides


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B,) class numbers to (B, classes) float32."""
    return F.one_hot(labels, classes).to(torch.float32)


def normal_per_seed(seeds: Sequence[int], width: int) -> Tensor:
    """Standard normal (N, width), row i drawn from seed i alone."""
    rows = [torch.randn(width, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows) if rows else torch.zeros(0, width)


class SiteNormalisation(nn.Module):
    """A scale and a shift per channel that belong to a site and never travel.

    They make up for what a site's scanner does to all of its images (in the spirit of
    FedBN, Li et al. 2021, arXiv 2102.07623, without batch statistics). They are trained like
    every private parameter, inside the clip and under the noise. Depthwise 1x1 convolutions,
    so that per-example gradients have a rule; identities at first.

    Args:
        channels: Channels at each of the places, in the order of use.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.places = nn.ModuleList([nn.Conv2d(c, c, 1, groups=c) for c in channels])
        for parameter in self.parameters():
            nn.init.constant_(parameter, float(parameter.dim() > 1))

    def forward(self, x: Tensor, place: int) -> Tensor:
        """(B, C, H, W) scaled and shifted, by the parameters of ``place``."""
        moved: Tensor = self.places[place](x)
        return moved


class Encoder(nn.Module):
    """Image to a feature vector (B, features).

    Args:
        channels: Input channels (the mask included).
        size: Pixels, a multiple of 4.
        width: Channels on the finest grid; doubles with each coarser one.
        normalise: Group normalisation before each activation (leave off in a critic).
        dropout: Share of features dropped on the coarsest grid.
        of_site: Scale and shift every channel by parameters that stay at the site.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        width: int,
        *,
        normalise: bool,
        dropout: float = 0.0,
        of_site: bool = False,
    ) -> None:
        super().__init__()
        sides = grids(size)
        self.convolutions = nn.ModuleList()
        incoming, outgoing = channels * PATCH**2, width
        for _ in sides:
            self.convolutions.append(nn.Conv2d(incoming, outgoing, 3, padding=1))
            incoming, outgoing = outgoing * 4, outgoing * 2
        self.mixing = nn.Conv2d(outgoing // 2, outgoing // 2, 3, padding=1)
        self.normalise = normalise
        self.dropout = dropout
        self.features = (outgoing // 2) * sides[-1] ** 2
        widths = [width * 2**level for level in range(len(sides))]
        self.of_site = SiteNormalisation([*widths, widths[-1]]) if of_site else None

    def _activate(self, x: Tensor, place: int) -> Tensor:
        if self.normalise:
            x = F.group_norm(x, 8)
        if self.of_site is not None:
            x = self.of_site(x, place)
        return F.leaky_relu(x, 0.2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) to (B, features)."""
        x = F.pixel_unshuffle(images * 2.0 - 1.0, PATCH)
        for level, convolution in enumerate(self.convolutions):
            x = self._activate(convolution(x if level == 0 else F.pixel_unshuffle(x, 2)), level)
        x = self._activate(self.mixing(x), len(self.convolutions))
        return F.dropout(x.flatten(1), self.dropout, self.training)


class Decoder(nn.Module):
    """Latent vector and label to image logits (B, C, S, S).

    The label also shifts every channel of every grid, which keeps classes apart when the
    noise of DP-SGD drowns finer signals. The logits pass a fixed binomial filter, which
    hides the seams between neighbouring cells at no cost in parameters.

    Args:
        plan: Latent, classes, size, width and dropout.
        channels: Output channels (the mask included).
        label_gain: What a label weighs against a latent coordinate. Under the noise of DP-SGD
            a weight that few patients train moves slowly; a larger input makes up for it.
    """

    def __init__(self, plan: GeneratorPlan, channels: int, label_gain: float = 1.0) -> None:
        super().__init__()
        classes, width = len(plan.classes), plan.width
        self.label_gain, self.latent_dim = label_gain, plan.latent_dim
        sides = grids(plan.size)
        top = width * 2 ** (len(sides) - 1)
        self.side, self.top, self.dropout = sides[-1], top, plan.dropout
        self.stem = nn.Linear(plan.latent_dim + classes, top * sides[-1] ** 2)
        self.mixing = nn.Conv2d(top, top, 3, padding=1)
        self.convolutions = nn.ModuleList()
        self.shifts = nn.ModuleList([nn.Linear(classes, top, bias=False)])
        for level in range(len(sides) - 1, 0, -1):
            here, finer = width * 2**level, width * 2 ** (level - 1)
            self.convolutions.append(nn.Conv2d(here, finer * 4, 3, padding=1))
            self.shifts.append(nn.Linear(classes, finer, bias=False))
        self.out = nn.Conv2d(width, channels * PATCH**2, 3, padding=1)

    @torch.no_grad()
    def take(self, state: Mapping[str, Tensor], label_gain: float) -> None:
        """Take over another decoder's weights; ``label_gain`` is the gain it was built with.

        The weights that a label meets are rescaled for the own gain, so that the images of
        the two decoders are the same.

        Raises:
            CheckpointError: A weight is missing, unknown, of another shape or type, or not
                finite; or the gain is not above 0.
        """
        require_fit(state, self.state_dict())
        broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
        if broken:
            raise CheckpointError(f"weight {broken[0]} holds NaN or infinity")
        if not label_gain > 0:
            raise CheckpointError(f"label_gain = {label_gain} must be above 0")
        self.load_state_dict(dict(state))
        scale = label_gain / self.label_gain
        self.stem.weight[:, self.latent_dim :] *= scale
        for weight in self.shifts.parameters():
            weight.mul_(scale)

    def _activate(self, x: Tensor, shift: Tensor) -> Tensor:
        x = F.group_norm(x, 8) + shift[:, :, None, None]
        return F.leaky_relu(x, 0.2)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """(B, latent) and one-hot labels (B, classes) to logits (B, C, S, S)."""
        label = self.label_gain * label
        x = self.stem(torch.cat([latent, label], dim=1))
        x = F.dropout(x, self.dropout, self.training)
        x = x.view(-1, self.top, self.side, self.side)
        x = self._activate(self.mixing(x), self.shifts[0](label))
        for convolution, shift in zip(self.convolutions, self.shifts[1:], strict=True):
            x = self._activate(F.pixel_shuffle(convolution(x), 2), shift(label))
        return _smooth(F.pixel_shuffle(self.out(x), PATCH))


def _smooth(x: Tensor) -> Tensor:
    """Binomial 3x3 filter [1 2 1] / 4 along both axes, borders repeated."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = 0.25 * (x[..., :-2] + x[..., 2:]) + 0.5 * x[..., 1:-1]
    return 0.25 * (x[..., :-2, :] + x[..., 2:, :]) + 0.5 * x[..., 1:-1, :]


def update_average(average: nn.Module, current: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of parameters; it never reaches back over half the run."""
    decay = min(decay, 1.0 - 1.0 / (1.0 + step / 4))
    with torch.no_grad():
        for kept, now in zip(average.parameters(), current.parameters(), strict=True):
            kept.lerp_(now, 1.0 - decay)


def diversity(images: Tensor, labels: Tensor) -> float:
    """Mean distance between samples of one class, root mean square per pixel, in [0, 1]."""
    spreads = []
    for label in set(labels.tolist()):
        group = images[labels == label].flatten(1)
        if len(group) > 1:
            spreads.append(torch.pdist(group).mean().item() / math.sqrt(group.shape[1]))
    return sum(spreads) / len(spreads) if spreads else math.nan


def require_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of ``own`` in name, shape and type.

    Raises:
        CheckpointError: Names the first tensor that does not fit.
    """
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise CheckpointError(f"weights do not fit: missing {missing}, unknown {unknown}")
    for name, value in state.items():
        claim, wanted = (tuple(value.shape), value.dtype), own[name]
        if claim != (tuple(wanted.shape), wanted.dtype):
            raise CheckpointError(
                f"weight {name} has shape and type {claim}, "
                f"expected {(tuple(wanted.shape), wanted.dtype)}"
            )
