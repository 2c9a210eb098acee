"""What synthetic images are worth for training: tested on held-out real patients.

Train on synthetic, test on real (TSTR; Esteban 2017), beside training on real images and
on both. The three differ in their training images only: same network, steps and seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from synth_common.errors import DataError
from synth_common.evaluation.classifier import classifier_name, train_classifier
from synth_common.evaluation.config import EvaluationConfig, Tell, quiet
from synth_common.evaluation.resampling import bootstrap_weights, percentile_interval
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet, concatenate
from synth_common.randomness import derive_seed, numpy_stream

Array = npt.NDArray[np.float64]
Setting = Literal["synthetic", "real", "both"]

_SOURCE = "synth_common.evaluation.utility.evaluate_utility"


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


def evaluate_utility(
    train: ImageSet,
    holdout: ImageSet,
    synthetic: ImageSet,
    config: EvaluationConfig,
    seed: int,
    tell: Tell = quiet,
) -> list[Fact]:
    """Train classifiers on synthetic, real and both; test each on held-out real patients.

    Args:
        train: Real training images.
        holdout: Real test images of other patients.
        synthetic: Labelled synthetic images.
        config: Settings.
        seed: Root seed of the classifiers and of the resamples.
        tell: Is told of each setting as it begins.

    Returns:
        One ``utility.classification`` fact per setting over the whole holdout (site None)
        and, where ``holdout.sites`` is given, one per setting and site.

    Raises:
        DataError: One of the sets is empty.
    """
    for name, images in (("train", train), ("holdout", holdout), ("synthetic", synthetic)):
        if not len(images):
            raise DataError(f"{name} has no images; utility needs images to train and test on")
    bare = [ImageSet(s.images, s.labels, s.class_names) for s in (synthetic, train)]
    sources: dict[Setting, ImageSet] = {
        "synthetic": bare[0],
        "real": bare[1],
        "both": concatenate(bare),
    }
    places: list[str | None] = [None]
    if holdout.sites is not None:
        places += [str(name) for name in np.unique(holdout.sites)]
    facts = []
    for setting, images in sources.items():
        tell(f"classifiers trained on {describe(setting)}")
        trial = _run_trial(setting, images, holdout, config, seed)
        facts += [_fact(trial, holdout, place, config, seed) for place in places]
    return facts


def describe(setting: Setting) -> str:
    """What a setting trains on, in words."""
    return "both kinds of images" if setting == "both" else f"{setting} images"


def _run_trial(
    setting: Setting, images: ImageSet, holdout: ImageSet, config: EvaluationConfig, seed: int
) -> Trial:
    """Train one classifier per seed and keep what each says of the test images."""
    probabilities = [
        train_classifier(
            images,
            config.classifier_steps,
            config.classifier_batch,
            # The same seeds for every setting, so that settings differ in their images only.
            derive_seed(seed, "utility", repeat),
            config.classifier_width,
        ).probabilities(holdout.images)
        for repeat in range(config.utility_seeds)
    ]
    return Trial(setting, len(images), np.stack(probabilities))


def _fact(
    trial: Trial, holdout: ImageSet, site: str | None, config: EvaluationConfig, seed: int
) -> Fact:
    """Scores of a trial on the whole holdout, or on one site's part of it."""
    part, probabilities = holdout, trial.probabilities
    if site is not None and holdout.sites is not None:
        here = np.flatnonzero(holdout.sites == site)
        part, probabilities = holdout.subset(here), probabilities[:, here]
    correct = (probabilities.argmax(axis=2) == part.labels).astype(np.float64)
    recalls = recall_per_class(correct.mean(axis=0)[None], part.labels, np.ones((1, len(part))))[0]
    present = [part.class_names[c] for c in np.unique(part.labels)]
    rng = numpy_stream(seed, "utility", "bootstrap", site or "")
    return Fact(
        "utility.classification",
        {
            "balanced_accuracy": float(recalls.mean()),
            "accuracy": float(correct.mean()),
            "auc": macro_auc(probabilities, part.labels),
        },
        "site-local",
        _SOURCE,
        site=site,
        detail={
            "trained_on": trial.trained_on,
            "interval": balanced_accuracy_interval(
                correct, part.labels, part.units(), config.bootstrap, rng
            ),
            "seeds": config.utility_seeds,
            "n_train": trial.n_train,
            "n_test": len(part),
            "test_patients": part.unit_count(),
            "classifier": classifier_name(
                config.classifier_steps, config.classifier_batch, config.classifier_width
            ),
            "per_class": dict(zip(present, map(float, recalls), strict=True)),
        },
    )


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


def balanced_accuracy_interval(
    correct: Array,
    labels: npt.NDArray[np.int64],
    units: npt.NDArray[np.int64],
    resamples: int,
    rng: np.random.Generator,
) -> list[float]:
    """95 % interval of the mean recall when both seeds and patients are drawn again.

    Args:
        correct: (S, N), 1.0 where the classifier of a seed was right.
        labels: (N,) true classes.
        units: (N,) patient of each image.
        resamples: Number of resamples.
        rng: Source of the draws.
    """
    weights = bootstrap_weights(units, resamples, rng)
    repeats = len(correct)
    seeds = rng.multinomial(repeats, np.full(repeats, 1 / repeats), size=resamples) / repeats
    recalls = recall_per_class(seeds @ correct, labels, weights)
    # A class that a resample misses is left out of that resample's mean.
    seen = ~np.isnan(recalls)
    return percentile_interval(np.where(seen, recalls, 0.0).sum(axis=1) / seen.sum(axis=1))


def macro_auc(probabilities: Array, labels: npt.NDArray[np.int64]) -> float | None:
    """Mean over seeds and classes of the one-versus-rest AUC; None with a single class."""
    present = np.unique(labels)
    if len(present) < 2:
        return None
    values = [
        roc_auc_score(labels == label, scores[:, label])
        for scores in probabilities
        for label in present
    ]
    return float(np.mean(values))
