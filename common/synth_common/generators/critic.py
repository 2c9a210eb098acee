"""A GAN's critic, the bounds on its weights, and how often it steps for one of the generator.

The bounds are projections of the weights after each step, not a reparametrisation: what
DP-SGD clips and adds noise to stays the gradient of the real parameters, per example, and
a projection of released weights is post-processing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth_common.generators.networks import Encoder
from synth_common.plan import GeneratorPlan

_MEMORY = 0.9
_GRACE = 20
"""Critic steps after which the running accuracy has forgotten: 2 / (1 - memory)."""


class Critic(nn.Module):
    """Image and label to one logit: positive means real.

    Labels enter by projection (Miyato & Koyama 2018, equation 3).
    """

    def __init__(self, plan: GeneratorPlan, channels: int) -> None:
        super().__init__()
        self.encoder = Encoder(
            channels,
            plan.size,
            plan.width,
            normalise=False,
            dropout=plan.dropout,
            of_site=plan.site_normalisation,
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


@torch.no_grad()
def constrain(critic: nn.Module, plan: GeneratorPlan) -> None:
    """Bring the critic's weights back within ``plan.critic_bound``, in place.

    ``spectral`` divides every weight matrix (a convolution's as (out, in * k * k), Miyato et
    al. 2018) by what its largest singular value exceeds the bound; ``clip`` cuts every
    parameter off at the bound (Arjovsky et al. 2017); ``none`` does nothing. Frozen
    parameters stay as they are, and an adapter's two matrices are bounded apart.
    """
    if plan.critic_constraint == "none":
        return
    for parameter in critic.parameters():
        if not parameter.requires_grad:  # frozen: it stays the public weight
            continue
        if plan.critic_constraint == "clip":
            parameter.clamp_(-plan.critic_bound, plan.critic_bound)
        elif parameter.dim() > 1:
            parameter.mul_(min(1.0, plan.critic_bound / max(spectral_norm(parameter), 1e-12)))


def spectral_norm(weight: Tensor) -> float:
    """Largest singular value of a weight as a matrix (out, rest); NaN where it is not finite.

    Taken from the eigenvalues of the smaller Gram matrix in float64, which are exact and the
    same at every call; a power iteration would only approach them from below.
    """
    matrix = weight.detach().flatten(1).to(torch.float64)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.mT
    gram = (matrix @ matrix.mT).cpu()
    if not bool(torch.isfinite(gram).all()):
        return math.nan
    return math.sqrt(max(0.0, torch.linalg.eigvalsh(gram)[-1].item()))


class CriticPace(nn.Module):
    """How many critic steps one generator step waits for (Bie, Kamath & Zhang 2023, section 4).

    The number starts at ``plan.critic_steps`` and doubles, up to ``plan.critic_steps_max``,
    whenever the running accuracy of the critic on FAKES is below ``plan.critic_floor``: a
    critic that no longer tells fakes has fallen behind its generator. After a rise, and at the
    start, the accuracy gets some steps to follow. Real images are never looked at, so the
    pace is post-processing. All of it is in buffers that travel with the weights.
    """

    accuracy: Tensor
    steps: Tensor
    waited: Tensor
    grace: Tensor

    def __init__(self, plan: GeneratorPlan) -> None:
        super().__init__()
        self._plan = plan
        self.register_buffer("accuracy", torch.zeros(()))
        self.register_buffer("steps", torch.tensor(float(plan.critic_steps)))
        self.register_buffer("waited", torch.zeros(()))
        self.register_buffer("grace", torch.tensor(float(_GRACE)))

    @torch.no_grad()
    def saw(self, fake_logits: Tensor) -> None:
        """Note the critic's logits (F,) of the fakes of one critic step."""
        told = (fake_logits < 0).float().mean().to(self.accuracy.device)
        self.accuracy.lerp_(told, 1.0 - _MEMORY)
        self.grace.sub_(1.0).clamp_(min=0.0)
        if self.grace.item() < 0.5 and self.accuracy.item() < self._plan.critic_floor:
            raised = min(2.0 * self.steps.item(), float(self._plan.critic_steps_max))
            self.steps.fill_(max(raised, self.steps.item()))
            self.grace.fill_(float(_GRACE))

    @property
    def critic_steps(self) -> int:
        """Critic steps per generator step, as of now; sites that disagree are averaged."""
        return max(1, round(self.steps.item()))

    @torch.no_grad()
    def due(self) -> bool:
        """Count one critic step; whether the generator's turn has come."""
        self.waited.add_(1.0)
        if round(self.waited.item()) < self.critic_steps:
            return False
        self.waited.zero_()
        return True
