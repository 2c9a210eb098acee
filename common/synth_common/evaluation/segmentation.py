"""What synthetic pairs of image and mask are worth: a segmenter, tested on held-out real pairs.

Trained on synthetic, on real and on both pairs, which differ in nothing else: same network,
steps and seeds. As :mod:`synth_common.evaluation.utility` does with classes. Where a second
observer drew the test images too, what the two people agree on stands beside the segmenters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from synth_common.errors import DataError
from synth_common.evaluation.config import EvaluationConfig, Tell, quiet
from synth_common.evaluation.resampling import draw_again, percentile_interval
from synth_common.evaluation.segmenter import segmenter_name, train_segmenter
from synth_common.evaluation.surface import surface_scores
from synth_common.evaluation.trials import Setting, describe, settings_of, shown_by_class
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet
from synth_common.randomness import derive_seed, numpy_stream

Array = npt.NDArray[np.float64]
Masks = npt.NDArray[np.uint8]

_DISTANCES = ("surface_distance", "hausdorff_95")
_SOURCE = "synth_common.evaluation.segmentation.evaluate_segmentation"


@dataclass(frozen=True)
class _Trial:
    """One setting's segmenters on the real test pairs, a row of scores per seed.

    Attributes:
        trained_on: The setting, or who drew.
        n_train: Pairs the segmenters were trained on; none for a person.
        seeds: Segmenters; a person is one.
        scores: (S, N) Dice.
        surface: (S, N) average symmetric surface distance, pixels; nan without an outline.
        hausdorff: (S, N) 95 % Hausdorff distance, likewise.
    """

    trained_on: Setting | Literal["second observer"]
    n_train: int
    seeds: int
    scores: Array
    surface: Array
    hausdorff: Array


@dataclass(frozen=True)
class _Place:
    """The test pairs of one site, or of all (site None).

    Attributes:
        site: The site.
        here: (N,) positions of its pairs in the holdout.
        pairs: The pairs.
        real: (S, N) Dice of the segmenters trained on real pairs, what others are held to.
    """

    site: str | None
    here: npt.NDArray[np.int64]
    pairs: ImageSet
    real: Array


def dice_scores(predicted: Masks, real: Masks) -> Array:
    """Dice of each image, ``2 |A and B| / (|A| + |B|)`` (Dice 1945): (N, H, W) twice to (N,).

    Two empty masks agree: 1. One empty mask beside one that is not: 0, by the formula.
    """
    axes = (1, 2)
    shared = np.logical_and(predicted, real).sum(axis=axes)
    total = (predicted != 0).sum(axis=axes) + (real != 0).sum(axis=axes)
    scores: Array = np.divide(2.0 * shared, total, out=np.ones(len(total)), where=total > 0)
    return scores


def evaluate_segmentation(
    train: ImageSet,
    holdout: ImageSet,
    synthetic: ImageSet,
    config: EvaluationConfig,
    seed: int,
    tell: Tell = quiet,
) -> list[Fact]:
    """Train segmenters on synthetic, real and both; test each on held-out real patients.

    Args:
        train: Real training images with masks.
        holdout: Real test images of other patients, with masks.
        synthetic: Synthetic images with masks in {0, 1}.
        config: Settings.
        seed: Root seed of the segmenters and of the resamples.
        tell: Is told of each setting as it begins.

    Returns:
        One ``utility.segmentation`` fact per setting over the whole holdout (site None) and,
        where ``holdout.sites`` is given, one per setting and site, with distances in
        millimetres beside pixels where all its images have ``holdout.spacings``; with
        ``holdout.second_masks`` also for the second observer, whose masks are scored like a
        segmenter's.

    Raises:
        DataError: One of the sets is empty or has no masks.
    """
    for name, pairs in (("train", train), ("holdout", holdout), ("synthetic", synthetic)):
        if not len(pairs) or pairs.masks is None:
            raise DataError(
                f"{name} has {len(pairs)} images, masks: {pairs.masks is not None}; "
                "segmentation needs images with masks to train and test on"
            )
    trials: dict[str, _Trial] = {}
    for setting, pairs in settings_of(train, synthetic).items():
        tell(f"segmenters trained on {describe(setting)}")
        trials[setting] = _run_trial(setting, pairs, holdout, config, seed)
    if holdout.second_masks is not None:
        trials["second observer"] = _observer(holdout, holdout.second_masks, config.utility_seeds)
    places = _places(holdout, trials["real"].scores)
    return [_fact(trial, place, config, seed) for trial in trials.values() for place in places]


def _run_trial(
    setting: Setting, pairs: ImageSet, holdout: ImageSet, config: EvaluationConfig, seed: int
) -> _Trial:
    """Train one segmenter per seed and keep how well each does on every test image."""
    scores = []
    for repeat in range(config.utility_seeds):
        segmenter = train_segmenter(
            pairs,
            config.segmenter_steps,
            config.segmenter_batch,
            # The same seeds for every setting, so that settings differ in their pairs only.
            derive_seed(seed, "segmentation", repeat),
        )
        scores.append(_score(segmenter.masks(holdout.images), _masks(holdout)))
    return _Trial(
        setting, len(pairs), config.utility_seeds, *map(np.stack, zip(*scores, strict=True))
    )


def _score(found: Masks, wanted: Masks) -> tuple[Array, Array, Array]:
    """Dice, surface distance and Hausdorff distance of each mask."""
    return dice_scores(found, wanted), *surface_scores(found, wanted)


def _observer(holdout: ImageSet, drawn: Masks, repeats: int) -> _Trial:
    """The second observer as if one of the segmenters: the same answer whatever the seed."""
    scores = [np.repeat(row[None], repeats, axis=0) for row in _score(drawn, _masks(holdout))]
    return _Trial("second observer", 0, 1, *scores)


def _masks(pairs: ImageSet) -> Masks:
    """The masks of a set that has been checked to have them."""
    if pairs.masks is None:
        raise DataError("the images have no masks")
    return pairs.masks


def _places(holdout: ImageSet, real: Array) -> list[_Place]:
    """The whole holdout, then each site's part of it."""
    everywhere = np.arange(len(holdout), dtype=np.int64)
    places = [_Place(None, everywhere, holdout, real)]
    if holdout.sites is not None:
        for site in np.unique(holdout.sites):
            here = np.flatnonzero(holdout.sites == site)
            places.append(_Place(str(site), here, holdout.subset(here), real[:, here]))
    return places


