"""Settings that only make sense together."""

from __future__ import annotations

import pytest

from synth_common.errors import ConfigError
from synth_common.plan import EmbeddingPlan, Plan, ReleasePlan
from synth_common.validation import validate


def plan(**sections: object) -> Plan:
    return validate(Plan, sections, "plan")


@pytest.mark.parametrize(
    ("rounds", "embedding", "fits"),
    [
        (0, {}, True),
        (0, {"share": 1.0}, True),
        (0, {"share": 0.5}, False),
        (0, None, False),
        (3, {}, False),
        (3, {"share": 0.999}, True),
        (3, None, True),
    ],
)
def test_a_plan_has_no_rounds_exactly_when_one_release_takes_the_whole_budget(
    rounds, embedding, fits
):
    sections = {"training": {"rounds": rounds}, "release": {"embedding": embedding}}
    if fits:
        assert plan(**sections).training.total_steps == rounds * 40
        return
    with pytest.raises(ConfigError, match=rf"^plan: training\.rounds = {rounds}: .*share"):
        plan(**sections)


def test_secure_aggregation_needs_something_that_is_released_once():
    secure = {"trust_model": "secure-aggregation"}
    with pytest.raises(ConfigError, match=r"set release\.embedding, or"):
        plan(privacy=secure)
    assert plan(privacy=secure, training={"rounds": 0}, release={"embedding": {}})


@pytest.mark.parametrize(("rounds", "share"), [(0, 1.0), (3, 0.5)])
def test_nobody_pays_for_counts_that_an_embedding_holds_already(rounds, share):
    both = {"embedding": {"share": share}, "label_histogram": 6.0}
    with pytest.raises(ConfigError, match=r"label_histogram = 6: .*already holds .*leave"):
        plan(training={"rounds": rounds}, release=both)


def test_a_release_leaves_fine_detail_to_describe():
    release = {"training": {"rounds": 0}, "release": {"embedding": {}}}
    for chosen in (28, 32):
        small = {"size": 28, "frequencies": chosen}
        words = rf"generator\.frequencies = {chosen}: .*generator\.size = 28 .*fewer than 28"
        with pytest.raises(ConfigError, match=words):
            plan(generator=small, **release)
        assert plan(generator=small)  # without a release it says nothing
    assert plan(generator={"size": 28, "frequencies": 27}, **release)
    with pytest.raises(ConfigError, match=r"generator\.frequencies = 1: must be at least 2"):
        plan(generator={"frequencies": 1}, **release)


@pytest.mark.parametrize(
    ("trust", "min_sites", "colluders", "least"),
    [
        ("local", 2, 1, 2),
        ("secure-aggregation", 2, 0, 3),
        ("secure-aggregation", 2, 1, 3),
        ("secure-aggregation", 2, 3, 5),
        ("secure-aggregation", 6, 1, 6),
    ],
)
def test_the_least_number_of_sites_of_a_release(trust, min_sites, colluders, least):
    made = plan(
        privacy={"trust_model": trust},
        training={"rounds": 0},
        federation={"min_sites": min_sites},
        release={"embedding": {"colluders": colluders}},
    )
    assert made.release_sites == least


@pytest.mark.parametrize(
    "wrong", [{"share": 0}, {"share": 1.01}, {"spare_attempts": -1}, {"colluders": -1}, {"x": 1}]
)
def test_impossible_settings_of_a_release_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        validate(EmbeddingPlan, wrong, "embedding")


def test_plans_with_and_without_a_release_can_be_compared():
    without, with_one = plan(), plan(release={"embedding": {"share": 0.5}})
    told = without.differences(with_one)
    assert "release.embedding.share: None against 0.5" in told
    assert Plan.from_json(with_one.to_json()) == with_one
    assert with_one.digest() != without.digest()
    assert ReleasePlan().embedding is None


@pytest.mark.parametrize(
    ("family", "training", "release"),
    [
        ("embedding", {"rounds": 0}, {"embedding": {}}),
        ("vae", {"rounds": 3}, {"embedding": {"share": 0.5}}),
    ],
)
def test_no_release_spends_its_length_on_features_that_nothing_learns_from(
    family, training, release
):
    def asked(**generator: object) -> Plan:
        return plan(generator={"family": family, **generator}, training=training, release=release)

    with pytest.raises(ConfigError, match=r"generator\.features = 3000: .*set features = 0"):
        asked(features=3000, refine_steps=0)
    with pytest.raises(ConfigError, match=r"generator\.refine_by_class = true: .*features = 0"):
        asked(refine_by_class=True, features=0)
    with pytest.raises(ConfigError, match=r"generator\.refine_by_class = true"):
        asked(refine_by_class=True, features=0, refine_steps=0)
    assert asked(features=0, refine_steps=0).generator.features == 0
    assert asked(refine_by_class=True, features=2, refine_steps=1).generator.refine_by_class


def test_what_a_release_would_use_is_free_to_say_without_one():
    assert plan(generator={"features": 4, "refine_steps": 0}).generator.features == 4
    assert plan(generator={"refine_by_class": True, "features": 0}).generator.refine_by_class
