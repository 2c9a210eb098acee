"""A comparison runs every case once, survives interruption, and tabulates what was recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from simulation_scenario import write_tiny

from synth_common.errors import ConfigError, DataError
from synth_sim.compare import CompareOptions, run_comparison


def _options(tmp_path: Path, **changes: object) -> CompareOptions:
    values: dict[str, object] = {
        "scenario": str(write_tiny(tmp_path)),
        "out": tmp_path / "compare",
        "families": ("vae", "gan"),
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
    options = _options(tmp_path, families=("vae",), epsilons=("2", "1", "inf"))
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
