"""One row of evidence: a value, and the fact or statement that it came from.

Nothing is computed: a value is taken from its fact as it was recorded, or from a charter as it
was written. What nobody recorded is a row, too, and says where it would have come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from synth_common.charter import Charter, SiteCharter
from synth_common.facts import Fact
from synth_common.reporting.factbook import MISSING, FactBook

Show = Literal["measured", "setting", "epsilon", "moment", "size", "duration", "words"]
"""How a page prints a value; a filter of the same name."""

FEW: Final = 10
"""Counts of people below this are printed as fewer: a small cell may tell who is in it."""


@dataclass(frozen=True)
class Row:
    """One value of a field.

    Attributes:
        label: What it is.
        value: As recorded or stated; :data:`MISSING` where nobody did.
        fact: Name of the fact, or key of the charter.
        source: What recorded it: a function, or a charter's file.
        time: When, ISO 8601; a charter's own date; None where none is known.
        site: The site it speaks of.
        scope: Who may see it.
        show: How a page prints it.
        sha256: Of the charter's file, where it was stated in one.
    """

    label: str
    value: Any
    fact: str
    source: str | None = None
    time: str | None = None
    site: str | None = None
    scope: str = "public"
    show: Show = "words"
    sha256: str | None = None

    @property
    def missing(self) -> bool:
        """Whether nobody recorded it, or a part of it."""
        return _lacks(self.value)

    def as_json(self) -> dict[str, Any]:
        """For ethics.json."""
        return {**asdict(self), "recorded": not self.missing}


@dataclass(frozen=True)
class Field:
    """A field of the report.

    Attributes:
        key: Its name in the JSON and its anchor on the page.
        title: For readers.
        asks: The question that it answers.
        clauses: Keys of :mod:`synth_common.reporting.clauses`.
        rows: Evidence; never empty.
    """

    key: str
    title: str
    asks: str
    clauses: tuple[str, ...]
    rows: Sequence[Row]

    @property
    def missing(self) -> int:
        """How many of its values nobody recorded."""
        return sum(row.missing for row in self.rows)


class Record:
    """All that was recorded and stated.

    Args:
        facts: Of the run, its release and its audits, in the order they were recorded.
        charter: The federation's, if there is one.
        charters: The sites' own, by site.
    """

    def __init__(
        self,
        facts: Iterable[Fact],
        charter: Charter | None,
        charters: Mapping[str, SiteCharter],
    ) -> None:
        self._book = FactBook(facts)
        self.charter, self.charters = charter, charters
        known = set(self._book.sites()) | set(charters)
        self.sites = [s for s in self._book.sites() if s in known]
        self.sites += sorted(known - set(self.sites))

    def facts(self, *names: str) -> list[Fact]:
        """The facts of these names."""
        return self._book.all(*names)

    def one(self, name: str, site: str | None = None) -> Fact | None:
        """The last fact of a name and site."""
        found = [fact for fact in self._book.all(name) if fact.site == site]
        return found[-1] if found else None

    def row(self, label: str, name: str, show: Show = "words", site: str | None = None) -> Row:
        """The value of a fact; ``name`` may go into its value: ``run.scenario/title``."""
        own, _, path = name.partition("/")
        fact = self.one(own, site)
        if fact is None:
            return Row(label, MISSING, name, site=site, show=show)
        return of_fact(fact, label, path, show)

    def stated(self, label: str, key: str) -> Row:
        """What the federation's charter says under a key (``section.key``)."""
        return _stated(self.charter, label, key, f"charter: {key}")

    def stated_by(self, site: str, label: str, key: str) -> Row:
        """What a site's own charter says under a key."""
        row = _stated(self.charters.get(site), label, key, f"site charter: {key}")
        return replace(row, site=site)


def of_fact(
    fact: Fact, label: str, path: str = "", show: Show = "words", empty: str = MISSING
) -> Row:
    """A fact's value, or what lies at a path of keys in it.

    Args:
        fact: Where it was recorded.
        label: What it is.
        path: Keys, parted by ``/``.
        show: How a page prints it.
        empty: What an empty text, list or mapping says. An empty value is no answer, and inside
            of another never is; but where it is one ("none was set aside"), it is given here.
    """
    value: Any = fact.value
    for key in filter(None, path.split("/")):
        value = value.get(key, MISSING) if isinstance(value, Mapping) else MISSING
    name = f"{fact.name}/{path}" if path else fact.name
    value = empty if _empty(value) else _marked(value)
    return Row(label, value, name, fact.source, fact.time, fact.site, fact.scope, show)


def _empty(value: Any) -> bool:
    return isinstance(value, str | list | tuple | Mapping) and not value


def _marked(value: Any) -> Any:
    """A value with :data:`MISSING` in every empty place; None was recorded as not applicable."""
    if isinstance(value, Mapping) and value:
        return {key: _marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and value:
        return [_marked(item) for item in value]
    return MISSING if _empty(value) else value


def _lacks(value: Any) -> bool:
    """Whether a value, or anything in it, was not recorded."""
    if isinstance(value, Mapping):
        return any(map(_lacks, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_lacks, value))
    return bool(value == MISSING)


def few_hidden(row: Row) -> Row:
    """A count of people, or counts by name, with small cells suppressed."""
    if isinstance(row.value, Mapping):
        return replace(row, value={key: _hidden(count) for key, count in row.value.items()})
    return replace(row, value=_hidden(row.value))


def _hidden(count: Any) -> Any:
    return f"fewer than {FEW}" if isinstance(count, int) and count < FEW else count


def _stated(charter: Charter | SiteCharter | None, label: str, key: str, fact: str) -> Row:
    value: Any = charter
    for part in key.split("."):
        value = getattr(value, part, None)
    if value in (None, (), ""):
        return Row(label, MISSING, fact)
    origin = None if charter is None else charter.origin
    dated = getattr(charter, "dated", None)
    return Row(
        label,
        in_words(value),
        fact,
        "the program" if origin is None else origin.name,
        dated.isoformat() if dated else None,
        sha256=None if origin is None else origin.sha256,
    )


def in_words(value: Any) -> Any:
    """A statement as JSON holds it and a page prints it: texts, numbers and lists of texts."""
    if isinstance(value, tuple):
        return [in_words(item) for item in value]
    if isinstance(value, str | int | float):
        return value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    name = getattr(value, "name", None)
    if name is not None and hasattr(value, "role"):
        return f"{name}: {value.role}"
    if hasattr(value, "number"):
        parts = (value.body, f"number {value.number}", in_words(value.decided or "") or None)
        return ", ".join(part for part in parts if part)
    if hasattr(value, "first"):
        return f"{value.first.isoformat()} to {value.last.isoformat()}"
    return str(name if name is not None else value)
