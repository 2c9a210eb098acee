"""Settings of the evaluation: how many images, seeds and resamples each number rests on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

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
        encoder_file: A TorchScript file on this machine whose features give a third space;
            ``encoder_sha256`` must be its SHA-256, or it is not read.
        encoder_sha256: 64 hexadecimal digits, stated by whoever trusts the file.
        encoder_name: As printed beside the scores; default: the file's name.
        encoder_size: Height and width in pixels that the file expects.
        encoder_channels: Channels that it expects.
        classifier_steps: Training steps of each classifier; that of the Inception Score
            takes at most 200.
        classifier_batch: Images in one of these steps.
        classifier_width: Channels of the classifier's first layer; the next three double them.
        segmenter_steps: Training steps of each segmenter (only with masks).
        segmenter_batch: Images in one of these steps.
        utility_seeds: Classifiers, and segmenters, per setting (synthetic, real, both).
        utility_images: Most synthetic images to draw for utility; below it, as many as there
            are real training images.
        site_utility: Whether each site also trains classifiers, segmenters and detectors on its
            own images alone; what comes of it stays there.
        augmentation_shares: Shares of the real training patients, each above 0 and at most 1, at
            which classifiers are trained with and without the synthetic images; empty: none.
        anomaly_normal: The class that an anomaly detector learns as normal, from synthetic,
            real and both kinds of images; None: no detector.
        anomaly_images: Most normal images of a kind that one detector remembers.
        anomaly_neighbours: k of the detector.
        age_edges: Ages in years, rising, at which the age bands of the fairness begin.
        group_minimum: Groups of fewer test patients are named without figures.
        bootstrap: Resamples behind an interval.
        attack_patients: Most members, and most non-members, that a membership attack sees.
        attack_images_per_patient: Most images of one patient that it sees.
    """

    synthetic_images: Annotated[int, Field(ge=1)] = 512
    max_images: Annotated[int, Field(ge=2)] = 1000
    neighbours: Annotated[int, Field(ge=1)] = 5
    diversity_pairs: Annotated[int, Field(ge=1)] = 200
    encoder_steps: Annotated[int, Field(ge=1)] = 200
    encoder_file: Path | None = None
    encoder_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    encoder_name: str = ""
    encoder_size: Annotated[int, Field(ge=16, le=1024)] = 224
    encoder_channels: Literal[1, 3] = 3
    classifier_steps: Annotated[int, Field(ge=1)] = 200
    classifier_batch: Annotated[int, Field(ge=2)] = 64
    classifier_width: Annotated[int, Field(ge=1, le=128)] = 8
    segmenter_steps: Annotated[int, Field(ge=1)] = 300
    segmenter_batch: Annotated[int, Field(ge=2)] = 8
    utility_seeds: Annotated[int, Field(ge=1)] = 3
    utility_images: Annotated[int, Field(ge=1)] = 20_000
    site_utility: bool = False
    augmentation_shares: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = ()
    anomaly_normal: str | None = None
    anomaly_images: Annotated[int, Field(ge=2)] = 1000
    anomaly_neighbours: Annotated[int, Field(ge=1)] = 5
    age_edges: tuple[Annotated[float, Field(gt=0.0)], ...] = (18.0, 40.0, 65.0)
    group_minimum: Annotated[int, Field(ge=1)] = 10
    bootstrap: Annotated[int, Field(ge=20)] = 500
    attack_patients: Annotated[int, Field(ge=20)] = 4000
    attack_images_per_patient: Annotated[int, Field(ge=1)] = 4

    @field_validator("age_edges", "augmentation_shares")
    @classmethod
    def _rising(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(b <= a for a, b in itertools.pairwise(values)):
            raise ValueError("expected rising numbers, none twice")
        return values

    @model_validator(mode="after")
    def _file_and_hash(self) -> EvaluationConfig:
        if (self.encoder_file is None) != (self.encoder_sha256 is None):
            raise ValueError(
                "evaluation.encoder_file and evaluation.encoder_sha256 belong together; "
                "sha256sum FILE prints the second"
            )
        return self
