"""Fields of the ethics report that rest on attacks: of the run's evaluation, and of audits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from synth_common.facts import CATALOGUE, Fact
from synth_common.reporting.evidence import Field, Record, Row, of_fact
from synth_common.reporting.factbook import MISSING

# What an audit measured, by the criterion that it speaks of.
_SINGLING_OUT: Final = frozenset({"reidentification", "near-copies", "data-copying"})
_LINKABILITY: Final = frozenset({"linkability"})
_INFERENCE: Final = frozenset({"attribute-inference"})

_EVERYBODY: Final = (None, MISSING, "all")
_MOST_ITEMS: Final = 6  # of a list or mapping that a row still prints

# What is printed of an attack or test; the audit's own report has the rest.
_OF_AN_ATTACK: Final = (
    *("verdict", "outcome", "measure", "view", "space", "limit", "figure", "reason"),
    *("auc", "auc_interval", "tpr_at_1pct_fpr", "tpr_interval"),
    *("tpr_at_1pct", "tpr_at_1pct_interval", "value", "control", "control_interval"),
    *("advantage", "advantage_interval", "baseline_auc", "control_auc", "chance_corrected"),
    *("of_members", "of_nonmembers", "synthetic", "power", "detectable_auc", "canaries"),
    *("claim", "cp_gdp"),
)


def attacks(record: Record) -> Iterator[Field]:
    """What was tried against the images and the model, and what it found."""
    known = _SINGLING_OUT | _LINKABILITY | _INFERENCE
    others = [f for f in _tests(record) if _measure(f) not in known]
    for key, title, asks, clause, wanted in (
        (
            "singling-out",
            "Singling out",
            "Can one patient be isolated by the synthetic images?",
            "wp216-singling-out",
            _SINGLING_OUT,
        ),
        (
            "linkability",
            "Linkability",
            "Can two records of one patient be linked by them?",
            "wp216-linkability",
            _LINKABILITY,
        ),
        (
            "inference",
            "Inference",
            "Do they tell an attribute of a patient that was not known?",
            "wp216-inference",
            _INFERENCE,
        ),
    ):
        found = [f for f in _tests(record) if _measure(f) in wanted]
        # A test that no criterion claims is shown with the first rather than not at all.
        found += others if key == "singling-out" else []
        yield Field(key, title, asks, (clause,), _rows(found, "audit.test"))
    yield Field(
        "membership",
        "Membership",
        "Can it be told from the images who was in the training data?",
        ("wp216-inference", "edpb-28-2024"),
        [
            *_rows([f for f in _attacks(record) if _view(f) == "images"], "membership.attack"),
            *_in_groups(record, "images"),
        ],
    )
    inside = [f for f in _attacks(record) if _view(f) != "images"]
    yield Field(
        "extraction",
        "Extraction from the model and its updates",
        "Does the released model, or a server that saw every update, tell more than promised?",
        ("edpb-28-2024",),
        [
            *_rows([*record.facts("audit.canaries"), *inside], "audit.canaries"),
            *_in_groups(record, "model"),
            *_in_groups(record, "server"),
        ],
    )
    yield Field(
        "audit",
        "What was audited, and what was not",
        "By which rules, written down beforehand, and what was left untested?",
        ("wp216-singling-out", "edpb-28-2024", "pdpc-2024"),
        [
            record.row("Verdict over all gates", "audit.verdict"),
            record.row("Policy", "audit.policy/name"),
            record.row("Policy, SHA-256", "audit.policy/sha256"),
            *(_named(f, "Gate: ") for f in record.facts("audit.gate")),
            *(
                of_fact(f, f"Not tested: {_get(f, 'what')}", "why")
                for f in record.facts("audit.untested")
            ),
        ],
    )


def _tests(record: Record) -> list[Fact]:
    return record.facts("audit.test", "audit.near_copies")


def _attacks(record: Record) -> list[Fact]:
    """Membership attacks in all patients."""
    found = record.facts("membership.attack", "audit.attack")
    return [f for f in found if _get(f, "group") in _EVERYBODY]


def _in_groups(record: Record, view: str) -> list[Row]:
    """What attacks found in groups: how many looks found somebody, and the strongest in each."""
    looks = [
        f
        for f in record.facts("audit.attack")
        if _get(f, "group") not in _EVERYBODY and _view(f) == view
    ]
    if not looks:
        return []
    found = [f for f in looks if _get(f, "verdict") == "found"]
    strongest = max(found or looks, key=lambda f: _number(_get(f, "auc")))
    row = _named(strongest, "Strongest in a group: ")
    if isinstance(row.value, Mapping):
        counts = {"looks at groups": len(looks), "found members": len(found)}
        group = {"group": _get(strongest, "group")}
        row = replace(row, value={**counts, **group, **row.value})
    return [row]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else -1.0


def _get(fact: Fact, key: str) -> Any:
    return fact.value.get(key, MISSING) if isinstance(fact.value, Mapping) else MISSING


def _measure(fact: Fact) -> str:
    return "near-copies" if fact.name == "audit.near_copies" else str(_get(fact, "measure"))


def _view(fact: Fact) -> str:
    """What the adversary holds; an attack of a run's own evaluation holds the images."""
    return "images" if fact.name == "membership.attack" else str(_get(fact, "view"))


def _rows(facts: Sequence[Fact], place: str) -> list[Row]:
    """A row per fact, or one that says that there is none, and where it would be."""
    return [_named(fact) for fact in facts] or [Row("Attack and its result", MISSING, place)]


def _named(fact: Fact, before: str = "") -> Row:
    """A fact under its own name, as far as a row prints it."""
    names = [_get(fact, key) for key in ("attack", "test", "measure")]
    name = next((str(n) for n in names if n != MISSING), CATALOGUE.get(fact.name, fact.name))
    row = of_fact(fact, before + name, "", "measured")
    if not isinstance(row.value, Mapping):
        return row
    printed = {
        key.replace("_", " "): row.value[key]
        for key in _OF_AN_ATTACK
        if key in row.value and _short(row.value[key])
    }
    return replace(row, value=printed or row.value)


def _short(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _MOST_ITEMS and all(
            not isinstance(v, list | tuple | Mapping) for v in value
        )
    if isinstance(value, Mapping):
        return len(value) <= _MOST_ITEMS and all(
            not isinstance(v, list | Mapping) for v in value.values()
        )
    return True
