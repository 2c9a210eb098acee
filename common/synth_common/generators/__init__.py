"""Generators: tensors in, tensors out. Knows no patient, no ledger, no network.

A new family is a module with a subclass of :class:`Generator` and a line in
:func:`build_generator`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from synth_common.generators.canary import CanaryGenerator
from synth_common.generators.gan import GAN
from synth_common.generators.interface import Generator, Health, Reconstruction
from synth_common.generators.moments import MomentGenerator
from synth_common.generators.tuning import tune, untuned
from synth_common.generators.vae import VAE
from synth_common.plan import Family, GeneratorPlan, PretrainingPlan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Generator", "Health", "Reconstruction", "build_generator", "public_weights"]

_FAMILIES: dict[Family, type[VAE] | type[GAN] | type[MomentGenerator]] = {
    "vae": VAE,
    "gan": GAN,
    "embedding": MomentGenerator,
}


def build_generator(
    plan: GeneratorPlan,
    seed: int,
    pretraining: PretrainingPlan | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Generator:
    """A generator of the planned family with initial weights drawn from ``seed``.

    A plan with canaries gets the same generator, carrying them.

    Args:
        plan: What it makes.
        seed: Draws the weights that ``weights`` do not give.
        pretraining: What is tuned and what is frozen; None tunes all.
        weights: Public weights to start from, of the plain generator.

    Raises:
        CheckpointError: ``weights`` do not fit the plan.
        ConfigError: The family cannot be tuned as planned.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = _FAMILIES[plan.family](plan)
        if weights is not None:
            generator.load_shared_state(weights)
        if pretraining is not None:
            tune(generator, pretraining)
        return CanaryGenerator(generator) if plan.canaries else generator


def public_weights(plan: GeneratorPlan, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a generator's travelling state that public weights fill, by their names.

    Adapters and canaries are left out. The SHA-256 of the rest, before any private step, is
    the plan's ``pretraining.sha256``.

    Args:
        plan: The planned generator.
        state: A travelling state that fits it.
    """
    prefix = "inner." if plan.canaries else ""
    names = build_generator(untuned(plan), seed=0).shared_state()
    return {name: state[prefix + name] for name in names}
