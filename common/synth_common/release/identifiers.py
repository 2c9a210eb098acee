"""What identifies a person, place or device in words: patterns, and what they cannot see.

A pattern finds what has a form: dates, numbers that are called ids, names after a title. A name
without one ("asthma of Miller") looks like any other word. So every text where none is expected is
a finding, too, as ``free text``: a person has to read it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
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
_LETTER = r"[^\W\d_]"
_WORD = rf"(?<!{_LETTER})"
_PART = rf"(?:{_LETTER}|['\u2019-])"
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (
        "date of birth",
        re.compile(
            rf"(?i){_WORD}(?:dob|d\.o\.b\.?|birth ?date|date ?of ?birth|birthday|born|geboren|"
            r"geb\.?|geburtsdatum)[^A-Za-z0-9]{0,4}(?:on |am )?\d[\d./ -]{3,12}"
        ),
    ),
    (
        "contact",
        re.compile(
            r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,255}\.[\w.]{1,255}|(?<!\w)\+\d{2}[\d ()/-]{6,40}\d"
        ),
    ),
    ("date", re.compile(_DATES)),
    (
        "device",
        re.compile(
            rf"(?i){_WORD}(?:s/?n|serial(?: ?(?:no|number|nr))?|device ?id|station)"
            r"[^A-Za-z0-9]{1,4}[A-Za-z0-9-]{0,40}\d[A-Za-z0-9-]{2,}"
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
    ("id", re.compile(r"(?<![\d.])\d{7,}(?!\d|\.\d)|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)")),
    # A DICOM UID; 2.25 and one number are a random one.
    ("id", re.compile(r"(?<!\d)(?<!\d\.)[012](?:\.\d{1,40}){5,}(?!\d|\.\d)")),
    (
        "name",
        re.compile(
            rf"(?:(?i:{_WORD}(?:patient(?:'s)? ?name|name|patient|dr(?:\. ?med)?|prof|mrs|mr|ms|"
            r"herr|frau|physician|radiologist|operator|technician|author|artist|by))[\W\d_]{1,4}"
            rf"(?P<who>{_LETTER}{_PART}{{1,40}}))|(?<!{_PART}){_PART}{{2,64}}\^{_PART}{{1,64}}"
        ),
    ),
    (
        "position",
        re.compile(r"(?<![\d.])-?\d{1,3}\.\d{3,}\s?[,; ]\s?-?\d{1,3}\.\d{3,}|(?i:\bgps\b)"),
    ),
)
_WORDS = re.compile(rf"{_LETTER}+")
_BETWEEN = re.compile(r"[ ,^-]{1,4}")
_MOST_SEARCHED = 1_000_000


def in_text(text: str) -> Iterator[tuple[Kind, str]]:
    """Kinds of identifiers in a text with what was found; each place counts once.

    Of a text of more than a million characters the rest is a finding by itself.
    """
    if len(text) > _MOST_SEARCHED:
        yield "hidden data", f"{len(text)} characters, of which {_MOST_SEARCHED} were searched"
    plain = unicodedata.normalize("NFC", text[:_MOST_SEARCHED])
    seen = bytearray(len(plain))
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(plain):
            who = match.groupdict().get("who")
            if who is not None and who[0].islower():
                continue
            begin, end = match.span()
            if not any(seen[begin:end]):
                seen[begin:end] = b"\1" * (end - begin)
                yield kind, match.group().strip()


def in_name(name: str) -> Iterator[tuple[Kind, str]]:
    """The same in one part of a path; two capitalised words in a row look like a person's name."""
    spaced = name.replace("_", " ")
    found = list(in_text(spaced))
    yield from found
    if not any(kind == "name" for kind, _ in found):
        yield from (("name", both) for both in _two_names(unicodedata.normalize("NFC", spaced)))


def _two_names(text: str) -> Iterator[str]:
    """Two words of three letters or more in a row, each with a capital at its beginning alone."""
    words = [match for match in _WORDS.finditer(text) if len(match.group()) >= 3]
    for first, second in pairwise(words):
        capital = all(w.group()[0].isupper() and w.group()[1:].islower() for w in (first, second))
        if capital and _BETWEEN.fullmatch(text, first.end(), second.start()):
            yield text[first.start() : second.end()]
