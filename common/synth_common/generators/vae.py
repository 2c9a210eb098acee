"""Class-conditional variational autoencoder (Kingma & Welling 2014; Sohn et al. 2015).

Encoder and decoder both meet patients, so both are trained by DP-SGD. Samples come from
an exponential moving average of the decoder, which is post-processing.

The prior is a standard normal, or (``prior = "learned"``) one Gaussian per class whose means
and variances are weights of the private network like all others. What the latents of the
patients look like as a whole is thereby learned within the steps that are paid for anyway; a
separate release of the aggregated posterior would need a clip, a noise and a charge of its
own, and describe only the encoder of the last round.
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
_WIDEST = 4.0
"""Most that a learned prior's log variance is from 0, so that noise cannot make it explode."""


class Prior(nn.Module):
    """A Gaussian with diagonal covariance per class; a standard normal to begin with.

    The table is a linear layer on the one-hot label, so that it has a per-example rule.
    """

    def __init__(self, plan: GeneratorPlan) -> None:
        super().__init__()
        self.table = nn.Linear(len(plan.classes), 2 * plan.latent_dim, bias=False)
        nn.init.zeros_(self.table.weight)

    def forward(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot labels (B, classes) to mean and log variance, (B, latent) each."""
        mean, log_variance = self.table(label).chunk(2, dim=1)
        return mean, log_variance.clamp(-_WIDEST, _WIDEST)


class _Autoencoder(nn.Module):
    """The private network: image -> (mean, log variance) -> logits."""

    def __init__(self, plan: GeneratorPlan, channels: int) -> None:
        super().__init__()
        classes = len(plan.classes)
        self.encoder = Encoder(
            channels,
            plan.size,
            plan.width,
            normalise=True,
            dropout=plan.dropout,
            of_site=plan.site_normalisation,
        )
        self.posterior = nn.Linear(self.encoder.features + classes, 2 * plan.latent_dim)
        self.decoder = Decoder(plan, channels, _LABEL_GAIN)
        self.prior = Prior(plan) if plan.prior == "learned" else None

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
        self.average_prior = copy.deepcopy(self.network.prior)
        if self.average_prior is not None:
            self.average_prior.requires_grad_(False)
        self._training = TrainingPlan()
        self._kl_factor = 1.0

    @property
    def private_module(self) -> nn.Module:
        """Encoder, decoder and a learned prior."""
        return self.network

    @property
    def last_layers(self) -> tuple[nn.Module, ...]:
        """The decoder's label shifts, its last two convolutions, and a learned prior."""
        decoder = self.network.decoder
        before = decoder.convolutions[-1] if len(decoder.convolutions) else decoder.mixing
        last: tuple[nn.Module, ...] = (decoder.shifts, before, decoder.out)
        return last if self.network.prior is None else (*last, self.network.prior)

    @property
    def averages(self) -> tuple[nn.Module, ...]:
        """The decoder that samples, and a learned prior's average."""
        prior = self.average_prior
        return (self.average,) if prior is None else (self.average, prior)

    def _elbo_terms(
        self, images: Tensor, label: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, reconstruction loss (B,) and KL (B,), in nats per image."""
        mean, log_variance = self.network.encode(images, label)
        latent = mean if noise is None else mean + noise * (0.5 * log_variance).exp()
        logits = self.network.decoder(latent, label)
        loss = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
        return logits, loss.flatten(1).sum(1), self._kl(mean, log_variance, label)

    def _kl(self, mean: Tensor, log_variance: Tensor, label: Tensor) -> Tensor:
        """KL (B,) of the posterior from the prior (Kingma & Welling 2014, appendix B)."""
        if self.network.prior is None:
            terms = mean.square() + log_variance.exp() - 1.0 - log_variance
        else:
            centre, spread = self.network.prior(label)
            distance = ((mean - centre).square() + log_variance.exp()) / spread.exp()
            terms = distance - 1.0 - log_variance + spread
        return 0.5 * terms.sum(1)

    def private_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Negative evidence lower bound (B,) in nats, the KL weighted by the plan's schedule."""
        noise = torch.randn(len(images), self.plan.latent_dim, generator=rng).to(images.device)
        _, loss, kl = self._elbo_terms(images, one_hot(labels, len(self.plan.classes)), noise)
        return loss + self.plan.kl_weight * self._kl_factor * kl

    def begin_round(self, training: TrainingPlan, kept: Mapping[str, Tensor]) -> None:
        """See :class:`Generator`."""
        self._training = training

    def begin_step(self, step: int) -> None:
        """Set the KL weight of the step."""
        self._kl_factor = self.plan.kl_factor(step, self._training.total_steps)

    def public_step(self, step: int, rng: torch.Generator) -> None:
        """Move the averaged decoder, and the averaged prior."""
        update_average(self.average, self.network.decoder, self._training.ema_decay, step)
        if self.average_prior is not None and self.network.prior is not None:
            update_average(self.average_prior, self.network.prior, self._training.ema_decay, step)

    def warm_start(self, decoder: Mapping[str, Tensor], label_gain: float = 1.0) -> None:
        """See :class:`Generator`; the moving average starts there too."""
        self.network.decoder.take(decoder, label_gain)
        self.average.load_state_dict(self.network.decoder.state_dict())

    @torch.no_grad()
    def decode(self, latent: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Generator`; a learned prior places and widens the latents."""
        self.eval()
        device = next(self.parameters()).device
        latent, label = latent.to(device), one_hot(labels.to(device), len(self.plan.classes))
        if self.average_prior is not None:
            centre, spread = self.average_prior(label)
            latent = centre + latent * (0.5 * spread).exp()
        logits: Tensor = self.average(latent, label)
        return logits.sigmoid().cpu()

    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """See :class:`Generator`."""
        return self.decode(normal_per_seed(seeds, self.plan.latent_dim), labels)

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
