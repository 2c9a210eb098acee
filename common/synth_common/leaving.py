"""Which facts of a run may enter a copy that leaves: one rule for every report and release."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from synth_common.facts import Fact, Scope

_LEAVING: Final[tuple[Scope, ...]] = ("public", "released")


def simulated(facts: Iterable[Fact]) -> bool:
    """Whether one machine played every hospital of a run.

    Only if ``run.simulation`` is recorded, and is True wherever it is: a log into which the facts
    of a simulation and of a federation were brought together is one with patients.
    """
    said = [fact.value for fact in facts if fact.name == "run.simulation"]
    return bool(said) and all(value is True for value in said)


def leaving(facts: Iterable[Fact]) -> list[Fact]:
    """The facts that may enter a copy that leaves, in their order.

    Of a real federation those that are public or were released. A simulation has no patients to
    hide from itself, and its site-local facts enter, too; pictures of real images never do.

    Args:
        facts: All facts of the run: they also say whether it is a simulation.
    """
    known = list(facts)
    every = simulated(known)
    return [
        fact
        for fact in known
        if (every or fact.scope in _LEAVING) and fact.detail.get("kind") != "real"
    ]
