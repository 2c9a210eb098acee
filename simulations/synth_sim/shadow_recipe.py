"""How a released generator was made, from what its run recorded: what shadow trainings follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synth_common.audit.released_model import ReleasedModel
from synth_common.errors import ConfigError
from synth_common.facts import read_facts
from synth_common.plan import Plan
from synth_common.reporting.factbook import FactBook
from synth_sim.run import load_run


@dataclass(frozen=True)
class SiteTerms:
    """What a run recorded of one of its sites.

    Attributes:
        sample_rate: Probability of a patient in a step; None where no round recorded one.
        budget_epsilon: The lifetime budget, which may be tighter than the plan.
        noise_multiplier: Of its last use; None where none is recorded.
    """

    sample_rate: float | None
    budget_epsilon: float
    noise_multiplier: float | None


@dataclass(frozen=True)
class Recipe:
    """How a released generator was made.

    Attributes:
        plan: The run's.
        digest: SHA-256 of the plan.
        sites: What is known of each site, by name.
        seed: Of everything of the run that is not private.
        rounds: Rounds that the released weights are from.
        weights: File of the public weights that the plan names, if it names any.
    """

    plan: Plan
    digest: str
    sites: Mapping[str, SiteTerms]
    seed: int
    rounds: int
    weights: Path | None = None


def read_recipe(run: Path, model: ReleasedModel) -> Recipe:
    """The recipe of a run of synth-sim or synth-server, from what it recorded.

    Noise is drawn from seeds, so that an audit can be repeated; its distribution is the plan's.

    Raises:
        ConfigError: The run records no site or no seed, or its plan starts from public weights
            whose file it does not name.
    """
    book = FactBook(read_facts(run / "facts.jsonl"))
    sites = {}
    for fact in book.all("privacy.site"):
        if fact.site is not None:
            sites[fact.site] = _terms(fact.value, model.plan)
    seed = book.value("run.seed")
    if not sites or not isinstance(seed, int):
        raise ConfigError(
            f"--shadow-models: {run / 'facts.jsonl'} records no site or no seed, so that its "
            "recipe cannot be followed; give a finished run as --model"
        )
    weights = None
    if model.plan.pretraining.sha256 is not None:
        if (run / "scenario.toml").is_file():
            weights = load_run(run).data.weights
        if weights is None:
            raise ConfigError(
                f"--shadow-models: the plan starts from public weights (pretraining.sha256), and "
                f"{run} does not name their file; only runs of synth-sim do"
            )
    privacy = model.plan.privacy.model_copy(update={"noise": "simulation"})
    plan = model.plan.model_copy(update={"privacy": privacy})
    return Recipe(plan, model.plan.digest(), sites, seed, model.round, weights)


def _terms(value: Mapping[str, Any], plan: Plan) -> SiteTerms:
    """The terms in a fact ``privacy.site``."""
    rounds = plan.training.rounds > 0

    def number(key: str) -> float | None:
        found = value.get(key)
        return float(found) if isinstance(found, int | float) or found == "inf" else None

    budget = number("budget_epsilon")
    return SiteTerms(
        number("sample_rate") if rounds else None,
        plan.privacy.epsilon if budget is None else budget,
        number("noise_multiplier"),
    )
