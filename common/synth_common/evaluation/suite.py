"""The evaluator: measures synthetic images against real ones and returns facts.

Import :class:`EvaluationConfig` from :mod:`synth_common.evaluation.config` where torch must
not be loaded; it is offered here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from synth_common.evaluation.anomaly import evaluate_anomaly
from synth_common.evaluation.classifier import train_classifier
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.encoder_file import file_encoder
from synth_common.evaluation.encoders import (
    Array,
    Encoder,
    Images,
    Index,
    in_chunks,
    radiomics_encoder,
    random_convolutions,
)
from synth_common.evaluation.fidelity import (
    diversity_pairs,
    frechet_distance,
    inception_score,
    kernel_distance,
    mean_ms_ssim,
    ms_ssim_scales,
    neighbourhood,
    standardise,
)
from synth_common.evaluation.reconstruction import evaluate_reconstruction
from synth_common.evaluation.resampling import comparable_count, draw_like
from synth_common.evaluation.segmentation import evaluate_segmentation
from synth_common.evaluation.selfsupervised import selfsupervised_encoder, usable_reference
from synth_common.evaluation.utility import evaluate_utility
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet
from synth_common.randomness import derive_seed, numpy_stream

__all__ = [
    "EvaluationConfig",
    "evaluate_anomaly",
    "evaluate_fidelity",
    "evaluate_reconstruction",
    "evaluate_segmentation",
    "evaluate_utility",
    "fidelity_encoders",
]

MIN_IMAGES = 20
"""Below this many images a side, distances between sets are not reported."""

_SCORER_STEPS = 200  # at most: every site trains the Inception Score's classifier
_SOURCE = "synth_common.evaluation.suite.evaluate_fidelity"
_FLOOR = "real training images in place of the synthetic ones, other patients, same N and class mix"
_BETTER = {
    "frechet": "lower",
    "kid": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "higher",
    "coverage": "higher",
}


@dataclass(frozen=True)
class _Side:
    """Some images of a set, named and not copied."""

    source: ImageSet
    index: Index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> Index:
        """The labels of the chosen images."""
        return self.source.labels[self.index]

    def rows(self, extract: Callable[[Images], Array]) -> Array:
        """What ``extract`` makes of the images, a chunk at a time."""
        return in_chunks(extract, self.source.images, self.index)


@dataclass(frozen=True)
class _Comparison:
    """Three sets of equal N and class mix: held-out real, training real, synthetic."""

    real: _Side
    floor: _Side
    synthetic: _Side


def fidelity_encoders(
    channels: int, reference: ImageSet | None, config: EvaluationConfig, seed: int
) -> list[Encoder]:
    """The feature spaces: radiomics-style, SimCLR on ``reference`` if it is large enough, a file.

    Without a reference, fixed-seed random convolutions take the second place; the third is that
    of ``config.encoder_file``, where one is set.
    """
    second = random_convolutions(channels)
    if reference is not None and usable_reference(reference.images, channels):
        second = selfsupervised_encoder(reference.images, config.encoder_steps, seed)
    own = file_encoder(config)
    return [radiomics_encoder(), second, *([] if own is None else [own])]


def evaluate_fidelity(  # noqa: PLR0913 - four sets of images that must not be mixed up
    real_holdout: ImageSet,
    real_train: ImageSet,
    synthetic: ImageSet,
    reference: ImageSet | None,
    config: EvaluationConfig,
    seed: int,
    site: str | None,
) -> list[Fact]:
    """Distance, fidelity and diversity of synthetic images, each beside its real floor.

    Held-out real images stand on one side of every comparison; on the other first the
    synthetic images, then (the floor) as many training images of other patients.

    Args:
        real_holdout: Real images that no generator saw.
        real_train: Real images of other patients: the floor, and the Inception Score's
            classifier.
        synthetic: Synthetic images with the labels they were asked for.
        reference: Public images for the self-supervised encoder, or None.
        config: Settings.
        seed: Root seed of draws, encoder and classifier.
        site: The site the facts speak of; None for pooled sites.

    Returns:
        Facts ``quality.*``. A value that too few images cannot carry is None, and
        ``detail.reason`` says so.
    """
    facts: list[Fact] = []
    compared = _compare(real_holdout, real_train, synthetic, config, seed)
    for encoder in fidelity_encoders(real_holdout.channels, reference, config, seed):
        facts += _space_facts(compared, encoder, config.neighbours, site)
    facts.append(_diversity_fact(compared, config, seed, site))
    facts.append(_inception_fact(compared, real_train, config, seed, site))
    return facts


def _compare(
    holdout: ImageSet, train: ImageSet, synthetic: ImageSet, config: EvaluationConfig, seed: int
) -> _Comparison:
    """Draw the three sets of a comparison at equal N and, as far as possible, class mix."""
    rng = numpy_stream(seed, "fidelity", "draw")
    n = comparable_count(holdout.labels, [train.labels, synthetic.labels], config.max_images)
    real = _Side(holdout, rng.permutation(len(holdout))[:n])
    return _Comparison(
        real,
        _Side(train, draw_like(real.labels, train.labels, rng)),
        _Side(synthetic, draw_like(real.labels, synthetic.labels, rng)),
    )


def _fact(
    name: str, value: float | None, detail: Mapping[str, Any], floor: float | None, site: str | None
) -> Fact:
    """A fidelity fact; ``floor`` is the same metric with real images in place of synthetic."""
    return Fact(
        f"quality.{name}",
        value,
        "site-local",
        _SOURCE,
        site=site,
        detail={"floor_how": _FLOOR, **detail, "floor": floor},
    )


def _space_facts(compared: _Comparison, encoder: Encoder, k: int, site: str | None) -> list[Fact]:
    """Frechet, KID, precision, recall, density and coverage in one feature space."""
    n = len(compared.real)
    detail = {
        "n_real": n,
        "n_synthetic": n,
        "encoder": encoder.name,
        "encoder_sha256": encoder.sha256,
    }
    if n < max(MIN_IMAGES, k + 1):
        reason = f"too few images: {n} a side, {max(MIN_IMAGES, k + 1)} needed"
        return [
            _fact(name, None, {**detail, "better": better, "reason": reason}, None, site)
            for name, better in _BETTER.items()
        ]
    sets = (compared.real, compared.floor, compared.synthetic)
    features = [side.rows(encoder.extract) for side in sets]
    real, floor, synthetic = standardise(np.concatenate(features[:2]), *features)
    measured, baseline = _distances(real, synthetic, k), _distances(real, floor, k)
    return [
        _fact(name, measured[name], {**detail, "better": better}, baseline[name], site)
        for name, better in _BETTER.items()
    ]


def _distances(real: Array, other: Array, k: int) -> dict[str, float]:
    """The metrics of :data:`_BETTER` between two sets of standardised features."""
    near = neighbourhood(real, other, k)
    return {
        "frechet": frechet_distance(real, other),
        "kid": kernel_distance(real, other),
        "precision": near.precision,
        "recall": near.recall,
        "density": near.density,
        "coverage": near.coverage,
    }


def _diversity_fact(
    compared: _Comparison, config: EvaluationConfig, seed: int, site: str | None
) -> Fact:
    """1 - mean MS-SSIM of synthetic pairs of one class, beside that of held-out real pairs."""
    measured, pairs = _diversity(compared.synthetic, config, seed)
    floor, real_pairs = _diversity(compared.real, config, seed)
    detail: dict[str, Any] = {
        "n_real": real_pairs,
        "n_synthetic": pairs,
        "n_counts": "pairs of images of one class and two patients",
        "encoder": f"none (MS-SSIM, {ms_ssim_scales(compared.real.source.size)} scales)",
        "encoder_sha256": None,
        "better": "higher",
        "floor_how": "pairs of held-out real images",
    }
    if measured is None or floor is None:
        detail["reason"] = "too few images: no class has two images of two patients"
    return _fact("ms_ssim_diversity", measured, detail, floor, site)


def _diversity(side: _Side, config: EvaluationConfig, seed: int) -> tuple[float | None, int]:
    """Diversity and the number of pairs behind it; None without a pair."""
    rng = numpy_stream(seed, "fidelity", "pairs")
    units = side.source.units()[side.index]
    first, second = diversity_pairs(side.labels, units, config.diversity_pairs, rng)
    if not len(first):
        return None, 0
    images, chosen = side.source.images, side.index
    return 1.0 - mean_ms_ssim(images[chosen[first]], images[chosen[second]]), len(first)


def _inception_fact(
    compared: _Comparison,
    train: ImageSet,
    config: EvaluationConfig,
    seed: int,
    site: str | None,
) -> Fact:
    """Inception Score with a classifier of this data's classes, trained on real images."""
    n = len(compared.real)
    detail: dict[str, Any] = {"n_real": n, "n_synthetic": n, "better": "higher"}
    if n < 2 or len(np.unique(train.labels)) < 2:
        detail |= {"encoder": None, "encoder_sha256": None}
        detail["reason"] = "needs two images to score and two classes to train a classifier on"
        return _fact("inception_score", None, detail, None, site)
    classifier = train_classifier(
        train,
        min(config.classifier_steps, _SCORER_STEPS),
        config.classifier_batch,
        derive_seed(seed, "fidelity", "inception"),
    )
    detail["encoder"] = f"{classifier.name}, trained on {len(train)} real training images"
    detail["encoder_sha256"] = classifier.sha256
    score, floor = (
        inception_score(side.rows(classifier.probabilities))
        for side in (compared.synthetic, compared.real)
    )
    detail["floor_how"] = "the held-out real images, same N"
    return _fact("inception_score", score, detail, floor, site)
