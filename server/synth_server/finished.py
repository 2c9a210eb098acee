"""A finished run, as far as a release depends on it: read from its recorded facts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synth_common.errors import ConfigError, DataError, PrivacyError
from synth_common.facts import Fact, read_facts
from synth_common.leaving import simulated
from synth_common.plan import Plan
from synth_common.reporting.factbook import MISSING, FactBook
from synth_common.validation import validate


@dataclass(frozen=True)
class FinishedRun:
    """What the facts of a finished run say.

    Attributes:
        directory: The run directory.
        run_id: The run.
        seed: Of everything reproducible that is not private.
        simulation: Whether one machine played every hospital, as every ``run.simulation`` says.
        plan: The federation plan.
        facts: All of them.
        sites: Every site of which something is in the weights.
        shares: Released shares of the classes; empty where nothing tells them.
        spent: Epsilon of everything in each site's ledger, as it said last in the run.
    """

    directory: Path
    run_id: str
    seed: int
    simulation: bool
    plan: Plan
    facts: Sequence[Fact]
    sites: Sequence[str]
    shares: Mapping[str, float]
    spent: Mapping[str, float]


def require_run(run_dir: Path) -> Path:
    """The directory, if it holds a run. Raises ConfigError."""
    if (run_dir / "facts.jsonl").is_file():
        return run_dir
    hint = ""
    if (run_dir / "run" / "facts.jsonl").is_file():
        hint = f"; did you mean {run_dir / 'run'}?"
    raise ConfigError(f"{run_dir} holds no run (no facts.jsonl){hint}")


def read_finished(run_dir: Path) -> FinishedRun:
    """The run in a directory.

    Raises:
        ConfigError: It holds no run, or one that is not finished.
        PrivacyError: Nothing protects the patients of this run.
        DataError: An essential fact is missing, or two contradict each other.
    """
    facts = list(read_facts(require_run(run_dir) / "facts.jsonl"))
    book = FactBook(facts)
    if book.value("run.finished") == MISSING:
        raise ConfigError(f"the run in {run_dir} is not finished; go on with it first")
    needed = ("run.id", "run.seed", "run.simulation", "plan.settings", "plan.digest")
    values = {name: book.value(name) for name in needed}
    absent = [name for name, value in values.items() if value == MISSING]
    if absent:
        raise DataError(f"{run_dir / 'facts.jsonl'} does not record {', '.join(absent)}")
    plan = validate(Plan, values["plan.settings"], f"{run_dir}: fact plan.settings")
    if plan.digest() != values["plan.digest"]:
        raise DataError(f"{run_dir}: the facts plan.settings and plan.digest do not fit together")
    simulation = simulated(facts)
    _require_guarantee(plan, simulation)
    return FinishedRun(
        directory=run_dir,
        run_id=str(values["run.id"]),
        seed=int(values["run.seed"]),
        simulation=simulation,
        plan=plan,
        facts=facts,
        sites=_participants(book),
        shares=_shares(book, plan),
        spent=_spent(book),
    )


def _require_guarantee(plan: Plan, simulation: bool) -> None:
    """Refuse a run whose images nothing protects."""
    if not plan.privacy.private:
        raise PrivacyError(
            "privacy.epsilon = inf: the run trained without noise, so that nothing bounds what its "
            "images say about patients; nothing of it can be released"
        )
    if plan.privacy.noise != "secure" and not simulation:
        raise PrivacyError(
            f"privacy.noise = {plan.privacy.noise!r}: noise that a seed repeats protects nobody; "
            "run the plan with privacy.noise = 'secure'"
        )


def _participants(book: FactBook) -> list[str]:
    """Every site of which something is in the weights."""
    names = {name for f in book.all("federation.round") for name in f.value["replies"]}
    names |= {name for f in book.all("release.embedding") for name in f.value["sites"]}
    if not names:
        raise DataError("the run records no site that took part; there is nothing to release")
    return sorted(names)


def _shares(book: FactBook, plan: Plan) -> dict[str, float]:
    """The shares that the sites released; empty where nothing tells them."""
    found = [f.value for f in book.all("data.label_shares") if f.scope == "released"]
    if not found or set(found[-1]) != set(plan.generator.classes):
        return {}
    return {name: float(found[-1][name]) for name in plan.generator.classes}


def _spent(book: FactBook) -> dict[str, float]:
    """Epsilon of everything in each site's ledger, as it said last in the run."""
    found: dict[str, float] = {}
    for fact in book.all("privacy.site"):
        value = fact.value.get("epsilon")
        if fact.site is not None and isinstance(value, float | int):
            found[fact.site] = float(value)
    return found
