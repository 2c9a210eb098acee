"""Anomaly detection with a synthetic normal class: does it find the sick as real normals do?

The detector is the distance to the nearest normal images (DN2; Bergman, Cohen and Hoshen
2020, arXiv 2002.10445) in the space of untrained convolutions over a 4 x 4 grid. It needs no
training, so what it finds says something of the normal images alone. A seed draws other
convolutions and other normal images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from synth_common.errors import DataError
from synth_common.evaluation.config import EvaluationConfig, Tell, quiet
from synth_common.evaluation.encoders import Array, Encoder, in_chunks, random_convolutions
from synth_common.evaluation.fidelity import standardise
from synth_common.evaluation.resampling import Draws, draw_again, percentile_interval
from synth_common.evaluation.trials import Setting, describe, shown_by_class
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet
from synth_common.randomness import derive_seed, numpy_stream

Index = npt.NDArray[np.int64]

_GRID = 4
_SOURCE = "synth_common.evaluation.anomaly.evaluate_anomaly"


@dataclass(frozen=True)
class _Normals:
    """Normal images of a kind, by position."""

    images: ImageSet
    index: Index

    def draw(self, most: int, rng: np.random.Generator) -> Index:
        """At most ``most`` of them, without repetition."""
        return rng.permutation(self.index)[:most]


def evaluate_anomaly(
    train: ImageSet,
    holdout: ImageSet,
    synthetic: ImageSet,
    config: EvaluationConfig,
    seed: int,
    tell: Tell = quiet,
) -> list[Fact]:
    """Detectors that remember synthetic, real and both kinds of normal images, on real patients.

    Synthetic and real detectors remember equally many images, those of both twice as many.

    Args:
        train: Real training images.
        holdout: Real test images of other patients: normal ones, and others to be found.
        synthetic: Labelled synthetic images.
        config: Settings; ``anomaly_normal`` names the normal class.
        seed: Root seed of draws, convolutions and resamples.
        tell: Is told of each setting as it begins.

    Returns:
        One ``utility.anomaly`` fact per setting over the whole holdout. Without normal images
        of every kind and images of both sorts to test on, ``auroc`` is None and
        ``detail.reason`` says what is missing.

    Raises:
        DataError: ``config.anomaly_normal`` is not one of the classes.
    """
    label = _normal_label(train, config)
    real, made = (_Normals(s, np.flatnonzero(s.labels == label)) for s in (train, synthetic))
    odd = holdout.labels != label
    most = min(config.anomaly_images, len(real.index), len(made.index))
    settings: list[Setting] = ["synthetic", "real", "both"]
    if most <= config.anomaly_neighbours or not odd.any() or odd.all():
        return [_absent(setting, most, odd, config) for setting in settings]
    scores: dict[Setting, list[Array]] = {setting: [] for setting in settings}
    for repeat in range(config.utility_seeds):
        tell(f"anomaly detectors that remember {describe('both')}, seed {repeat + 1}")
        for setting, found in _detect((real, made), holdout, most, config, (seed, repeat)).items():
            scores[setting].append(found)
    return [
        _fact(setting, np.stack(scores[setting]), holdout, most, config, seed)
        for setting in settings
    ]


def _normal_label(train: ImageSet, config: EvaluationConfig) -> int:
    """The label of the normal class."""
    if config.anomaly_normal not in train.class_names:
        raise DataError(
            f"evaluation.anomaly_normal = {config.anomaly_normal!r} is none of the classes "
            f"{', '.join(train.class_names)}; name the normal one"
        )
    return train.class_names.index(config.anomaly_normal)


def _detect(
    normals: tuple[_Normals, _Normals],
    holdout: ImageSet,
    most: int,
    config: EvaluationConfig,
    seeds: tuple[int, int],
) -> dict[Setting, Array]:
    """(N,) anomaly scores of the holdout by what one seed's detectors remember."""
    root, repeat = seeds
    weights = derive_seed(root, "anomaly", "weights", repeat) % 2**32
    encoder = random_convolutions(holdout.channels, _GRID, weights)
    real, made = (
        _remembered(encoder, kind, most, numpy_stream(root, "anomaly", name, repeat))
        for kind, name in zip(normals, ("real", "synthetic"), strict=True)
    )
    tested = in_chunks(encoder.extract, holdout.images, np.arange(len(holdout)))
    k = config.anomaly_neighbours
    return {
        "synthetic": anomaly_scores(made, tested, k),
        "real": anomaly_scores(real, tested, k),
        "both": anomaly_scores(np.concatenate([made, real]), tested, k),
    }


