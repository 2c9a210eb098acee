"""A comparison runs every case once, survives interruption, and tabulates what was recorded."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from simulation_scenario import write_tiny

from synth_common.errors import ConfigError, DataError
from synth_common.facts import Fact
from synth_common.plan import Family
from synth_sim import cli
from synth_sim.compare import CompareOptions, parse_seeds, run_comparison
from synth_sim.compare_rows import row_fact
from synth_sim.recipes import RECIPES, recipe_of
from synth_sim.scenario import load_scenario, packaged


def _options(tmp_path: Path, **changes: object) -> CompareOptions:
    values: dict[str, object] = {
        "scenario": str(write_tiny(tmp_path)),
        "out": tmp_path / "compare",
        "generators": ("vae", "gan"),
        "epsilons": ("inf",),
        "overrides": ("training.rounds=1",),
        **changes,
    }
    return CompareOptions(**values)  # type: ignore[arg-type]


@pytest.mark.slow
def test_two_families_on_the_same_data(tmp_path: Path) -> None:
    said: list[str] = []
    page = run_comparison(_options(tmp_path), said.append)
    assert page.is_file()
    table = json.loads((tmp_path / "compare" / "compare.json").read_text())
    assert [(r["family"], r["epsilon"]) for r in table["rows"]] == [("gan", "inf"), ("vae", "inf")]
    assert all(row["peak_memory_bytes"] > 50_000_000 for row in table["rows"])
    splits = [
        [
            line
            for line in (tmp_path / "compare" / name / "facts.jsonl").read_text().splitlines()
            if '"data.split"' in line
        ]
        for name in ("vae-epsinf", "gan-epsinf")
    ]
    assert [json.loads(a)["value"] for a in splits[0]] == [
        json.loads(b)["value"] for b in splits[1]
    ]

    before = (tmp_path / "compare" / "vae-epsinf" / "facts.jsonl").read_bytes()
    run_comparison(_options(tmp_path, resume=True), said.append)
    assert (tmp_path / "compare" / "vae-epsinf" / "facts.jsonl").read_bytes() == before
    again = json.loads((tmp_path / "compare" / "compare.json").read_text())
    assert again["rows"] == table["rows"]


@pytest.mark.slow
def test_private_runs_on_the_same_patients_add_up(tmp_path: Path) -> None:
    """Keeping the better of two runs is tuning: the page says what both cost."""
    options = _options(tmp_path, generators=("vae",), epsilons=("2", "1", "inf"))
    page = run_comparison(options, lambda _line: None)
    table = json.loads((tmp_path / "compare" / "compare.json").read_text())
    together, alone = table["together"], [row["epsilon_spent"] for row in table["rows"]]
    assert alone[-1] == "inf"
    assert (together["runs"], together["unit"]) == (2, "patient")
    assert max(alone[:-1]) < together["epsilon"] < sum(alone[:-1])
    assert "Trying costs privacy too" in page.read_text()


def test_an_occupied_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        run_comparison(_options(tmp_path), print)


def test_a_failed_run_fails_the_comparison_with_its_own_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case's process is real; it is only made to end with the code of a data error."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(DataError, match=r"vae-epsinf ended with exit code 3.*--resume"):
        run_comparison(_options(tmp_path), print)


@pytest.mark.slow
def test_seeds_give_a_mean_and_a_range_and_a_recipe_its_settings(tmp_path: Path) -> None:
    options = _options(tmp_path, generators=("vae-site",), seeds=(1, 2))
    page = run_comparison(options, lambda _line: None)
    table = json.loads((tmp_path / "compare" / "compare.json").read_text())
    (line,), rows = table["over_seeds"], table["rows"]
    assert (line["seeds"], [row["seed"] for row in rows]) == ([1, 2], [1, 2])
    values = [row["training_seconds"] for row in rows]
    assert line["training_seconds"] == pytest.approx(sum(values) / 2)
    assert line["training_seconds_interval"] == [min(values), max(values)]
    scenario = (tmp_path / "compare" / "vae-site-epsinf-seed2" / "scenario.toml").read_text()
    assert "site_normalisation = true" in scenario
    assert "VAE-SITE" in page.read_text()


def test_an_unknown_generator_is_refused_by_name_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"'diffusion'.*embedding, vae-site, gan-site, embedding-refined, curriculum$",
    ):
        run_comparison(_options(tmp_path, generators=("vae", "diffusion")), print)
    assert not (tmp_path / "compare").exists()


def _commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, **changes: object
) -> list[str]:
    """What the first run of a comparison would be started with; it is not run."""
    program, told = tmp_path / "python", tmp_path / "arguments"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {told}\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(DataError):
        run_comparison(_options(tmp_path, overrides=overrides, **changes), lambda _line: None)
    return told.read_text().splitlines()


def test_a_set_value_overrules_a_recipe_and_the_budget_overrules_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ("release.embedding.share=0.3", "privacy.epsilon=3", "training.rounds=2")
    changes = {"generators": ("curriculum",), "epsilons": ("1",)}
    told = _commands(tmp_path, monkeypatch, *own, **changes)
    settings = [told[i + 1] for i, word in enumerate(told) if word == "--set"]
    ran = load_scenario(str(tmp_path / "tiny.toml"), settings)
    assert ran.release.embedding is not None
    assert (ran.release.embedding.share, ran.privacy.epsilon) == (0.3, 1.0)
    assert ran.generator.family == "vae"


def test_a_family_set_beside_generators_is_refused_before_anything_runs(tmp_path: Path) -> None:
    options = _options(tmp_path, overrides=("generator.family=gan",))
    with pytest.raises(ConfigError, match=r"generator\.family=gan.*called vae.*--generators"):
        run_comparison(options, print)
    assert not (tmp_path / "compare").exists()


def test_a_case_that_a_scenario_cannot_have_is_named_with_the_way_out(tmp_path: Path) -> None:
    changes = {"scenario": "phantom-release", "generators": ("vae", "curriculum"), "overrides": ()}
    with pytest.raises(ConfigError, match=r"^--generators curriculum at .*; set training\.rounds"):
        run_comparison(_options(tmp_path, **changes), print)
    assert not (tmp_path / "compare").exists()


def test_the_default_compares_every_family_and_the_help_names_every_choice() -> None:
    hint = get_type_hints(cli.compare, include_extras=True)["generators"]
    chosen = inspect.signature(cli.compare).parameters["generators"].default.split(",")
    assert {*get_args(Family), "curriculum"} == set(chosen)
    (said,) = (item.help for item in hint.__metadata__)
    assert all(name in said for name in (*get_args(Family), *RECIPES))
    assert all(recipe_of(name) for name in chosen)


def test_what_makes_a_recipe_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one command can set the rounds of those that have some."""
    changes = {"generators": ("embedding",), "epsilons": ("1",)}
    told = _commands(tmp_path, monkeypatch, "training.rounds=2", **changes)
    settings = [told[i + 1] for i, word in enumerate(told) if word == "--set"]
    assert load_scenario(str(tmp_path / "tiny.toml"), settings).training.rounds == 0


