"""Whom the synthetic images serve: the classifiers' scores per class, site, sex and age band.

The same classifiers as in utility, tested on the held-out real patients of one group at a
time. Sex and age are those that a source records (:mod:`synth_common.images.people`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.resampling import draw_again, percentile_interval
from synth_common.evaluation.trials import (
    Array,
    Trial,
    balanced_accuracy,
    drawn_balanced_accuracy,
)
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet
from synth_common.randomness import numpy_stream

Dimension = Literal["class", "site", "sex", "age"]
Index = npt.NDArray[np.int64]

NOT_RECORDED = "not recorded"
"""The group of those whose sex or age a source leaves open while it records it of others."""

_SOURCE = "synth_common.evaluation.fairness.fairness_facts"


@dataclass(frozen=True)
class Group:
    """People of the holdout who share something.

    Attributes:
        dimension: What they share.
        name: The class, site, sex or age band.
        here: (N,) positions of their images in the holdout.
        patients: How many they are.
        smallest: Whether no group of the dimension has fewer patients.
    """

    dimension: Dimension
    name: str
    here: Index
    patients: int
    smallest: bool


def groups_of(holdout: ImageSet, age_edges: Sequence[float]) -> list[Group]:
    """The groups of a holdout, by every dimension that it records and that has two groups.

    A patient with images in two groups (an age that passes an edge) counts in both.
    """
    units, groups = holdout.units(), list[Group]()
    for dimension, names in _columns(holdout, age_edges):
        found = list(dict.fromkeys(sorted(names.tolist(), key=lambda n: _order(n, dimension))))
        if len(found) < 2:
            continue
        places = {name: np.flatnonzero(names == name) for name in found}
        patients = {name: len(np.unique(units[here])) for name, here in places.items()}
        least = min(patients.values())
        groups += [
            Group(dimension, name, here, patients[name], patients[name] == least)
            for name, here in places.items()
        ]
    return groups


def age_bands(ages: npt.NDArray[np.float64], edges: Sequence[float]) -> npt.NDArray[np.str_]:
    """The band of each age in years: ``0-17``, ``18-39``, ... ``65+``; nan is not recorded."""
    starts = [0.0, *edges]
    ends = [f"-{end - 1:g}" for end in edges] + ["+"]
    names = np.array([f"{start:g}{end}" for start, end in zip(starts, ends, strict=True)])
    bands = names[np.digitize(np.nan_to_num(ages), edges)]
    return np.where(np.isnan(ages), NOT_RECORDED, bands)


def _columns(
    holdout: ImageSet, age_edges: Sequence[float]
) -> Iterator[tuple[Dimension, npt.NDArray[np.str_]]]:
    """The group of every image, by dimension."""
    yield "class", np.array(holdout.class_names)[holdout.labels]
    if holdout.sites is not None:
        yield "site", holdout.sites
    if holdout.sexes is not None:
        yield "sex", np.where(holdout.sexes == "unknown", NOT_RECORDED, holdout.sexes)
    if holdout.ages is not None:
        yield "age", age_bands(holdout.ages, age_edges)


def _order(name: str, dimension: Dimension) -> tuple[bool, float, str]:
    """Bands by age, other groups by name, those not recorded last."""
    start = name.rstrip("+").split("-")[0]
    years = float(start) if dimension == "age" and name != NOT_RECORDED else 0.0
    return (name == NOT_RECORDED, years, name)


def fairness_facts(
    trials: Sequence[Trial], holdout: ImageSet, config: EvaluationConfig, seed: int
) -> list[Fact]:
    """One ``fairness.group`` fact per group and setting, pooled over the sites.

    Args:
        trials: The classifiers' answers, one trial of which was trained on real images.
        holdout: Real test images, with sites, sexes and ages where they are recorded.
        config: Settings: age bands, smallest group that is shown, resamples.
        seed: Root seed of the resamples.

    Returns:
        ``score`` is balanced accuracy (recall where the group is a class), ``gap_to_real``
        how much more or less that is than with classifiers trained on real images, from
        the same draws. A group of fewer than ``config.group_minimum`` patients has neither
        figures nor counts, and says why.
    """
    real = next(trial for trial in trials if trial.trained_on == "real")
    facts: list[Fact] = []
    for group in groups_of(holdout, config.age_edges):
        shown = group.patients >= config.group_minimum
        part = holdout.subset(group.here)
        for trial in trials:
            pair = (_answers(trial, part, group.here), _answers(real, part, group.here))
            rng = numpy_stream(seed, "fairness", group.dimension, group.name)
            value, detail = _scores(pair, part, config, rng) if shown else _hidden(config)
            facts.append(_fact(group, trial, value, detail, config))
    return facts


def _answers(trial: Trial, part: ImageSet, here: Index) -> Array:
    """(S, N) right answers of a trial on a group's images."""
    return Trial(trial.trained_on, trial.n_train, trial.probabilities[:, here]).correct(part.labels)


def _scores(
    pair: tuple[Array, Array], part: ImageSet, config: EvaluationConfig, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Value and detail of a group: its score, and the gap to the real-trained classifiers'."""
    mine, real = (balanced_accuracy(correct, part.labels) for correct in pair)
    draws = draw_again(part.units(), len(pair[0]), config.bootstrap, rng)
    drawn = [drawn_balanced_accuracy(correct, part.labels, draws) for correct in pair]
    return {"score": mine, "gap_to_real": mine - real}, {
        "interval": percentile_interval(drawn[0]),
        "gap_interval": percentile_interval(drawn[0] - drawn[1]),
        "n_test": len(part),
        "test_patients": part.unit_count(),
        "classes": len(np.unique(part.labels)),
        "suppressed": None,
    }


def _hidden(config: EvaluationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Value and detail of a group too small to show."""
    nothing = dict.fromkeys(("interval", "gap_interval", "n_test", "test_patients", "classes"))
    why = f"fewer than {config.group_minimum} patients"
    return {"score": None, "gap_to_real": None}, {**nothing, "suppressed": why}


def _fact(
    group: Group,
    trial: Trial,
    value: Mapping[str, Any],
    detail: Mapping[str, Any],
    config: EvaluationConfig,
) -> Fact:
    """The fact of one group and setting."""
    return Fact(
        "fairness.group",
        dict(value),
        "site-local",
        _SOURCE,
        detail={
            "dimension": group.dimension,
            "group": group.name,
            "trained_on": trial.trained_on,
            "measure": "recall" if group.dimension == "class" else "balanced accuracy",
            "smallest": group.smallest,
            "seeds": config.utility_seeds,
            **detail,
        },
    )
