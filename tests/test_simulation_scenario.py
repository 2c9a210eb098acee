"""Scenarios: packaged ones are whole, overrides are typed, and refusals name the key."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from simulation_scenario import write_tiny

from synth_common.errors import ConfigError, DataError
from synth_sim.scenario import load_scenario, packaged, save_scenario, summaries


@pytest.mark.parametrize("name", sorted(packaged()))
def test_every_packaged_scenario_is_valid_and_titled(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.plan.privacy.private
    assert dict(summaries())[name] == scenario.title


def test_the_named_scenarios_are_packaged() -> None:
    assert {
        "phantom-hospitals",
        "phantom-release",
        "chest-xray-hospitals",
        "mednist",
        "mnist",
        "mnist-pooled",
        "nuclei",
    } <= packaged().keys()


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.rounds=3", "training.rounds", 3),
        ("privacy.epsilon=inf", "privacy.epsilon", math.inf),
        ("privacy.epsilon = 1.5", "privacy.epsilon", 1.5),
        ("generator.family=gan", "generator.family", "gan"),
        ('generator.family="gan"', "generator.family", "gan"),
        ("report.show_real=true", "report.show_real", True),
        ("data.root=../some/folder", "data.root", Path("../some/folder")),
        ('generator.classes=["normal", "lesion"]', "generator.classes", ("normal", "lesion")),
        ("data.sources.0.patients=99", "data.sources.0.patients", 99),
    ],
)
def test_overrides_take_toml_values_and_plain_words(
    override: str, path: str, value: object, tmp_path: Path
) -> None:
    found: object = load_scenario(str(write_tiny(tmp_path)), [override])
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, tuple) else getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("training.round=3", r"training\.round: unknown key \(value 3\)"),
        ("training.rounds=0", r"training\.rounds = 0: "),
        ("privacy.epsilon=0", r"privacy\.epsilon = 0: "),
        ("privacy.epsilon=-1", r"privacy\.epsilon = -1: "),
        ("privacy.epsilon=nan", "privacy.epsilon"),
        ("privacy.delta=1", r"privacy\.delta = 1: "),
        ("generator.family=diffusion", r"generator\.family = 'diffusion'"),
        ("generator.size=30", r"generator\.size = 30: "),
        ("evaluation.speed=1", r"evaluation\.speed: unknown key"),
        ("data.sources.0.patients=0", "patients = 0"),
        ("data.sources.7.patients=3", "'7' is none of its items; they are numbered 0"),
        ("title.sub=3", "title = .* is a value, not a section"),
        ("training.rounds", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("training..rounds=3", "expected section.key=value"),
        ("training.rounds=[1", "is not a TOML value"),
        ("surprise.key=1", r"surprise: unknown key"),
    ],
)
def test_bad_overrides_are_refused_by_name(override: str, names: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=names):
        load_scenario(str(write_tiny(tmp_path)), [override])


def test_an_unknown_scenario_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="phantom-hospitals"):
        load_scenario("phantoms")
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load_scenario("missing.toml")


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("name = [", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_scenario(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_scenario(str(path))


def test_a_saved_scenario_is_the_same_run(tmp_path: Path) -> None:
    scenario = load_scenario(
        str(write_tiny(tmp_path)), ["privacy.epsilon=inf", f"data.root={tmp_path}"], seed=77
    )
    save_scenario(scenario, tmp_path / "saved.toml")
    again = load_scenario(str(tmp_path / "saved.toml"))
    assert again == scenario
    assert again.run_id() == scenario.run_id()
    assert again.seed == 77


def test_the_run_id_follows_what_decides_the_result_and_not_where_data_lies(
    tmp_path: Path,
) -> None:
    path = str(write_tiny(tmp_path))
    same = load_scenario(path, [f"data.root={tmp_path}"]).run_id()
    assert same == load_scenario(path).run_id()
    for other in (["training.rounds=3"], ["data.sources.0.seed=4"], ["evaluation.bootstrap=21"]):
        assert load_scenario(path, other).run_id() != same
    assert load_scenario(path, seed=6).run_id() != same


def test_simulations_are_repeatable_unless_they_ask_for_secure_noise(tmp_path: Path) -> None:
    path = str(write_tiny(tmp_path))
    assert load_scenario(path).privacy.noise == "simulation"
    assert load_scenario(path, ["privacy.noise=secure"]).privacy.noise == "secure"


def test_the_data_root_falls_back_to_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = load_scenario(str(write_tiny(tmp_path)))
    monkeypatch.delenv("SYNTHWARD_DATA", raising=False)
    assert scenario.data_root() is None
    monkeypatch.setenv("SYNTHWARD_DATA", str(tmp_path))
    assert scenario.data_root() == tmp_path.resolve()
    monkeypatch.setenv("SYNTHWARD_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"SYNTHWARD_DATA.*nowhere"):
        scenario.data_root()


def test_image_units_have_no_cap_of_images(tmp_path: Path) -> None:
    scenario = load_scenario(str(write_tiny(tmp_path)), ["privacy.unit=image"])
    assert scenario.plan.privacy.max_images_per_patient == 1
