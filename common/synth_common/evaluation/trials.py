"""Classifiers trained on synthetic, on real and on both kinds of images, and what they say.

One trial per setting; utility, fairness and the gain of augmentation are read from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from synth_common.errors import DataError
from synth_common.evaluation.classifier import train_classifier
from synth_common.evaluation.config import EvaluationConfig, Tell, quiet
from synth_common.evaluation.resampling import Draws
from synth_common.images.imageset import ImageSet, concatenate
from synth_common.randomness import derive_seed

Array = npt.NDArray[np.float64]
Setting = Literal["synthetic", "real", "both"]


@dataclass(frozen=True)
class Trial:
    """Predictions of one setting's classifiers on the real test images.

    Attributes:
        trained_on: The setting.
        n_train: Images the classifiers were trained on.
        probabilities: (S, N, K), class probabilities of S classifiers (one per seed).
    """

    trained_on: Setting
    n_train: int
    probabilities: Array

    def correct(self, labels: npt.NDArray[np.int64]) -> Array:
        """(S, N), 1.0 where the classifier of a seed is right."""
        right: Array = (self.probabilities.argmax(axis=2) == labels).astype(np.float64)
        return right


def describe(setting: Setting) -> str:
    """What a setting trains on, in words."""
    return "both kinds of images" if setting == "both" else f"{setting} images"


def require_images(**sets: ImageSet) -> None:
    """Refuse (DataError) an empty set by its name."""
    for name, images in sets.items():
        if not len(images):
            raise DataError(f"{name} has no images; utility needs images to train and test on")


def settings_of(train: ImageSet, synthetic: ImageSet) -> dict[Setting, ImageSet]:
    """What each setting trains on: images and labels alone (and masks, where both have them)."""
    bare = [ImageSet(s.images, s.labels, s.class_names, masks=s.masks) for s in (synthetic, train)]
    return {"synthetic": bare[0], "real": bare[1], "both": concatenate(bare)}


def run_trials(
    train: ImageSet,
    holdout: ImageSet,
    synthetic: ImageSet,
    config: EvaluationConfig,
    seed: int,
    tell: Tell = quiet,
) -> dict[Setting, Trial]:
    """Train one classifier per setting and seed, and keep what each says of the holdout.

    Raises:
        DataError: One of the sets is empty.
    """
    require_images(train=train, holdout=holdout, synthetic=synthetic)
    trials: dict[Setting, Trial] = {}
    for setting, images in settings_of(train, synthetic).items():
        tell(f"classifiers trained on {describe(setting)}")
        said = [predictions(images, holdout, config, seed, n) for n in range(config.utility_seeds)]
        trials[setting] = Trial(setting, len(images), np.stack(said))
    return trials


def predictions(
    images: ImageSet, holdout: ImageSet, config: EvaluationConfig, seed: int, repeat: int
) -> Array:
    """(N, K) class probabilities of the holdout by the classifier of one seed.

    The same seeds whatever is trained on, so that settings differ in their images only.
    """
    return train_classifier(
        images,
        config.classifier_steps,
        config.classifier_batch,
        derive_seed(seed, "utility", repeat),
        config.classifier_width,
    ).probabilities(holdout.images)


def shown_by_class(
    images: ImageSet, score: Callable[[int], float], config: EvaluationConfig
) -> dict[str, float | None]:
    """The score of every class that is present; None for one of too few patients to be shown.

    Args:
        images: Test images.
        score: Of a label.
        config: Its ``group_minimum`` is the fewest patients of a class.
    """
    units = images.units()
    return {
        images.class_names[label]: score(int(label))
        if len(np.unique(units[images.labels == label])) >= config.group_minimum
        else None
        for label in np.unique(images.labels)
    }


def recall_per_class(correct: Array, labels: npt.NDArray[np.int64], weights: Array) -> Array:
    """Weighted recall of every class present: (B, N) or (1, N), (N,), (B, N) to (B, classes).

    A resample that misses a class gives nan there.
    """
    columns = []
    for label in np.unique(labels):
        mine = labels == label
        total = weights[:, mine].sum(axis=1)
        hit = (weights[:, mine] * correct[:, mine]).sum(axis=1)
        columns.append(np.divide(hit, total, out=np.full(len(total), np.nan), where=total > 0))
    return np.stack(columns, axis=1)


def balanced_accuracy(correct: Array, labels: npt.NDArray[np.int64]) -> float:
    """Mean recall over the classes present, of (S, N) answers of all seeds together."""
    ones = np.ones((1, len(labels)))
    return float(recall_per_class(correct.mean(axis=0)[None], labels, ones).mean())


def drawn_balanced_accuracy(correct: Array, labels: npt.NDArray[np.int64], draws: Draws) -> Array:
    """(B,) balanced accuracies when seeds and patients are drawn again.

    A class that a resample misses is left out of that resample's mean.

    Args:
        correct: (S, N), 1.0 where the classifier of a seed was right.
        labels: (N,) true classes.
        draws: The same for everything that is to be compared in pairs.
    """
    recalls = recall_per_class(draws.seeds @ correct, labels, draws.images)
    seen = ~np.isnan(recalls)
    means: Array = np.where(seen, recalls, 0.0).sum(axis=1) / seen.sum(axis=1)
    return means
