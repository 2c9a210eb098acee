"""What a plan would cost a site, before its operator approves it.

Read from the ledger and from public declarations; no image is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synth_client.charge import MOST_GROWTH, plan_uses, require_no_bound, within_budget
from synth_client.site import read_settings
from synth_common.errors import BudgetError
from synth_common.plan import Plan
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.ledger import Budget, Ledger


def cost_of(plan: Plan, directory: Path) -> str:
    """What a plan would cost the site in ``directory``, in one sentence.

    Raises:
        BudgetError: No budget is set, or one that a plan without noise breaks.
    """
    budget, history = _account(plan, directory)
    if not plan.privacy.private:
        return "WITHOUT NOISE: no privacy is promised"
    rate = _rate(plan, directory)
    costs = [
        epsilon([*history, *uses], budget.delta, budget.accountant)
        for uses in ((), _whole_run(plan, rate, 0), _whole_run(plan, rate, 1))
    ]
    use, *once = _whole_run(plan, rate, 0)
    lost = f", or {costs[2]:.3f} with {_spare(plan)} interrupted" if _spare(plan) else ""
    steps = f"{use.steps} steps" if use.purpose == "training" else "one release"
    return (
        f"{_trust(plan)}noise {use.noise_multiplier:.3f}, sample rate {use.sample_rate:.4g}, "
        f"{steps}: the data set's epsilon goes from {costs[0]:.3f} to {costs[1]:.3f}{lost}, of "
        f"{budget.epsilon:g}{_fate([*history, *once], use, budget)}"
    )


def fits(plan: Plan, directory: Path) -> bool:
    """Whether the budget of the site in ``directory`` bears a whole run of a plan beside the past.

    Raises:
        BudgetError: No budget is set, or one that a plan without noise breaks.
    """
    budget, history = _account(plan, directory)
    if not plan.privacy.private:
        return True
    use, *once = _whole_run(plan, _rate(plan, directory), 0)
    try:
        within_budget(budget, [*history, *once], use, MOST_GROWTH * use.noise_multiplier)
    except BudgetError:
        return False
    return True


def _account(plan: Plan, directory: Path) -> tuple[Budget, list[Use]]:
    """The budget, and what it was spent on. Refuses a plan without noise where there is a bound."""
    with Ledger.read(directory / "ledger.sqlite") as ledger:
        budget, history = ledger.budget, ledger.history()
    if not plan.privacy.private:
        require_no_bound(budget)
    return budget, history


def _rate(plan: Plan, directory: Path) -> float:
    """The sample rate of the site in ``directory``."""
    nominal: int = read_settings(directory)["nominal_patients"]
    return min(1.0, plan.training.patients_per_step / nominal)


def _whole_run(plan: Plan, rate: float, spare: int) -> tuple[Use, ...]:
    """What a whole run uses: undisturbed (0), or with everything interrupted that it bears (1)."""
    rounds = plan.training.rounds + spare * plan.privacy.spare_rounds
    embedding = plan.release.embedding
    attempts = 1 + spare * (0 if embedding is None else embedding.spare_attempts)
    return plan_uses(plan, rate, rounds, attempts)


def _spare(plan: Plan) -> str:
    """What a plan's noise bears beside a whole run; empty for nothing."""
    rounds = plan.privacy.spare_rounds if plan.training.rounds else 0
    embedding = plan.release.embedding
    attempts = 0 if embedding is None else embedding.spare_attempts
    named = [str(rounds) if not attempts else f"{rounds} rounds"] if rounds else []
    return " and ".join([*named, *([f"{attempts} attempts at the release"] if attempts else [])])


def _trust(plan: Plan) -> str:
    """What the figures rest on beside this site; empty for nothing."""
    if plan.privacy.trust_model == "local" or plan.release.embedding is None:
        return ""
    colluders = plan.release.embedding.colluders
    return (
        "the release is one of several sites' sum, and its figures hold as long as at most "
        f"{colluders} of the other sites collude with the coordinator: "
    )


def _fate(spent: Sequence[Use], use: Use, budget: Budget) -> str:
    """What becomes of a plan that costs more than the budget has left; empty if it fits."""
    try:
        noise = within_budget(budget, spent, use, MOST_GROWTH * use.noise_multiplier)
    except BudgetError:
        return ". It does NOT FIT: the site will refuse it unless the budget is raised"
    if noise == use.noise_multiplier:
        return ""
    return f". To stay within it the site will add more noise, about {noise:.3f}"
