"""What an ethics report is made of, read from a run directory, a release bundle and audits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synth_common.charter import Charter, SiteCharter, load_charter, load_site_charter
from synth_common.errors import ConfigError, DataError
from synth_common.facts import CATALOGUE, Fact, Scope, read_facts
from synth_common.reporting.expected import FAIRNESS
from synth_common.reporting.factbook import MISSING

CHARTER = "charter.toml"
"""The federation's charter in a run directory or bundle."""
CHARTERS = "charters"
"""Folder of the sites' own, one TOML file each."""


@dataclass(frozen=True)
class Found:
    """What lies in the folders.

    Attributes:
        facts: Of the run.
        charter: The federation's, if there is one.
        charters: The sites' own, by site.
        audits: Facts of audits.
    """

    facts: Sequence[Fact]
    charter: Charter | None
    charters: Mapping[str, SiteCharter]
    audits: Sequence[Fact]


def read_input(
    folder: Path, charter: Charter | None, audits: Sequence[Path], site_charters: Sequence[Path]
) -> Found:
    """Everything that a report of ``folder`` is made of.

    Raises:
        DataError: No facts are there, or they are damaged.
        ConfigError: A charter cannot be used, or two speak of one site.
    """
    if charter is None and (folder / CHARTER).is_file():
        charter = load_charter(folder / CHARTER)
    found = [fact for audit in audits for fact in _facts(audit)]
    own = [f for f in found if f.name.partition(".")[0] not in _OF_THE_RUN]
    return Found(_facts(folder), charter, _charters(folder, site_charters), own)


# What an audit's own log says of its own run must not replace what the run said of itself.
_OF_THE_RUN = frozenset({"run", "plan", "data", "privacy", "generator", "pretraining", "release"})


def _charters(folder: Path, given: Sequence[Path]) -> dict[str, SiteCharter]:
    """The sites' charters in the folder, and those that were named."""
    found: dict[str, SiteCharter] = {}
    for path in [*sorted((folder / CHARTERS).glob("*.toml")), *given]:
        charter = load_site_charter(path)
        if charter.site in found and found[charter.site] != charter:
            raise ConfigError(
                f"{path}: site = {charter.site!r}, and another charter speaks of this site, too; "
                "keep the one that the site handed over last"
            )
        found[charter.site] = charter
    return found


def _facts(folder: Path) -> list[Fact]:
    """The facts of a folder: its log, or else what its report kept of it."""
    log, report = folder / "facts.jsonl", folder / "report.json"
    if log.is_file():
        return list(read_facts(log))
    if report.is_file():
        return facts_of_report(_report(report))
    raise DataError(
        f"{folder} holds neither facts.jsonl nor report.json; name a run directory, a release "
        "bundle, or the directory of an audit"
    )


def _report(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as err:
        raise DataError(f"{path} is not a report: {err}") from err
    if not isinstance(values, dict) or not str(values.get("format", "")).startswith(
        "synthward-report/"
    ):
        raise DataError(f"{path} is not a report of Synthward: it has no format synthward-report/1")
    return values


# Where a report keeps what single facts said: name of the fact, and the place in the report.
_PLACES: Mapping[str, str] = {
    **{
        f"run.{key}": f"run/{key}"
        for key in (
            *("id", "scenario", "command", "seed", "engine", "simulation", "started", "finished"),
            *("versions", "device", "rounds", "energy", "code", "weights", "roles"),
        )
    },
    "plan.digest": "plan/digest",
    "plan.settings": "plan/settings",
    "data.classes": "data/classes",
    "data.shape": "data/shape",
    "data.minimisation": "data/minimisation",
    "security.link": "security/link",
    "security.egress": "security/egress",
    "privacy.unit": "privacy/unit",
    "privacy.delta": "privacy/delta",
    "privacy.trust_model": "privacy/trust_model",
    "privacy.adjacency": "privacy/adjacency",
    "privacy.noise_source": "privacy/noise_source",
    "release.embedding": "privacy/release",
    "generator.summary": "generator",
    "pretraining.public": "training/pretraining",
}


def facts_of_report(report: Mapping[str, Any]) -> list[Fact]:
    """The facts that a ``report.json`` was made of, as far as it kept them.

    Their source is ``report.json``: the report does not keep which function recorded what.
    Values that the report marks as not recorded stay so.
    """
    finished = str(report.get("run", {}).get("finished", ""))
    facts = []
    for name, path in _PLACES.items():
        value: Any = report
        for key in path.split("/"):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            facts.append(_fact(name, value, finished))
    for phase, seconds in report.get("run", {}).get("seconds", {}).items():
        facts.append(_fact("run.seconds", seconds, finished, detail={"phase": phase}))
    return [*facts, *_listed(report, finished)]


def _listed(report: Mapping[str, Any], time: str) -> list[Fact]:
    """What a report keeps as lists: sites, licences, figures, attacks, and all the rest."""
    facts = [
        _fact("privacy.site", {k: v for k, v in s.items() if k != "name"}, time, s["name"])
        for s in report.get("privacy", {}).get("sites", [])
    ]
    for site in report.get("sites", []):
        for key in ("source", "split", "scanner_shift"):
            if site[key] is not None and MISSING not in site[key].values():
                scope: Scope = "site-local" if key == "split" else "public"
                facts.append(_fact(f"data.{key}", site[key], time, site["name"], scope=scope))
    for intake in report.get("data", {}).get("intake", []):
        detail = {"source": intake["source"]}
        facts.append(_fact("data.intake", intake, time, None, detail, intake["scope"]))
    for licence in report.get("data", {}).get("licences", []):
        detail = {"source": licence["source"]}
        facts.append(_fact("data.licence", licence["text"], time, detail=detail))
    for name, records in (
        ("utility.classification", report.get("utility", {}).get("classification", [])),
        ("membership.attack", report.get("membership", {}).get("attacks", [])),
    ):
        for record in records:
            facts.append(_fact(name, record, time, record["site"], record, record["scope"]))
    for group in report.get("fairness", {}).get("groups", []):
        value = {key: group[key] for key in FAIRNESS}
        facts.append(_fact("fairness.group", value, time, group["site"], group, group["scope"]))
    for item in report.get("traversals", []):
        facts.append(_fact("samples.traversal", item["path"], time, None, item, item["scope"]))
    for item in report.get("other", []):
        if item["name"] in CATALOGUE:
            detail = dict(item["detail"])
            facts.append(
                _fact(item["name"], item["value"], time, item["site"], detail, item["scope"])
            )
    return facts


def _fact(
    name: str,
    value: Any,
    time: str,
    site: str | None = None,
    detail: Mapping[str, Any] | None = None,
    scope: Scope = "public",
) -> Fact:
    return Fact(name, value, scope, "report.json", site=site, detail=detail or {}, time=time)
