"""Facts to report: ``facts.jsonl`` becomes ``report.json`` and ``report.html``.

Nothing is computed here. A value is taken from its fact as it was recorded, and a value
that was not recorded is the string ``NOT RECORDED``, so that a reader of the JSON cannot
take it for zero. The shape of the JSON is docs/reference/report.schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from synth_common.facts import Fact, read_facts
from synth_common.reporting.expected import (
    ANOMALY,
    ANOMALY_DETAIL,
    ATTACK,
    ATTACK_DETAIL,
    AUGMENTATION,
    AUGMENTATION_DETAIL,
    ELBO,
    ENERGY,
    FAIRNESS,
    FAIRNESS_DETAIL,
    GENERATOR,
    INTAKE,
    METRIC_DETAIL,
    METRICS,
    PHASES,
    PRETRAINING,
    PRIVACY_SITE,
    RECONSTRUCTION,
    RELEASE,
    ROUND,
    RUN,
    SEGMENTATION,
    SEGMENTATION_DETAIL,
    SPLIT,
    TRAVERSAL,
    UTILITY,
    UTILITY_DETAIL,
)
from synth_common.reporting.factbook import MISSING, FactBook, fields
from synth_common.reporting.files import replace_text
from synth_common.reporting.notices import notices

FORMAT = "synthward-report/1"
_UTILITY = {
    "classification": (UTILITY, UTILITY_DETAIL),
    "segmentation": (SEGMENTATION, SEGMENTATION_DETAIL),
    "anomaly": (ANOMALY, ANOMALY_DETAIL),
    "augmentation": (AUGMENTATION, AUGMENTATION_DETAIL),
}


def build_report(facts: Iterable[Fact]) -> dict[str, Any]:
    """Order recorded facts into a report. Pure: reads no file, computes no number.

    Where a fact was recorded more than once (a resumed run), the last one is taken.

    Args:
        facts: Facts in the order they were recorded.

    Returns:
        JSON-ready dictionary in the shape of ``docs/reference/report.schema.json``;
        values that no fact holds are the string ``"NOT RECORDED"``.
    """
    book = FactBook(facts)
    report: dict[str, Any] = {
        "format": FORMAT,
        "run": run_section(book),
        "plan": {"digest": book.value("plan.digest"), "settings": book.value("plan.settings")},
        "data": _data(book),
        "sites": [_site(book, name) for name in book.sites()],
        "privacy": _privacy(book),
        "generator": fields(book.value("generator.summary"), GENERATOR),
        "training": _training(book),
        "federation": _federation(book),
        "security": {
            "link": book.value("security.link"),
            "egress": fields(
                book.value("security.egress"), ("tensors", "statistics", "values", "refused")
            ),
        },
        "quality": _quality(book),
        "utility": {
            name: [_record(f, *expected) for f in book.all(f"utility.{name}")]
            for name, expected in _UTILITY.items()
        },
        "fairness": {
            "groups": [_record(f, FAIRNESS, FAIRNESS_DETAIL) for f in book.all("fairness.group")]
        },
        "membership": {
            "attacks": [_record(f, ATTACK, ATTACK_DETAIL) for f in book.all("membership.attack")]
        },
        "samples": [
            {"path": f.value, **fields(f.detail, ("kind", "caption", "rows", "columns"))}
            for f in book.all("samples.grid")
        ],
        "traversals": [
            {"path": f.value, "scope": f.scope, **fields(f.detail, TRAVERSAL)}
            for f in book.all("samples.traversal")
        ],
        "other": _other(book),
    }
    return {**report, "warnings": notices(report)}


def write_report(run_dir: Path) -> Path:
    """Render a run directory's ``facts.jsonl`` as ``report.json`` and ``report.html``.

    Each file is written beside its final name and renamed, so that a reader never sees
    half a report. Sample grids are read from the run directory and embedded.

    Args:
        run_dir: A run directory that holds ``facts.jsonl``.

    Returns:
        The path of ``report.html``.

    Raises:
        DataError: ``facts.jsonl`` is missing or damaged before its last line.
        StorageError: A file could not be written.
    """
    # The page pulls in jinja2 and matplotlib, which the JSON does not need.
    from synth_common.reporting.html import render_report

    report = build_report(read_facts(run_dir / "facts.jsonl"))
    page = render_report(report, run_dir)
    replace_text(run_dir / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    return replace_text(run_dir / "report.html", page)


def run_section(book: FactBook) -> dict[str, Any]:
    """What ran, where, when and for how long, as reports and comparisons both show it."""
    seconds = {str(f.detail.get("phase", "total")): f.value for f in book.all("run.seconds")}
    return {
        **{key: book.value(f"run.{key}") for key in RUN},
        "scenario": fields(book.value("run.scenario"), ("name", "title")),
        "versions": fields(book.value("run.versions"), ()),
        "code": fields(book.value("run.code"), ("version", "sha256")),
        "energy": fields(book.value("run.energy"), ENERGY),
        "roles": fields(book.value("run.roles"), ("coordinator", "sites")),
        "device": fields(book.value("run.device"), ("device", "threads", "processor")),
        "rounds": fields(book.value("run.rounds"), ("planned", "completed", "ended")),
        "seconds": fields(seconds, PHASES),
        "resumed": [f.value for f in book.all("run.resumed")],
    }


def _data(book: FactBook) -> dict[str, Any]:
    """What the images are and what happened to them before training."""
    return {
        "classes": book.value("data.classes"),
        "shape": fields(book.value("data.shape"), ("size", "channels", "with_mask")),
        "minimisation": fields(book.value("data.minimisation"), ("kept", "dropped")),
        "partition": fields(book.value("data.partition"), ("kind",)),
        "label_shares": _label_shares(book),
        "licences": [
            {"source": f.detail.get("source", MISSING), "text": f.value}
            for f in book.all("data.licence")
        ],
        "intake": [
            _record(f, INTAKE, ("source",)) | {"duplicates": _duplicates(f)}
            for f in book.all("data.intake")
        ],
    }


def _label_shares(book: FactBook) -> dict[str, Any] | None:
    """Classes' shares by what was released; no such fact means that nothing tells them."""
    found = book.all("data.label_shares")
    return (
        None if not found else {"shares": found[-1].value, **fields(found[-1].detail, ("noise",))}
    )


