"""From a source's images to a site's two sets: to train on, and to judge by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from synth_common.errors import PrivacyError
from synth_common.images.imageset import ImageSet
from synth_common.images.preprocess import Target
from synth_common.images.split import own_split, split_patients
from synth_common.plan import GeneratorPlan, Unit


@dataclass(frozen=True)
class Holdout:
    """What is kept for evaluation.

    Attributes:
        kind: ``share``, a random share of the patients; ``split``, the source's own test part.
        share: That share, above 0 and below 1.
        seed: Names the draw.
    """

    kind: Literal["share", "split"]
    share: float
    seed: int


def image_target(plan: GeneratorPlan) -> Target:
    """The picture that every source is brought to, as the plan asks for it."""
    return Target(
        size=plan.size, channels=plan.channels, classes=plan.classes, with_mask=plan.with_mask
    )


def require_unit(images: ImageSet, unit: Unit, source: str, key: str = "privacy.unit") -> None:
    """Refuse (PrivacyError) images without patient ids where the unit, set by ``key``, is one."""
    if unit == "patient" and images.patient_ids is None:
        raise PrivacyError(
            f"{key} = 'patient', but source {source!r} has no patient ids; "
            f"set {key} = 'image' (the guarantee then hides one image, not a person)"
        )


def split_images(
    images: ImageSet, holdout: Holdout, unit: Unit, where: str
) -> tuple[ImageSet, ImageSet]:
    """Train and holdout, no patient in both; ids end here where the unit is the image.

    Raises:
        DataError: Too few patients, or an own split that does not serve; ``where`` names them.
    """
    if holdout.kind == "split":
        train, held = own_split(images, where)
    else:
        train, held = split_patients(images, holdout.share, holdout.seed)
    if unit == "image":  # ids, if any, kept the split clean
        train, held = replace(train, patient_ids=None), replace(held, patient_ids=None)
    return train, held


def split_value(train: ImageSet, holdout: ImageSet) -> dict[str, Any]:
    """Units and images on both sides of the split, in all and by class. SENSITIVE."""

    def per_class(images: ImageSet) -> dict[str, int]:
        counts = np.bincount(images.labels, minlength=len(images.class_names))
        return dict(zip(images.class_names, counts.tolist(), strict=True))

    return {
        "train_patients": train.unit_count(),
        "train_images": len(train),
        "holdout_patients": holdout.unit_count(),
        "holdout_images": len(holdout),
        "train_per_class": per_class(train),
        "holdout_per_class": per_class(holdout),
    }
