"""What may leave a site: one rule for the ethics report, a release and a finished run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from release_bundles import Released

from synth_common.errors import PrivacyError
from synth_common.facts import Fact, FactLog, read_facts
from synth_common.leaving import leaving, simulated
from synth_common.reporting.ethics import EthicsInput, build_ethics
from synth_server.finished import read_finished


def test_what_stays_at_a_site_leaves_in_a_simulation_only() -> None:
    facts = [
        Fact("run.id", "a", "public", "t"),
        Fact("data.label_shares", {}, "released", "t"),
        Fact("quality.frechet", 1.0, "site-local", "t", site="north"),
        Fact("samples.grid", "real.png", "site-local", "t", detail={"kind": "real"}),
    ]
    public, every = ["run.id", "data.label_shares"], [f.name for f in facts[:3]]
    yes, no = (Fact("run.simulation", value, "public", "t") for value in (True, False))
    for said, is_one in (
        ([], False),
        ([no], False),
        ([yes], True),
        ([yes, yes], True),
        ([yes, no], False),
        ([no, yes], False),
        ([replace(yes, value="True")], False),
        ([yes, replace(no, site="north")], False),
    ):
        assert simulated([*facts, *said]) is is_one
        kept = leaving([*said, *facts])
        assert [f.name for f in kept[len(said) :]] == (every if is_one else public)
    strange = replace(facts[2], scope="site-only")  # type: ignore[arg-type]
    assert leaving([no, strange]) == [no]


def test_reports_and_releases_follow_the_one_rule(released: Released, tmp_path: Path) -> None:
    facts = list(read_facts(released.run / "facts.jsonl"))
    assert read_finished(released.run).simulation
    local = {f.name for f in facts if f.scope == "site-local"}
    assert "data.split" in local
    facts.insert(0, Fact("run.simulation", False, "public", "t"))  # before the run's own: True
    FactLog(tmp_path / "facts.jsonl").extend(facts)
    with pytest.raises(PrivacyError, match="noise that a seed repeats protects nobody"):
        read_finished(tmp_path)
    shown = {
        row["scope"]
        for group in build_ethics(EthicsInput(facts))["groups"]
        for field in group["fields"]
        for row in field["rows"]
    }
    assert shown <= {"public", "released"}
