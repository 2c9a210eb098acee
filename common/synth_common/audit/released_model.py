"""White-box attacks: what the released weights say of an image. Pure functions of tensors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from synth_common.generators import Generator
from synth_common.generators.canary import CanaryGenerator
from synth_common.generators.embedding import Released
from synth_common.generators.gan import GAN
from synth_common.generators.networks import one_hot
from synth_common.images.imageset import ImageSet
from synth_common.plan import Plan

Array = npt.NDArray[np.float64]

_BATCH = 128


@dataclass(frozen=True)
class ReleasedModel:
    """A generator as it is released, and what is recorded of its training.

    Attributes:
        plan: Under which it was trained.
        generator: With its final weights.
        round: The round that the weights are from.
        epsilon: The largest of the sites' composed epsilons; infinite without noise, None where
            none is recorded.
        origin: Where the weights were read.
        updates: Of each site, what it was sent and what it replied by round, where stored.
        released: The noisy sum that it learnt from, where the run had a release.
    """

    plan: Plan
    generator: Generator
    round: int
    epsilon: float | None
    origin: str
    updates: Mapping[str, list[Update]] = field(default_factory=dict)
    released: Released | None = None


@dataclass(frozen=True)
class Update:
    """A round as a curious server sees it: the state it sent, and the site's reply."""

    round: int
    sent: Mapping[str, torch.Tensor]
    replied: Mapping[str, torch.Tensor]


def model_scores(generator: Generator, images: ImageSet) -> dict[str, Array]:
    """Scores (N,) of every white-box attack that the family allows, higher for members.

    A VAE gives minus its reconstruction error and its evidence lower bound (Hilprecht et al.
    2019, section 5; Hayes et al. 2019), a GAN its discriminator's logit (LOGAN's white box).

    Args:
        generator: With its weights.
        images: Of the generator's size, channels and classes, with masks if it makes them.
    """
    inner = generator.inner if isinstance(generator, CanaryGenerator) else generator
    inner.eval()
    found: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            x, y = batch(images, start, _BATCH)
            told = inner.reconstruct(x, y)
            if told is not None:
                error = (told.images - x).square().flatten(1).mean(1)
                found.setdefault("VAE reconstruction error", []).append(-error)
                elbo = -(told.reconstruction_loss + told.kl)
                found.setdefault("VAE evidence lower bound", []).append(elbo)
            elif isinstance(inner, GAN):
                logits = inner.critic(x, one_hot(y, len(inner.plan.classes)))
                found.setdefault("GAN discriminator", []).append(logits)
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


class _Loss(nn.Module):
    """A generator's private loss as a function of its parameters."""

    def __init__(self, generator: Generator, seed: int) -> None:
        super().__init__()
        self.generator = generator
        self.seed = seed

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Loss (B,) of images and labels, with the same randomness at every call."""
        rng = torch.Generator().manual_seed(self.seed)
        return self.generator.private_loss(x, y, rng)


def update_scores(
    generator: Generator, updates: Sequence[Update], images: ImageSet, seed: int = 0
) -> Array:
    """Inner product (N,) of every update with the record's gradient, summed over rounds.

    ``sum_r <sent_r - replied_r, grad loss(x; sent_r)>``: an update goes against the gradients
    of those it was made from (Nasr, Shokri and Houmansadr 2019, section 3). Taken by forward-mode
    differentiation, so that no gradient of a single record is held.

    Args:
        generator: Of the run's plan; its weights are set to those sent and set back.
        updates: Of one site.
        images: As the generator takes them.
        seed: Of the randomness within the loss.
    """
    before = generator.shared_state()
    total = np.zeros(len(images))
    for update in updates:
        generator.load_shared_state(update.sent)
        generator.eval()
        loss = _Loss(generator, seed)
        trained = {id(p) for p in generator.private_module.parameters()}
        names = {n: p for n, p in loss.named_parameters() if id(p) in trained}
        point = {n: p.detach() for n, p in names.items()}
        way = {n: _moved(update, n.removeprefix("generator."), p) for n, p in point.items()}
        for start in range(0, len(images), _BATCH):
            x, y = batch(images, start, _BATCH)

            def at(
                weights: dict[str, torch.Tensor],
                loss: _Loss = loss,
                x: torch.Tensor = x,
                y: torch.Tensor = y,
            ) -> torch.Tensor:
                value: torch.Tensor = torch.func.functional_call(loss, weights, (x, y))
                return value

            with warnings.catch_warnings():
                # torch's own forward-mode rules are compiled by a function that it deprecates.
                warnings.filterwarnings("ignore", message=".*torch.jit.script.*deprecated")
                slope = torch.func.jvp(at, (point,), (way,))[1]
            total[start : start + len(x)] += slope.double().numpy()
    generator.load_shared_state(before)
    return total


def _moved(update: Update, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """How far a parameter went against the update; 0 for one that does not travel."""
    if name not in update.replied:
        return torch.zeros_like(parameter)
    return (update.sent[name] - update.replied[name]).to(parameter)


def batch(images: ImageSet, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, C and mask, H, W) and labels (B,) as a generator takes them."""
    rows = slice(start, start + size)
    x = torch.from_numpy(images.images[rows])
    if images.masks is not None:
        mask = torch.from_numpy(images.masks[rows].astype(np.float32))[:, None]
        x = torch.cat([x, mask], dim=1)
    return x, torch.from_numpy(images.labels[rows])