def test_bytes_sent_are_those_of_the_rounds_and_of_the_release(tmp_path: Path) -> None:
    scenario = load_scenario(str(write_tiny(tmp_path)))
    round_ = {"bytes_down": 100, "bytes_up": 20}
    rounds = [Fact("federation.round", round_, "public", "test", round=i) for i in (1, 2, 2)]
    released = Fact("release.embedding", {"bytes_up": 3}, "public", "test")
    for facts, sent in (
        (rounds, 240),
        ([released], 3),
        # A resumed run records what it kept once more.
        ([released, released, *rounds], 243),
    ):
        assert row_fact("vae", scenario, facts, "report.html").value["bytes_sent"] == sent


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("scenario", sorted(packaged().keys() - {"phantom-release"}))
def test_every_recipe_gives_a_plan_of_every_packaged_scenario(name: str, scenario: str) -> None:
    plan = load_scenario(scenario, recipe_of(name).overrides()).plan
    released_only = ("embedding", "embedding-refined")
    families = {"gan-site": "gan", **dict.fromkeys(released_only, "embedding")}
    assert plan.generator.family == families.get(name, "vae")
    released = plan.release.embedding
    assert (released is not None) == (name in (*released_only, "curriculum"))


@pytest.mark.parametrize("text", ["", "1,", "1,1", "a", "-1"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


def test_seeds_are_read() -> None:
    assert parse_seeds("3, 1") == (3, 1)
    assert parse_seeds(None) == ()
