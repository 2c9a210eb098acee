"""LiRA's scores: right against a slow version and known Gaussians, and blind where it must be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from audit_sets import People, inputs, people
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from synth_common.audit.battery import spaces
from synth_common.audit.gathering import Gathered, gather
from synth_common.audit.measuring import Scored
from synth_common.audit.shadows import (
    Labels,
    Shadows,
    attack_shadows,
    closeness,
    draw_halves,
    lira_scores,
    pace,
    require_models,
)
from synth_common.errors import ConfigError, DataError
from synth_common.images.imageset import ImageSet


def _world(models: int, candidates: int, gain: float) -> tuple[np.ndarray, ...]:
    """Truth, target, shadows and inclusion: f ~ N(own mean + gain if in, 1); means far apart."""
    rng = np.random.default_rng(models)
    means = rng.normal(0, 30, candidates)
    member = np.arange(candidates) < candidates // 2
    included = draw_halves(candidates, models, rng)
    target = means + gain * member + rng.normal(0, 1, candidates)
    shadows = means + gain * included + rng.normal(0, 1, included.shape)
    return member, target, shadows, included


def _auc(member: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(member, scores))


@pytest.mark.parametrize("models", [8, 64])
def test_scores_are_those_of_a_slow_version_with_one_spread_or_one_each(models: int) -> None:
    _, target, shadows, included = _world(models, 40, 1.0)
    residuals: dict[bool, list[float]] = {True: [], False: []}
    for i in range(40):
        for side in (True, False):
            values = shadows[included[:, i] == side, i]
            residuals[side] += (values - values.mean()).tolist()
    quick = lira_scores(target, shadows, included)
    for i in range(40):
        logs = {}
        for side in (True, False):
            values = shadows[included[:, i] == side, i]
            few = np.sqrt(np.sum(np.square(residuals[side])) / (40 * (models // 2 - 1)))
            spread = values.std(ddof=1) if models == 64 else few
            logs[side] = norm.logpdf(target[i], values.mean(), spread)
        assert quick[i] == pytest.approx(logs[True] - logs[False], rel=1e-9)


def test_known_gaussians_give_the_auc_of_the_best_test() -> None:
    """N(0, 1) against N(1, 1): Phi(1 / sqrt 2) = 0.760, once means are known well."""
    member, target, shadows, included = _world(256, 8000, 1.0)
    assert _auc(member, target) == pytest.approx(0.5, abs=0.03)  # the means hide everything
    scores = lira_scores(target, shadows, included)
    assert _auc(member, scores) == pytest.approx(0.760, abs=0.015)
    member, target, shadows, included = _world(8, 8000, 1.0)
    assert 0.62 < _auc(member, lira_scores(target, shadows, included)) < 0.745
    member, target, shadows, included = _world(8, 8000, 0.0)
    assert _auc(member, lira_scores(target, shadows, included)) == pytest.approx(0.5, abs=0.02)


def test_a_constant_statistic_says_nothing_and_a_candidate_seen_once_is_refused() -> None:
    included = draw_halves(10, 8, np.random.default_rng(0))
    assert not lira_scores(np.ones(10), np.ones((8, 10)), included).any()
    with pytest.raises(DataError, match="fewer than two"):
        lira_scores(np.ones(10), np.ones((8, 10)), np.arange(8)[:, None] == np.zeros((1, 10)))


def test_every_patient_is_in_half_of_the_trainings_and_halves_differ() -> None:
    halves = draw_halves(41, 12, np.random.default_rng(3))
    assert (halves.sum(axis=0) == 6).all()
    assert (halves[0::2] == ~halves[1::2]).all()
    assert len({half.tobytes() for half in halves}) == 12
    assert set(halves.sum(axis=1).tolist()) == {20, 21}


def test_closeness_is_of_the_five_nearest_and_one_copy_counts_up_to_the_floor() -> None:
    candidates = np.array([[0.0, 0.0], [3.0, 4.0]])
    near = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [4.0, 0.0], [90.0, 0.0]])
    distances = np.array([0.01, 1, 2, 3, 4])
    found = closeness(candidates, near, 0.01)
    assert found[0] == pytest.approx(-np.log(distances).mean())
    assert found[1] == pytest.approx(
        -np.log([5, np.sqrt(18), np.sqrt(13), np.sqrt(10), np.sqrt(17)]).mean()
    )
    assert closeness(candidates, near[:1], 0.01)[1] == pytest.approx(-np.log(5.0))


@pytest.mark.parametrize("models", [0, 6, 9])
def test_too_few_and_odd_models_are_refused(models: int) -> None:
    with pytest.raises(ConfigError, match=rf"--shadow-models {models}: must be even.*at least 8"):
        require_models(models)


def test_the_first_training_tells_what_all_take_and_the_others_what_is_left() -> None:
    said = pace(1, 16, 41.0)
    assert said == "shadow models: 1 of 16 took 41 s; about 11 min for all; Ctrl-C stops"
    assert pace(4, 16, 4000.0) == "shadow models: 4 of 16, about 3.3 h left"
    assert pace(16, 16, 100.0) == "shadow models: 16 of 16"


@pytest.fixture(scope="module")
def drawn() -> People:
    return people(100)


def _attack(
    drawn: People, audited: ImageSet, draw: Callable[[int, ImageSet, Labels], ImageSet]
) -> tuple[Gathered, list[Scored], dict]:
    gathered = gather(inputs(audited, drawn), 0)
    blind = (np.zeros(gathered.sides[0]), np.zeros(gathered.sides[1]))
    known = [(encoder, blind) for encoder in spaces(1)]
    told: list[str] = []
    shadows = Shadows(8, draw, lambda: {"recipe_sha256": "ab"})
    scored, fact = attack_shadows(gathered, known, shadows, 0, told.append)
    assert len(told) == 8
    return gathered, scored, dict(fact.value)


def _aucs(scored: list[Scored]) -> list[float]:
    return [
        _auc(
            np.arange(len(s.members) + len(s.nonmembers)) < len(s.members),
            np.concatenate([s.members, s.nonmembers]),
        )
        for s in scored
    ]


def test_a_recipe_that_leaks_is_found_and_one_that_learns_nothing_is_not(drawn: People) -> None:
    seen: list[ImageSet] = []

    def copies(number: int, train: ImageSet, labels: Labels) -> ImageSet:
        seen.append(train)
        return train.subset(np.arange(len(labels)) % len(train))

    gathered, scored, fact = _attack(drawn, drawn.members, copies)
    assert min(_aucs(scored)) > 0.97
    assert {(s.view, s.attack) for s in scored} == {("images", "Shadow models (LiRA)")}
    assert fact["models"] == 8
    assert fact["recipe_sha256"] == "ab"
    assert fact["patients_each"] == sum(gathered.sides) // 2
    # Whole patients are in or out, and a set and its complement hold everyone once.
    for first, second in zip(seen[0::2], seen[1::2], strict=True):
        assert first.patient_ids is not None
        assert second.patient_ids is not None
        assert not np.intersect1d(first.patient_ids, second.patient_ids).size
        assert len(first) + len(second) == len(gathered.real)

    def deaf(number: int, train: ImageSet, labels: Labels) -> ImageSet:
        order = np.random.default_rng(number).permutation(len(drawn.fresh))
        return drawn.fresh.subset(order[np.arange(len(labels)) % 60])

    fresh = drawn.fresh.subset(np.arange(60))
    _, scored, _ = _attack(drawn, fresh, deaf)
    assert max(abs(auc - 0.5) for auc in _aucs(scored)) < 0.11
