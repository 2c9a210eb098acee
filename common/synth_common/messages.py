"""What a coordinator and a site say to each other, as Flower records.

Down: the shared tensors and a header (run, round, plan digest). Up: tensors and values
that passed the site's egress gate, under the same header; or an error *code* and no text,
because the text of an exception may hold a path or a value of a patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from synth_common import errors
from synth_common.errors import DataError, SynthwardError
from synth_common.flower import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    RecordDict,
)

ARRAYS, HEADER, VALUES = "arrays", "header", "values"
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


def request(header: Header, arrays: ArrayRecord) -> RecordDict:
    """The content of a message to a site."""
    return RecordDict({ARRAYS: arrays, HEADER: ConfigRecord(asdict(header))})


def reply(
    header: Header, arrays: ArrayRecord, values: Mapping[str, float | int | str]
) -> RecordDict:
    """The content of a site's answer."""
    content = request(header, arrays)
    content[VALUES] = ConfigRecord(dict(values))
    return content


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


def arrays_in(message: Message) -> ArrayRecord:
    """The array record of a message. Raises DataError when there is none."""
    record = message.content.array_records.get(ARRAYS) if message.has_content() else None
    if record is None:
        raise DataError(f"the message has no array record {ARRAYS!r}")
    return record


def values_in(message: Message) -> dict[str, float | int | str]:
    """The scalar values of a message, by name; other kinds are left out."""
    record = message.content.config_records.get(VALUES) if message.has_content() else None
    return {
        key: value
        for key, value in (record or {}).items()
        if isinstance(value, float | int | str) and not isinstance(value, bool)
    }


def error_reply(message: Message, failure: BaseException) -> Message:
    """The answer of a site that failed: the name of the error's class and nothing else."""
    cls = type(failure)
    if _CODES.get(cls.__name__) is cls and issubclass(cls, SynthwardError):
        return Message(Error(_CODE_BASE + cls.exit_code, cls.__name__), reply_to=message)
    return Message(Error(_CODE_BASE, UNKNOWN_ERROR), reply_to=message)


def error_code(message: Message) -> str:
    """The class name in an error reply; free text of a peer is never passed on."""
    reason = message.error.reason or ""
    return reason if reason in _CODES else UNKNOWN_ERROR


def error_class(code: str) -> type[SynthwardError]:
    """The error class behind a code; the base of the tree for an unknown one."""
    return _CODES.get(code, SynthwardError)
