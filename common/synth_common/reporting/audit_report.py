"""Facts of an audit to ``audit.json`` and ``audit.html``. Nothing is computed here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from synth_common.facts import Fact, read_facts
from synth_common.reporting.factbook import MISSING, FactBook, fields
from synth_common.reporting.files import replace_text

FORMAT = "synthward-audit/1"

SET: Final = ("path", "offered", "accepted", "set_aside", "patients", "unit", "columns", "dates")
ATTACK: Final = (
    "view",
    "attack",
    "space",
    "group",
    "members",
    "nonmembers",
    "auc",
    "auc_interval",
    "tpr_at_0_1pct",
    "tpr_at_0_1pct_interval",
    "tpr_at_1pct",
    "tpr_at_1pct_interval",
    "baseline_auc",
    "baseline_interval",
    "control_auc",
    "control_interval",
    "chance_corrected",
    "verdict",
    "detectable_auc",
    "roc",
)
TEST: Final = (
    "measure",
    "test",
    "space",
    "value",
    "control",
    "control_interval",
    "advantage",
    "advantage_interval",
    "chance_corrected",
    "verdict",
    "numbers",
)
COPIES: Final = (
    "threshold",
    "synthetic",
    "of_members",
    "of_nonmembers",
    "members_copied",
    "nonmembers_copied",
    "members",
    "nonmembers",
    "flips",
    "highest_member",
    "highest_nonmember",
    "chance_corrected",
    "verdict",
)
GATE: Final = ("number", "measure", "view", "limit", "required", "outcome", "figure", "reason")
CORRECTION: Final = (
    "method",
    "alpha",
    "looks",
    "group_looks",
    "power",
    "members",
    "nonmembers",
    "detectable_auc",
)
USED: Final = (
    "members",
    "nonmembers",
    "real_images",
    "synthetic",
    "reference",
    "reference_how",
    "left_out",
)
SHADOWS: Final = (
    "models",
    "recipe_sha256",
    "family",
    "rounds",
    "sites",
    "patients_each",
    "images_drawn_each",
    "spread",
    "noise_multiplier",
    "noise_multiplier_of_run",
    "seconds",
    "ledger",
)
CEILING: Final = ("epsilon", "delta", "origin", "curve", "tpr_at_0_1pct", "tpr_at_1pct")


def build_audit(facts: Iterable[Fact], site_local: bool = False) -> dict[str, Any]:
    """Order the recorded facts of an audit. Pure: reads no file, computes no number.

    Args:
        facts: In the order they were recorded.
        site_local: Whether to name the picture of the closest pairs, which shows patients.

    Returns:
        JSON-ready dictionary; values that no fact holds are ``"NOT RECORDED"``.
    """
    book = FactBook(facts)
    attacks = [fields(f.value, ATTACK) for f in book.all("audit.attack")]
    alike = fields(book.value("audit.alike"), ("quantities", "used"))
    ceiling, shadows = book.all("audit.ceiling"), book.all("audit.shadows")
    seconds = book.all("run.seconds")
    return {
        "format": FORMAT,
        "edition": "site-local" if site_local else "without images of patients",
        "verdict": book.value("audit.verdict"),
        "gates": [fields(f.value, GATE) for f in book.all("audit.gate")],
        "policy": fields(book.value("audit.policy"), ("name", "sha256", "origin", "settings")),
        "sets": {
            str(f.value["role"]): fields(f.value, SET)
            for f in book.all("audit.set")
            if isinstance(f.value, dict)
        },
        "shape": fields(book.value("data.shape"), ("size", "channels", "with_mask")),
        "classes": book.value("data.classes"),
        "alike": alike["quantities"],
        "used": fields(alike["used"], USED),
        "correction": fields(book.value("audit.correction"), CORRECTION),
        "attacks": [a for a in attacks if a["group"] is None],
        "groups": [a for a in attacks if a["group"] is not None],
        "shadows": fields(shadows[-1].value, SHADOWS) if shadows else None,
        "tests": [fields(f.value, TEST) for f in book.all("audit.test")],
        "near_copies": fields(book.value("audit.near_copies"), COPIES),
        "ceiling": fields(ceiling[-1].value, CEILING) if ceiling else None,
        "untested": [fields(f.value, ("what", "why")) for f in book.all("audit.untested")],
        "pairs": book.value("audit.pairs") if site_local else None,
        "run": {
            **{
                key: book.value(f"run.{key}")
                for key in ("command", "seed", "started", "finished", "versions")
            },
            "seconds": seconds[-1].value if seconds else MISSING,
        },
    }


def write_audit(out: Path, site_local: bool) -> Path:
    """Render ``facts.jsonl`` of an audit as ``audit.html`` and ``audit.json``.

    Args:
        out: The audit's directory.
        site_local: Write ``report-site-local.html`` instead, which shows patients beside the
            synthetic images nearest to them and must not leave the site.

    Returns:
        The path of the page.

    Raises:
        DataError: ``facts.jsonl`` is missing or damaged before its last line.
        StorageError: A file could not be written.
    """
    from synth_common.reporting.audit_page import render_audit

    audit = build_audit(read_facts(out / "facts.jsonl"), site_local)
    page = render_audit(audit, out)
    if site_local:
        return replace_text(out / "report-site-local.html", page)
    replace_text(out / "audit.json", json.dumps(audit, indent=2, allow_nan=False) + "\n")
    return replace_text(out / "audit.html", page)
