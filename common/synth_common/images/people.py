"""Sex and age of the people in the pictures, as sources write them.

Only the fairness of the evaluation looks at them; no generator is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from synth_common.errors import DataError
from synth_common.images.preprocess import text_column

UNKNOWN: Final = "unknown"
"""Sex of a person of whom it is not recorded."""

# The one-letter codes are those of DICOM's Patient's Sex (0010,0040).
_SEXES: Final = {
    **dict.fromkeys(("f", "female", "w", "woman"), "female"),
    **dict.fromkeys(("m", "male", "man"), "male"),
    **dict.fromkeys(("o", "other"), "other"),
    **dict.fromkeys(("", "u", UNKNOWN, "nan", "none"), UNKNOWN),
}
# DICOM's Age String, PS3.5 section 6.2: three digits and a unit.
_AGE_STRING = re.compile(r"(\d{3})([DWMY])")
_PER_YEAR: Final = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}
_OLDEST = 130.0


def sex_column(values: Iterable[object], where: str) -> npt.NDArray[np.str_]:
    """Sexes as ``female``, ``male``, ``other`` or ``unknown``.

    Read are these words, DICOM's codes F, M and O, and nothing (unknown), in any case.

    Raises:
        DataError: Another value; ``where`` names the source, the message the value.
    """
    texts = [text.strip().lower() for text in text_column(values).tolist()]
    strange = sorted({text for text in texts if text not in _SEXES})
    if strange:
        raise DataError(
            f"{where}: sex {strange[0]!r} is not known; expected female, male, other, their "
            "first letters, or nothing where it is not recorded"
        )
    return np.array([_SEXES[text] for text in texts], dtype=np.str_)


def age_column(values: Iterable[object], where: str) -> npt.NDArray[np.float64]:
    """Ages in years, nan where not recorded.

    Read are numbers of years, DICOM's age strings (``045Y``, ``009M``) and nothing.

    Raises:
        DataError: Another value, or one outside 0 to 130; ``where`` names the source.
    """
    return np.array([_age(text.strip(), where) for text in text_column(values).tolist()])


def _age(text: str, where: str) -> float:
    """One age in years."""
    found = _AGE_STRING.fullmatch(text.upper())
    if found:
        return int(found[1]) / _PER_YEAR[found[2]]
    try:
        years = float(text) if text and text.lower() not in (UNKNOWN, "none") else np.nan
    except ValueError:
        years = -1.0
    if years < 0.0 or years > _OLDEST:
        raise DataError(
            f"{where}: age {text!r} is not a number of years from 0 to 130, a DICOM age such as "
            "045Y, or nothing where it is not recorded"
        )
    return years
