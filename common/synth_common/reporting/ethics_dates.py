"""Dates that a charter states, held against each other and against the run and its release.

People write dates, and nothing is refused for one: an order that cannot be right, or that a board
must know of, stands on the first screen of the ethics report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, Literal

from synth_common.charter import Approval, Charter
from synth_common.reporting.evidence import Record, in_words

_FIX = "if a date is wrong, correct the charter and write the report again"


@dataclass(frozen=True)
class Order:
    """Two dates in an order that a reader must know of.

    Attributes:
        code: Which rule it is.
        severity: ``caution``, or ``note`` where the order may well be meant.
        title, text: For readers; the text names the key and both dates.
        key: Of the charter.
        site: Whose charter; None for the federation's.
    """

    code: str
    severity: Literal["caution", "note"]
    title: str
    text: str
    key: str
    site: str | None = None


def date_orders(record: Record) -> list[dict[str, Any]]:
    """What is to be said of the dates of all charters, as ``ethics.json`` holds it.

    The run began on the day of ``run.started``. The release was made on the day on which
    ``release.marking`` was recorded; until something is released the run's end stands for it.
    """
    started, ended = _day(record.row("", "run.started").value), _released(record)
    found: list[Order] = []
    if started is not None:
        found += _late_approvals(record, started)
    if record.charter is not None:
        found += _risk(record.charter, ended)
        if started is not None:
            found += _early(record.charter, started)
    return [asdict(order) for order in found]


def _day(value: Any) -> date | None:
    """The day of an ISO time; recorded times are in UTC."""
    try:
        return datetime.fromisoformat(value).date()
    except (TypeError, ValueError):
        return None


def _released(record: Record) -> tuple[date, str] | None:
    """When the release was made, or the run ended, and how to say it."""
    marking = record.one("release.marking")
    if marking is not None and (day := _day(marking.time)) is not None:
        return day, f"the release was made on {day}"
    day = _day(record.row("", "run.finished").value)
    return None if day is None else (day, f"the run ended on {day}")


def _late_approvals(record: Record, started: date) -> Iterator[Order]:
    """Approvals that came after images of patients were used."""
    charters: list[tuple[str | None, tuple[Approval, ...]]] = [
        (site, own.approvals) for site, own in record.charters.items()
    ]
    if record.charter is not None:
        charters.insert(0, (None, record.charter.approvals))
    for site, approvals in charters:
        for approval in approvals:
            if approval.decided is not None and approval.decided > started:
                yield Order(
                    "approval-after-start",
                    "caution",
                    "An approval is dated after the run began",
                    f"approvals{f' of site {site}' if site else ''}: {in_words(approval)}; the run "
                    f"began on {started}, so that images were used before it was given; {_FIX}.",
                    "approvals",
                    site,
                )


def _risk(charter: Charter, ended: tuple[date, str] | None) -> Iterator[Order]:
    """The decision on what risk remains, its review, and the release."""
    decided, review = charter.residual_risk.decided, charter.residual_risk.review
    if decided is not None and review is not None and review < decided:
        yield Order(
            "review-before-decision",
            "caution",
            "The review of the decision is dated before the decision",
            f"residual_risk.review = {review}, and residual_risk.decided = {decided}; {_FIX}.",
            "residual_risk.review",
        )
    if ended is None:
        return
    day, words = ended
    if review is not None and review < day:
        yield Order(
            "review-overdue",
            "caution",
            "The review of the decision on the residual risk is overdue",
            f"residual_risk.review = {review}, and {words}; have the decision reviewed and state "
            "the next date.",
            "residual_risk.review",
        )
    if decided is not None and decided > day and words.startswith("the release"):
        yield Order(
            "decision-after-release",
            "caution",
            "The decision on the residual risk is dated after the release",
            f"residual_risk.decided = {decided}, and {words}, before anybody had decided; {_FIX}.",
            "residual_risk.decided",
        )


def _early(charter: Charter, started: date) -> Iterator[Order]:
    """Judgements that are older than the run which they are quoted for."""
    for key, what, day in (
        ("residual_risk.decided", "decision on the residual risk", charter.residual_risk.decided),
        ("expert.determined", "expert determination", charter.expert.determined),
    ):
        if day is not None and day < started:
            yield Order(
                "judgement-before-run",
                "note",
                f"The {what} is older than the run",
                f"{key} = {day}, and the run began on {started}: it cannot rest on what this run "
                "or its audit measured.",
                key,
            )
