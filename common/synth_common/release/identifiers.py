"""What identifies a person, place or device in words: patterns, and what they cannot see.

A pattern finds what has a form: dates, numbers that are called ids, names after a title. A name
without one ("asthma of Miller") looks like any other word. So every text where none is expected is
a finding, too, as ``free text``: a person has to read it.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect
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
Found = tuple[Kind, str, str]
"""Kind, place within the file, and what stands there."""

# Letters of all scripts. What is not lower case can begin a name, also where a script has no case.
_LOWER = "".join(letter for letter in map(chr, range(0x10000)) if letter.islower())
_UPPER = "".join(letter for letter in map(chr, range(0x10000)) if letter.isupper())
_LETTER = r"[^\W\d_]"
_NAME = rf"(?![{_LOWER}]){_LETTER}(?:(?![{_UPPER}]){_LETTER}|['’-]){{1,60}}"
_PART = r"(?:[^\W\d_]|['’-])"
_YEAR, _MONTH, _DAY = r"(?:19|20)\d{2}", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
_DATES = (
    rf"(?<!\d){_YEAR}([-/._ ]?){_MONTH}\1{_DAY}(?!\d)"
    rf"|(?<!\d)\d{{1,2}}[-/.]\d{{1,2}}[-/.]{_YEAR}(?!\d)"
    rf"|(?<![\d.]){_DAY}([-/.]){_MONTH}\2\d{{2}}(?![\d.])"
)
_WORD = rf"(?<!{_LETTER})"
# No quantifier is without bound: what is searched may be written to keep a pattern busy. Where a
# bound could hide a find, a second form takes the end of what is longer.
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (
        "date of birth",
        re.compile(
            rf"(?i){_WORD}(?:dob|d\.o\.b\.?|birth ?date|date ?of ?birth|birthday|born|geboren|"
            r"geb\.?|geburtsdatum)[\W_]{0,4}(?:(?:on|am) )?\d[\d./ -]{3,12}"
        ),
    ),
    (
        "contact",
        re.compile(
            r"(?:(?<![\w.+-])[\w.+-]{1,64}|[\w.+-])@[\w-]{1,63}\.[\w.]{1,190}"
            r"|(?<!\w)\+\d{2}[\d ()/-]{6,30}\d"
        ),
    ),
    # A UID of DICOM (PS3.5, section 9), but none of a UUID under 2.25, which says nothing.
    ("id", re.compile(r"(?<!\d)(?<!\d\.)[012](?:\.\d{1,64}){5,32}")),
    ("date", re.compile(_DATES)),
    (
        "device",
        re.compile(
            rf"(?i){_WORD}(?:s/?n|serial(?: ?(?:no|number|nr))?|device ?id|station)"
            r"[\W_]{1,4}[A-Za-z0-9-]{0,40}\d[A-Za-z0-9-]{2,40}"
        ),
    ),
    (
        "id",
        re.compile(
            rf"(?i){_WORD}(?:mrn|pat(?:ient)?(?: ?(?:id|no|nr|number))?|pid|ssn|nhs(?: ?no)?|kvnr|"
            r"case(?: ?(?:id|no))?|subj(?:ect)?|accession(?: ?(?:no|number))?|study ?id)"
            r"[\W_]{0,3}[A-Za-z]{0,3}-?\d{2,40}"
        ),
    ),
    (
        "id",
        re.compile(
            r"(?<!\d)(?<!\d\.)(?:\d{7,64}(?!\d|\.\d)|\d{65})|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"
        ),
    ),
    (
        "name",
        re.compile(
            rf"(?:(?i:{_WORD}(?:patient(?:'s)? ?name|patientenname|vorname|nachname|name|patientin|"
            r"patient|dr(?:[. ]{1,2}med)?|prof|mrs|mr|ms|herr|frau|physician|radiologist|operator|"
            rf"technician|author|artist|by))[\W_]{{1,4}}{_NAME})"
            rf"|(?:(?<!{_PART}){_PART}{{2,64}}|{_PART}{{2}})\^{_PART}{{1,64}}"
        ),
    ),
    (
        "position",
        re.compile(
            r"(?<![\d.])-?\d{1,3}\.\d{3,40}\s?[,; ]\s?-?\d{1,3}\.\d{3,40}|(?i:\bgps\b)",
        ),
    ),
)
_TWO_NAMES = re.compile(
    rf"(?<!{_LETTER})[{_UPPER}][{_LOWER}]{{2,60}}[ ,^-]{{1,9}}"
    rf"[{_UPPER}][{_LOWER}]{{2,60}}(?!{_LETTER})"
)
MOST_SEARCHED = 200_000
"""Characters of one text that are searched."""


def in_text(text: str) -> Iterator[tuple[Kind, str]]:
    """Kinds of identifiers in a text with what was found; each place counts once.

    Found parts are given in Unicode's composed form (NFC), in which they are searched. Of a text of
    more than ``MOST_SEARCHED`` characters the beginning is searched, and the rest is a finding.
    """
    part = unicodedata.normalize("NFC", text[:MOST_SEARCHED])
    seen: list[tuple[int, int]] = []  # in order, none overlaps another
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(part):
            begin, end = match.span()
            at = bisect(seen, (begin, end))
            if (at and seen[at - 1][1] > begin) or (at < len(seen) and seen[at][0] < end):
                continue
            seen.insert(at, (begin, end))
            yield kind, match.group().strip()
    if len(text) > MOST_SEARCHED:
        yield "unreadable", f"{len(text) - MOST_SEARCHED:,} more characters were not searched"


def in_name(name: str) -> Iterator[tuple[Kind, str]]:
    """The same in one part of a path; two capitalised words in a row look like a person's name."""
    spaced = unicodedata.normalize("NFC", name.replace("_", " "))
    found = list(in_text(spaced))
    yield from found
    if not any(kind == "name" for kind, _ in found):
        yield from (("name", match.group()) for match in _TWO_NAMES.finditer(spaced))


def in_words(
    place: str, text: str, searched: str | None = None, least: Kind = "free text"
) -> Iterator[Found]:
    """What patterns find in a text, or the text itself, which somebody has to read.

    Args:
        place: Where in a file it stands.
        text: What stands there.
        searched: What is searched in its stead.
        least: Kind of a text in which nothing is found.
    """
    found = list(in_text(text if searched is None else searched))
    if not found:
        yield least, place, text
    for kind, part in found:
        yield kind, place, part


def decoded(raw: bytes) -> str:
    """Bytes as text: of UTF-8, or of Latin-1, in which nothing is wrong."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
