"""Generators: tensors in, tensors out. Knows no patient, no ledger, no network.

A new family is a module with a subclass of :class:`Generator` and a line in
:func:`build_generator`.
"""

from __future__ import annotations

from synth_common.generators.canary import CanaryGenerator
from synth_common.generators.gan import GAN
from synth_common.generators.interface import Generator, Health, Reconstruction
from synth_common.generators.vae import VAE
from synth_common.plan import Family, GeneratorPlan

__all__ = ["Generator", "Health", "Reconstruction", "build_generator"]

_FAMILIES: dict[Family, type[VAE] | type[GAN]] = {"vae": VAE, "gan": GAN}


def build_generator(plan: GeneratorPlan, seed: int) -> Generator:
    """A generator of the planned family with initial weights drawn from ``seed``.

    A plan with canaries gets the same generator, carrying them.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = _FAMILIES[plan.family](plan)
        return CanaryGenerator(generator) if plan.canaries else generator
