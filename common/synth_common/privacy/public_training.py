"""Training on public images: no clip, no noise, no charge.

For what is public already: a public data set, or images drawn from what sites released.
"""

from __future__ import annotations

import math

from synth_common.generators import Generator
from synth_common.images.imageset import ImageSet
from synth_common.plan import TrainingPlan
from synth_common.privacy.training import Mechanism, PrivateTrainer, Steps
from synth_common.randomness import noise_source


def train_openly(
    generator: Generator, images: ImageSet, training: TrainingPlan, steps: int, seed: int
) -> None:
    """Train ``generator`` in place for ``steps`` steps by the plan's rates and batch.

    Args:
        generator: Any family that learns from images.
        images: PUBLIC images; every one counts as a unit.
        training: Rates, schedule, batch; its rounds are replaced by ``steps``.
        steps: At least 1.
        seed: Seeds everything random.
    """
    values = training.model_dump() | {"rounds": 1, "steps_per_round": steps}
    whole = TrainingPlan(**values)
    mechanism = Mechanism(
        noise_multiplier=0.0,
        sample_rate=min(1.0, whole.patients_per_step / max(1, images.unit_count())),
        clip_norm=math.inf,
        max_images=1,
        denominator=whole.patients_per_step,
    )
    noise = noise_source("simulation", seed, "public training")
    PrivateTrainer(generator, images, mechanism, whole, noise).run(Steps(0, steps, seed), {})
