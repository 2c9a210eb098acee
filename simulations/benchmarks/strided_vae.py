"""The VAE that tutorials show: strided convolutions down, upsampling and convolutions up.

A baseline for the speed of DP-SGD, with the same loss, latent size, normalisation and
(nearly) the same number of parameters as Synthward's.
"""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth_common.generators.networks import one_hot
from synth_common.generators.vae import VAE
from synth_common.images.phantom import draw
from synth_common.plan import GeneratorPlan


class StridedVAE(nn.Module):
    """Three levels of 3x3 convolutions, each halving (doubling) the resolution.

    Args:
        plan: Size, classes, channels and latent size.
        width: Channels of the finest level; doubles with each coarser one.
    """

    def __init__(self, plan: GeneratorPlan, width: int) -> None:
        super().__init__()
        self.plan = plan
        classes, self.side, self.top = len(plan.classes), plan.size // 8, 4 * width
        levels = [plan.channels, width, 2 * width, 4 * width]
        pairs = list(pairwise(levels))
        self.down = nn.ModuleList([nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairs])
        flat = self.top * self.side**2
        self.posterior = nn.Linear(flat + classes, 2 * plan.latent_dim)
        self.stem = nn.Linear(plan.latent_dim + classes, flat)
        up = [(4 * width, 2 * width), (2 * width, width), (width, width)]
        self.up = nn.ModuleList([nn.Conv2d(i, o, 3, padding=1) for i, o in up])
        self.out = nn.Conv2d(width, plan.channels, 3, padding=1)

    def terms(self, images: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction loss and KL (B,) each, in nats per image."""
        label, x = one_hot(labels, len(self.plan.classes)), images * 2.0 - 1.0
        for convolution in self.down:
            x = F.leaky_relu(F.group_norm(convolution(x), 4), 0.2)
        mean, log_variance = self.posterior(torch.cat([x.flatten(1), label], 1)).chunk(2, 1)
        log_variance = log_variance.clamp(-8.0, 8.0)
        latent = mean + noise * (0.5 * log_variance).exp()
        x = self.stem(torch.cat([latent, label], 1)).view(-1, self.top, self.side, self.side)
        for convolution in self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = F.leaky_relu(F.group_norm(convolution(x), 4), 0.2)
        loss = F.binary_cross_entropy_with_logits(self.out(x), images, reduction="none")
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
        return loss.flatten(1).sum(1), kl.sum(1)

    def private_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Negative evidence lower bound (B,) in nats."""
        noise = torch.randn(len(images), self.plan.latent_dim, generator=rng)
        loss, kl = self.terms(images, labels, noise)
        return loss + self.plan.kl_weight * kl

    @property
    def private_module(self) -> nn.Module:
        """All of it."""
        return self


def strided_vae(plan: GeneratorPlan, parameters: int) -> StridedVAE:
    """The strided VAE whose parameter count is nearest to ``parameters``."""
    torch.manual_seed(0)
    candidates = [StridedVAE(plan, width) for width in range(8, 129, 4)]

    def distance(network: StridedVAE) -> int:
        return abs(sum(p.numel() for p in network.parameters()) - parameters)

    return min(candidates, key=distance)


def _phantoms(count: int, size: int, first: int) -> tuple[Tensor, Tensor]:
    """Phantom radiographs (count, 1, size, size), every other one with a lesion."""
    drawn = [draw("radiograph", bool(i % 2), first + i, size)[0] for i in range(count)]
    return torch.from_numpy(np.stack(drawn)[:, None]), torch.arange(count) % 2


def compare_quality(steps: int) -> str:
    """Held-out losses of both VAEs after as many steps without DP, as a table."""
    lines = [
        f"\nheld-out nats per image after {steps} steps without DP (batch 128, Adam 1e-3)\n",
        "| network | size | negative ELBO | reconstruction | seconds |",
        "|---|---|---|---|---|",
    ]
    for size in (32, 64):
        plan = GeneratorPlan(size=size)
        torch.manual_seed(0)
        train, held_out = _phantoms(1024, size, 0), _phantoms(512, size, 10_000)
        ours = VAE(plan)
        count = sum(p.numel() for p in ours.private_module.parameters())
        both: list[tuple[str, VAE | StridedVAE]] = [("ours", ours)]
        both.append(("strided", strided_vae(plan, count)))
        for name, trained in both:
            began = time.perf_counter()
            _train(trained, train, steps)
            seconds = time.perf_counter() - began
            total, reconstruction = _held_out(trained, held_out)
            lines.append(
                f"| {name} | {size} px | {total:.1f} | {reconstruction:.1f} | {seconds:.0f} |"
            )
    return "\n".join(lines)


def _train(trained: VAE | StridedVAE, data: tuple[Tensor, Tensor], steps: int) -> None:
    """Ordinary training."""
    rng = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(trained.private_module.parameters(), lr=1e-3)
    for _ in range(steps):
        chosen = torch.randint(len(data[0]), (128,), generator=rng)
        optimiser.zero_grad(set_to_none=True)
        trained.private_loss(data[0][chosen], data[1][chosen], rng).mean().backward()
        optimiser.step()


@torch.no_grad()
def _held_out(trained: VAE | StridedVAE, data: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Mean negative ELBO, and mean loss of reconstructions from the posterior mean."""
    total = trained.private_loss(*data, torch.Generator().manual_seed(0)).mean().item()
    if isinstance(trained, VAE):
        return total, trained.reconstruct(*data).reconstruction_loss.mean().item()
    zero = torch.zeros(len(data[0]), trained.plan.latent_dim)
    return total, trained.terms(*data, zero)[0].mean().item()
