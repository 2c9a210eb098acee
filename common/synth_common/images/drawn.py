"""What a generator drew, as images: one rule for everyone who draws."""

from __future__ import annotations

import numpy as np

from synth_common.images.imageset import ImageSet
from synth_common.plan import GeneratorPlan


def drawn_images(plan: GeneratorPlan, drawn: np.ndarray, labels: np.ndarray) -> ImageSet:
    """Images, and masks if the plan has them, from a generator's output.

    Args:
        plan: The generator's plan.
        drawn: float32 (N, channels and mask, H, W); the mask, last, holds probabilities.
        labels: int64 (N,).

    Returns:
        N images, clipped to [0, 1], with masks {0, 1}: 1 where the probability is above 0.5.
    """
    return ImageSet(
        images=np.clip(drawn[:, : plan.channels], 0.0, 1.0),
        labels=labels,
        class_names=plan.classes,
        masks=(drawn[:, -1] > 0.5).astype(np.uint8) if plan.with_mask else None,
    )
