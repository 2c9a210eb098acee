"""Class-conditional GAN whose critic alone meets patients (Bie, Kamath & Zhang 2023).

The critic sees patients' images and is trained by DP-SGD. Fakes come from the generator,
which has seen only the (private) critic: both the critic's loss on fakes and every step
of the generator are post-processing. The number of fakes a step is fixed by the plan, so
that it says nothing of how many patients were drawn. The loss is non-saturating
(Goodfellow et al. 2014).

Where the generator is trained is ``TrainingPlan.generator_training``: between the critic
steps of every site, or at the coordinator, after each round, against the averaged critic.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth_common.generators.critic import Critic, CriticPace, constrain
from synth_common.generators.interface import Generator, Health
from synth_common.generators.networks import (
    Decoder,
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


class GAN(Generator):
    """The GAN behind the generator interface."""

    def __init__(self, plan: GeneratorPlan) -> None:
        super().__init__()
        self.plan = plan
        self.critic = Critic(plan, self.out_channels)
        constrain(self.critic, plan)
        self.generator = Decoder(plan, self.out_channels)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.pace = CriticPace(plan)
        self.register_buffer("gradient_norm", torch.ones(()))
        self.register_buffer("generator_steps", torch.zeros(()))
        self._training = TrainingPlan()
        self._optimiser: torch.optim.Adam | None = None

    @property
    def private_module(self) -> nn.Module:
        """The critic."""
        return self.critic

    @property
    def last_layers(self) -> tuple[nn.Module, ...]:
        """The critic's linear layers; its convolutions are what public images taught."""
        return self.critic.summary, self.critic.score, self.critic.projection

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
        self.pace.saw(logits.detach())
        return F.softplus(logits)

    def begin_round(self, training: TrainingPlan, kept: Mapping[str, Tensor]) -> None:
        """Set up the generator's optimiser, with the moments kept from the round before."""
        self._training = training
        self._optimiser = None
        if training.generator_training == "site":
            self._optimiser = self._adam()
            unpack_adam(self._optimiser, kept)

    def _adam(self) -> torch.optim.Adam:
        """A fresh optimiser of the generator."""
        return torch.optim.Adam(
            self.generator.parameters(),
            lr=self._training.generator_learning_rate,
            betas=(0.0, 0.99),
        )

    def kept_state(self) -> dict[str, Tensor]:
        """Moments of the generator's optimiser."""
        return {} if self._optimiser is None else pack_adam(self._optimiser)

    def public_step(self, step: int, rng: torch.Generator) -> None:
        """Hold the critic's bound; at the sites, step the generator when its turn comes."""
        constrain(self.critic, self.plan)
        if self._optimiser is not None and self.pace.due():
            self._generator_step(self._optimiser, rng)

    def refine(self, training: TrainingPlan, seed: int) -> None:
        """Train the generator at the coordinator, as post-processing of the averaged critic.

        As many steps as a site would have taken in the round. The optimiser starts afresh, so
        that a round depends on the averaged tensors and ``seed`` alone; without momentum, all
        that it forgets is a scale.
        """
        if training.generator_training != "server":
            return
        self._training = training
        optimiser = self._adam()
        self.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # dropout's
            rng = torch.Generator().manual_seed(seed)
            for _ in range(max(1, training.steps_per_round // self.pace.critic_steps)):
                self._generator_step(optimiser, rng)

    def _generator_step(self, optimiser: torch.optim.Adam, rng: torch.Generator) -> None:
        """One step towards what the critic takes for real, and the moving average."""
        parameters = list(self.generator.parameters())
        fakes, label = self._fakes(self.plan.fakes_per_step, rng)
        loss = F.softplus(-self.critic(fakes, label)).mean()
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
        self.get_buffer("gradient_norm").lerp_(norm.to(self.get_buffer("gradient_norm")), 0.1)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        taken = self.get_buffer("generator_steps")
        update_average(self.average, self.generator, self._training.ema_decay, int(taken.item()))
        taken.add_(1.0)

    def warm_start(self, decoder: Mapping[str, Tensor], label_gain: float = 1.0) -> None:
        """See :class:`Generator`; the moving average starts there too."""
        self.generator.take(decoder, label_gain)
        self.average.load_state_dict(self.generator.state_dict())

    @torch.no_grad()
    def decode(self, latent: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Generator`."""
        self.eval()
        device = next(self.parameters()).device
        label = one_hot(labels.to(device), len(self.plan.classes))
        logits: Tensor = self.average(latent.to(device), label)
        return logits.sigmoid().cpu()

    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """See :class:`Generator`."""
        return self.decode(normal_per_seed(seeds, self.plan.latent_dim), labels)

    def health(self, images: Tensor, labels: Tensor) -> Health:
        """Diversity of samples, the critic's accuracy on fakes, the generator's gradient."""
        signals = {
            "diversity": diversity(images, labels),
            "critic_accuracy_on_fakes": self.pace.accuracy.item(),
            "critic_steps": float(self.pace.critic_steps),
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
        if self._critic_is_exhausted():
            warnings.append(
                "divergence: the critic does not keep up: at the most critic steps per generator "
                f"step ({self.plan.critic_steps_max}) it still tells only "
                f"{signals['critic_accuracy_on_fakes']:.1%} of fakes"
            )
        if not math.isfinite(signals["largest_weight"]):
            warnings.append("divergence: a weight is not a finite number")
        return Health(signals, warnings)

    def _critic_is_exhausted(self) -> bool:
        """Whether more critic steps are wanted than the plan allows."""
        most = self.pace.critic_steps >= max(self.plan.critic_steps_max, self.plan.critic_steps)
        waiting = self.pace.grace.item() >= 0.5
        return most and not waiting and self.pace.accuracy.item() < self.plan.critic_floor
