"""build_report and write_report: the facts, all of them, and nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from reporting_facts import SEEDED, SITES, run_facts, variants, write_samples

from synth_common.errors import DataError, StorageError
from synth_common.facts import CATALOGUE, Fact, FactLog, read_facts
from synth_common.reporting import files
from synth_common.reporting.notices import notices
from synth_common.reporting.report import build_report, write_report
from synth_common.reporting.summary import badge

_DOCS = Path(__file__).resolve().parents[1] / "docs" / "reference"
_SCHEMA = json.loads((_DOCS / "report.schema.json").read_text(encoding="utf-8"))
_VARIANTS = variants()


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def _of_facts(facts: list[Fact]) -> set[float]:
    return {n for f in facts for n in _numbers([f.value, dict(f.detail), f.round])}


def _problems(report: Any) -> list[str]:
    return [e.message for e in jsonschema.Draft202012Validator(_SCHEMA).iter_errors(report)]


def test_fixture_has_every_fact_of_a_run() -> None:
    elsewhere = {
        "compare.row",
        "compare.seeds",
        "compare.together",
        "audit.canaries",
        "release.marking",
    }  # of a comparison and of an audit
    assert {f.name for f in _VARIANTS["whole"]} == set(CATALOGUE) - elsewhere


@pytest.mark.parametrize("name", _VARIANTS)
def test_report_fits_the_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(_SCHEMA)
    report = json.loads(json.dumps(build_report(_VARIANTS[name]), allow_nan=False))
    assert _problems(report) == []


@pytest.mark.parametrize(
    "key", ["name", "epsilon", "target_epsilon", "noise_multiplier", "sample_rate", "steps"]
)
def test_schema_refuses_a_site_without_a_promised_key(key: str) -> None:
    report = copy.deepcopy(build_report(_VARIANTS["whole"]))
    del report["privacy"]["sites"][0][key]
    assert _problems(report)


def test_schema_refuses_an_epsilon_of_null_and_an_unknown_section() -> None:
    report = copy.deepcopy(build_report(_VARIANTS["whole"]))
    report["privacy"]["sites"][0]["epsilon"] = None
    assert _problems(report)
    assert _problems({**build_report(_VARIANTS["whole"]), "guess": 1})


@pytest.mark.parametrize("name", _VARIANTS)
def test_no_number_is_invented_and_none_is_lost(name: str) -> None:
    facts = _VARIANTS[name]
    assert set(_numbers(build_report(facts))) == _of_facts(facts)


def test_privacy_of_each_site_is_its_ledgers() -> None:
    facts = _VARIANTS["whole"]
    ledgers = {f.site: f.value for f in facts if f.name == "privacy.site"}
    report = build_report(facts)
    assert [s["name"] for s in report["privacy"]["sites"]] == sorted(SITES)
    for site in report["privacy"]["sites"]:
        expected = {"name": site["name"], **ledgers[site["name"]]}
        assert {k: site[k] for k in expected} == expected
    assert report["privacy"]["unit"] == "patient"
    assert report["privacy"]["delta"] == 1e-5
    assert report["privacy"]["trust_model"]["name"] == "local"


def test_sites_are_in_natural_order() -> None:
    names = [s["name"] for s in build_report(_VARIANTS["many-sites"])["privacy"]["sites"]]
    assert names == [f"hospital-{i}" for i in range(1, 33)]


@pytest.mark.parametrize(
    ("name", "where", "old", "new", "path"),
    [
        ("privacy.epsilon", {"site": "a", "round": 1}, 3.25, 4.5, "privacy"),
        ("training.loss", {"site": "a", "round": 1}, 3.25, 4.5, "training"),
        ("quality.frechet", {"detail": {"encoder": "x"}}, 3.25, 4.5, "quality"),
        ("run.seconds", {"detail": {"phase": "training"}}, 3.25, 4.5, "run"),
        (
            "membership.attack",
            {"site": "a", "detail": {"encoder": "x"}},
            {"attack": "d", "auc": 3.25},
            {"attack": "d", "auc": 4.5},
            "membership",
        ),
    ],
)
def test_the_last_recording_wins(name: str, where: Any, old: Any, new: Any, path: str) -> None:
    facts = [Fact(name, v, "public", "tests", **where) for v in (old, new)]
    found = list(_numbers(build_report(facts)[path]))
    assert 4.5 in found
    assert 3.25 not in found


def test_what_distinguishes_facts_keeps_them_apart() -> None:
    def classified(trained_on: str, value: float) -> Fact:
        detail = {"trained_on": trained_on}
        value_ = {"balanced_accuracy": value}
        return Fact("utility.classification", value_, "site-local", "tests", detail=detail)

    records = build_report([classified("real", 0.9), classified("synthetic", 0.7)])["utility"]
    assert [r["balanced_accuracy"] for r in records["classification"]] == [0.9, 0.7]


_RESUMES = [{"at": "the evaluation"}, {"at": "the evaluation"}, {"at_round": 3}]


def test_every_resume_is_counted() -> None:
    # Runs of before name the round by its number.
    resumed = [Fact("run.resumed", value, "public", "tests") for value in _RESUMES]
    report = build_report(resumed)
    assert report["run"]["resumed"] == _RESUMES
    told = [w["text"] for w in notices(report) if w["code"] == "resumed"]
    assert ["continued at the evaluation." in text for text in told] == [True, True, False]
    assert "continued at round 3." in told[2]


def test_a_fact_that_no_section_shows_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synth_common.facts.CATALOGUE", {**CATALOGUE, "quality.new": "New"})
    report = build_report([Fact("quality.new", 0.125, "public", "tests", site="a")])
    assert [(f["name"], f["value"]) for f in report["other"]] == [("quality.new", 0.125)]
    assert build_report(_VARIANTS["whole"])["other"] == []


def test_a_site_without_a_ledger_is_seen_to_lack_it() -> None:
    facts = [f for f in run_facts() if not (f.name == "privacy.site" and f.site == SITES[0])]
    report = build_report(facts)
    site = next(s for s in report["privacy"]["sites"] if s["name"] == SITES[0])
    assert site["epsilon"] == "NOT RECORDED"
    assert badge(report)["tone"] == "danger"
    assert any(SITES[0] in w["text"] for w in report["warnings"] if w["code"] == "not-recorded")


_BADGES = [
    ("whole", "good", "PRIVATE: epsilon 7.99 per PATIENT"),
    (
        "simulation-noise",
        "caution",
        "PRIVATE: epsilon 7.99 per PATIENT; simulation noise: not a release",
    ),
    ("image-unit", "caution", "per IMAGE, not per patient"),
    ("no-privacy", "danger", "NO PRIVACY GUARANTEE (epsilon = inf)"),
    ("missing-privacy", "danger", "PRIVACY NOT RECORDED"),
    ("nothing", "danger", "PRIVACY NOT RECORDED"),
]


@pytest.mark.parametrize(("name", "tone", "title"), _BADGES)
def test_badge(name: str, tone: str, title: str) -> None:
    shown = badge(build_report(_VARIANTS[name]))
    assert shown["tone"] == tone
    assert title in shown["title"]


def test_one_site_without_noise_makes_the_whole_run_unprotected() -> None:
    facts = run_facts()
    for fact in facts:
        if fact.name == "privacy.site" and fact.site == SITES[1]:
            fact.value["epsilon"] = "inf"
    report = build_report(facts)
    assert badge(report)["title"].startswith("NO PRIVACY GUARANTEE")
    assert "no-privacy" in {w["code"] for w in report["warnings"]}


def test_epsilon_above_target_is_red_even_by_little() -> None:
    facts = run_facts()
    for fact in facts:
        if fact.name == "privacy.site" and fact.site == SITES[1]:
            fact.value["epsilon"] = 8.0001
    shown = badge(build_report(facts))
    assert shown["tone"] == "danger"
    assert "epsilon 8.01" in shown["title"]


_WARNINGS = {
    "whole": {"site-failure", "training-health", "resumed", "simulation"},
    "simulation-noise": {"simulation-noise"},
    "image-unit": {"image-unit"},
    "no-privacy": {"no-privacy"},
    "missing-privacy": {"not-recorded"},
    "nothing": {"not-recorded"},
}


@pytest.mark.parametrize("name", _WARNINGS)
def test_warnings(name: str) -> None:
    usual = _WARNINGS["whole"] if name != "nothing" else set()
    codes = {w["code"] for w in build_report(_VARIANTS[name])["warnings"]}
    simulated = {"simulation-noise"} if name == "image-unit" else set()  # it has seeded noise
    assert codes == usual | simulated | _WARNINGS[name]


def test_warnings_on_real_patients_a_failed_control_and_an_early_end() -> None:
    facts = [f for f in run_facts(noise=SEEDED) if f.name != "run.rounds"]
    for fact in facts:
        if fact.name == "membership.attack":
            fact.value["control_interval"] = [0.51, 0.55]
    ended = {"planned": 6, "completed": 4, "ended": "budget spent"}
    facts += [
        Fact("run.rounds", ended, "public", "tests"),
        Fact("samples.grid", "samples/r.png", "site-local", "tests", detail={"kind": "real"}),
    ]
    codes = {w["code"] for w in notices(build_report(facts))}
    assert {"real-patients", "attack-control", "ended-early"} <= codes


def test_every_warning_and_section_is_documented() -> None:
    page = (_DOCS / "report.md").read_text(encoding="utf-8")
    codes = _SCHEMA["properties"]["warnings"]["items"]["properties"]["code"]["enum"]
    missing = [k for k in (*codes, *_SCHEMA["properties"]) if f"`{k}`" not in page]
    assert missing == []


def test_written_report_is_the_built_one(tmp_path: Path) -> None:
    FactLog(tmp_path / "facts.jsonl").extend(_VARIANTS["training-only"])
    page = write_report(tmp_path)
    assert page == tmp_path / "report.html"
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written == build_report(read_facts(tmp_path / "facts.jsonl"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "facts.jsonl",
        "report.html",
        "report.json",
    ]


def test_a_torn_last_line_is_skipped_and_a_torn_middle_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "facts.jsonl"
    FactLog(log).extend(_VARIANTS["training-only"])
    text = log.read_text(encoding="utf-8")
    log.write_text(text + text.splitlines()[0][:40], encoding="utf-8")
    write_report(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["run"]["id"] == "20251122-170000-7f3a"
    lines = text.splitlines()
    log.write_text("\n".join([lines[0][:40], *lines[1:]]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1"):
        write_report(tmp_path)


def test_a_failing_disk_leaves_the_old_report_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FactLog(tmp_path / "facts.jsonl").extend(_VARIANTS["nothing"])
    (tmp_path / "facts.jsonl").touch()
    (tmp_path / "report.json").write_text("old", encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_report(tmp_path)
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["facts.jsonl", "report.json"]


def test_missing_facts_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"facts\.jsonl"):
        write_report(tmp_path)


def test_the_same_facts_give_the_same_page(tmp_path: Path) -> None:
    FactLog(tmp_path / "facts.jsonl").extend(_VARIANTS["training-only"])
    write_samples(tmp_path)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
