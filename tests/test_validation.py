"""Refusals of settings: the key as it is typed, its value, and what would be accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulation_scenario import write_tiny

from synth_common.errors import ConfigError
from synth_common.plan import Plan, TrainingPlan
from synth_common.validation import validate
from synth_sim.scenario import load_scenario


def _refusal(folder: Path, override: str) -> str:
    """What loading the small scenario with one override says, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load_scenario(str(write_tiny(folder)), [override])
    return str(caught.value).removeprefix(f"scenario {folder / 'tiny.toml'}: ")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("training.round=1", "training.rounds"),
        ("trainng.rounds=1", "training"),
        ("epsilon=2", "privacy.epsilon"),  # a key without its section
        ("generator.epsilon=2", "privacy.epsilon"),  # and under another
        ("release.embedding.shares=0.5", "release.embedding.share"),
        ("data.sources.0.patient=9", "data.sources.0.patients"),
        ("partition.sites.1.scanner.gama=1", "partition.sites.1.scanner.gamma"),
    ],
)
def test_an_unknown_key_gets_the_key_that_was_meant(
    override: str, meant: str, tmp_path: Path
) -> None:
    key = override.partition("=")[0].removesuffix(".rounds")
    assert _refusal(tmp_path, override).startswith(f"{key}: unknown key")
    assert _refusal(tmp_path, override).endswith(f", did you mean {meant}?")


def test_a_key_like_no_other_gets_those_of_its_section(tmp_path: Path) -> None:
    known = ", ".join(TrainingPlan.model_fields)
    assert _refusal(tmp_path, "training.surprise=1") == (
        f"training.surprise: unknown key (value 1) (known here: {known})"
    )
    # Of the kinds of source only the one that is meant: a drawn set has no path.
    path = _refusal(tmp_path, "data.sources.0.path=x")
    assert "known here: kind, name, look, patients" in path
    assert "path" not in path.partition("known here")[2]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "generator.size=500",
            "generator.size = 500: must be at least 28, at most 128 and a multiple of 4",
        ),
        ("generator.size=30.5", "generator.size = 30.5: must be a whole number"),
        ("generator.family=vea", "generator.family = 'vea': must be 'vae', 'gan' or 'embedding'"),
        ("generator.channels=2", "generator.channels = 2: must be 1 or 3"),
        ("training.learning_rate=0", "training.learning_rate = 0: must be above 0"),
        ("training.rounds=three", "training.rounds = 'three': must be a whole number"),
        ("training.augment_flip=maybe", "training.augment_flip = 'maybe': must be true or false"),
        ("training=3", "training = 3: must be a section with keys, not a single value"),
        ("privacy.delta=1", "privacy.delta = 1: must be above 0 and at most 0.01"),
        ("partition.alpha=1", "partition: alpha belongs to kind = 'dirichlet' (kind is 'iid')"),
        (
            "partition.sites.0.column=3",
            "partition.sites.0.column = 3: must be text or a list, as in [1, 2]",
        ),
        (
            "partition.sites.0.name=':)'",
            "partition.sites.0.name = ':)': must be 1 to 64 letters, digits, hyphens and "
            "underscores, as in north",
        ),
        (
            "data.sources.0.kind=dicom",
            "data.sources.0.kind = 'dicom': must be one of 'phantom', 'npz', 'folder', 'tiles'",
        ),
        ("data.sources.0.kind=folder", "data.sources.0.path: required, but not given"),
        (
            "data.sources.0.patients=0",
            "data.sources.0.patients = 0: must be at least 1 and at most 100000",
        ),
        (
            "pretraining.sha256=abc",
            "pretraining.sha256 = 'abc': must be 64 hexadecimal digits, as pretrain prints",
        ),
    ],
)
def test_an_impossible_value_gets_one_sentence_with_what_is_possible(
    override: str, sentence: str, tmp_path: Path
) -> None:
    assert _refusal(tmp_path, override).split("; ")[0] == sentence


def test_every_problem_of_a_plan_is_told_at_once() -> None:
    wrong = {"training": {"rounds": -1, "round": 2}, "privacy": {"unit": "person"}}
    with pytest.raises(ConfigError) as caught:
        validate(Plan, wrong, "plan")
    assert str(caught.value) == (
        "plan: training.rounds = -1: must be at least 0; training.round: unknown key (value 2), "
        "did you mean training.rounds?; privacy.unit = 'person': must be 'patient' or 'image'"
    )


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    assert len(_refusal(tmp_path, f"generator.size={'x' * 500}")) < 150
