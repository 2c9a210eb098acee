"""The ethics report: every field that a board asks for, with the fact behind each value.

It offers evidence for an assessment (the three criteria of WP216, a HIPAA expert determination,
NIST SP 800-226) and decides nothing. Nothing is computed; what nobody recorded prints
NOT RECORDED and is counted on the first screen, where dates in an odd order stand, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from synth_common.charter import Charter, SiteCharter
from synth_common.facts import Fact
from synth_common.leaving import leaving
from synth_common.reporting import ethics_measured as measured
from synth_common.reporting import ethics_stated as stated
from synth_common.reporting.clauses import load_clauses
from synth_common.reporting.ethics_attacks import attacks
from synth_common.reporting.ethics_dates import date_orders
from synth_common.reporting.ethics_input import read_input
from synth_common.reporting.evidence import Field, Record
from synth_common.reporting.files import replace_text
from synth_common.reporting.report import build_report
from synth_common.reporting.summary import badge

FORMAT: Final = "synthward-ethics/1"

GROUPS: Final[Sequence[tuple[str, str, tuple[Callable[[Record], Iterator[Field]], ...]]]] = (
    ("decision", "The decision", (stated.decision,)),
    ("purpose", "Purpose", (stated.purpose,)),
    ("governance", "Who answers for it", (stated.governance,)),
    ("patients", "Patients and their images", (stated.patients, measured.minimisation)),
    ("generator", "The generator", (measured.generator,)),
    ("privacy", "The promise to a patient", (measured.guarantee,)),
    ("security", "Security", (measured.security,)),
    ("attacks", "What attacks found", (attacks,)),
    ("fairness", "Fairness and expert assessment", (measured.fairness,)),
    ("release", "Release and upkeep", (measured.upkeep, stated.release)),
)
"""Sections of the report in the order in which a board reads them."""


@dataclass(frozen=True)
class EthicsInput:
    """Everything that a report is made of.

    Attributes:
        facts: Of the run and its release.
        charter: The federation's.
        charters: The sites' own, by site.
        audits: Facts of audits that were made apart from the run.
    """

    facts: Sequence[Fact]
    charter: Charter | None = None
    charters: Mapping[str, SiteCharter] = field(default_factory=dict)
    audits: Sequence[Fact] = ()


def build_ethics(given: EthicsInput) -> dict[str, Any]:
    """Order facts and statements into the report. Pure: reads no file but the packaged clauses.

    Facts that are site-local are left out unless one machine played every hospital or an audit
    brought them, so that a release can carry the report.

    Returns:
        JSON-ready dictionary, ``docs/reference/ethics.md``.
    """
    facts = [*leaving(given.facts), *given.audits]
    record = Record(facts, given.charter, given.charters)
    clauses = load_clauses()
    groups: list[dict[str, Any]] = [
        {"id": key, "title": title, "fields": [_as_json(f) for part in parts for f in part(record)]}
        for key, title, parts in GROUPS
    ]
    rows = [row for group in groups for f in group["fields"] for row in f["rows"]]
    report = build_report(facts)
    return {
        "format": FORMAT,
        "run": {key: report["run"][key] for key in ("id", "scenario", "started", "finished")},
        "simulation": report["run"]["simulation"],
        "guarantee": badge(report),
        "warnings": [w for w in report["warnings"] if w["severity"] != "note"],
        "dates": date_orders(record),
        "charter": _charter(given.charter),
        "site_charters": {site: _charter(own) for site, own in given.charters.items()},
        "clauses": {"dated": clauses.dated, "sha256": clauses.sha256},
        "missing": {
            "values": sum(not row["recorded"] for row in rows),
            "of": len(rows),
            "fields": [f["id"] for g in groups for f in g["fields"] if f["missing"]],
        },
        "site_local": sorted({row["fact"] for row in rows if row["scope"] == "site-local"}),
        "groups": groups,
        "traversals": report["traversals"],
    }


def write_ethics(
    run_dir: Path,
    charter: Charter | None,
    out_dir: Path,
    *,
    audits: Iterable[Path] = (),
    site_charters: Iterable[Path] = (),
    extra: Iterable[Fact] = (),
) -> Path:
    """Write ``ethics.html`` and ``ethics.json`` of a run or release.

    Args:
        run_dir: A run directory, or a release bundle: holds ``facts.jsonl`` or ``report.json``.
        charter: The federation's; None takes ``charter.toml`` in ``run_dir``, if it is there.
        out_dir: Folder for both files; made if missing.
        audits: Directories of audits, each with a ``facts.jsonl``.
        site_charters: Charters of sites, beside those in ``run_dir/charters``.
        extra: Facts that ``run_dir`` does not hold yet, such as the marking of a release.

    Returns:
        The path of ``ethics.html``.

    Raises:
        DataError: Neither ``facts.jsonl`` nor ``report.json`` is there, or one is damaged.
        ConfigError: A charter cannot be used; names the key.
        StorageError: A file could not be written.
    """
    # The page pulls in jinja2, which the JSON does not need.
    from synth_common.reporting.ethics_page import render_ethics

    found = read_input(run_dir, charter, tuple(audits), tuple(site_charters))
    given = EthicsInput([*found.facts, *extra], found.charter, found.charters, found.audits)
    ethics = build_ethics(given)
    page = render_ethics(ethics, run_dir)
    _make(out_dir)
    replace_text(out_dir / "ethics.json", json.dumps(ethics, indent=2, allow_nan=False) + "\n")
    return replace_text(out_dir / "ethics.html", page)


def _make(folder: Path) -> None:
    from synth_common.errors import StorageError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise StorageError(f"cannot write into {folder}: {err.strerror}") from err


def _as_json(made: Field) -> dict[str, Any]:
    known = load_clauses().known
    return {
        "id": made.key,
        "title": made.title,
        "asks": made.asks,
        "clauses": [known[key]._asdict() for key in made.clauses],
        "missing": made.missing,
        "rows": [row.as_json() for row in made.rows],
    }


def _charter(charter: Charter | SiteCharter | None) -> dict[str, Any] | None:
    """Which file it was, for whoever wants to compare."""
    if charter is None:
        return None
    origin = charter.origin
    return {
        "file": None if origin is None else origin.name,
        "sha256": None if origin is None else origin.sha256,
        "dated": None if charter.dated is None else charter.dated.isoformat(),
    }
