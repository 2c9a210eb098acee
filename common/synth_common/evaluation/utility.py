"""What synthetic images are worth for training: tested on held-out real patients.

Train on synthetic, test on real (TSTR; Esteban 2017), beside training on real images and
on both. The three differ in their training images only: same network, steps and seeds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from synth_common.evaluation.augmentation import augmentation_facts
from synth_common.evaluation.classifier import classifier_name
from synth_common.evaluation.config import EvaluationConfig, Tell, quiet
from synth_common.evaluation.fairness import fairness_facts
from synth_common.evaluation.resampling import draw_again, percentile_interval
from synth_common.evaluation.trials import (
    Trial,
    drawn_balanced_accuracy,
    recall_per_class,
    run_trials,
    shown_by_class,
)
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet
from synth_common.randomness import numpy_stream

Array = npt.NDArray[np.float64]

_SOURCE = "synth_common.evaluation.utility.evaluate_utility"


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
        and, where ``holdout.sites`` is given, one per setting and site; one ``fairness.group``
        fact per setting and group of people; one ``utility.augmentation`` fact per share of
        ``config.augmentation_shares``, with and without synthetic images.

    Raises:
        DataError: One of the sets is empty.
    """
    trials = run_trials(train, holdout, synthetic, config, seed, tell)
    places: list[str | None] = [None]
    if holdout.sites is not None:
        places += [str(name) for name in np.unique(holdout.sites)]
    facts = [
        _fact(trial, holdout, place, config, seed) for trial in trials.values() for place in places
    ]
    facts += fairness_facts(list(trials.values()), holdout, config, seed)
    if config.augmentation_shares:
        facts += augmentation_facts((train, holdout, synthetic), trials, config, seed, tell)
    return facts


def _fact(
    trial: Trial, holdout: ImageSet, site: str | None, config: EvaluationConfig, seed: int
) -> Fact:
    """Scores of a trial on the whole holdout, or on one site's part of it."""
    part, probabilities = holdout, trial.probabilities
    if site is not None and holdout.sites is not None:
        here = np.flatnonzero(holdout.sites == site)
        part, probabilities = holdout.subset(here), probabilities[:, here]
    correct = Trial(trial.trained_on, trial.n_train, probabilities).correct(part.labels)
    recalls = recall_per_class(correct.mean(axis=0)[None], part.labels, np.ones((1, len(part))))[0]
    of_label = dict(zip(np.unique(part.labels).tolist(), map(float, recalls), strict=True))
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
            "per_class": shown_by_class(part, of_label.__getitem__, config),
        },
    )


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
    draws = draw_again(units, len(correct), resamples, rng)
    return percentile_interval(drawn_balanced_accuracy(correct, labels, draws))


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
