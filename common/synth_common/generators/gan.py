"""Class-conditional GAN whose critic alone meets patients (Bie, Kamath & Zhang 2023).

The critic sees patients' images and is trained by DP-SGD. Fakes come from the generator,
which has seen only the (private) critic: both the critic's loss on fakes and every step
of the generator are post-processing. The number of fakes a step is fixed by the plan, so
that it says nothing of how many patients were drawn. Labels enter the critic by
projection (Miyato & Koyama 2018); the loss is non-saturating (Goodfellow et al. 2014).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth_common.generators.interface import Generator, Health
from synth_common.generators.networks import (
    Decoder,
    Encoder,
    diversity,
    normal_per_seed,
    one_hot,
    update_average,
)
from synth_common.generators.optimiser_state import pack_adam, unpack_adam
from synth_common.plan import GeneratorPlan, TrainingPlan

_LEAST_DIVERSITY = 0.01
_LEAST_GRADIENT = 1e-6
_CRITIC_WINS = 0.99


class _Critic(nn.Module):
    """Image and label to one logit: positive means real."""

    def __init__(self, plan: GeneratorPlan, channels: int) -> None:
        super().__init__()
        self.encoder = Encoder(
            channels, plan.size, plan.width, normalise=False, dropout=plan.dropout
        )
        self.summary = nn.Linear(self.encoder.features, 64)
        self.score = nn.Linear(64, 1)
        self.projection = nn.Linear(len(plan.classes), 64, bias=False)

    def forward(self, images: Tensor, label: Tensor) -> Tensor:
        """(B, C, S, S) and one-hot (B, classes) to (B,)."""
        summary = F.leaky_relu(self.summary(self.encoder(images)), 0.2)
        matched = (summary * self.projection(label)).sum(1) / math.sqrt(summary.shape[1])
        logit: Tensor = self.score(summary).squeeze(1) + matched
        return logit


class GAN(Generator):
    """The GAN behind the generator interface."""

    def __init__(self, plan: GeneratorPlan) -> None:
        super().__init__()
        self.plan = plan
        self.critic = _Critic(plan, self.out_channels)
        self.generator = Decoder(plan, self.out_channels)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.register_buffer("fake_accuracy", torch.zeros(()))
        self.register_buffer("gradient_norm", torch.ones(()))
        self._training = TrainingPlan()
        self._optimiser: torch.optim.Adam | None = None

    @property
    def private_module(self) -> nn.Module:
        """The critic."""
        return self.critic

    def _fakes(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fresh fakes (count, C, S, S) with uniform one-hot labels."""
        classes = len(self.plan.classes)
        device = next(self.parameters()).device
        labels = torch.randint(classes, (count,), generator=rng).to(device)
        latent = torch.randn(count, self.plan.latent_dim, generator=rng).to(device)
        label = one_hot(labels, classes)
        return self.generator(latent, label).sigmoid(), label

    def private_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """softplus(-D(x, y)) of real images (B,)."""
        return F.softplus(-self.critic(images, one_hot(labels, len(self.plan.classes))))

    @property
    def private_rate(self) -> float:
        """A critic that learns faster than this outruns its generator."""
        return 2e-3

    @property
    def private_betas(self) -> tuple[float, float]:
        """Little momentum, as is usual for critics (Radford et al. 2016)."""
        return 0.5, 0.99

    @property
    def public_examples(self) -> int:
        """Fakes per critic step."""
        return self.plan.fakes_per_step

    def public_loss(self, rng: torch.Generator) -> Tensor:
        """softplus(D(G(z), y)) of a fixed number of fakes (F,)."""
        with torch.no_grad():
            fakes, label = self._fakes(self.plan.fakes_per_step, rng)
        logits = self.critic(fakes, label)
        with torch.no_grad():
            self.get_buffer("fake_accuracy").lerp_((logits < 0).float().mean(), 0.1)
        return F.softplus(logits)

    def begin_round(self, training: TrainingPlan, kept: Mapping[str, Tensor]) -> None:
        """Set up the generator's optimiser, with the moments kept from the round before."""
        self._training = training
        self._optimiser = torch.optim.Adam(
            self.generator.parameters(), lr=training.generator_learning_rate, betas=(0.0, 0.99)
        )
        unpack_adam(self._optimiser, kept)

    def kept_state(self) -> dict[str, Tensor]:
        """Moments of the generator's optimiser."""
        return {} if self._optimiser is None else pack_adam(self._optimiser)

    def public_step(self, step: int, rng: torch.Generator) -> None:
        """One generator step after every ``critic_steps`` critic steps, and its average."""
        if self._optimiser is None or (step + 1) % self.plan.critic_steps:
            return
        parameters = list(self.generator.parameters())
        fakes, label = self._fakes(self.plan.fakes_per_step, rng)
        loss = F.softplus(-self.critic(fakes, label)).mean()
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
        self.get_buffer("gradient_norm").lerp_(norm.cpu(), 0.1)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimiser.step()
        update_average(
            self.average, self.generator, self._training.ema_decay, step // self.plan.critic_steps
        )

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """See :class:`Generator`."""
        self.eval()
        device = next(self.parameters()).device
        latent = normal_per_seed(seeds, self.plan.latent_dim).to(device)
        logits: Tensor = self.average(latent, one_hot(labels.to(device), len(self.plan.classes)))
        return logits.sigmoid().cpu()

    def health(self, images: Tensor, labels: Tensor) -> Health:
        """Diversity of samples, the critic's accuracy on fakes, the generator's gradient."""
        signals = {
            "diversity": diversity(images, labels),
            "critic_accuracy_on_fakes": self.get_buffer("fake_accuracy").item(),
            "generator_gradient_norm": self.get_buffer("gradient_norm").item(),
            "largest_weight": max(p.abs().max().item() for p in self.parameters()),
        }
        warnings = []
        if signals["diversity"] < _LEAST_DIVERSITY:
            warnings.append(
                f"mode collapse: samples of one class differ by {signals['diversity']:.4f} "
                f"per pixel (warned below {_LEAST_DIVERSITY})"
            )
        if signals["generator_gradient_norm"] < _LEAST_GRADIENT:
            warnings.append(
                "vanishing gradient: the generator's gradient norm is "
                f"{signals['generator_gradient_norm']:.2e} (warned below {_LEAST_GRADIENT})"
            )
        if signals["critic_accuracy_on_fakes"] > _CRITIC_WINS:
            warnings.append(
                "divergence: the critic tells nearly every fake "
                f"({signals['critic_accuracy_on_fakes']:.1%}), so the generator learns little"
            )
        if not math.isfinite(signals["largest_weight"]):
            warnings.append("divergence: a weight is not a finite number")
        return Health(signals, warnings)
