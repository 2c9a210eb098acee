"""The board as Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from synth_server.board import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PHASES = (
    "starting",
    "waiting",
    "release",
    "round",
    "evaluation",
    "report",
    "finished",
    "stopped",
    "failed",
)
Labels = Mapping[str, str]


@dataclass(frozen=True)
class _Family:
    """A metric with its samples; a sample without a number is left out."""

    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    samples: Sequence[tuple[Labels, Any]]


def render_metrics(state: Snapshot) -> str:
    """Every number on the board, with the site as a label where it is a site's.

    Args:
        state: See :meth:`synth_server.board.Board.snapshot`.
    """
    return "\n".join(line for family in _families(state) for line in _lines(family)) + "\n"


def _families(state: Snapshot) -> Iterator[_Family]:
    """The metrics in the order of the page."""
    sites = state["sites"].items()
    phases = [({"phase": phase}, int(phase == state["phase"])) for phase in PHASES]
    sent = [
        ({"direction": "down"}, state["bytes_down"]),
        ({"direction": "up"}, state["bytes_up"]),
    ]
    one: list[tuple[str, str, Any]] = [
        ("rounds_planned", "Rounds of the plan", state["planned"]),
        ("rounds_completed", "Rounds completed, by all processes", state["completed"]),
        ("round_in_progress", "Number of the round that is asked for", state["round"]),
        ("round_seconds", "Seconds of the last completed round", state["round_seconds"]),
        ("up_seconds", "Seconds since this process started", state["up_s"]),
    ]  # fmt: skip
    yield _Family("phase", "gauge", "1 for what the coordinator is doing", phases)
    for name, meaning, value in one:
        yield _Family(name, "gauge", meaning, [({}, value)])
    yield _Family("bytes_total", "counter", "Bytes of tensors in completed rounds", sent)
    per_site: list[tuple[str, Literal["gauge", "counter"], str, str]] = [
        ("site_connected", "gauge", "1 while the site is connected", "connected"),
        ("site_heard_seconds", "gauge", "Seconds since the site was heard of", "heard_s"),
        ("site_epsilon", "gauge", "Epsilon that the site's ledger states", "epsilon"),
        ("site_answers_total", "counter", "Usable answers, to this process", "answers"),
        ("site_failures_total", "counter", "Failures, in this process", "failures"),
    ]
    for name, kind, meaning, key in per_site:
        yield _Family(name, kind, meaning, [({"site": n}, s[key]) for n, s in sites])


def _lines(family: _Family) -> Iterator[str]:
    """A metric as text; nothing where nothing is known."""
    samples = [(labels, value) for labels, value in family.samples if value is not None]
    if not samples:
        return
    name = f"synthward_{family.name}"
    yield f"# HELP {name} {family.meaning}"
    yield f"# TYPE {name} {family.kind}"
    for labels, value in samples:
        yield f"{name}{_labels(labels.items())} {_number(value)}"


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    """Labels in braces, their values escaped."""
    escaped = [
        f'{key}="' + value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'
        for key, value in labels
    ]
    return "{" + ",".join(escaped) + "}" if escaped else ""


def _number(value: Any) -> str:
    """A number as Prometheus reads it; the board writes infinity as facts do."""
    if isinstance(value, str):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(value, "NaN")
    return repr(float(value)) if isinstance(value, float) else str(int(value))
