"""The ethics report: every field, each value with its origin, and what is missing cannot hide."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from page_checks import browser_faults, faults, parsed
from reporting_facts import SITES, run_facts, write_samples
from typer.testing import CliRunner

from synth_common.charter import Charter, Expert, Licence, ResidualRisk, SiteCharter
from synth_common.errors import ConfigError, DataError
from synth_common.facts import CATALOGUE, Fact, FactLog
from synth_common.generators import build_generator
from synth_common.plan import Family, GeneratorPlan
from synth_common.reporting import pdf
from synth_common.reporting.clauses import load_clauses
from synth_common.reporting.ethics import EthicsInput, build_ethics, write_ethics
from synth_common.reporting.ethics_input import facts_of_report
from synth_common.reporting.ethics_page import render_ethics
from synth_common.reporting.report import write_report
from synth_common.terminal import guarded
from synth_sim import audit_cli

ROOT = Path(__file__).resolve().parents[1]
# The table that a board is promised.
FIELDS = {
    *("residual-risk", "expert", "purpose", "controller", "legal-basis", "consent"),
    *("source-data", "de-identification", "minimisation", "generator", "interpretability"),
    *("guarantee", "composition", "security", "singling-out", "linkability", "inference"),
    *("membership", "extraction", "audit", "bias", "reader-study", "marking", "energy"),
    *("licence", "incidents"),
}
CHARTER = Charter(
    title="Synthetic chests",
    contact="office@hospital.example",
    licence=Licence(spdx="CC-BY-4.0"),
    purpose="Teaching <at night>",
    residual_risk=ResidualRisk(
        decision="Accepted", approver="The officer", review=date(2027, 2, 1)
    ),
    expert=Expert(name="Dr. Q"),
)
NORTH = SiteCharter(site=SITES[0], consent="opt-out", exclusions=("under 18", "objected"))


def _ethics(facts: list[Fact], **given: Any) -> dict[str, Any]:
    return build_ethics(EthicsInput(facts, **given))


def _rows(ethics: dict[str, Any], *fields: str) -> Iterator[dict[str, Any]]:
    for group in ethics["groups"]:
        for field in group["fields"]:
            if not fields or field["id"] in fields:
                yield from field["rows"]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return _ethics(run_facts(), charter=CHARTER, charters={SITES[0]: NORTH})


@pytest.fixture(scope="module")
def page(whole: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    run_dir = tmp_path_factory.mktemp("run")
    write_samples(run_dir)
    return render_ethics(whole, run_dir)


def test_every_field_is_there_with_a_value_or_not_recorded_and_its_clauses(
    whole: dict[str, Any],
) -> None:
    nothing = _ethics([])
    for ethics in (whole, nothing):
        fields = [f for g in ethics["groups"] for f in g["fields"]]
        assert {f["id"] for f in fields} == FIELDS
        assert all(f["rows"] and f["clauses"] and f["asks"].endswith("?") for f in fields)
        for row in _rows(ethics):
            assert row["value"] not in ("", [], {})
            assert row["recorded"] is ("NOT RECORDED" not in json.dumps(row["value"]))
            if row["recorded"]:
                assert row["fact"]
                assert row["source"]
        unknown = [r for r in _rows(ethics) if not r["recorded"]]
        assert ethics["missing"]["values"] == len(unknown)
        assert ethics["missing"]["of"] == len(list(_rows(ethics)))
    assert nothing["missing"]["fields"] == [f["id"] for g in nothing["groups"] for f in g["fields"]]
    assert not any(row["recorded"] for row in _rows(nothing))


def test_the_reference_has_every_field_and_key(whole: dict[str, Any]) -> None:
    text = (ROOT / "docs/reference/ethics.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text.split("| Field |")[1], re.M)) == FIELDS
    keys = {*whole, *whole["groups"][0], *next(_rows(whole)), *whole["groups"][0]["fields"][0]}
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_each_clause_is_used_and_the_file_is_dated(whole: dict[str, Any]) -> None:
    known = load_clauses()
    used = {
        c["clause"] + c["law"] for g in whole["groups"] for f in g["fields"] for c in f["clauses"]
    }
    assert used == {c.clause + c.law for c in known.known.values()}
    assert whole["clauses"] == {"dated": known.dated, "sha256": known.sha256}
    assert date.fromisoformat(known.dated)


def test_values_are_those_of_the_facts(whole: dict[str, Any]) -> None:
    facts = run_facts()
    spent = {f.site: f.value["epsilon"] for f in facts if f.name == "privacy.site"}
    shown = {
        r["site"]: r["value"]
        for r in _rows(whole, "guarantee")
        if r["fact"] == "privacy.site/epsilon"
    }
    assert shown == spent
    by_name = {r["fact"]: r for r in _rows(whole)}
    assert by_name["run.weights"]["value"] == "beef" * 16
    assert by_name["run.weights"]["source"] == "tests.reporting_facts"
    assert by_name["run.weights"]["time"] == "2025-11-22T17:00:00+00:00"
    assert by_name["charter: residual_risk.review"]["value"] == "2027-02-01"
    assert by_name["charter: residual_risk.decided"]["recorded"] is False


@pytest.mark.parametrize(
    "name",
    [
        *("run.id", "run.weights", "run.code", "run.roles", "run.energy", "run.seed"),
        *("run.simulation", "run.versions", "run.device", "plan.digest", "plan.settings"),
        *("data.minimisation", "data.shape", "privacy.unit", "privacy.delta"),
        *("privacy.trust_model", "privacy.noise_source", "security.link", "security.egress"),
        *("generator.summary", "pretraining.public", "samples.traversal", "membership.attack"),
    ],
)
def test_a_fact_that_is_missing_is_counted_and_marked(name: str, whole: dict[str, Any]) -> None:
    facts = [f for f in run_facts() if f.name != name]
    less = _ethics(facts, charter=CHARTER, charters={SITES[0]: NORTH})
    assert any(r["fact"].startswith(name) and not r["recorded"] for r in _rows(less))
    before = len([r for r in _rows(whole) if not r["recorded"]])
    assert less["missing"]["values"] > before


@pytest.mark.parametrize(
    ("libraries", "value"),
    [
        ({}, "NOT RECORDED"),
        ({"torch": "NOT RECORDED", "numpy": "2.0"}, {"torch": "NOT RECORDED", "numpy": "2.0"}),
        ({"torch": "", "numpy": "2.0"}, {"torch": "NOT RECORDED", "numpy": "2.0"}),
        ({"torch": {}}, {"torch": "NOT RECORDED"}),
        ({"torch": ["2.0", ""]}, {"torch": ["2.0", "NOT RECORDED"]}),
    ],
)
def test_an_empty_place_inside_a_value_is_missing(
    libraries: dict[str, Any], value: Any, whole: dict[str, Any], tmp_path: Path
) -> None:
    facts = [replace(f, value=libraries) if f.name == "run.versions" else f for f in run_facts()]
    less = _ethics(facts, charter=CHARTER, charters={SITES[0]: NORTH})
    row = next(r for r in _rows(less) if r["label"] == "Libraries")
    assert (row["value"], row["recorded"]) == (value, False)
    assert less["missing"]["values"] == whole["missing"]["values"] + 1
    page = render_ethics(less, tmp_path)
    assert page.count('class="lacks"') == less["missing"]["values"]
    line = "".join(parsed(page).text).split("Libraries")[1].split("Command")[0]
    assert "NOT RECORDED" in line
    assert ("by nobody" in line) is (value == "NOT RECORDED")


def test_what_is_empty_may_be_the_answer_and_none_is_one() -> None:
    facts = run_facts()
    for fact in facts:
        if fact.name == "data.intake":
            fact.value["set_aside"] = {}
        if fact.name == "run.energy":
            fact.value["gpu_joules"] = None
    rows = {r["label"].partition(" of ")[0]: r for r in _rows(_ethics(facts))}
    assert rows["Set aside"]["value"] == "none"
    assert rows["Accelerators, joules"]["value"] is None
    assert rows["Set aside"]["recorded"]
    assert rows["Accelerators, joules"]["recorded"]


def test_an_attack_that_lacks_a_figure_is_marked() -> None:
    attack = {"attack": "LOGAN", "view": "images", "group": None, "verdict": "not found"}
    audits = [Fact("audit.attack", attack | {"auc": auc}, "public", "a") for auc in (0.5, [])]
    for fact, recorded in zip(audits, (True, False), strict=True):
        ethics = _ethics([f for f in run_facts() if f.name != "membership.attack"], audits=[fact])
        (row,) = _rows(ethics, "membership")
        assert row["recorded"] is recorded
        assert row["value"]["auc"] == (0.5 if recorded else "NOT RECORDED")


@pytest.mark.parametrize("family", get_args(Family))
def test_a_family_without_a_latent_space_lacks_no_direction(family: Family) -> None:
    plan = GeneratorPlan(family=family, size=28, width=8, latent_dim=4)
    latent = torch.zeros(1, plan.latent_dim)
    walks = build_generator(plan, seed=0).decode(latent, torch.zeros(1, dtype=torch.long))
    facts = [f for f in run_facts() if f.name != "samples.traversal"]
    for fact in facts:
        if fact.name == "plan.settings":
            fact.value["generator"]["family"] = family
    (row,) = _rows(_ethics(facts), "interpretability")
    assert row["recorded"] is (walks is None)
    if walks is None:
        assert row["value"] == f"none: family {family} has no latent space"
        assert row["fact"] == "plan.settings/generator/family"
    (unknown,) = _rows(_ethics([]), "interpretability")
    assert not unknown["recorded"]


def test_a_site_speaks_for_itself_only(whole: dict[str, Any]) -> None:
    consent = {r["site"]: r["value"] for r in _rows(whole, "consent") if r["label"] == "Rests on"}
    assert consent == {SITES[0]: "opt-out", SITES[1]: "NOT RECORDED", SITES[2]: "NOT RECORDED"}
    gone = next(r for r in _rows(whole, "source-data") if r["label"] == "Exclusions")
    assert gone["value"] == ["under 18", "objected"]
    unheard = _ethics([], charters={"elsewhere": SiteCharter(site="elsewhere", consent="waiver")})
    assert next(_rows(unheard, "consent"))["value"] == "waiver"


def test_small_cells_are_not_printed() -> None:
    facts = run_facts()
    for fact in facts:
        if fact.name == "data.split":
            fact.value["train_patients"], fact.value["holdout_patients"] = 9, 10
        if fact.name == "data.intake":
            fact.value["set_aside"] = {"constant": 3, "class-left-out": 12}
    rows = list(_rows(_ethics(facts), "source-data"))
    assert {r["value"] for r in rows if r["label"] == "Patients in training"} == {"fewer than 10"}
    assert {r["value"] for r in rows if r["label"] == "Patients held out"} == {10}
    aside = [r["value"] for r in rows if r["label"].startswith("Set aside")]
    assert aside
    assert all(v == {"constant": "fewer than 10", "class-left-out": 12} for v in aside)


def test_what_is_site_local_stays_out_of_a_real_federations_report() -> None:
    facts = [replace(f, value=False) if f.name == "run.simulation" else f for f in run_facts()]
    real = _ethics(facts)
    assert real["site_local"] == []
    assert {r["scope"] for r in _rows(real)} <= {"public", "released"}
    audit = [f for f in run_facts() if f.name == "membership.attack"]
    told = _ethics(facts, audits=audit)
    assert told["site_local"] == ["membership.attack"]
    text = "".join(parsed(render_ethics(told, Path("nowhere"))).text)
    assert "This copy must stay at the site" in text
    assert "must stay at the site" not in render_ethics(real, Path("nowhere"))


def test_an_audit_fills_the_criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("audit.test", "audit.attack", "audit.untested", "audit.verdict"):
        monkeypatch.setitem(CATALOGUE, name, CATALOGUE.get(name, name))  # type: ignore[call-overload]
    roc = [[i / 100, i / 100] for i in range(100)]

    def test(measure: str, name: str) -> Fact:
        value = {"measure": measure, "test": name, "value": 0.52, "verdict": "not found"}
        return Fact("audit.test", value, "site-local", "audit")

    def attack(view: str, group: str | None) -> Fact:
        value = {"view": view, "attack": "LOGAN", "group": group, "auc": 0.51, "roc": roc}
        return Fact(
            "audit.attack", value, "site-local", "audit", detail={"phase": view + str(group)}
        )

    one = [test("reidentification", "top-1 match")]
    audits = [*one, test("linkability", "pairs"), attack("images", None), attack("model", None)]
    groups = [attack("images", "female"), attack("images", "male")]
    groups[0].value["auc"] = 0.9  # in a small group that is chance
    groups[1].value.update(auc=0.6, verdict="found")
    strange = test("a-measure-of-tomorrow", "something new")
    ethics = _ethics(run_facts(), audits=[*audits, *groups, strange])
    singled, new = _rows(ethics, "singling-out")
    assert new["label"] == "something new"
    assert singled["label"] == "top-1 match"
    assert singled["value"] == {
        "verdict": "not found",
        "measure": "reidentification",
        "value": 0.52,
    }
    assert next(_rows(ethics, "linkability"))["recorded"]
    assert not next(_rows(ethics, "inference"))["recorded"]
    member = [r for r in _rows(ethics, "membership") if r["fact"] == "audit.attack"]
    assert [r["value"] for r in member] == [
        {"view": "images", "auc": 0.51},
        {
            "looks at groups": 2,
            "found members": 1,
            "group": "male",
            "verdict": "found",
            "view": "images",
            "auc": 0.6,
        },
    ]
    assert [r["value"]["view"] for r in _rows(ethics, "extraction")] == ["model"]


def test_tests_of_fairness_fill_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "fairness.group"
    monkeypatch.setitem(CATALOGUE, name, CATALOGUE.get(name, name))  # type: ignore[call-overload]
    detail = {"dimension": "hand", "group": "left", "measure": "recall", "test_patients": 40}
    detail |= {"interval": [0.6, 0.8], "smallest": True, "suppressed": None}
    facts = [
        Fact(name, {"score": 0.7}, "site-local", "x", detail={**detail, "trained_on": trained})
        for trained in ("synthetic", "real")
    ]
    few = {**detail, "group": "right", "suppressed": "fewer than 10 patients"}
    hidden = {"score": None, "gap_to_real": None}
    facts.append(Fact(name, hidden, "site-local", "x", detail={**few, "trained_on": "synthetic"}))
    rows = [r for r in _rows(_ethics([*run_facts(), *facts]), "bias") if r["fact"] == name]
    assert [(r["label"], r["value"]) for r in rows if r["label"].startswith("hand")] == [
        (
            "hand left: recall, trained on synthetic",
            {"score": 0.7, "interval": [0.6, 0.8], "test patients": 40, "smallest group": True},
        ),
        ("hand right: recall, trained on synthetic", "not shown: fewer than 10 patients"),
    ]


def test_first_screen_and_page(page: str, whole: dict[str, Any], tmp_path: Path) -> None:
    assert faults(page) == []
    text = "".join(parsed(page).text)
    first = text.split("Who accepted what risk")[0]
    count, of = whole["missing"]["values"], whole["missing"]["of"]
    assert f"{count} of {of} values are NOT RECORDED" in first
    assert "it is not the assessment" in first
    assert "Accepted" in first
    assert "2027-02-01" in first
    assert page.count('class="lacks"') == count
    assert page.count('class="missing"') >= count
    assert "Teaching &lt;at night&gt;" in page
    assert page.count("data:image/png") == 1
    assert load_clauses().sha256 in text
    assert faults(render_ethics(_ethics([]), tmp_path)) == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [500, 1200])
def test_browser_finds_contrast_and_no_overflow(page: str, width: int, tmp_path: Path) -> None:
    file = tmp_path / "ethics.html"
    file.write_text(page, encoding="utf-8")
    assert browser_faults(file, width) == []
    if width == 500:  # what the checker says of a page that fails
        pale = page.replace("--muted: #5b6775", "--muted: #c0c8d0").replace(
            "</main>", "<p style='width: 900px'>wide</p></main>"
        )
        file.write_text(pale, encoding="utf-8")
        found = browser_faults(file, width)
        assert any("contrast" in fault for fault in found)
        assert any("overflows" in fault for fault in found)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('lang="en"', "", "lang"),
        ('scope="row"', "", "scope"),
        ('alt="', 'title="', "alternative text"),
        ("<h3 ", "<h5 ", "h5 follows h2"),
        ("<caption>", "<b>", "captions"),
        ('href="#guarantee"', 'href="https://example.org"', "leads out"),
        ("</body>", "<script></script></body>", "script"),
        ("@media print", "@media paper", "print"),
    ],
)
def test_the_checker_sees_each_fault(old: str, new: str, fault: str, page: str) -> None:
    source = page.replace("<nav", '<a href="#guarantee">x</a><nav')
    assert old in source
    assert any(fault in found for found in faults(source.replace(old, new)))


def _run_dir(folder: Path) -> Path:
    folder.mkdir()
    FactLog(folder / "facts.jsonl").extend(run_facts(rounds=1))
    write_samples(folder)
    return folder


def test_a_bundle_without_facts_is_read_from_its_report(tmp_path: Path) -> None:
    run_dir = _run_dir(tmp_path / "run")
    write_report(run_dir)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "report.json").write_bytes((run_dir / "report.json").read_bytes())
    write_ethics(run_dir, CHARTER, tmp_path / "a")
    write_ethics(bundle, CHARTER, tmp_path / "b")
    a, b = (json.loads((tmp_path / n / "ethics.json").read_text()) for n in ("a", "b"))
    values = [{(r["label"], r["site"]): r["value"] for r in _rows(e)} for e in (a, b)]
    lost = {key for key, value in values[0].items() if value != values[1].get(key)}
    assert lost == set()
    assert {r["source"] for r in _rows(b) if r["recorded"]} == {"report.json", "the program"}
    with pytest.raises(DataError, match=r"neither facts\.jsonl nor report\.json"):
        write_ethics(tmp_path, None, tmp_path / "c")
    (bundle / "report.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="is not a report of Synthward"):
        write_ethics(bundle, None, tmp_path / "c")
    assert facts_of_report({}) == []


def test_a_release_is_not_written_into(tmp_path: Path) -> None:
    run_dir = _run_dir(tmp_path / "run")
    write_report(run_dir)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "report.json").write_bytes((run_dir / "report.json").read_bytes())
    for more in ([], ["--out", str(bundle / "inner")]):
        done = CliRunner().invoke(audit_cli.app, ["ethics", str(bundle), *more])
        assert isinstance(done.exception, ConfigError)
        assert "what was signed is never changed" in str(done.exception)
    assert [p.name for p in bundle.iterdir()] == ["report.json"]
    out = str(tmp_path / "outside")
    assert CliRunner().invoke(audit_cli.app, ["ethics", str(bundle), "--out", out]).exit_code == 0
    assert CliRunner().invoke(audit_cli.app, ["ethics", str(run_dir)]).exit_code == 0


def test_charters_are_found_beside_the_run(tmp_path: Path) -> None:
    run_dir = _run_dir(tmp_path / "run")
    (run_dir / "charters").mkdir()
    (run_dir / "charters" / "n.toml").write_text(f'site = "{SITES[0]}"\nconsent = "waiver"\n')
    (run_dir / "charter.toml").write_text(
        'title = "Ours"\ncontact = "office"\n[licence]\nspdx = "MIT"\n'
    )
    marks = {"png": "XMP digital source type", "verified": True}
    marked = [Fact("release.marking", marks, "public", "the builder")]
    write_ethics(run_dir, None, tmp_path / "out", extra=marked)
    ethics = json.loads((tmp_path / "out" / "ethics.json").read_text())
    by_name = {r["fact"]: r for r in _rows(ethics)}
    assert by_name["charter: title"]["value"] == "Ours"
    assert by_name["charter: title"]["sha256"] == ethics["charter"]["sha256"]
    assert by_name["release.marking"]["value"] == marks
    assert next(_rows(ethics, "consent"))["value"] == "waiver"
    other = tmp_path / "again.toml"
    other.write_text(f'site = "{SITES[0]}"\nconsent = "consent"\n')
    with pytest.raises(ConfigError, match=rf"again\.toml: site = '{SITES[0]}', and another"):
        write_ethics(run_dir, None, tmp_path / "out", site_charters=[other])


def _command(*arguments: object) -> int:
    return guarded(lambda: audit_cli.app([str(a) for a in arguments], standalone_mode=True))


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, out = _run_dir(tmp_path / "run"), tmp_path / "out"
    audit = tmp_path / "audit"
    attacks = [f for f in run_facts() if f.name == "membership.attack"]
    FactLog(audit / "facts.jsonl").extend([Fact("run.id", "other", "public", "x"), *attacks])
    assert _command("ethics", run_dir, "--out", out, "--audit", audit) == 0
    ethics = json.loads((out / "ethics.json").read_text())
    assert ethics["run"]["id"] == "20251122-170000-7f3a"  # an audit's own run is not the run
    said = re.search(r"NOT RECORDED: (\d+) of (\d+)", capsys.readouterr().out)
    assert said is not None
    assert int(said[1]) == ethics["missing"]["values"]
    assert _command("ethics", tmp_path) == 3
    monkeypatch.setattr(pdf, "BROWSERS", ("no-such-browser",))
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    assert _command("ethics", run_dir, "--out", out, "--pdf") == 2
    message = capsys.readouterr().err
    assert "pip install 'synthward[pdf]'" in message
    assert (out / "ethics.html").exists()


@pytest.mark.browser
def test_a_browser_prints_the_page(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    file = tmp_path / "ethics.html"
    file.write_text(page, encoding="utf-8")
    assert pdf.print_pdf(file).read_bytes().startswith(b"%PDF-")


def test_weasyprint_prints_the_page_and_fetches_nothing(page: str, tmp_path: Path) -> None:
    pytest.importorskip("weasyprint", exc_type=(ImportError, OSError))
    file = tmp_path / "small.html"
    picture = re.search(r"data:image/png;base64,[^\"]+", page)
    assert picture is not None
    file.write_text(f"<html lang=en><title>x</title><img alt=y src='{picture[0]}'></html>")
    with_picture = pdf._by_weasyprint(file)
    assert with_picture is not None
    assert b"/Image" in with_picture
    secret = tmp_path / "secret.png"
    secret.write_bytes(base64.b64decode(picture[0].split(",")[1]))
    file.write_text(f"<html lang=en><title>x</title><img alt=y src='{secret.as_uri()}'></html>")
    without = pdf._by_weasyprint(file)
    assert without is not None
    assert b"/Image" not in without
