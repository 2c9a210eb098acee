"""DP-SGD over patients: the only code that lets a patient's image move a weight.

Per logical step: Poisson draw of patients, at most k images each, the patient's mean
gradient clipped to C, the sum over patients, one Gaussian noise, a public denominator.
A step with nobody drawn still adds noise and still counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from synth_common.generators import Generator
from synth_common.generators.optimiser_state import pack_adam, unpack_adam
from synth_common.images.imageset import ImageSet
from synth_common.plan import TrainingPlan
from synth_common.privacy.augmentation import augmented
from synth_common.privacy.gradients import ClippedSum, PatientGradients, Rows, sum_gradients
from synth_common.privacy.optimiser import PatientOptimiser
from synth_common.privacy.sampling import Draw, PatientSampler, physical_batches
from synth_common.randomness import NoiseSource, derive_seed, secret_generator

_PRIVATE, _PUBLIC, SITE = "private.", "public.", "site."
_ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class Mechanism:
    """The settings that decide what a step costs.

    Attributes:
        noise_multiplier: Sigma; 0 only for the non-private twin.
        sample_rate: Probability of each patient at each step.
        clip_norm: C; ``inf`` only for the non-private twin.
        max_images: At most this many images of one patient in a step.
        denominator: The public constant that the noisy sum is divided by.
    """

    noise_multiplier: float
    sample_rate: float
    clip_norm: float
    max_images: int
    denominator: int


@dataclass(frozen=True)
class Steps:
    """Which of the run's steps to take: ``first`` (0-based) and how many.

    ``seed`` feeds the reproducible randomness of the round's public part (fakes).
    """

    first: int
    count: int
    seed: int


@dataclass(frozen=True)
class LocalResult:
    """What a round leaves behind at the site.

    Attributes:
        mean_loss: Mean private loss per image over the round, or None if nobody was
            drawn. SENSITIVE: never leaves.
        clipped_share: Share of drawn patients whose gradient was clipped. SENSITIVE.
        kept: Optimiser moments for the next round, and the site's own normalisation (names
            under :data:`SITE`); functions of charged noise only, but they have no reason to
            leave.
    """

    mean_loss: float | None
    clipped_share: float | None
    kept: dict[str, Tensor]


def image_tensor(images: ImageSet, with_mask: bool) -> Tensor:
    """Images as (N, C, H, W) float32 in [0, 1], the mask as last channel if asked for."""
    pixels = images.images
    if with_mask and images.masks is not None:
        pixels = np.concatenate([pixels, images.masks[:, None].astype(np.float32)], axis=1)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def pick_device(wanted: str) -> torch.device:
    """The device of a plan: ``auto`` takes a GPU where there is one."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def adam_epsilon(mechanism: Mechanism) -> float:
    """Adam's epsilon, which must be small beside a gradient of C / L, not beside 1.

    With it the step does not depend on the unit of the gradient: a clip of 1e-3 over many
    patients trains like a clip of 1, instead of standing still.
    """
    if not math.isfinite(mechanism.clip_norm):
        return _ADAM_EPSILON
    return _ADAM_EPSILON * mechanism.clip_norm / mechanism.denominator


