"""A generator that carries canaries, so that the claimed epsilon can be put to the test.

Beside the family's own network the private module holds one weight per canary, which no
real patient can reach. A canary's gradient is a multiple of one unit vector (a *Dirac
canary*, Nasr et al. 2023, arXiv 2302.07956) and longer than any clip norm in use, so the
real clip makes it exactly C long: the worst patient that the guarantee speaks of. All that
is audited (draw, clip, noise, ledger, messages, average) is the code of every other run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from synth_common.generators.embedding import Released
from synth_common.generators.interface import Generator, Health, Reconstruction
from synth_common.generators.networks import one_hot
from synth_common.plan import TrainingPlan

CANARY_LENGTH = 1e6
"""Length of a canary's gradient before the clip; a clip norm must not exceed it."""
CANARY_WEIGHTS = "canary.weight"
"""Name of the (1, canaries) tensor that travels; canary j's label is classes + j."""
_BLANK = 0.5


class CanaryGenerator(Generator):
    """Any family's generator with ``plan.canaries`` weights more.

    Args:
        inner: The generator that makes the images.
    """

    def __init__(self, inner: Generator) -> None:
        super().__init__()
        self.plan = inner.plan
        self.inner = inner
        self.canary = nn.Linear(inner.plan.canaries, 1, bias=False)
        nn.init.zeros_(self.canary.weight)

    @property
    def private_module(self) -> nn.Module:
        """The inner private network and the canaries' weights."""
        return nn.ModuleList([self.inner.private_module, self.canary])

    def private_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """The inner loss of a patient's row, and ``CANARY_LENGTH * weight[j]`` of canary j's.

        A patient's row puts zeros into the canaries' layer. A canary's row shows the inner
        network a blank picture, whose loss is left out by selection and not by a product,
        so that nothing of it, finite or not, reaches a gradient.
        """
        classes = len(self.plan.classes)
        canary = labels >= classes
        shown = torch.where(canary[:, None, None, None], _BLANK, images)
        loss = self.inner.private_loss(shown, torch.where(canary, 0, labels), rng)
        marks = one_hot((labels - classes).clamp(min=0), self.plan.canaries) * canary[:, None]
        weight = self.canary(marks).squeeze(1)
        return torch.where(canary, CANARY_LENGTH * weight, loss)

    @property
    def private_rate(self) -> float:
        """The inner generator's."""
        return self.inner.private_rate

    @property
    def private_betas(self) -> tuple[float, float]:
        """The inner generator's."""
        return self.inner.private_betas

    @property
    def public_examples(self) -> int:
        """The inner generator's; public examples do not touch the canaries."""
        return self.inner.public_examples

    def public_loss(self, rng: torch.Generator) -> Tensor:
        """See :class:`Generator`."""
        return self.inner.public_loss(rng)

    def public_step(self, step: int, rng: torch.Generator) -> None:
        """See :class:`Generator`."""
        self.inner.public_step(step, rng)

    def begin_round(self, training: TrainingPlan, kept: Mapping[str, Tensor]) -> None:
        """See :class:`Generator`."""
        self.inner.begin_round(training, kept)

    def begin_step(self, step: int) -> None:
        """See :class:`Generator`."""
        self.inner.begin_step(step)

    def kept_state(self) -> dict[str, Tensor]:
        """See :class:`Generator`."""
        return self.inner.kept_state()

    def refine(self, training: TrainingPlan, seed: int) -> None:
        """See :class:`Generator`."""
        self.inner.refine(training, seed)

    def warm_start(self, decoder: Mapping[str, Tensor], label_gain: float = 1.0) -> None:
        """See :class:`Generator`."""
        self.inner.warm_start(decoder, label_gain)

    def decode(self, latent: Tensor, labels: Tensor) -> Tensor | None:
        """See :class:`Generator`."""
        return self.inner.decode(latent, labels)

    @property
    def learns_from_release(self) -> bool:
        """The inner generator's."""
        return self.inner.learns_from_release

    def learn_release(self, released: Released, seed: int, tell: Callable[[str], None]) -> None:
        """See :class:`Generator`."""
        self.inner.learn_release(released, seed, tell)

    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """See :class:`Generator`."""
        return self.inner.sample(labels, seeds)

    def reconstruct(self, images: Tensor, labels: Tensor) -> Reconstruction | None:
        """See :class:`Generator`."""
        return self.inner.reconstruct(images, labels)

    def health(self, images: Tensor, labels: Tensor) -> Health:
        """See :class:`Generator`."""
        return self.inner.health(images, labels)
