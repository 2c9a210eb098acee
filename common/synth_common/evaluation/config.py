"""Settings of the evaluation: how many images, seeds and resamples each number rests on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from synth_common.plan import StrictModel

Tell = Callable[[str], None]
"""Is told of a stage in public words as it begins: what is done, never what comes of it."""


def quiet(stage: str) -> None:
    """Tells nobody."""


class EvaluationConfig(StrictModel):
    """How thoroughly synthetic images are judged. Larger is slower and less uncertain.

    Attributes:
        synthetic_images: Synthetic images to draw for the evaluation.
        max_images: Most images of each kind in one distance (Frechet, KID, neighbours).
        neighbours: k of precision/recall and density/coverage.
        diversity_pairs: Image pairs behind the MS-SSIM diversity, over all classes.
        encoder_steps: Training steps of the self-supervised encoder (only with a reference).
        classifier_steps: Training steps of each classifier; that of the Inception Score
            takes at most 200.
        classifier_batch: Images in one of these steps.
        classifier_width: Channels of the classifier's first layer; the next three double them.
        segmenter_steps: Training steps of each segmenter (only with masks).
        segmenter_batch: Images in one of these steps.
        utility_seeds: Classifiers, and segmenters, per setting (synthetic, real, both).
        utility_images: Most synthetic images to draw for utility; below it, as many as there
            are real training images.
        bootstrap: Resamples behind an interval.
        attack_patients: Most members, and most non-members, that a membership attack sees.
        attack_images_per_patient: Most images of one patient that it sees.
    """

    synthetic_images: Annotated[int, Field(ge=1)] = 512
    max_images: Annotated[int, Field(ge=2)] = 1000
    neighbours: Annotated[int, Field(ge=1)] = 5
    diversity_pairs: Annotated[int, Field(ge=1)] = 200
    encoder_steps: Annotated[int, Field(ge=1)] = 200
    classifier_steps: Annotated[int, Field(ge=1)] = 200
    classifier_batch: Annotated[int, Field(ge=2)] = 64
    classifier_width: Annotated[int, Field(ge=1, le=128)] = 8
    segmenter_steps: Annotated[int, Field(ge=1)] = 300
    segmenter_batch: Annotated[int, Field(ge=2)] = 8
    utility_seeds: Annotated[int, Field(ge=1)] = 3
    utility_images: Annotated[int, Field(ge=1)] = 20_000
    bootstrap: Annotated[int, Field(ge=20)] = 500
    attack_patients: Annotated[int, Field(ge=20)] = 4000
    attack_images_per_patient: Annotated[int, Field(ge=1)] = 4
