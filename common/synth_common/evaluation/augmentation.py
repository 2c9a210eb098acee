"""What synthetic images add where real ones are few: classifiers with and without them.

Real patients are drawn, class by class, to a share of the training patients; the draws are
nested (those of 5 % are among those of 10 %) and differ from seed to seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from synth_common.evaluation.classifier import classifier_name
from synth_common.evaluation.config import EvaluationConfig, Tell, quiet
from synth_common.evaluation.resampling import draw_again, percentile_interval
from synth_common.evaluation.trials import (
    Array,
    Setting,
    Trial,
    balanced_accuracy,
    drawn_balanced_accuracy,
    predictions,
    settings_of,
)
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet
from synth_common.randomness import numpy_stream

_SOURCE = "synth_common.evaluation.augmentation.augmentation_facts"


@dataclass(frozen=True)
class _Point:
    """One share of the real patients: who was drawn per seed, and the two settings' answers.

    Attributes:
        share: Of the real training patients.
        n_real: Real images drawn, per seed.
        patients: Real patients drawn (images, where the source has no ids), per seed.
        correct: Right answers (S, N) without ("real") and with ("both") synthetic images.
    """

    share: float
    n_real: list[int]
    patients: list[int]
    correct: dict[Setting, Array]


def augmentation_facts(
    sets: tuple[ImageSet, ImageSet, ImageSet],
    trials: Mapping[Setting, Trial],
    config: EvaluationConfig,
    seed: int,
    tell: Tell = quiet,
) -> list[Fact]:
    """Train at every share of ``config.augmentation_shares``, with and without synthetic images.

    Args:
        sets: Real training images, real test images of other patients, synthetic images.
        trials: The trials of utility: at a share of 1 they are what would be trained here.
        config: Settings.
        seed: Root seed of draws, classifiers and resamples.
        tell: Is told of each share as it begins.

    Returns:
        Two ``utility.augmentation`` facts per share, ``trained_on`` "real" and "both";
        ``gain`` is what the synthetic images add, from the same draws of seeds and patients.
    """
    train, holdout, synthetic = sets
    facts = []
    for share in config.augmentation_shares:
        tell(f"classifiers on {100 * share:g} % of the real patients, with and without synthetic")
        point = _point(share, sets, trials, config, seed)
        draws = draw_again(
            holdout.units(),
            config.utility_seeds,
            config.bootstrap,
            numpy_stream(seed, "augmentation", "bootstrap"),
        )
        drawn = {
            setting: drawn_balanced_accuracy(correct, holdout.labels, draws)
            for setting, correct in point.correct.items()
        }
        gain = percentile_interval(drawn["both"] - drawn["real"])
        for setting in point.correct:
            added = len(synthetic) if setting == "both" else 0
            detail = {
                "interval": percentile_interval(drawn[setting]),
                "gain_interval": gain if setting == "both" else None,
                "n_synthetic": added,
                **_numbers(point, train, holdout, config),
            }
            facts.append(_fact(point, setting, holdout, detail))
    return facts


def _fact(point: _Point, setting: Setting, holdout: ImageSet, detail: Mapping[str, Any]) -> Fact:
    """The fact of one share and setting."""
    scores = {name: balanced_accuracy(c, holdout.labels) for name, c in point.correct.items()}
    gain = scores["both"] - scores["real"] if setting == "both" else None
    return Fact(
        "utility.augmentation",
        {"balanced_accuracy": scores[setting], "gain": gain},
        "site-local",
        _SOURCE,
        detail={"share": point.share, "trained_on": setting, **detail},
    )


def _numbers(
    point: _Point, train: ImageSet, holdout: ImageSet, config: EvaluationConfig
) -> dict[str, Any]:
    """What the figures of a share rest on; counts that differ by seed as [least, most]."""
    return {
        "seeds": config.utility_seeds,
        "n_real": [min(point.n_real), max(point.n_real)],
        "train_patients": [min(point.patients), max(point.patients)],
        "of_patients": train.unit_count(),
        "n_test": len(holdout),
        "test_patients": holdout.unit_count(),
        "classifier": classifier_name(
            config.classifier_steps, config.classifier_batch, config.classifier_width
        ),
    }


def _point(
    share: float,
    sets: tuple[ImageSet, ImageSet, ImageSet],
    trials: Mapping[Setting, Trial],
    config: EvaluationConfig,
    seed: int,
) -> _Point:
    """Draw, train and test at one share; all patients are what utility has trained on."""
    train, holdout, synthetic = sets
    if share == 1.0:
        there: dict[Setting, Array] = {
            setting: trials[setting].correct(holdout.labels) for setting in ("real", "both")
        }
        repeats = config.utility_seeds
        return _Point(share, [len(train)] * repeats, [train.unit_count()] * repeats, there)
    drawn = [
        train.subset(share_of_patients(train, share, numpy_stream(seed, "augmentation", repeat)))
        for repeat in range(config.utility_seeds)
    ]
    said: dict[Setting, list[Array]] = {"real": [], "both": []}
    for repeat, few in enumerate(drawn):
        images = settings_of(few, synthetic)
        for setting, answers in said.items():
            answers.append(predictions(images[setting], holdout, config, seed, repeat))
    correct = {
        setting: Trial(setting, 0, np.stack(answers)).correct(holdout.labels)
        for setting, answers in said.items()
    }
    return _Point(share, [len(s) for s in drawn], [s.unit_count() for s in drawn], correct)


def share_of_patients(
    train: ImageSet, share: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Positions of the images of a random share of the patients, of every class at least one.

    A patient's class is that of the first image; classes that are nobody's first image may be
    missing from a small share. A larger share drawn with an equal ``rng`` holds a smaller one's
    patients.
    """
    units = train.units()
    patients, first = np.unique(units, return_index=True)
    classes = train.labels[first]
    chosen = []
    for label in np.unique(classes):
        order = rng.permutation(patients[classes == label])
        chosen.append(order[: max(1, round(share * len(order)))])
    return np.flatnonzero(np.isin(units, np.concatenate(chosen)))
