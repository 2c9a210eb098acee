"""Class-conditional variational autoencoder (Kingma & Welling 2014; Sohn et al. 2015).

Encoder and decoder both meet patients, so both are trained by DP-SGD. Samples come from
an exponential moving average of the decoder, which is post-processing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth_common.generators.interface import Generator, Health, Reconstruction
from synth_common.generators.networks import (
    Decoder,
    Encoder,
    diversity,
    normal_per_seed,
    one_hot,
    update_average,
)
from synth_common.plan import GeneratorPlan, TrainingPlan

_LEAST_DIVERSITY = 0.01
_SATURATED = 0.999
_LABEL_GAIN = 4.0


class _Autoencoder(nn.Module):
    """The private network: image -> (mean, log variance) -> logits."""

    def __init__(self, plan: GeneratorPlan, channels: int) -> None:
        super().__init__()
        classes = len(plan.classes)
        self.encoder = Encoder(
            channels, plan.size, plan.width, normalise=True, dropout=plan.dropout
        )
        self.posterior = nn.Linear(self.encoder.features + classes, 2 * plan.latent_dim)
        self.decoder = Decoder(plan, channels, _LABEL_GAIN)

    def encode(self, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, latent) each."""
        features = torch.cat([self.encoder(images), label], dim=1)
        mean, log_variance = self.posterior(features).chunk(2, dim=1)
        return mean, log_variance.clamp(-8.0, 8.0)


class VAE(Generator):
    """The VAE behind the generator interface."""

    def __init__(self, plan: GeneratorPlan) -> None:
        super().__init__()
        self.plan = plan
        self.network = _Autoencoder(plan, self.out_channels)
        self.average = copy.deepcopy(self.network.decoder).requires_grad_(False)
        self._decay = 0.0

    @property
    def private_module(self) -> nn.Module:
        """Encoder and decoder."""
        return self.network

    def _elbo_terms(
        self, images: Tensor, label: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, reconstruction loss (B,) and KL (B,), in nats per image."""
        mean, log_variance = self.network.encode(images, label)
        latent = mean if noise is None else mean + noise * (0.5 * log_variance).exp()
        logits = self.network.decoder(latent, label)
        loss = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
        return logits, loss.flatten(1).sum(1), kl.sum(1)

    def private_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Negative evidence lower bound (B,) in nats, the KL weighted by ``plan.kl_weight``."""
        noise = torch.randn(len(images), self.plan.latent_dim, generator=rng).to(images.device)
        _, loss, kl = self._elbo_terms(images, one_hot(labels, len(self.plan.classes)), noise)
        return loss + self.plan.kl_weight * kl

    def begin_round(self, training: TrainingPlan, kept: Mapping[str, Tensor]) -> None:
        """See :class:`Generator`."""
        self._decay = training.ema_decay

    def public_step(self, step: int, rng: torch.Generator) -> None:
        """Move the averaged decoder."""
        update_average(self.average, self.network.decoder, self._decay, step)

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """See :class:`Generator`."""
        self.eval()
        device = next(self.parameters()).device
        latent = normal_per_seed(seeds, self.plan.latent_dim).to(device)
        logits: Tensor = self.average(latent, one_hot(labels.to(device), len(self.plan.classes)))
        return logits.sigmoid().cpu()

    @torch.no_grad()
    def reconstruct(self, images: Tensor, labels: Tensor) -> Reconstruction:
        """Reconstructions from the posterior mean by the trained (not averaged) decoder."""
        self.eval()
        device = next(self.parameters()).device
        label = one_hot(labels.to(device), len(self.plan.classes))
        logits, loss, kl = self._elbo_terms(images.to(device), label, None)
        return Reconstruction(logits.sigmoid().cpu(), loss.cpu(), kl.cpu())

    def health(self, images: Tensor, labels: Tensor) -> Health:
        """Diversity within a class and saturation of samples; finiteness of weights."""
        spread = diversity(images, labels)
        saturated = ((images < 1 - _SATURATED) | (images > _SATURATED)).float().mean().item()
        largest = max(p.abs().max().item() for p in self.parameters())
        warnings = []
        if spread < _LEAST_DIVERSITY:
            warnings.append(
                f"mode collapse: samples of one class differ by {spread:.4f} per pixel "
                f"(warned below {_LEAST_DIVERSITY}); posterior collapse is the usual cause"
            )
        if not math.isfinite(largest):
            warnings.append("divergence: a weight is not a finite number")
        signals = {"diversity": spread, "saturation": saturated, "largest_weight": largest}
        return Health(signals, warnings)
