"""One noise addition per logical step, on top of Opacus' DP optimiser."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from torch import Tensor, nn

from synth_common.randomness import NoiseSource


class PatientOptimiser(DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Opacus' optimiser fed with ready-made clipped sums and our own noise source.

    The private step is ``(sum of clipped patient gradients + sigma C N(0, I)) / L`` with
    the public constant L (Abadi et al. 2016, algorithm 1, with L in place of the batch
    size, which is secret). Opacus' own scaling would divide by a number of accumulated
    batches, which is secret too, so it is replaced.

    Args:
        optimiser: The optimiser that takes the private step.
        noise_multiplier: Sigma; 0 for the non-private twin.
        clip: The clip norm C.
        denominator: The public constant L.
        noise: Where the noise is drawn.
    """

    def __init__(
        self,
        optimiser: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clip: float,
        denominator: int,
        noise: NoiseSource,
    ) -> None:
        super().__init__(
            optimiser,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=denominator,
        )
        self._noise = noise

    def private_step(
        self, clipped: Mapping[nn.Parameter, Tensor], public: Mapping[nn.Parameter, Tensor]
    ) -> None:
        """Take one step.

        Args:
            clipped: Summed clipped patient gradients of the whole logical step; a
                parameter that is absent (an empty draw) counts as zero and still gets noise.
            public: A gradient of public values that joins after the noise; may be empty.
        """
        self.zero_grad(set_to_none=True)
        for parameter in self.params:
            total = clipped.get(parameter)
            parameter.grad = torch.zeros_like(parameter) if total is None else total
        self.pre_step()
        for parameter, gradient in public.items():
            if parameter.grad is not None:
                parameter.grad = parameter.grad + gradient
        self.original_optimizer.step()

    def accumulate(self) -> None:
        """Take the sums as they come: they are complete, and nothing below changes them."""
        for parameter in self.params:
            parameter.summed_grad = parameter.grad

    def add_noise(self) -> None:
        """Add N(0, (sigma C)^2) to every coordinate, drawn from the noise source."""
        for parameter in self.params:
            total = parameter.summed_grad
            if self.noise_multiplier > 0:
                scale = self.noise_multiplier * self.max_grad_norm
                noise = self._noise.gaussian(tuple(total.shape)).to(total.device)
                total = torch.add(total, noise, alpha=scale)
            parameter.grad = total

    def scale_grad(self) -> None:
        """Divide by the public denominator."""
        for parameter in self.params:
            parameter.grad = parameter.grad / self.expected_batch_size