def _fact(trial: _Trial, place: _Place, config: EvaluationConfig, seed: int) -> Fact:
    """Scores of a trial on the whole holdout, or on one site's part of it."""
    pairs, scores = place.pairs, trial.scores[:, place.here]
    filled = _masks(pairs).any(axis=(1, 2))
    mean, real = float(scores.mean()), float(place.real.mean())
    surface, hausdorff = trial.surface[:, place.here], trial.hausdorff[:, place.here]
    # Equal draws for every setting: the ratio is then a paired comparison.
    rng = numpy_stream(seed, "segmentation", "bootstrap", place.site or "")
    # Pixels of different images can stand for different lengths.
    mm = [] if pairs.spacings is None else [surface * pairs.spacings, hausdorff * pairs.spacings]
    rows = np.stack([scores, place.real, surface, hausdorff, *mm])
    drawn = resampled_means(rows, pairs.units(), config.bootstrap, rng)
    return Fact(
        "utility.segmentation",
        {
            "dice": mean,
            "dice_nonempty": float(scores[:, filled].mean()) if filled.any() else None,
            "ratio_to_real": mean / real if real else None,
            "surface_distance": _mean(surface),
            "hausdorff_95": _mean(hausdorff),
            **{f"{name}_mm": _mean(row) for name, row in zip(_DISTANCES, mm, strict=False)},
        },
        "site-local",
        _SOURCE,
        site=place.site,
        detail={
            "trained_on": trial.trained_on,
            "interval": percentile_interval(drawn[0]),
            "ratio_interval": _ratio_interval(drawn),
            "surface_interval": _interval(drawn[2]),
            "hausdorff_interval": _interval(drawn[3]),
            "distance_unit": "pixels",
            **_millimetres(pairs, drawn[4:]),
            # Of the real masks that are not empty: how often nothing was found.
            "missed": float(np.isnan(surface[:, filled]).mean()) if filled.any() else None,
            "n_train": trial.n_train,
            "n_nonempty": int(filled.sum()),
            **_numbers(trial, pairs, scores, config),
        },
    )


def _millimetres(pairs: ImageSet, drawn: Array) -> dict[str, Any]:
    """Intervals of both distances in millimetres, and of a pixel; nothing of unknown spacing."""
    if pairs.spacings is None:
        return {}
    return {
        "surface_mm_interval": _interval(drawn[0]),
        "hausdorff_mm_interval": _interval(drawn[1]),
        "pixel_mm": [float(pairs.spacings.min()), float(pairs.spacings.max())],
    }


def _mean(scores: Array) -> float | None:
    """Mean of the scores that are there; None without one."""
    there = scores[~np.isnan(scores)]
    return float(there.mean()) if len(there) else None


def _interval(drawn: Array) -> list[float] | None:
    """Interval of the resamples that have a value; None without one."""
    there = drawn[~np.isnan(drawn)]
    return percentile_interval(there) if len(there) else None


def _numbers(
    trial: _Trial, pairs: ImageSet, scores: Array, config: EvaluationConfig
) -> dict[str, Any]:
    """What the Dice rests on, and its mean in each class that is present."""
    person = trial.trained_on == "second observer"
    network = segmenter_name(config.segmenter_steps, config.segmenter_batch)
    return {
        "seeds": trial.seeds,
        "n_test": len(pairs),
        "test_patients": pairs.unit_count(),
        "segmenter": "a second observer" if person else network,
        "per_class": shown_by_class(
            pairs, lambda label: float(scores[:, pairs.labels == label].mean()), config
        ),
    }


def resampled_means(
    scores: Array, units: npt.NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> Array:
    """Mean scores when both seeds and patients are drawn again, the same for every setting.

    Args:
        scores: (T, S, N), the score of each image by setting and seed; nan counts for nothing.
        units: (N,) patient of each image; all images of a patient are drawn together.
        resamples: Number of resamples B.
        rng: Source of the draws.

    Returns:
        (T, B).
    """
    draws = draw_again(units, scores.shape[1], resamples, rng)
    return np.stack([draws.means(rows) for rows in scores])


def _ratio_interval(drawn: Array) -> list[float] | None:
    """Interval of the ratio of the first row to the second; None where that can be 0."""
    return percentile_interval(drawn[0] / drawn[1]) if (drawn[1] > 0).all() else None
