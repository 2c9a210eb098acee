"""Fields of the ethics report that rest on what people stated in charters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from synth_common.reporting.evidence import Field, Record, Row, few_hidden, of_fact


def decision(record: Record) -> Iterator[Field]:
    """Who decided what about the risk that remains."""
    stated = record.stated
    yield Field(
        "residual-risk",
        "Decision on the residual risk",
        "Who accepted what risk remains, and when is that looked at again?",
        ("pdpc-2024", "gdpr-35", "iso-42001"),
        [
            stated("Decision", "residual_risk.decision"),
            stated("Approver", "residual_risk.approver"),
            stated("Decided", "residual_risk.decided"),
            stated("To be reviewed by", "residual_risk.review"),
        ],
    )
    yield Field(
        "expert",
        "Expert determination",
        "Did an expert find the risk of identifying anybody very small, and by which methods?",
        ("hipaa-expert",),
        [
            stated("Expert", "expert.name"),
            stated("Methods", "expert.methods"),
            stated("Conclusion", "expert.conclusion"),
            stated("Determined", "expert.determined"),
        ],
    )


def purpose(record: Record) -> Iterator[Field]:
    """What the images are for."""
    yield Field(
        "purpose",
        "Purpose and prohibited uses",
        "What are the synthetic images for, and what must nobody do with them?",
        ("gdpr-5-1-b", "datasheets", "model-cards", "future-ai"),
        [
            record.stated("Purpose", "purpose"),
            record.stated("Prohibited uses", "prohibited_uses"),
            record.stated("Limits", "limits"),
        ],
    )


def governance(record: Record) -> Iterator[Field]:
    """Who answers for it, and on what it rests."""
    stated = record.stated
    yield Field(
        "controller",
        "Controller and roles",
        "Who decides, who works on whose behalf, and which sites took part?",
        ("gdpr-4-7", "gdpr-26-28", "iso-42001"),
        [
            stated("Controller", "controller"),
            stated("Roles", "roles"),
            record.row("Coordinator of the run", "run.roles/coordinator"),
            record.row("Sites of the run", "run.roles/sites"),
            record.row("One machine played every hospital", "run.simulation"),
        ],
    )
    yield Field(
        "legal-basis",
        "Legal basis and approvals",
        "On what does the processing rest, and which body approved it under which number?",
        ("gdpr-6-9", "gdpr-35", "gdpr-89"),
        [
            stated("Legal basis", "legal_basis"),
            stated("Impact assessment", "impact_assessment"),
            stated("Approvals of the federation", "approvals"),
            *(
                record.stated_by(site, "Approvals of the site", "approvals")
                for site in record.sites
            ),
        ],
    )


def patients(record: Record) -> Iterator[Field]:
    """Whose images they are, as each site's own charter says."""
    by = record.stated_by
    yield Field(
        "consent",
        "Consent or opt-out",
        "What were patients told, and what could they choose?",
        ("gdpr-14", "ehds-71", "datasheets"),
        _per_site(
            record,
            lambda site: [
                by(site, "Rests on", "consent"),
                by(site, "In words", "consent_statement"),
            ],
        ),
    )
    yield Field(
        "source-data",
        "Source data",
        "Where do the images come from, from when, from which devices, and who was left out?",
        ("ai-act-10-2", "claim", "tripod-ai", "datasheets"),
        [*_per_site(record, lambda site: _source(record, site)), *_sources(record)],
    )
    yield Field(
        "de-identification",
        "De-identification before training",
        "What was done to the images before the program saw them?",
        ("dicom-ps3-15", "claim"),
        _per_site(record, lambda site: [by(site, "Steps", "deidentification")]),
    )


def _per_site(record: Record, rows: Callable[[str], Sequence[Row]]) -> list[Row]:
    """Rows of every site; without a site one row says that none is known."""
    return [row for site in record.sites for row in rows(site)] or [
        record.row("Sites", "run.roles/sites")
    ]


def _source(record: Record, site: str) -> list[Row]:
    """A site's own words, and what the run recorded of its images."""
    by = record.stated_by
    rows = [
        by(site, "Origin", "origin_of_data"),
        by(site, "Taken", "dates"),
        by(site, "Devices", "devices"),
        by(site, "Patients, as the site states them", "patients"),
        by(site, "Exclusions", "exclusions"),
    ]
    if (source := record.one("data.source", site)) is not None:
        rows.append(of_fact(source, "Source that was read", "name"))
    if (split := record.one("data.split", site)) is not None:
        rows += [
            few_hidden(of_fact(split, "Patients in training", "train_patients", "measured")),
            few_hidden(of_fact(split, "Patients held out", "holdout_patients", "measured")),
        ]
    if (shift := record.one("data.scanner_shift", site)) is not None:
        rows.append(of_fact(shift, "Scanner character, simulated", show="setting"))
    return rows


def _sources(record: Record) -> list[Row]:
    """What is known of sources, whosesoever they are."""
    rows = []
    for fact in record.facts("data.intake"):
        name = fact.detail.get("source", "")
        rows += [
            few_hidden(of_fact(fact, f"Images offered by {name}", "offered", "measured")),
            few_hidden(of_fact(fact, f"Images accepted of {name}", "accepted", "measured")),
            few_hidden(
                of_fact(fact, f"Set aside of {name}, by reason", "set_aside", "measured", "none")
            ),
        ]
    return rows


def release(record: Record) -> Iterator[Field]:
    """What is released, and what its users need to know."""
    stated = record.stated
    yield Field(
        "licence",
        "Licence, citation and contact",
        "On what terms may the images be used, and who answers questions?",
        ("datasheets",),
        [
            stated("Title", "title"),
            stated("Licence", "licence"),
            stated("Citation", "citation"),
            stated("Contact", "contact"),
            *(of_fact(f, _of_source(f.detail)) for f in record.facts("data.licence")),
        ],
    )
    yield Field(
        "incidents",
        "Incidents and withdrawal",
        "Where is it reported that something leaked or is wrong, and what happens then?",
        ("gdpr-33-34", "iso-42001", "datasheets"),
        [stated("Report to", "incident_contact"), stated("Withdrawal", "withdrawal")],
    )


def _of_source(detail: Mapping[str, Any]) -> str:
    source = detail.get("source")
    return f"Licence of the source {source}" if source else "Licence of the source"
