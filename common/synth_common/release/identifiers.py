"""What identifies a person, place or device in words: patterns, and what they cannot see.

A pattern finds what has a form: dates, numbers that are called ids, names after a title. A name
without one ("asthma of Miller") looks like any other word. So every text where none is expected is
a finding, too, as ``free text``: a person has to read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

Kind = Literal[
    "name",
    "date of birth",
    "id",
    "date",
    "device",
    "position",
    "contact",
    "institution",
    "patient data",
    "free text",
    "hidden data",
    "burned-in text",
    "unreadable",
]

_YEAR, _MONTH, _DAY = r"(?:19|20)\d{2}", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
_DATES = (
    rf"(?<!\d){_YEAR}([-/._ ]?){_MONTH}\1{_DAY}(?!\d)"
    rf"|(?<!\d)\d{{1,2}}[-/.]\d{{1,2}}[-/.]{_YEAR}(?!\d)"
    rf"|(?<![\d.]){_DAY}([-/.]){_MONTH}\2\d{{2}}(?![\d.])"
)
_WORD = r"(?<![A-Za-z])"
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (
        "date of birth",
        re.compile(
            rf"(?i){_WORD}(?:dob|d\.o\.b\.?|birth ?date|date ?of ?birth|birthday|born|geboren|"
            r"geb\.?|geburtsdatum)[^A-Za-z0-9]{0,4}(?:on )?\d[\d./ -]{3,12}"
        ),
    ),
    ("contact", re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+|(?<!\w)\+\d{2}[\d ()/-]{6,}\d")),
    ("date", re.compile(_DATES)),
    (
        "device",
        re.compile(
            rf"(?i){_WORD}(?:s/?n|serial(?: ?(?:no|number|nr))?|device ?id|station)"
            r"[^A-Za-z0-9]{1,4}[A-Za-z0-9-]*\d[A-Za-z0-9-]{2,}"
        ),
    ),
    (
        "id",
        re.compile(
            rf"(?i){_WORD}(?:mrn|pat(?:ient)?(?: ?(?:id|no|nr|number))?|pid|ssn|nhs(?: ?no)?|kvnr|"
            r"case(?: ?(?:id|no))?|subj(?:ect)?|accession(?: ?(?:no|number))?|study ?id)"
            r"[^A-Za-z0-9]{0,3}[A-Za-z]{0,3}-?\d{2,}"
        ),
    ),
    ("id", re.compile(r"(?<![\d.])\d{7,}(?![\d.])|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)")),
    (
        "name",
        re.compile(
            rf"(?:(?i:{_WORD}(?:patient(?:'s)? ?name|name|patient|dr|prof|mrs|mr|ms|herr|frau|"
            r"physician|radiologist|operator|technician|author|artist|by))[^A-Za-z0-9]{1,4}"
            r"[A-Z][a-z'-]+)|[A-Za-z'-]{2,}\^[A-Za-z'-]+"
        ),
    ),
    (
        "position",
        re.compile(r"(?<![\d.])-?\d{1,3}\.\d{3,}\s?[,; ]\s?-?\d{1,3}\.\d{3,}|(?i:\bgps\b)"),
    ),
)
_TWO_NAMES = re.compile(r"(?<![A-Za-z])[A-Z][a-z]{2,}[ ,^-]+[A-Z][a-z]{2,}(?![A-Za-z])")


def in_text(text: str) -> Iterator[tuple[Kind, str]]:
    """Kinds of identifiers in a text with what was found; each place counts once."""
    seen: list[tuple[int, int]] = []
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            begin, end = match.span()
            if not any(begin < other_end and end > other for other, other_end in seen):
                seen.append((begin, end))
                yield kind, match.group().strip()


def in_name(name: str) -> Iterator[tuple[Kind, str]]:
    """The same in one part of a path; two capitalised words in a row look like a person's name."""
    spaced = name.replace("_", " ")
    found = list(in_text(spaced))
    yield from found
    if not any(kind == "name" for kind, _ in found):
        yield from (("name", match.group()) for match in _TWO_NAMES.finditer(spaced))
