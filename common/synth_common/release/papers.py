"""The run's report as it may leave: what nobody was charged for stays where it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from synth_common.facts import Fact
from synth_common.reporting.files import replace_text
from synth_common.reporting.report import build_report


def write_report(facts: Iterable[Fact], run_dir: Path, out: Path) -> Mapping[str, Any]:
    """``report.json`` and ``report.html`` of these facts in ``out``; the report as values.

    Args:
        facts: From :func:`synth_common.leaving.leaving`.
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
