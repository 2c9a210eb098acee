"""What a coordinator and a site say to each other, as Flower records.

Down: the shared tensors, a header (run, round, plan digest), the plan itself, and what the
coordinator remembers of the site's ledger. Up: what passed the site's egress gate, under
the same header; or an error *code* and no text, because the text of an exception may hold
a path or a value of a patient.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from synth_common import errors
from synth_common.errors import DataError, SynthwardError
from synth_common.flower import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    RecordDict,
    arrays_of,
)
from synth_common.plan import Plan

if TYPE_CHECKING:
    from synth_common.privacy.egress import Outgoing

Values = Mapping[str, float | int | str]
"""Public values of a reply, by name."""

ARRAYS, STATISTICS = "arrays", "statistics"
HEADER, PLAN, SITE, VALUES = "header", "plan", "site", "values"
RELEASE = "release"
UNKNOWN_ERROR = "UnexpectedError"
_CODE_BASE = 1000  # Flower's own codes are below 100
_CODES = {
    cls.__name__: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, SynthwardError)
}


@dataclass(frozen=True)
class Header:
    """Which run and round a message belongs to, and under which plan."""

    run_id: str
    round: int
    plan_digest: str


@dataclass(frozen=True)
class Remembered:
    """What the coordinator tells a site beside the tensors.

    Attributes:
        anchor: The entry of the site's ledger that it saw last; empty before the first.
        shares: Released shares of the classes, for drawing labels; empty for equal shares.
    """

    anchor: str = ""
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """One attempt at a release.

    Attributes:
        number: From 1; every attempt of a run has its own.
        participants: Names of the sites whose vectors are added up, sorted.
    """

    number: int
    participants: tuple[str, ...]


def request(
    header: Header, arrays: ArrayRecord, plan: Plan, remembered: Remembered | None = None
) -> RecordDict:
    """The content of a message to a site."""
    known = remembered or Remembered()
    return RecordDict(
        {
            ARRAYS: arrays,
            HEADER: ConfigRecord(asdict(header)),
            PLAN: ConfigRecord({"json": plan.to_json()}),
            SITE: ConfigRecord({"anchor": known.anchor, "shares": list(known.shares)}),
        }
    )


def release_request(
    header: Header, plan: Plan, remembered: Remembered, attempt: Attempt
) -> RecordDict:
    """The content of a message that asks a site for its part of a release."""
    content = request(header, ArrayRecord(), plan, remembered)
    named = list(attempt.participants)
    content[RELEASE] = ConfigRecord({"attempt": attempt.number, "participants": named})
    return content


def roll_call(header: Header, plan: Plan) -> RecordDict:
    """The content of a message that asks a site whether it could take part in a release."""
    return request(header, ArrayRecord(), plan)


def attempt_in(message: Message) -> Attempt:
    """Which attempt a message asks for. Raises DataError when it cannot be read."""
    record = _record(message, RELEASE)
    number, named = record.get("attempt"), record.get("participants")
    if type(number) is not int or number < 1 or not isinstance(named, list):
        raise DataError("the message names no attempt with its participants")
    names = [name for name in named if isinstance(name, str)]
    if len(names) != len(named):
        raise DataError("the message's participants are not names")
    return Attempt(number, tuple(names))


def reply(header: Header, outgoing: Outgoing) -> RecordDict:
    """The content of a site's answer: what passed its egress gate, under the request's header."""
    content = acknowledgement(outgoing)
    content[HEADER] = ConfigRecord(asdict(header))
    content[ARRAYS] = arrays_of(outgoing.tensors)
    content[STATISTICS] = arrays_of(outgoing.statistics)
    return content


def acknowledgement(outgoing: Outgoing) -> RecordDict:
    """An answer of public values alone."""
    return RecordDict({VALUES: ConfigRecord(dict(outgoing.values))})


def header_of(message: Message) -> Header:
    """The header of a message. Raises DataError when it has none that can be read."""
    record = message.content.config_records.get(HEADER) if message.has_content() else None
    try:
        if record is None:
            raise TypeError
        run_id, number, digest = (record[key] for key in ("run_id", "round", "plan_digest"))
        if not (isinstance(run_id, str) and type(number) is int and isinstance(digest, str)):
            raise TypeError
    except (KeyError, TypeError):
        raise DataError("the message has no header with run_id, round and plan_digest") from None
    return Header(run_id, number, digest)


def plan_in(message: Message) -> Plan:
    """The plan that a request speaks of.

    Raises:
        DataError: There is none, or it is not the one that the header names.
        ConfigError: It is no plan.
    """
    text = _record(message, PLAN).get("json")
    if not isinstance(text, str):
        raise DataError("the message holds no plan")
    plan = Plan.from_json(text)
    if plan.digest() != header_of(message).plan_digest:
        raise DataError("the message's plan is not the one that its header names")
    return plan


def remembered_in(message: Message) -> Remembered:
    """What the coordinator remembers. Raises DataError when it cannot be read."""
    record = _record(message, SITE)
    anchor, shares = record.get("anchor", ""), record.get("shares", [])
    if not isinstance(anchor, str) or not isinstance(shares, list):
        raise DataError("the message's memory of the site cannot be read")
    numbers = [share for share in shares if isinstance(share, float) and 0.0 <= share <= 1.0]
    if len(numbers) != len(shares):
        raise DataError("the message's class shares are not numbers between 0 and 1")
    return Remembered(anchor, tuple(numbers))


def _record(message: Message, name: str) -> Mapping[str, object]:
    """The values of a config record; empty where there is none."""
    record = message.content.config_records.get(name) if message.has_content() else None
    return {} if record is None else dict(record)


def arrays_in(message: Message) -> ArrayRecord:
    """The array record of a message. Raises DataError when there is none."""
    record = message.content.array_records.get(ARRAYS) if message.has_content() else None
    if record is None:
        raise DataError(f"the message has no array record {ARRAYS!r}")
    return record


def statistics_in(message: Message) -> ArrayRecord:
    """The released statistics of a reply; an empty record when there are none."""
    record = message.content.array_records.get(STATISTICS) if message.has_content() else None
    return ArrayRecord() if record is None else record


def values_in(message: Message) -> dict[str, float | int | str]:
    """The scalar values of a message, by name; other kinds are left out."""
    return {
        key: value
        for key, value in _record(message, VALUES).items()
        if isinstance(value, float | int | str) and not isinstance(value, bool)
    }


def stated_in(message: Message) -> dict[str, float | int | str]:
    """The public values of a site's reply, each of its kind; values of other names are left out.

    Raises:
        DataError: One is not of its kind; what the peer sent is not quoted.
    """
    found = {name: value for name, value in values_in(message).items() if name in _STATED}
    for name, value in found.items():
        if not _STATED[name](value):
            raise DataError(f"the public value {name!r} is not of its kind")
    return found


def _is_amount(value: float | int | str) -> bool:
    return isinstance(value, float | int) and value >= 0  # NaN is not


def _is_count(value: float | int | str) -> bool:
    return isinstance(value, int) and value >= 0


def _is_name(value: float | int | str) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


_NAME = re.compile(r"[A-Za-z0-9._-]{0,64}")
_STATED: Mapping[str, Callable[[float | int | str], bool]] = {
    "site": _is_name,
    "ledger_head": _is_name,
    **dict.fromkeys(("epsilon", "noise_multiplier", "noise_share", "sample_rate"), _is_amount),
    **dict.fromkeys(("steps", "attempt", "round", "done"), _is_count),
}


def error_of(cls: type[SynthwardError]) -> Error:
    """An error of the tree as it travels: its class and nothing else."""
    return Error(_CODE_BASE + cls.exit_code, cls.__name__)


def error_reply(message: Message, failure: BaseException) -> Message:
    """The answer of a site that failed: the name of the error's class and nothing else."""
    cls = type(failure)
    if _CODES.get(cls.__name__) is cls and issubclass(cls, SynthwardError):
        return Message(error_of(cls), reply_to=message)
    return Message(Error(_CODE_BASE, UNKNOWN_ERROR), reply_to=message)


def error_code(message: Message) -> str:
    """The class name in an error reply; free text of a peer is never passed on."""
    reason = message.error.reason or ""
    return reason if reason in _CODES else UNKNOWN_ERROR


def error_class(code: str) -> type[SynthwardError]:
    """The error class behind a code; the base of the tree for an unknown one."""
    return _CODES.get(code, SynthwardError)
