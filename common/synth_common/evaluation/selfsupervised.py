"""An encoder trained without labels on public or reference images only (SimCLR).

Chen et al. 2020 (arXiv 2002.05709): two random views of an image should lie close, views
of different images far apart. Views differ by crop, brightness, contrast and noise; not by
flips or rotation, because on medical images a mirrored or turned picture is an error that
the distance must see.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from synth_common.evaluation.encoders import Encoder, Images, extract_with, weights_sha256
from synth_common.randomness import derive_seed, numpy_stream, torch_stream

MIN_REFERENCE = 64
"""Fewer reference images than this teach nothing; callers use random convolutions then."""

_FEATURES = 64
_BATCH = 96
_TEMPERATURE = 0.2

_trained: dict[tuple[str, int, int], Encoder] = {}


def selfsupervised_encoder(reference: Images, steps: int, seed: int) -> Encoder:
    """Train a small network on reference images; once per process for equal arguments.

    Args:
        reference: float32, (N, C, H, W) in [0, 1], at least :data:`MIN_REFERENCE` images.
            Public: the encoder keeps traces of them.
        steps: Training steps with batches of 96.
        seed: Root seed of weights and views.
    """
    content = weights_sha256([torch.from_numpy(reference)], "reference")
    key = (content, steps, seed)
    if key not in _trained:
        network = _train(reference, steps, seed)
        name = f"SimCLR, {_FEATURES} features, {steps} steps on {len(reference)} reference images"
        digest = weights_sha256(network.state_dict().values(), "simclr")
        _trained[key] = Encoder(name, digest, lambda images: extract_with(network, images))
    return _trained[key]


class _Backbone(nn.Module):
    """Four strided convolutions and an average; GroupNorm, so that batches do not matter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for width in (16, 32, 64, _FEATURES):
            layers += [
                nn.Conv2d(before, width, 3, stride=2, padding=1),
                nn.GroupNorm(8, width),
                nn.ReLU(),
            ]
            before = width
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, 64)."""
        features: Tensor = self.layers((images - 0.5) / 0.25)
        return features.mean(dim=(2, 3))


def _train(reference: Images, steps: int, seed: int) -> _Backbone:
    """Minimise the contrastive loss over random batches of the reference images."""
    picks = numpy_stream(seed, "simclr", "batches")
    views = torch_stream(seed, "simclr", "views")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "simclr", "weights"))
        network = _Backbone(reference.shape[1])
        head = nn.Sequential(nn.Linear(_FEATURES, _FEATURES), nn.ReLU(), nn.Linear(_FEATURES, 32))
    parameters = [*network.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = picks.choice(len(reference), min(_BATCH, len(reference)), replace=False)
        batch = torch.from_numpy(reference[chosen])
        both = torch.cat([_view(batch, views), _view(batch, views)])
        loss = contrastive_loss(head(network(both)))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return network


def contrastive_loss(projections: Tensor) -> Tensor:
    """NT-Xent (SimCLR, equation 1): rows i and i + B of (2B, D) are views of one image."""
    unit = functional.normalize(projections, dim=1)
    similarity = unit @ unit.T / _TEMPERATURE
    similarity.fill_diagonal_(-torch.inf)
    n = len(projections)
    partner = torch.arange(n).roll(n // 2)
    return functional.cross_entropy(similarity, partner)


def _view(images: Tensor, rng: torch.Generator) -> Tensor:
    """A random crop of 60 to 100 % of the side, with jittered brightness, contrast, noise."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=rng) * (high - low) + low

    scale = uniform(0.6, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, 0, 2] = uniform(-1, 1) * (1 - scale)
    theta[:, 1, 2] = uniform(-1, 1) * (1 - scale)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    view = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, shift = uniform(0.7, 1.3).view(n, 1, 1, 1), uniform(-0.15, 0.15).view(n, 1, 1, 1)
    noise = torch.randn(view.shape, generator=rng) * uniform(0.0, 0.04).view(n, 1, 1, 1)
    return ((view - 0.5) * gain + 0.5 + shift + noise).clamp(0.0, 1.0)


def usable_reference(reference: Images, channels: int) -> bool:
    """True when there are enough reference images with the given number of channels."""
    return len(reference) >= MIN_REFERENCE and reference.shape[1] == channels