def _remembered(encoder: Encoder, normals: _Normals, most: int, rng: np.random.Generator) -> Array:
    """Features of the normal images that a detector remembers."""
    return in_chunks(encoder.extract, normals.images.images, normals.draw(most, rng))


def anomaly_scores(normal: Array, tested: Array, k: int) -> Array:
    """Mean distance of each tested row to its ``k`` nearest normal rows, (M, D), (N, D) to (N,).

    Features are scaled by the mean and spread of the normal ones: all that a detector knows.
    """
    remembered, asked = standardise(normal, normal, tested)
    near = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(remembered)
    distance: Array = near.kneighbors(asked)[0].mean(axis=1)
    return distance


def weighted_auroc(scores: Array, odd: npt.NDArray[np.bool_], weights: Array) -> Array:
    """Probability that an odd image scores above a normal one, ties half (Hanley, McNeil 1982).

    Args:
        scores: (N,).
        odd: (N,), the images to be found.
        weights: (B, N), how often each image counts.

    Returns:
        (B,), nan where a row has only one of both sorts.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of equal scores
    above, normal = (
        np.add.reduceat(weights[:, order] * sort[order], starts, axis=1) for sort in (odd, ~odd)
    )
    below = np.cumsum(normal, axis=1) - normal / 2  # normals below a value, and half of the ties
    total = above.sum(axis=1) * normal.sum(axis=1)
    won = (above * below).sum(axis=1)
    rate: Array = np.divide(won, total, out=np.full(len(weights), np.nan), where=total > 0)
    return rate


def _interval(scores: Array, odd: npt.NDArray[np.bool_], draws: Draws) -> list[float] | None:
    """95 % interval of the mean AUROC over seeds; None if no resample has both sorts."""
    by_seed = np.stack([weighted_auroc(row, odd, draws.images) for row in scores], axis=1)
    means = (draws.seeds * by_seed).sum(axis=1)
    usable = means[~np.isnan(means)]
    return percentile_interval(usable) if len(usable) else None


def _fact(
    setting: Setting,
    scores: Array,
    holdout: ImageSet,
    most: int,
    config: EvaluationConfig,
    seed: int,
) -> Fact:
    """The AUROC of one setting's detectors (S, N)."""
    label = holdout.class_names.index(str(config.anomaly_normal))
    odd = holdout.labels != label
    # Equal draws for every setting.
    rng = numpy_stream(seed, "anomaly", "bootstrap")
    draws = draw_again(holdout.units(), len(scores), config.bootstrap, rng)

    def auroc_of(other: int) -> float:
        among = (holdout.labels == other) | ~odd
        return _mean_auroc(scores[:, among], odd[among])

    per_class = shown_by_class(holdout.subset(np.flatnonzero(odd)), auroc_of, config)
    detail = {
        "interval": _interval(scores, odd, draws),
        "n_train": most * (2 if setting == "both" else 1),
        "n_normal": int((~odd).sum()),
        "n_other": int(odd.sum()),
        "test_patients": holdout.unit_count(),
    }
    value = {"auroc": _mean_auroc(scores, odd), "per_class": per_class}
    return _as_fact(setting, value, detail, config)


def _mean_auroc(scores: Array, odd: npt.NDArray[np.bool_]) -> float:
    """Mean AUROC over the seeds."""
    return float(np.mean([roc_auc_score(odd, row) for row in scores]))


def _absent(
    setting: Setting, most: int, odd: npt.NDArray[np.bool_], config: EvaluationConfig
) -> Fact:
    """A setting that cannot be measured."""
    needed = config.anomaly_neighbours + 1
    reason = (
        f"{most} normal images of a kind to remember, {needed} needed"
        if most < needed
        else "the held-out images are all normal, or none is"
    )
    detail = {
        "interval": None,
        "n_train": most,
        "n_normal": int((~odd).sum()),
        "n_other": int(odd.sum()),
        "test_patients": None,
        "reason": reason,
    }
    return _as_fact(setting, {"auroc": None, "per_class": {}}, detail, config)


def _as_fact(
    setting: Setting, value: dict[str, Any], detail: dict[str, Any], config: EvaluationConfig
) -> Fact:
    """A ``utility.anomaly`` fact."""
    k = config.anomaly_neighbours
    return Fact(
        "utility.anomaly",
        value,
        "site-local",
        _SOURCE,
        detail={
            "trained_on": setting,
            "normal": config.anomaly_normal,
            "seeds": config.utility_seeds,
            "detector": f"mean distance to {k} nearest normal images, random convolutions "
            f"over a {_GRID} x {_GRID} grid",
            **detail,
        },
    )
