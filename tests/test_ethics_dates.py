"""Dates of charters: an odd order is named in the ethics report, and nothing is refused for it."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from page_checks import faults, parsed
from reporting_facts import SITES, run_facts

from synth_common.charter import Approval, Charter, Expert, Licence, ResidualRisk, SiteCharter
from synth_common.facts import Fact, FactLog
from synth_common.reporting.ethics import EthicsInput, build_ethics
from synth_common.reporting.ethics_page import render_ethics
from synth_common.terminal import guarded
from synth_sim import audit_cli

ROOT = Path(__file__).resolve().parents[1]
BEFORE, STARTED, AFTER = date(2025, 11, 21), date(2025, 11, 22), date(2025, 11, 23)
LATER = date(2026, 11, 22)
MARKED = Fact(
    "release.marking", {"verified": True}, "public", "builder", time="2025-12-01T09:00:00+00:00"
)


def _charter(**given: Any) -> Charter:
    return Charter(title="T", contact="c", licence=Licence(spdx="MIT"), **given)


def _approval(decided: date | None) -> Approval:
    return Approval(number="7", body="Board", decided=decided)


def _risk(decided: date | None = None, review: date | None = None) -> Charter:
    return _charter(residual_risk=ResidualRisk(decided=decided, review=review))


def _dates(charter: Charter | None, more: list[Fact] | None = None, **given: Any) -> list[Any]:
    facts = [*run_facts(), *(more or [])]
    return build_ethics(EthicsInput(facts, charter, **given))["dates"]


@pytest.mark.parametrize(
    ("charter", "released", "codes"),
    [
        (_charter(approvals=(_approval(BEFORE), _approval(STARTED), _approval(None))), False, []),
        (_charter(approvals=(_approval(AFTER),)), False, ["approval-after-start"]),
        (_risk(STARTED, LATER), True, []),
        (_risk(date(2025, 12, 1), LATER), True, []),
        (_risk(AFTER, LATER), False, []),  # before anything is released
        (_risk(BEFORE, LATER), False, ["judgement-before-run"]),
        (_risk(AFTER, STARTED), False, ["review-before-decision"]),
        (_risk(None, BEFORE), False, ["review-overdue"]),
        (_risk(STARTED, AFTER), False, []),
        (_risk(STARTED, AFTER), True, ["review-overdue"]),
        (_risk(None, date(2025, 12, 1)), True, []),
        (_risk(date(2025, 12, 2), LATER), True, ["decision-after-release"]),
        (_charter(expert=Expert(determined=BEFORE)), True, ["judgement-before-run"]),
        (_charter(expert=Expert(determined=AFTER), dated=AFTER), True, []),
        (None, True, []),
    ],
)
def test_orders_that_are_named(charter: Charter | None, released: bool, codes: list[str]) -> None:
    found = _dates(charter, [MARKED] if released else [])
    assert [order["code"] for order in found] == codes
    for order in found:
        assert order["key"] in order["text"]
        assert len(re.findall(r"\d{4}-\d\d-\d\d", order["text"])) == 2


def test_a_site_speaks_of_its_own_approval() -> None:
    north = SiteCharter(site=SITES[0], approvals=(_approval(AFTER),))
    (order,) = _dates(_charter(), charters={SITES[0]: north})
    assert (order["site"], order["severity"]) == (SITES[0], "caution")
    assert f"approvals of site {SITES[0]}: Board, number 7, 2025-11-23; the run" in order["text"]


def test_a_run_that_recorded_no_times_is_compared_with_nothing() -> None:
    charter = _risk(AFTER, STARTED)
    timeless = [f for f in run_facts() if f.name not in ("run.started", "run.finished")]
    found = build_ethics(EthicsInput(timeless, charter))["dates"]
    assert [order["code"] for order in found] == ["review-before-decision"]


def test_page_and_command_show_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    charter = _charter(approvals=(_approval(AFTER),), expert=Expert(determined=BEFORE))
    page = render_ethics(build_ethics(EthicsInput(run_facts(), charter)), tmp_path)
    first = "".join(parsed(page).text).split("Who accepted what risk")[0]
    assert "An approval is dated after the run began" in first
    assert "The expert determination is older than the run" in first
    assert faults(page) == []
    FactLog(tmp_path / "run" / "facts.jsonl").extend(run_facts())
    (tmp_path / "charter.toml").write_text(
        'title = "T"\ncontact = "c"\n[licence]\nspdx = "MIT"\n'
        "[residual_risk]\ndecided = 2025-11-23\nreview = 2025-11-22\n"
    )
    words = ["ethics", str(tmp_path / "run"), "--charter", str(tmp_path / "charter.toml")]
    assert guarded(lambda: audit_cli.app(words, standalone_mode=True)) == 0
    assert "DATES: The review of the decision is dated before" in capsys.readouterr().out


def test_the_reference_lists_every_code() -> None:
    source = (ROOT / "common/synth_common/reporting/ethics_dates.py").read_text(encoding="utf-8")
    page = (ROOT / "docs/reference/charter.md").read_text(encoding="utf-8").split("## Dates")[1]
    codes = set(re.findall(r'^\s+"([a-z]+-[a-z]+-[a-z]+|review-overdue)",$', source, re.M))
    assert len(codes) == 5
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.M)) == codes
