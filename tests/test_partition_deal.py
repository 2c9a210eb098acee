"""Dealing patients to hospitals: every kind, its extremes, and its refusals."""

from __future__ import annotations

import itertools
import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_common.errors import ConfigError
from synth_common.images.imageset import ImageSet
from synth_common.validation import validate
from synth_sim.partition import PartitionConfig, SiteShare, deal


def _set(patients: int, classes: int = 3, images_each: int = 2, first: int = 0) -> ImageSet:
    """Patients in turn of each class, with ``images_each`` different images."""
    who = np.repeat(np.arange(patients), images_each)
    n = len(who)
    images = np.zeros((n, 1, 28, 28), dtype=np.float32)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(n) / n, first / 1e4
    return ImageSet(
        images=images,
        labels=(who % classes).astype(np.int64),
        class_names=tuple("abcdef"[:classes]),
        patient_ids=np.array([f"p{first + k:04d}" for k in who]),
    )


def _config(sites: int | list[dict[str, Any]] = 3, **options: Any) -> PartitionConfig:
    entries = [{"name": f"h{k}"} for k in range(sites)] if isinstance(sites, int) else sites
    entries = [{"nominal_patients": 10, **e} for e in entries]
    return validate(PartitionConfig, {"sites": entries, **options}, "partition")


def _patients(images: ImageSet) -> set[str]:
    return set() if images.patient_ids is None else {str(p) for p in images.patient_ids}


def _table(dealt: dict[str, ImageSet]) -> np.ndarray:
    return np.stack([np.bincount(s.labels, minlength=len(s.class_names)) for s in dealt.values()])


KINDS: tuple[dict[str, Any], ...] = (
    {"kind": "iid"},
    {"kind": "dirichlet", "alpha": 0.3},
    {"kind": "dirichlet", "alpha": 50},
    {"kind": "quantity", "ratio": 4},
)


