"""What a coordinator makes of a release: post-processing, as long as it likes, for free."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from synth_common.generators import Generator
from synth_common.generators.embedding import Released
from synth_common.generators.moments import MomentGenerator
from synth_common.images.drawn import drawn_images
from synth_common.images.imageset import ImageSet
from synth_common.plan import Plan
from synth_common.privacy.public_training import train_openly
from synth_common.randomness import derive_seed

_IMAGES = 4096
_BATCH = 256
"""Drawn at a time: a network refines them, at 128 pixels with a MiB or two for each."""


def learn_release(
    generator: Generator, released: Released, plan: Plan, seed: int, tell: Callable[[str], None]
) -> None:
    """Let ``generator`` learn from a release: the start of a curriculum, or all there is.

    A family that can reads the release itself. Any other is trained, without noise, on images
    that the embedding family draws from it: they are post-processing of the release. That
    teacher refines what it draws, too, and first takes ``generator.refine_steps`` to learn how.

    Args:
        generator: Learns in place.
        released: The noisy sum.
        plan: Says how many steps (``release.embedding.warm_steps``) and at what rates.
        seed: Seeds everything random.
        tell: Progress, a line at a time.
    """
    if generator.learns_from_release:
        generator.learn_release(released, seed, tell)
        return
    settings = plan.release.embedding
    steps = 0 if settings is None else settings.warm_steps
    teacher = MomentGenerator(plan.generator)
    teacher.learn_release(released, seed, tell)
    tell(f"{steps} steps on {_IMAGES} images drawn from the release")
    images = _drawn(teacher, released, plan, seed)
    train_openly(generator, images, plan.training, steps, derive_seed(seed, "warm start"))


def _drawn(teacher: MomentGenerator, released: Released, plan: Plan, seed: int) -> ImageSet:
    """Images (and masks) of the released Gaussians, the classes in turn."""
    labels = np.arange(_IMAGES, dtype=np.int64) % released.embedding.classes
    seeds = [derive_seed(seed, "teacher", i) for i in range(_IMAGES)]
    parts = [slice(i, i + _BATCH) for i in range(0, _IMAGES, _BATCH)]
    drawn = [teacher.sample(torch.from_numpy(labels[p]), seeds[p]) for p in parts]
    pictures = torch.cat(drawn).numpy()
    return drawn_images(plan.generator, pictures, labels)
