"""Gates of an audit in words: what each is called, what its limit limits, what its figure counts.

The limit of one gate is no bound on its own figure: ``membership`` counts attacks that found
members, and its limit is the AUC that must have been resolvable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from synth_common.reporting.factbook import MISSING
from synth_common.reporting.numbers import epsilon_text, measured, setting


@dataclass(frozen=True)
class _Words:
    """A measure's name, and its limit and figure with the number at ``{}``."""

    title: str
    limit: str
    figure: str
    one: str = ""
    number: Callable[[Any], str] = measured


_MEMBERS: Final = ("at most {} of the members", "{} of the members")
_EXCESS: Final = ("at most {} above control", "{} above control")
_WORDS: Final[Mapping[str, _Words]] = {
    "membership": _Words(
        "No attack finds members", "AUC {} must be resolvable", "{} attacks", "1 attack"
    ),
    "auc": _Words("Strongest attack, AUC", "AUC at most {}", "AUC {}"),
    "tpr-at-1-percent": _Words("Members found at 1 % false alarms", *_MEMBERS),
    "tpr-at-0.1-percent": _Words("Members found at 0.1 % false alarms", *_MEMBERS),
    "near-copies": _Words(
        "Share of near-copies", "at most {} of the synthetic images", "{} of the synthetic images"
    ),
    "data-copying": _Words("No test finds copying", "no test may find it", "{} tests", "1 test"),
    "reidentification": _Words("Re-identification above control", *_EXCESS),
    "linkability": _Words("Linkability above control", *_EXCESS),
    "attribute-inference": _Words("Attribute inference above control", *_EXCESS),
    "epsilon": _Words(
        "Guarantee, epsilon", "epsilon at most {}", "epsilon {}", number=epsilon_text
    ),
}
"""Every :data:`synth_common.audit.policy.Measure`."""


def gate_words(gate: Mapping[str, Any]) -> dict[str, str]:
    """Title, limit and figure of a recorded gate.

    Args:
        gate: With ``measure``, ``limit`` and ``figure`` as ``audit.gate`` records them; a limit of
            None where the measure takes none, a figure of None where nothing could be measured.

    Returns:
        ``title``, ``limit`` and ``figure``; what was not recorded stays NOT RECORDED, and a
        measure that is not known keeps its name and bare numbers.
    """
    name = str(gate["measure"])
    words = _WORDS.get(name, _Words(name, "{}", "{}"))
    limit, figure = gate["limit"], gate["figure"]
    return {
        "title": words.title,
        "limit": MISSING if limit == MISSING else words.limit.format(setting(limit)),
        "figure": _figure(words, figure),
    }


def _figure(words: _Words, figure: Any) -> str:
    if figure == MISSING:
        return MISSING
    if figure is None:
        return "no figure"
    if figure == 1 and words.one:
        return words.one
    return words.figure.format(words.number(figure))
