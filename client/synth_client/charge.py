"""What a round will use, decided by the site from the approved plan and its own ledger.

No message reaches this module: which round is asked for does not enter, because what is
left of a plan is what the ledger has not committed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from synth_client.site import Site
from synth_common.errors import BudgetError, PrivacyError
from synth_common.plan import Plan
from synth_common.privacy.accounting import Use, calibrate, epsilon
from synth_common.privacy.ledger import Budget, Ledger
from synth_common.privacy.release_noise import release_uses

MOST_GROWTH = 4.0
"""A round that needs this many times the noise of its plan would undo what was learnt."""


def planned_uses(ledger: Ledger, site: Site, plan: Plan, run_id: str) -> tuple[Use, ...]:
    """Every mechanism of the run's next round, training first.

    Raises:
        BudgetError: The run's target or the site's lifetime budget leaves no room.
    """
    rate, per_round = site.sample_rate(plan), plan.training.steps_per_round
    once = _histogram(ledger, plan, run_id)
    if not plan.privacy.private:
        return (Use(0.0, rate, per_round), *once)
    noise = _noise(ledger, site, plan, run_id, once)
    return (Use(noise, rate, per_round), *once)


def _histogram(ledger: Ledger, plan: Plan, run_id: str) -> tuple[Use, ...]:
    """The label histogram, until a reply that holds it was committed."""
    released = {commit.reservation for commit in ledger.commits(run_id)}
    for reservation in ledger.reservations(run_id):
        purposes = [use.purpose for use in reservation.uses]
        if reservation.number in released and "label histogram" in purposes:
            return ()
    return _histogram_of(plan)


def planned_release(ledger: Ledger, site: Site, plan: Plan, run_id: str) -> Use:
    """The next attempt at the run's release: planned noise, or more if other uses ate the room.

    Raises:
        PrivacyError: The run's rounds have begun.
        BudgetError: The release's share of the target, or the lifetime budget, has no room for
            it or for the rounds after it.
    """
    _require_before_rounds(ledger, run_id)
    if not plan.privacy.private:
        require_no_bound(ledger.budget)
        return Use(0.0, 1.0, 1, "embedding")
    (planned,) = release_uses(plan, 1)
    noise, terms, ceiling = planned.noise_multiplier, plan.privacy, _ceiling(planned)
    before = ledger.history(run_id)  # whatever the run used counts, be it attempts or not
    target = (_share(plan) * terms.epsilon, terms.delta)
    if epsilon([*before, planned], terms.delta, terms.accountant) > target[0]:
        try:
            noise = calibrate(before, (1.0, 1), target, terms.accountant, ceiling)
        except BudgetError as err:
            raise BudgetError(
                f"{len(before)} attempts at the release are spent, and with another one it would "
                f"cost more than release.embedding.share allows, epsilon {target[0]:.4g}: plan "
                "more release.embedding.spare_attempts"
            ) from err
    noise = within_budget(ledger.budget, ledger.history(), Use(noise, 1.0, 1), ceiling)
    use = Use(noise, 1.0, 1, "embedding")
    if plan.training.rounds:
        _require_rounds(ledger, site, plan, run_id, use)
    return use


def _require_before_rounds(ledger: Ledger, run_id: str) -> None:
    """Refuse a release of a run that trains: rounds leave no room for one that is to come."""
    if any(use.purpose != "embedding" for use in ledger.history(run_id)):
        raise PrivacyError(
            f"run {run_id}: a release is asked for after the run's rounds have begun, and "
            "privacy.epsilon bears it before the first round only; start another run"
        )


def _require_rounds(ledger: Ledger, site: Site, plan: Plan, run_id: str, release: Use) -> None:
    """Refuse a release after which the site would have to refuse the first round."""
    try:
        _noise(ledger, site, plan, run_id, (release,))
    except BudgetError as err:
        raise BudgetError(
            f"nothing is released, as the rounds after it would be refused: with the release, {err}"
        ) from err


def require_no_bound(budget: Budget) -> None:
    """Refuse (BudgetError) a plan without noise where the operator set a finite budget."""
    if not math.isinf(budget.epsilon):
        raise BudgetError(
            f"privacy.epsilon = inf trains without noise, but the budget is {budget.epsilon:g}"
        )


def plan_uses(plan: Plan, rate: float, rounds: int, attempts: int = 1) -> tuple[Use, ...]:
    """What a private plan uses at a site of this sample rate, all told; training first, if any.

    The noise is that of a fresh run: calibrated for all planned rounds and attempts at the
    release, and the spare ones.

    Args:
        plan: A plan with a finite epsilon.
        rate: The site's sample rate.
        rounds: So many rounds, of a plan that has any.
        attempts: So many attempts at the release, of a plan that has one.
    """
    terms, training = plan.privacy, plan.training
    once = (*release_uses(plan, attempts), *_histogram_of(plan))
    if not training.rounds:
        return once
    embedding = plan.release.embedding
    most = 1 if embedding is None else 1 + embedding.spare_attempts
    before = (*release_uses(plan, most), *_histogram_of(plan))
    steps = training.total_steps + terms.spare_rounds * training.steps_per_round
    target = (terms.epsilon, terms.delta)
    sigma = calibrate(before, (rate, steps), target, terms.accountant)
    return (Use(sigma, rate, rounds * training.steps_per_round), *once)


def _histogram_of(plan: Plan) -> tuple[Use, ...]:
    """The label histogram of a plan; empty if it has none."""
    noise = plan.release.label_histogram
    return () if noise is None else (Use(noise, 1.0, 1, "label histogram"),)


def _share(plan: Plan) -> float:
    """The part of epsilon that the release may cost."""
    return 0.0 if plan.release.embedding is None else plan.release.embedding.share


def _ceiling(planned: Use) -> float:
    return MOST_GROWTH * planned.noise_multiplier


def _noise(ledger: Ledger, site: Site, plan: Plan, run_id: str, once: tuple[Use, ...]) -> float:
    """The run's own noise, or a larger one if interruptions or other runs ate the room.

    What is used ``once`` beside the rounds, and is not in the ledger yet, counts as spent.
    """
    terms, training = plan.privacy, plan.training
    rate, per_round = site.sample_rate(plan), training.steps_per_round
    own = ledger.history(run_id)
    left = max(1, training.rounds - ledger.committed_rounds(run_id)) * per_round
    fresh = plan_uses(plan, rate, 1)[0]
    planned, ceiling = fresh.noise_multiplier, _ceiling(fresh)
    before = [use.noise_multiplier for use in own if use.purpose == "training"]
    noise = before[-1] if before else planned
    whole = [*own, *once, Use(noise, rate, left)]
    if epsilon(whole, terms.delta, terms.accountant) > terms.epsilon:
        target = (terms.epsilon, terms.delta)
        noise = calibrate([*own, *once], (rate, left), target, terms.accountant, ceiling)
    return within_budget(ledger.budget, [*ledger.history(), *once], Use(noise, rate, left), ceiling)


def within_budget(budget: Budget, spent: Sequence[Use], rest: Use, ceiling: float) -> float:
    """The noise of ``rest``, or what the site's lifetime budget asks for if that is more.

    Raises:
        BudgetError: No noise up to ``ceiling`` is enough.
    """
    whole = epsilon([*spent, rest], budget.delta, budget.accountant)
    if whole <= budget.epsilon:
        return rest.noise_multiplier
    goal, steps = (budget.epsilon, budget.delta), (rest.sample_rate, rest.steps)
    try:
        return calibrate(spent, steps, goal, budget.accountant, ceiling)
    except BudgetError as err:
        already = epsilon(spent, budget.delta, budget.accountant)
        raise BudgetError(
            f"budget_epsilon = {budget.epsilon:.4g}: {already:.4g} is spent, the {rest.steps} "
            f"steps still planned would bring it to {whole:.4g}, and even {ceiling:.3g} times the "
            "clip norm as noise is too little: end this run, or have the operator raise the "
            "budget (synth-client budget --set, with a reason)"
        ) from err
