"""Comparisons: one table of runs, as page, JSON and CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from reporting_facts import comparison_facts

from synth_common.facts import Fact, FactLog
from synth_common.reporting.columns import GROUPS, column_of
from synth_common.reporting.compare import as_csv, build_comparison, write_comparison
from synth_common.reporting.compare_page import cell_text
from synth_common.reporting.compare_plots import key_plots


def _rows() -> list[Fact]:
    return [f for f in comparison_facts() if f.name == "compare.row"]


def test_rows_are_ordered_by_family_and_budget_with_infinity_last() -> None:
    found = [(r["family"], r["epsilon"]) for r in build_comparison(comparison_facts())["rows"]]
    assert found == [(f, e) for f in ("gan", "vae") for e in (1.0, 8.0, "inf")]


def test_rows_hold_what_was_recorded() -> None:
    rows = build_comparison(comparison_facts())["rows"]
    for fact in _rows():
        row = next(r for r in rows if all(r[k] == fact.value[k] for k in ("family", "epsilon")))
        lacking = {"membership_auc"} - set(fact.value)
        assert row == {**fact.value, **dict.fromkeys(lacking, "NOT RECORDED")}


def test_a_repeated_row_replaces_the_first() -> None:
    first, last = (
        Fact("compare.row", {"family": "vae", "epsilon": 8.0, "kid": k}, "public", "tests")
        for k in (0.5, 0.25)
    )
    assert [r["kid"] for r in build_comparison([first, last])["rows"]] == [0.25]


@pytest.mark.parametrize(
    ("name", "group", "better", "title"),
    [
        ("frechet_radiomics", "Quality", "lower", "Fréchet radiomics"),
        ("recall_conv", "Quality", "higher", "Recall conv"),
        ("ms_ssim_diversity", "Diversity", "higher", "MS-SSIM diversity"),
        ("utility_synthetic_balanced_accuracy", "Usefulness", "higher", None),
        ("dice_synthetic", "Usefulness", "higher", "Dice synthetic"),
        ("dice_ratio_to_real", "Usefulness", "higher", "Dice ratio to real"),
        ("membership_auc", "Membership risk", "lower", "Membership AUC"),
        ("training_seconds", "Time and memory", "lower", "Training time"),
        ("peak_memory_bytes", "Time and memory", "lower", "Peak memory"),
        ("frechet_floor", "Quality", "", "Fréchet floor"),
        ("epsilon_spent", "Privacy", "lower", "Epsilon spent"),
        ("remark", "Other", "", "Remark"),
    ],
)
def test_columns_are_understood(name: str, group: str, better: str, title: str | None) -> None:
    column = column_of(name)
    assert (column.group, column.better) == (group, better)
    assert title is None or column.title == title
    assert group in GROUPS


def test_written_files_agree(tmp_path: Path) -> None:
    FactLog(tmp_path / "facts.jsonl").extend(comparison_facts())
    page = write_comparison(tmp_path)
    assert page == tmp_path / "compare.html"
    stored = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    with (tmp_path / "compare.csv").open(encoding="utf-8", newline="") as handle:
        table = list(csv.DictReader(handle))
    assert len(table) == len(stored["rows"]) == 6
    for line, row in zip(table, stored["rows"], strict=True):
        assert line["frechet_radiomics"] == str(row["frechet_radiomics"])
        low, high = row["membership_auc_interval"]
        assert (line["membership_auc_interval_low"], line["membership_auc_interval_high"]) == (
            str(low),
            str(high),
        )
    assert table[0]["membership_auc"] == "NOT RECORDED"
    text = page.read_text(encoding="utf-8")
    assert text.count('class="missing"') == 2  # in the table behind the plot and in the whole one
    assert 'href="vae-8.0/report.html"' in text


def test_csv_of_nothing_is_a_bare_header() -> None:
    assert as_csv([]) == "\n"


def test_the_key_plots_say_what_they_draw() -> None:
    """Ceiling, floor and guess as dashed lines; each number in words and in a table."""
    comparison = build_comparison(comparison_facts())
    plots = key_plots(comparison["columns"], comparison["rows"], cell_text)
    assert [p.title.split()[0] for p in plots] == ["Usefulness:", "Fréchet", "Membership"]
    useful, _, risk = plots
    assert useful.reference == ("trained on real images", "0.871")
    assert risk.reference == ("guessing", "0.500")
    assert useful.epsilons == ("1", "8", "∞")
    assert dict(useful.lines)["vae"][0] == ("0.643", "0.610 to 0.680")
    assert "vae at epsilon 1: 0.643" in useful.plot.alt
    assert "Dashed line, trained on real images: 0.871" in useful.plot.alt
    assert dict(risk.lines)["gan"][0][0] == "NOT RECORDED"
