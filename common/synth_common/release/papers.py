"""The run's report as it may leave: what nobody was charged for stays where it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from synth_common.facts import Fact
from synth_common.reporting.files import replace_text
from synth_common.reporting.report import build_report

_LEAVING = ("public", "released")


def leaving(facts: Iterable[Fact], simulation: bool) -> list[Fact]:
    """The facts that may enter a bundle.

    Of a real federation those that are public or were released. A simulation has no patients to
    hide from itself, and its site-local facts enter, too; pictures of real images never do.
    """
    return [
        fact
        for fact in facts
        if (simulation or fact.scope in _LEAVING) and fact.detail.get("kind") != "real"
    ]


def write_report(facts: Iterable[Fact], run_dir: Path, out: Path) -> Mapping[str, Any]:
    """``report.json`` and ``report.html`` of these facts in ``out``; the report as values.

    Args:
        facts: From :func:`leaving`.
        run_dir: Where the pictures that facts name lie.
        out: Folder for both files.

    Raises:
        StorageError: The disk refused.
    """
    from synth_common.reporting.html import render_report

    report = build_report(facts)
    page = render_report(report, run_dir)
    replace_text(out / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    replace_text(out / "report.html", page)
    return report
