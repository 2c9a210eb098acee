"""The interface every family of generators joins.

A generator is split by who meets patients. ``private_module`` is the only network whose
parameters are trained on patients, by DP-SGD, through ``private_loss``; everything in
``public_step`` and sampling is post-processing of what DP-SGD already released, and is
free. A family knows no patient ids, no ledger and no network protocol: tensors in,
tensors out.

Image tensors are float32 (B, C, H, W) in [0, 1]; with ``plan.with_mask`` the mask is the
last channel, with values {0, 1} in training and probabilities out of ``sample``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synth_common.errors import CheckpointError
from synth_common.generators.embedding import Released
from synth_common.generators.networks import SiteNormalisation, require_fit
from synth_common.plan import GeneratorPlan, TrainingPlan


@dataclass(frozen=True)
class Reconstruction:
    """What a family that can encode says of given images.

    Attributes:
        images: (B, C, H, W) reconstructions in [0, 1].
        reconstruction_loss: (B,) nats per image.
        kl: (B,) nats per image.
    """

    images: Tensor
    reconstruction_loss: Tensor
    kl: Tensor


@dataclass(frozen=True)
class Health:
    """Signals of one round that cost no privacy, and what they warn of.

    Attributes:
        signals: Named numbers computed from released weights and synthetic images only.
        warnings: One plain sentence per threshold crossed.
    """

    signals: Mapping[str, float]
    warnings: Sequence[str]


class Generator(nn.Module, ABC):
    """A class-conditional image generator.

    Attributes:
        plan: What it makes (size, channels, classes, mask) and its architecture.
    """

    plan: GeneratorPlan

    @property
    def out_channels(self) -> int:
        """Image channels plus one for the mask, if it is born with the image."""
        return self.plan.channels + int(self.plan.with_mask)

    @property
    @abstractmethod
    def private_module(self) -> nn.Module:
        """The network that DP-SGD trains. No other parameter may meet a patient."""

    @property
    def last_layers(self) -> tuple[nn.Module, ...]:
        """The layers of ``private_module`` nearest its output, tuned when the plan says "last"."""
        return ()

    @property
    def averages(self) -> tuple[nn.Module, ...]:
        """Modules that average a part of ``private_module`` and have its structure."""
        return ()

    @property
    def private_rate(self) -> float:
        """Learning rate of the private steps where the plan names none."""
        return 3e-3

    @property
    def private_betas(self) -> tuple[float, float]:
        """Adam's decay rates for the private steps."""
        return 0.9, 0.999

    @abstractmethod
    def private_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Per-example loss (B,) of real images (B, C, H, W) and labels (B,).

        Example i's loss depends on example i, the parameters and ``rng`` alone: no batch
        statistics. The loss reaches parameters of ``private_module`` only.
        """

    @property
    def public_examples(self) -> int:
        """How many public examples join each private step; fixed by the plan, 0 for none."""
        return 0

    def public_loss(self, rng: torch.Generator) -> Tensor:
        """Per-example loss (public_examples,) of ``private_module`` on public values.

        For families such as a GAN, whose critic also learns from fakes. Each of these
        gradients is clipped like a patient's, apart from the patients, and their mean
        joins the step AFTER the noise.
        """
        raise NotImplementedError(f"{type(self).__name__} has no public loss")

    def public_step(self, step: int, rng: torch.Generator) -> None:
        """Post-processing after private step ``step`` (0-based): EMA, a GAN's generator."""

    def begin_round(self, training: TrainingPlan, kept: Mapping[str, Tensor]) -> None:
        """Prepare ``public_step`` for a round.

        ``kept`` is what :meth:`kept_state` returned at this site after the round before;
        empty in the first.
        """

    def begin_step(self, step: int) -> None:
        """Set what depends on private step ``step`` (0-based, of the whole run): schedules."""

    def kept_state(self) -> dict[str, Tensor]:
        """What stays at the site between rounds (moments of a public optimiser)."""
        return {}

    def refine(self, training: TrainingPlan, seed: int) -> None:
        """Post-processing at the coordinator, once after each round, on the averaged tensors.

        Sees nothing but what the sites released. ``seed`` decides all of its randomness, so
        that a resumed run is the same run. Default: nothing.
        """

    def warm_start(self, decoder: Mapping[str, Tensor], label_gain: float = 1.0) -> None:
        """Start from a decoder trained elsewhere, on released values only.

        Args:
            decoder: ``state_dict`` of a :class:`~synth_common.generators.networks.Decoder` of
                the same plan and channels.
            label_gain: The gain that decoder was built with. A family with another gain
                rescales the label's weights, so that the same images come out.

        Raises:
            CheckpointError: A tensor is missing, unknown, of another shape or type or not
                finite, or the family has no such decoder.
        """
        raise CheckpointError(f"a {type(self).__name__} has no decoder to start from")

    def decode(self, latent: Tensor, labels: Tensor) -> Tensor | None:
        """Images (N, out_channels, H, W) in [0, 1] of standard normal latents (N, latent_dim).

        None by a family that has no latent space; :meth:`sample` is this at seeded latents.
        """
        return None

    @property
    def learns_from_release(self) -> bool:
        """Whether the family can learn from a release (:meth:`learn_release`)."""
        return type(self).learn_release is not Generator.learn_release

    def learn_release(self, released: Released, seed: int, tell: Callable[[str], None]) -> None:
        """Learn from the noisy sum of a release; post-processing, which costs no privacy.

        Args:
            released: The sum over all patients of all sites, with noise.
            seed: Seeds everything random.
            tell: Progress, a line at a time.

        Raises:
            NotImplementedError: The family learns from images only.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot learn from a release")

    @abstractmethod
    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images (N, out_channels, H, W) in [0, 1], one per label (N,) and seed.

        Image i depends on ``labels[i]``, ``seeds[i]`` and the weights alone, never on
        the rest of the batch.
        """

    def reconstruct(self, images: Tensor, labels: Tensor) -> Reconstruction | None:
        """Reconstructions by a family that has an encoder; None for one that has not."""
        return None

    @abstractmethod
    def health(self, images: Tensor, labels: Tensor) -> Health:
        """Judge fresh samples (N, out_channels, H, W) and the weights; touches no patient."""

    def _of_site(self) -> set[str]:
        """Names of the parameters that stay at the site."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, SiteNormalisation)
            for name, _ in module.named_parameters()
        }

    def site_state(self) -> dict[str, Tensor]:
        """The site's own normalisation by name, on the CPU: outputs of DP-SGD that stay there."""
        names, own = self._of_site(), self.state_dict()
        return {name: own[name].detach().cpu().clone() for name in sorted(names)}

    def load_site_state(self, kept: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`site_state` returned here before; nothing leaves identities."""
        self.load_state_dict({k: kept[k] for k in self._of_site() & kept.keys()}, strict=False)

    def shared_state(self) -> dict[str, Tensor]:
        """The tensors that travel between server and sites, by name, on the CPU, detached.

        All of them are public or outputs of DP-SGD: every parameter and buffer but for the
        site's own normalisation.
        """
        stay = self._of_site()
        own = self.state_dict().items()
        return {k: v.detach().cpu().clone() for k, v in own if k not in stay}

    def load_shared_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over travelled tensors.

        Raises:
            CheckpointError: A tensor is missing, unknown or of another shape or type.
        """
        stay = self._of_site()
        require_fit(state, {k: v for k, v in self.state_dict().items() if k not in stay})
        self.load_state_dict(dict(state), strict=False)
