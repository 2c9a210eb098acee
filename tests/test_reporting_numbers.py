"""How numbers read: rounding that never flatters, and words for what is no number."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth_common.reporting import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.70312, "0.703"),
        (0.5, "0.500"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (412_833, "412,833"),
        (0, "0"),
        (0.0, "0"),
        (-22.04, "−22.0"),
        (0.00123, "0.00123"),
        (1.234e-7, "1.23 × 10⁻⁷"),
        ("inf", "∞"),
        ("nan", "not a number"),
        (None, "not applicable"),
        (True, "yes"),
        ("NOT RECORDED", "NOT RECORDED"),
        ({"normal": 0.5}, "normal: 0.500"),
    ],
)
def test_measured(value: Any, text: str) -> None:
    assert numbers.measured(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.0, "8"), (1e-5, "0.00001"), (0.1, "0.1"), (3600.0, "3,600"), (1e-9, "1 × 10⁻⁹")],
)
def test_setting(value: Any, text: str) -> None:
    assert numbers.setting(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.9877, "7.99"), (8.0, "8.00"), (8.0001, "8.01"), (0.0123, "0.0123"), (123.01, "124")],
)
def test_epsilon(value: float, text: str) -> None:
    assert numbers.epsilon_text(value) == text


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_epsilon_is_never_understated_and_close(value: float) -> None:
    shown = float(numbers.epsilon_text(value).replace(",", ""))
    assert value <= shown <= value * 1.0101


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.34, "12.3 s"), (59.99, "60.0 s"), (222.0, "3 min 42 s"), (3599.6, "1 h 0 min")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert numbers.seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(812, "812 bytes"), (1_651_332, "1.65 MB"), (1_873_412_096, "1.87 GB")]
)
def test_bytes(size: int, text: str) -> None:
    assert numbers.bytes_text(size) == text


def test_times_and_intervals() -> None:
    assert numbers.when("2025-11-22T17:31:42+00:00") == "22 November 2025, 17:31 UTC"
    assert numbers.when("yesterday") == "yesterday"
    assert numbers.interval([0.4631, 0.529]) == "0.463 to 0.529"
    assert numbers.interval("not resolvable") == "not resolvable"


@pytest.mark.parametrize(
    ("span", "ends"),
    [
        ([0.25, 1], (0.25, 1.0)),
        ([0.25, "inf"], None),
        ([0.25], None),
        ([0.1, 0.2, 0.3], None),
        ("NOT RECORDED", None),
        (None, None),
    ],
)
def test_an_interval_has_two_finite_ends_or_none(span: Any, ends: Any) -> None:
    assert numbers.ends_of(span) == ends
