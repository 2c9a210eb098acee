"""Training on public images: no clip, no noise, no charge.

For what is public already: a public data set, or images drawn from what sites released.
"""

from __future__ import annotations

import math
from dataclasses import replace

from synth_common.errors import ConfigError
from synth_common.generators import Generator
from synth_common.images.imageset import ImageSet
from synth_common.plan import TrainingPlan
from synth_common.privacy.training import Mechanism, PrivateTrainer, Steps
from synth_common.randomness import noise_source


def require_trainable(generator: Generator) -> None:
    """Refuse a generator without a parameter that images could train.

    Raises:
        ConfigError: Names ``generator.family``.
    """
    if not any(parameter.requires_grad for parameter in generator.private_module.parameters()):
        raise ConfigError(
            f"generator.family = {generator.plan.family}: it has no parameters to train on images; "
            "it learns from a release alone (release.embedding)"
        )


def train_openly(
    generator: Generator, images: ImageSet, training: TrainingPlan, steps: int, seed: int
) -> None:
    """Train ``generator`` in place for ``steps`` steps by the plan's rates and batch.

    Args:
        generator: Any family that learns from images.
        images: PUBLIC images; every one counts as a unit, whoever is in it.
        training: Rates, schedule, batch; its rounds are replaced by ``steps``.
        steps: At least 1.
        seed: Seeds everything random.

    Raises:
        ConfigError: The family has nothing that images could train.
    """
    require_trainable(generator)
    # One machine does it all, so a GAN's generator steps here, wherever rounds would train it.
    here = {"rounds": 1, "steps_per_round": steps, "generator_training": "site"}
    values = training.model_dump() | here
    images = replace(images, patient_ids=None)
    whole = TrainingPlan(**values)
    mechanism = Mechanism(
        noise_multiplier=0.0,
        sample_rate=min(1.0, whole.patients_per_step / max(1, len(images))),
        clip_norm=math.inf,
        max_images=1,
        denominator=whole.patients_per_step,
    )
    noise = noise_source("simulation", seed, "draws")
    PrivateTrainer(generator, images, mechanism, whole, noise).run(Steps(0, steps, seed), {})