def _duplicates(fact: Fact) -> dict[str, Any]:
    """The exact duplicates of an intake fact."""
    value = fact.value.get("duplicates") if isinstance(fact.value, Mapping) else None
    return fields(value, ("groups", "images", "across_patients"))


def _site(book: FactBook, name: str) -> dict[str, Any]:
    """Where a hospital's images come from and how they were split."""
    shift = book.value("data.scanner_shift", name)
    return {
        "name": name,
        "source": fields(book.value("data.source", name), ("name", "kind", "path")),
        "split": fields(book.value("data.split", name), SPLIT),
        # No such fact means that no shift was simulated, not that one is unknown.
        "scanner_shift": None if shift == MISSING else shift,
    }


def _privacy(book: FactBook) -> dict[str, Any]:
    """The guarantee, and what each hospital's ledger says of it."""
    spent: dict[str, list[dict[str, Any]]] = {}
    for fact in book.all("privacy.epsilon"):
        spent.setdefault(fact.site or "", []).append({"round": fact.round, "epsilon": fact.value})
    ledgers = {f.site: f.value for f in book.all("privacy.site") if f.site is not None}
    trained = [s for s in book.sites() if s in ledgers or s in spent or _took_part(book, s)]
    return {
        "unit": book.value("privacy.unit"),
        "delta": book.value("privacy.delta"),
        "trust_model": fields(book.value("privacy.trust_model"), ("name", "meaning")),
        "adjacency": book.value("privacy.adjacency"),
        "noise_source": fields(book.value("privacy.noise_source"), ("kind", "statement")),
        "release": _release(book),
        "sites": [
            {
                "name": name,
                **fields(ledgers.get(name), PRIVACY_SITE),
                "epsilon_by_round": spent.get(name, []),
            }
            for name in trained
        ],
    }


def _release(book: FactBook) -> dict[str, Any] | None:
    """The release before the first round; None in a run whose plan has none."""
    settings, found = book.value("plan.settings"), book.all("release.embedding")
    planned = settings.get("release") if isinstance(settings, Mapping) else None
    if not found and not (isinstance(planned, Mapping) and planned.get("embedding") is not None):
        return None
    return fields(found[-1].value if found else None, RELEASE)


def _took_part(book: FactBook, site: str) -> bool:
    """Whether a site trained: such a site without a ledger fact must be seen to lack it."""
    return any(f.site == site for f in book.all("training.loss", "data.split"))


def _training(book: FactBook) -> dict[str, Any]:
    """Private losses per site, and what the health signals said."""
    losses: dict[str | None, dict[str, Any]] = {}
    for fact in book.all("training.loss"):
        entry = losses.setdefault(
            fact.site,
            {
                "site": fact.site,
                "loss": fact.detail.get("loss", MISSING),
                "scope": fact.scope,
                "rounds": [],
            },
        )
        entry["rounds"].append({"round": fact.round, "value": fact.value})
    return {
        "pretraining": fields(book.value("pretraining.public"), PRETRAINING),
        "losses": list(losses.values()),
        "health": [
            {"round": f.round, "scope": f.scope, "signals": f.value}
            for f in book.all("training.health")
        ],
        "warnings": [
            {"round": f.round, "scope": f.scope, "text": f.value}
            for f in book.all("training.warning")
        ],
    }


def _federation(book: FactBook) -> dict[str, Any]:
    """Rounds and failures as the server saw them."""
    return {
        "rounds": [
            {"round": f.round, **fields(f.value, ROUND)} for f in book.all("federation.round")
        ],
        "failures": [
            {"site": f.site or MISSING, "round": f.round, **fields(f.value, ("code", "reason"))}
            for f in book.all("federation.failure")
        ],
    }


def _quality(book: FactBook) -> dict[str, Any]:
    """Every quality figure with what is needed to judge it."""
    metrics = [
        {"metric": f.name.removeprefix("quality."), **_record(f, (), METRIC_DETAIL)}
        for name in METRICS
        for f in book.all(name)
    ]
    return {
        "metrics": metrics,
        "reconstruction": [
            _record(f, RECONSTRUCTION, ("n_real",)) for f in book.all("quality.reconstruction")
        ],
        "elbo": [_record(f, ELBO, ("n_real",)) for f in book.all("quality.elbo")],
    }


def _record(fact: Fact, of_value: Iterable[str], of_detail: Iterable[str]) -> dict[str, Any]:
    """A fact as one flat record: its value, what qualifies it, its site and its scope."""
    value = (
        fields(fact.value, of_value)
        if isinstance(fact.value, Mapping) or of_value
        else {"value": fact.value}
    )
    return {"site": fact.site, "scope": fact.scope, **value, **fields(fact.detail, of_detail)}


def _other(book: FactBook) -> list[dict[str, Any]]:
    """Facts that no section knows yet: shown plainly, never dropped."""
    return [
        {
            "name": f.name,
            "site": f.site,
            "round": f.round,
            "scope": f.scope,
            "value": f.value,
            "detail": dict(f.detail),
        }
        for f in book.unasked()
        if f.name != "compare.row"  # synth_common.reporting.compare shows these
    ]
