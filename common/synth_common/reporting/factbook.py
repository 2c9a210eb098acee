"""The recorded facts of a run, with repeats resolved: the last recording of a thing wins.

A resumed run records a round again, and the simulator copies the sites' facts to the
end of the run's log; neither may put one thing into a report twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from synth_common.facts import Fact

MISSING: Final = "NOT RECORDED"
"""What a report says where a fact is missing, in JSON as on the page."""

POOLED: Final = "All hospitals pooled"
"""What a report calls the site None."""

# What tells two facts of one name, site and round apart.
_DISTINGUISHING = ("phase", "encoder", "trained_on", "source", "classifier")
_BY_VALUE = {"training.warning", "samples.grid", "samples.traversal"}
_BY_FIELD = {
    "membership.attack": ("attack",),
    "federation.failure": ("code",),
    "audit.attack": ("view", "attack", "space", "group"),
    "audit.test": ("test", "space"),
    "audit.set": ("role",),
    "audit.untested": ("what",),
    "audit.gate": ("number",),
    "compare.row": ("generator", "family", "epsilon", "seed"),
    "compare.seeds": ("generator", "epsilon"),
}


class FactBook:
    """Facts by name, site and round; a repeated recording replaces the earlier one.

    Args:
        facts: Facts in the order they were recorded.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        self._facts: dict[tuple[Any, ...], Fact] = {}
        self._asked: set[str] = set()
        for number, fact in enumerate(facts):
            self._facts[_key(fact, number)] = fact

    def all(self, *names: str) -> list[Fact]:
        """The facts of these names: pooled first, then by site name, then by round."""
        self._asked.update(names)
        found = [f for f in self._facts.values() if f.name in names]
        return sorted(found, key=lambda f: (site_order(f.site), f.round or 0))

    def value(self, name: str, site: str | None = None) -> Any:
        """The value of the only fact of this name and site, or :data:`MISSING`."""
        self._asked.add(name)
        for fact in self._facts.values():
            if fact.name == name and fact.site == site:
                return fact.value
        return MISSING

    def unasked(self) -> list[Fact]:
        """Facts of names that nobody has asked for, by name."""
        names = {f.name for f in self._facts.values()} - self._asked
        return [fact for name in sorted(names) for fact in self.all(name)]

    def sites(self) -> list[str]:
        """Every site that any fact speaks of, in natural order (site-2 before site-10)."""
        return sorted({f.site for f in self._facts.values() if f.site is not None}, key=site_order)


def site_order(site: str | None) -> tuple[Any, ...]:
    """Sorting key of sites: pooled, then names with numbers in numerical order."""
    if site is None:
        return (0,)
    parts = re.split(r"(\d+)", site)
    return (1, *((0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in parts), site)


def fields(value: Any, expected: Iterable[str]) -> dict[str, Any]:
    """A fact's mapping with :data:`MISSING` under every expected key that it lacks."""
    known = dict(value) if isinstance(value, Mapping) else {}
    return {**dict.fromkeys(expected, MISSING), **known}


def _key(fact: Fact, number: int) -> tuple[Any, ...]:
    """What a later fact must share with an earlier one to replace it."""
    if fact.name == "run.resumed":
        return (fact.name, number)  # every resume counts
    detail = tuple(str(fact.detail.get(k)) for k in _DISTINGUISHING)
    own: tuple[str, ...] = ()
    if fact.name in _BY_VALUE:
        own = (str(fact.value),)
    elif isinstance(fact.value, Mapping):
        own = tuple(str(fact.value.get(k)) for k in _BY_FIELD.get(fact.name, ()))
    return (fact.name, fact.site, fact.round, *detail, *own)