@given(
    options=st.sampled_from(KINDS),
    sites=st.integers(2, 4),
    each=st.integers(1, 3),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_every_patient_is_at_exactly_one_site(
    options: dict[str, Any], sites: int, each: int, seed: int
) -> None:
    images = _set(60, images_each=each)
    dealt = deal({"s": images}, _config(sites, min_patients=1, **options), seed)
    owners = [_patients(s) for s in dealt.values()]
    assert sum(map(len, owners)) == 60
    assert set().union(*owners) == _patients(images)
    assert sum(len(s) for s in dealt.values()) == len(images)
    for name, site in dealt.items():
        assert site.sites is not None
        assert set(site.sites) == {name}


def test_the_same_seed_deals_the_same_and_another_one_otherwise() -> None:
    images = _set(30)
    one, same, other = (deal({"s": images}, _config(), s)["h0"] for s in (1, 1, 2))
    assert _patients(one) == _patients(same)
    assert _patients(one) != _patients(other)


def test_copies_under_several_ids_stay_at_one_site() -> None:
    images = _set(40, images_each=1)
    for k in range(0, 40, 4):
        images.images[k + 1] = images.images[k]
    for seed in range(5):
        dealt = deal({"s": images}, _config(4), seed)
        for site in dealt.values():
            owned = _patients(site)
            for k in range(0, 40, 4):
                assert (f"p{k:04d}" in owned) == (f"p{k + 1:04d}" in owned)


def test_shares_are_kept() -> None:
    sites = [
        {"name": "big", "share": 6},
        {"name": "mid", "share": 3},
        {"name": "small", "share": 1},
    ]
    dealt = deal({"s": _set(100)}, _config(sites), 0)
    assert [s.unit_count() for s in dealt.values()] == [60, 30, 10]


def test_a_source_for_two_hospitals_and_a_source_for_a_third() -> None:
    sites = [
        {"name": "east", "source": "a"},
        {"name": "other", "source": "b"},
        {"name": "west", "source": "a"},
    ]
    a, b = _set(40), _set(13, first=1000)
    dealt = deal({"a": a, "b": b}, _config(sites, kind="sources"), 0)
    assert list(dealt) == ["east", "other", "west"]
    assert _patients(dealt["other"]) == _patients(b)
    assert _patients(dealt["east"]) | _patients(dealt["west"]) == _patients(a)
    assert dealt["east"].unit_count() == dealt["west"].unit_count() == 20


def test_dirichlet_extremes() -> None:
    """Near 0 a class sits at one site; at 1000 every site has its third of every class."""
    images = _set(600, images_each=1)
    skewed = _table(deal({"s": images}, _config(kind="dirichlet", alpha=1e-3, min_patients=1), 3))
    assert skewed.max(axis=0).sum() >= 0.99 * 600
    flat = _table(deal({"s": images}, _config(kind="dirichlet", alpha=1000), 3))
    assert np.abs(flat - 200 / 3).max() < 10
    middle = _table(deal({"s": images}, _config(kind="dirichlet", alpha=0.5), 3))
    assert flat.std() < middle.std() < skewed.std()


def test_dirichlet_parts_have_the_variance_of_the_distribution() -> None:
    """Var of a part is (1/K)(1 - 1/K) / (K alpha + 1) for K equal sites."""
    images = _set(300, classes=1, images_each=1)
    config = _config(3, kind="dirichlet", alpha=2.0, min_patients=1)
    parts = [len(deal({"s": images}, config, seed)["h0"]) / 300 for seed in range(300)]
    assert np.mean(parts) == pytest.approx(1 / 3, abs=0.03)
    assert np.var(parts) == pytest.approx((2 / 9) / 7, rel=0.25)


def test_dirichlet_goes_by_the_majority_of_a_patient() -> None:
    images = _set(200, classes=2, images_each=3)
    images.labels[::3] = 1 - images.labels[::3]  # one image of three has the other label
    dealt = deal({"s": images}, _config(2, kind="dirichlet", alpha=1e-3, min_patients=1), 0)
    majority = np.stack(
        [np.bincount(s.labels.reshape(-1, 3).sum(axis=1) > 1, minlength=2) for s in dealt.values()]
    )
    assert majority.max(axis=0).sum() >= 198


@pytest.mark.parametrize(("ratio", "patients"), [(28, 580), (1, 90), (5, 300)])
def test_quantity_skew(ratio: float, patients: int) -> None:
    dealt = deal({"s": _set(patients)}, _config(4, kind="quantity", ratio=ratio), 0)
    sizes = [s.unit_count() for s in dealt.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] / sizes[-1] == pytest.approx(ratio, rel=0.08)
    steps = [a / b for a, b in itertools.pairwise(sizes)]
    assert max(steps) / min(steps) < 1.25


def test_a_site_with_one_class_only() -> None:
    sites = [{"name": "one", "classes": ["b"]}, {"name": "x"}, {"name": "y"}]
    images = _set(90)
    images.labels[images.patient_ids == "p0001"] = [1, 0]  # a mixed patient must not go there
    for seed in range(4):
        dealt = deal({"s": images}, _config(sites, kind="one-class"), seed)
        assert set(dealt["one"].labels) == {1}
        assert "p0001" not in _patients(dealt["one"])
        assert dealt["one"].unit_count() == 29
        assert sum(s.unit_count() for s in dealt.values()) == 90
        assert abs(dealt["x"].unit_count() - dealt["y"].unit_count()) <= 1


def test_column() -> None:
    images = _set(30, images_each=2)
    column = np.array(["north", "south", "unnamed"])[np.repeat(np.arange(30), 2) % 3]
    column[0:2] = ["south", "north"]  # p0000 was seen at two hospitals, once each
    shown = ImageSet(**{**vars(images), "sites": column})
    sites = [{"name": "north"}, {"name": "s", "column": "south"}]
    dealt = deal({"s": shown}, _config(sites, kind="column"), 0)
    assert {n: s.unit_count() for n, s in dealt.items()} == {"north": 10, "s": 10}
    assert not _patients(dealt["north"]) & _patients(dealt["s"])
    with pytest.raises(ConfigError, match=r"'west' is none of \['north', 'south', 'unnamed'\]"):
        deal({"s": shown}, _config([{"name": "west"}], kind="column"), 0)
    twice = [{"name": "a", "column": "north"}, {"name": "b", "column": "north"}]
    with pytest.raises(ConfigError, match="another site has column value"):
        deal({"s": shown}, _config(twice, kind="column"), 0)
    with pytest.raises(ConfigError, match="site_key"):
        deal({"s": images}, _config([{"name": "north"}], kind="column"), 0)


def test_a_site_of_several_column_values() -> None:
    images = _set(30, images_each=1)
    column = np.array(["a", "b", "c", "d", "e"])[np.arange(30) % 5]
    shown = ImageSet(**{**vars(images), "sites": column})
    sites = [{"name": "x", "column": ["a", "c"]}, {"name": "e"}]
    dealt = deal({"s": shown}, _config(sites, kind="column"), 0)
    assert _patients(dealt["x"]) == {
        p for p, v in zip(images.patient_ids, column, strict=True) if v in "ac"
    }
    assert dealt["e"].unit_count() == 6
    both = [{"name": "x", "column": ["a", "c"]}, {"name": "y", "column": ["d", "c"]}]
    with pytest.raises(ConfigError, match=r"'y': another site has column value 'c' too \('x'\)"):
        deal({"s": shown}, _config(both, kind="column"), 0)


def test_a_site_with_too_few_patients_is_named() -> None:
    sites = [{"name": "large", "share": 50}, {"name": "tiny", "share": 1}]
    with pytest.raises(ConfigError, match=r"'tiny' would have 1 patients.*min_patients = 4"):
        deal({"s": _set(51)}, _config(sites), 0)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([{"name": "x"}], r"source is required, one of \['a', 'b'\]"),
        ([{"name": "x", "source": "c"}], r"source 'c' is none of"),
        ([{"name": "x", "source": "a"}], r"sources \['b'\] are used by no site"),
    ],
)
def test_sites_and_sources_must_fit(sites: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deal({"a": _set(20), "b": _set(20)}, _config(sites, kind="sources"), 0)


def test_an_unknown_class_is_refused() -> None:
    sites = [{"name": "x", "classes": ["z"]}, {"name": "y"}]
    with pytest.raises(ConfigError, match=r"classes \['z'\] are none of \['a', 'b', 'c'\]"):
        deal({"s": _set(20)}, _config(sites, kind="one-class"), 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0.5}, "alpha belongs to"),
        ({"kind": "dirichlet"}, "alpha is required"),
        ({"kind": "dirichlet", "alpha": 0}, "above 0"),
        ({"kind": "quantity"}, "ratio is required"),
        ({"kind": "quantity", "ratio": 0.5}, "at least 1"),
        ({"kind": "one-class"}, "at least one site with classes"),
        ({"kind": "random"}, "kind = 'random'"),
        ({"sites": []}, "at least 1 item"),
        ({"sites": [{"name": "a"}, {"name": "A"}]}, "must differ"),
        ({"sites": [{"name": "../a"}]}, "must be 1 to 64 letters"),
        ({"sites": [{"name": "a", "share": 0}]}, "above 0"),
        ({"sites": [{"name": "a", "classes": ["b"]}]}, "classes belongs to"),
        ({"sites": [{"name": "a", "column": "b"}]}, "column belongs to"),
        ({"kind": "quantity", "ratio": 2, "sites": [{"name": "a", "share": 2}]}, "leave share out"),
        ({"sites": [{"name": "a", "budget_epsilon": -1}]}, "above 0"),
        ({"sites": [{"name": "a", "shares": 1}]}, "unknown key"),
    ],
)
def test_impossible_partitions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _config(**{"sites": 3, **values})


def test_nominal_patients_must_be_declared() -> None:
    with pytest.raises(ConfigError, match="nominal_patients: required"):
        validate(PartitionConfig, {"sites": [{"name": "a"}]}, "partition")


def test_a_partition_reads_from_toml_and_survives_its_own_dump() -> None:
    text = """
    kind = "dirichlet"
    alpha = 0.5
    [[sites]]
    name = "clinic"
    nominal_patients = 300
    scanner = { gamma = 1.2, noise = 0.02 }
    [[sites]]
    name = "hospital"
    nominal_patients = 900
    share = 3
    budget_epsilon = 4
    """
    config = validate(PartitionConfig, tomllib.loads(text), "partition")
    assert config.sites[0].scanner is not None
    assert config.sites[0].scanner.gamma == 1.2
    fact = config.as_fact_value()
    assert fact["kind"] == "dirichlet"
    assert validate(PartitionConfig, fact, "partition") == config
    assert isinstance(config.sites[1], SiteShare)
