"""Claims that no charter and no name of a release or a policy may make.

What they say is a finding of law on a whole case, with everything that others know and could do
(GDPR recital 26), and no program and no release can make it for everybody who reads it. Found are
words, not meanings: a sentence that denies such a claim is refused like one that makes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Claim:
    """A claim that was found.

    Attributes:
        phrase: As it was written.
        instead: What to write in its place.
    """

    phrase: str
    instead: str

    def __str__(self) -> str:
        """For messages: why it is refused, and what to write."""
        return (
            f'says "{self.phrase}": it calls data what only an assessment of the whole case may '
            f"call it; {self.instead}"
        )


_DONE = (
    "write what was done to the data (for instance: identifiers removed, dates shifted), or what "
    "was measured"
)
_FOUND = "write who found what, and by which methods, or what was measured"
_LAW = "write which law or rules apply, and on what the processing rests"

# "Patients who cannot be traced" is a ground of a waiver, and no claim about images: hence "to".
_CLAIMS: Final = (
    (r"\w*anonym\w*", _DONE),
    (r"(?:not|no longer|never)(?: be)? personal data", _DONE),
    (
        r"(?:can ?not|can't|can never) be (?:re-?identified|traced(?: back)? to)",
        _FOUND,
    ),
    # A single article may well not apply to somebody: "not subject to GDPR 35" stands.
    (r"(?:GDPR|data protection law) (?:does not|doesn't|no longer) appl(?:y|ies)", _LAW),
    (
        r"(?:(?:not|no longer) (?:subject to|covered by)|outside the scope of) (?:the )?GDPR"
        r"(?! ?(?:\d|art))",
        _LAW,
    ),
)
_PATTERNS: Final = tuple((re.compile(words, re.IGNORECASE), instead) for words, instead in _CLAIMS)


def claim_in(text: str) -> Claim | None:
    """The first claim that a text makes, wherever its words stand and however they are spaced.

    Args:
        text: A statement or a name.
    """
    plain = " ".join(text.replace("’", "'").split())
    for pattern, instead in _PATTERNS:
        if (found := pattern.search(plain)) is not None:
            return Claim(found[0], instead)
    return None


def without_claims(text: str) -> str:
    """The text, for a validator of a field. Raises ValueError if it makes a claim."""
    if (found := claim_in(text)) is not None:
        raise ValueError(str(found))
    return text
