"""How numbers read on a page. Text in, text out; values are never changed otherwise.

Every function takes whatever a fact held: a number, ``"inf"``, ``"nan"``, another text, a
list, None (recorded as not applicable) or ``NOT RECORDED``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_DIGITS = 3


def number(value: Any) -> float | None:
    """The finite number a fact holds, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def ends_of(span: Any) -> tuple[float, float] | None:
    """Both finite ends of an interval ``[low, high]``, or None where a fact holds no such thing."""
    if not isinstance(span, list) or len(span) != 2:
        return None
    low, high = number(span[0]), number(span[1])
    return None if low is None or high is None else (low, high)


def measured(value: Any) -> str:
    """A measured number with three significant digits; whole numbers in full."""
    plain = number(value)
    if plain is None:
        return _words(value)
    if isinstance(value, int):
        return f"{value:,}"
    if plain == 0:
        return "0"
    size = math.floor(math.log10(abs(plain)))
    if size < -4 or size > 8:
        mantissa, exponent = f"{plain:.{_DIGITS - 1}e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return f"{plain:,.{max(0, _DIGITS - 1 - size)}f}".replace("-", "−")


def setting(value: Any) -> str:
    """A configured number, as short as it was written: 8, 0.1, 0.00001."""
    plain = number(value)
    if plain is None:
        return _words(value, setting)
    if plain != 0 and not 1e-7 <= abs(plain) < 1e9:
        mantissa, exponent = f"{plain:e}".split("e")
        return f"{float(mantissa):g} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    text = f"{Decimal(repr(value)).normalize():,f}"
    return text.replace("-", "−")


def epsilon_text(value: Any) -> str:
    """An epsilon with three significant digits, rounded UP: a promise is never understated."""
    plain = number(value)
    if plain is None or plain <= 0:  # 0: a site whose budget allowed no step
        return measured(value)
    exact = Decimal(repr(plain))
    step = Decimal(1).scaleb(min(0, exact.adjusted() - _DIGITS + 1))
    return f"{exact.quantize(step, rounding=ROUND_CEILING):,f}"


def interval(value: Any) -> str:
    """An interval ``[low, high]``."""
    if isinstance(value, list) and len(value) == 2:
        return f"{measured(value[0])} to {measured(value[1])}"
    return _words(value)


def bytes_text(value: Any) -> str:
    """Bytes in decimal units: 1.23 MB."""
    size = number(value)
    if size is None:
        return _words(value)
    if size < 1000:
        return f"{size:,.0f} bytes"
    units = ("kB", "MB", "GB", "TB")
    power = min(len(units), int(math.log10(size) / 3))
    return f"{measured(size / 1000**power)} {units[power - 1]}"


def seconds_text(value: Any) -> str:
    """A duration: 12.3 s, 3 min 42 s, 1 h 12 min."""
    seconds = number(value)
    if seconds is None:
        return _words(value)
    if seconds < 60:
        return f"{measured(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min"


def when(value: Any) -> str:
    """An ISO time as a date and time; anything else as it is."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return _words(value)
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".rstrip()


def _words(value: Any, each: Callable[[Any], str] = measured) -> str:
    """What is not a finite number, in words."""
    if value is None:
        return "not applicable"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) or value in ("inf", "-inf", "nan"):
        return {"inf": "∞", "-inf": "−∞", "nan": "not a number"}[str(value)]
    if isinstance(value, list):
        return ", ".join(each(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {each(item)}" for key, item in value.items())
    return str(value)