class PrivateTrainer:
    """Trains one generator on one site's images.

    Args:
        generator: Holds the weights to start from; trained in place.
        data: The site's training images. SENSITIVE.
        mechanism: What each step does and costs.
        training: Rates, schedule, batch sizes.
        noise: Source of the secret draws and of the released noise.
    """

    def __init__(
        self,
        generator: Generator,
        data: ImageSet,
        mechanism: Mechanism,
        training: TrainingPlan,
        noise: NoiseSource,
    ) -> None:
        self._device = pick_device(training.device)
        if self._device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # norms and gradients in one precision
        self._generator = generator.to(self._device).train()
        self._images = image_tensor(data, generator.plan.with_mask)
        self._labels = torch.from_numpy(data.labels)
        self._mechanism, self._training, self._noise = mechanism, training, noise
        self._sampler = PatientSampler(
            data.units(), mechanism.sample_rate, mechanism.max_images, noise
        )
        self._rate = training.learning_rate or generator.private_rate
        self._engine = PatientGradients(generator.private_module)
        adam = torch.optim.AdamW(
            [p for p in generator.private_module.parameters() if p.requires_grad],
            lr=self._rate,
            betas=generator.private_betas,
            eps=adam_epsilon(mechanism),
            weight_decay=training.weight_decay,
        )
        self._optimiser = PatientOptimiser(
            adam,
            noise_multiplier=mechanism.noise_multiplier,
            clip=mechanism.clip_norm,
            denominator=mechanism.denominator,
            noise=noise,
        )

    def run(self, steps: Steps, kept: Mapping[str, Tensor]) -> LocalResult:
        """Take the steps of one round.

        Args:
            steps: Which steps of the run.
            kept: ``LocalResult.kept`` of the round before; empty to start fresh.

        """
        unpack_adam(self._optimiser.original_optimizer, _under(kept, _PRIVATE))
        self._generator.load_site_state(_under(kept, SITE))
        self._generator.begin_round(self._training, _under(kept, _PUBLIC))
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        with torch.random.fork_rng():  # dropout draws on the global generator
            for step in range(steps.first, steps.first + steps.count):
                self._set_rate(step)
                self._generator.begin_step(step)
                clipped = self._private_gradient(self._secret_stream(), losses, norms)
                rng = _public_stream(steps, step)
                self._optimiser.private_step(clipped, self._public_gradient(rng))
                self._generator.public_step(step, rng)
        clip = self._mechanism.clip_norm
        return LocalResult(
            mean_loss=torch.cat(losses).nanmean().item() if losses else None,
            clipped_share=(torch.cat(norms) > clip).float().mean().item() if norms else None,
            kept={
                **_prefixed(pack_adam(self._optimiser.original_optimizer), _PRIVATE),
                **_prefixed(self._generator.kept_state(), _PUBLIC),
                **_prefixed(self._generator.site_state(), SITE),
            },
        )

    def _secret_stream(self) -> torch.Generator:
        """Randomness of the private part of one step (reparameterisation, augmentation, dropout).

        Rows take it in turn, so a patient more shifts what the others get. That is harmless
        as long as nobody else knows the numbers: all of them are drawn alike. So all of its
        state comes from where the noise comes from.
        """
        rng = secret_generator(self._noise)
        torch.default_generator.set_state(rng.get_state())  # dropout's
        if self._device.type == "cuda":
            torch.cuda.manual_seed(int(self._noise.uniform(1)[0] * 2.0**53))
        return rng

    def _private_gradient(
        self, rng: torch.Generator, losses: list[Tensor], norms: list[Tensor]
    ) -> dict[nn.Parameter, Tensor]:
        """Clipped sum of one logical step, from however many physical batches."""
        draws = self._training.draws_per_image
        batches = physical_batches(
            self._sampler.draw(), max(1, self._training.physical_batch // draws)
        )
        parts = []
        for batch in batches:
            part = self._clipped(batch, rng)
            losses.append(part.losses)
            norms.append(part.norms)
            parts.append(part)
        return sum_gradients(parts)

    def _clipped(self, batch: Draw, rng: torch.Generator) -> ClippedSum:
        """Clipped gradient sum of one physical batch, several draws of each image averaged."""
        draws = self._training.draws_per_image
        rows = torch.from_numpy(batch.images).repeat_interleave(draws)
        images = self._images[rows].to(self._device)
        labels = self._labels[rows].to(self._device)
        images = augmented(images, self._training.augment_shift, self._training.augment_flip, rng)
        return self._engine.clipped_sum(
            lambda: self._generator.private_loss(images, labels, rng),
            Rows(tuple(c * draws for c in batch.counts)),
            self._mechanism.clip_norm,
        )

    def _public_gradient(self, rng: torch.Generator) -> dict[nn.Parameter, Tensor]:
        """Mean of the clipped gradients of public examples (a GAN's fakes); may be empty."""
        count = self._generator.public_examples
        if count == 0:
            return {}
        part = self._engine.clipped_sum(
            lambda: self._generator.public_loss(rng), Rows((1,) * count), self._mechanism.clip_norm
        )
        return {parameter: total / count for parameter, total in part.gradients.items()}

    def _set_rate(self, step: int) -> None:
        """Learning rate of a step, by the plan's schedule."""
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * self._training.rate_factor(step)


def _public_stream(steps: Steps, step: int) -> torch.Generator:
    """The reproducible randomness of the public part of one step; also seeds dropout."""
    seed = derive_seed(steps.seed, step, "public")
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same tensors with ``prefix`` before each name."""
    return {prefix + k: v for k, v in tensors.items()}
