"""The audit's page: gates whose limits and figures say what they mean, legends that name all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from page_checks import parsed

from synth_common.audit.policy import Measure
from synth_common.facts import Fact
from synth_common.reporting.audit_page import render_audit
from synth_common.reporting.audit_plots import roc_plot
from synth_common.reporting.audit_report import build_audit
from synth_common.reporting.gate_words import gate_words


def _gate(measure: str, limit: Any, figure: Any) -> dict[str, Any]:
    return {"measure": measure, "limit": limit, "figure": figure}


@pytest.mark.parametrize(
    ("gate", "limit", "figure"),
    [
        (_gate("membership", 0.6, 0.0), "AUC 0.6 must be resolvable", "0 attacks"),
        (_gate("membership", 0.6, 1), "AUC 0.6 must be resolvable", "1 attack"),
        (_gate("auc", 0.6, 0.52319), "AUC at most 0.6", "AUC 0.523"),
        (_gate("tpr-at-1-percent", 0.05, 0.012), "at most 0.05 of the members", "0.0120 of the"),
        (_gate("tpr-at-0.1-percent", 0.01, None), "at most 0.01 of the members", "no figure"),
        (_gate("near-copies", 0.0, 0.25), "at most 0 of the synthetic", "0.250 of the synthetic"),
        (_gate("data-copying", None, 0), "no test may find it", "0 tests"),
        (_gate("data-copying", None, 1), "no test may find it", "1 test"),
        (_gate("reidentification", 0.1, -0.02), "at most 0.1 above", "−0.0200 above control"),
        (_gate("linkability", 0.1, 1), "at most 0.1 above control", "1 above control"),
        (_gate("epsilon", 8.0, 7.8912), "epsilon at most 8", "epsilon 7.90"),
        (_gate("epsilon", "inf", "inf"), "epsilon at most ∞", "epsilon ∞"),
        (_gate("auc", "NOT RECORDED", "NOT RECORDED"), "NOT RECORDED", "NOT RECORDED"),
        (_gate("of tomorrow", 0.5, 0.25), "0.5", "0.250"),
    ],
)
def test_a_limit_and_a_figure_say_what_they_mean(
    gate: dict[str, Any], limit: str, figure: str
) -> None:
    words = gate_words(gate)
    assert words["limit"].startswith(limit)
    assert words["figure"].startswith(figure)


def test_every_measure_has_words_of_its_own() -> None:
    for measure in get_args(Measure):
        words = gate_words(_gate(measure, 0.3, 0.2))
        assert words["title"] != measure
        assert "{" not in "".join(words.values())
        assert not words["limit"].replace(".", "").isdecimal(), measure
        assert not words["figure"].replace(".", "").isdecimal(), measure


def test_the_page_prints_them_in_the_row_of_their_gate(tmp_path: Path) -> None:
    gate = _gate("membership", 0.6, 0.0) | {
        **{"number": 1, "view": "images", "required": True, "outcome": "pass", "reason": "none"}
    }
    page = render_audit(build_audit([Fact("audit.gate", gate, "public", "test")]), tmp_path)
    row = "".join(parsed(page).text).split("No attack finds members")[1].split("Outcome")[0]
    assert row.startswith("Images onlyAUC 0.6 must be resolvable0 attacks")


def _attack(name: str, space: str) -> dict[str, Any]:
    roc = [[i / 10, (i / 10) ** 0.5] for i in range(11)]
    return {"attack": name, "space": space, "roc": roc, "tpr_at_1pct": 0.03}


def _ceiling(curve: Any) -> dict[str, Any]:
    return {"epsilon": 2.0, "curve": curve, "tpr_at_1pct": 0.07}


def _lines(part: str) -> set[tuple[str, str]]:
    """Colour and dashes of every line that is neither grid nor frame."""
    found = set()
    for style in re.findall(r'style="(fill: none;[^"]+)"', part):
        stroke = re.search(r"stroke: (#\w+)", style)
        dashes = re.search(r"stroke-dasharray: ([^;]+)", style)
        if stroke is not None and stroke[1] not in ("#e3e7eb", "#8a94a0"):
            found.add((stroke[1], dashes[1] if dashes else "solid"))
    return found


@pytest.mark.parametrize(
    ("ceiling", "named"),
    [
        (_ceiling([[0.001, 0.007], [0.1, 0.7], [1.0, 1.0]]), True),
        (_ceiling("NOT RECORDED"), False),
        (None, False),
    ],
)
def test_the_legend_of_the_roc_names_every_line_and_no_other(
    ceiling: dict[str, Any] | None, named: bool
) -> None:
    attacks = [_attack(name, s) for s in ("one", "two") for name in ("A", "B", "C", "D")]
    plot = roc_plot("roc", attacks, ceiling)
    assert plot is not None
    drawn, _, legend = plot.svg.partition('id="roc-legend_1"')
    assert _lines(drawn) == _lines(legend)
    assert len(_lines(legend)) == 5 + named
    assert len({dashes for _, dashes in _lines(legend)}) == 4 + named  # chance and A are solid
    for label in ("chance (guessing)", *"ABCD"):
        assert f">{label}</text>" in legend
    assert ("most that epsilon 2.00 allows any attack" in legend) is named
