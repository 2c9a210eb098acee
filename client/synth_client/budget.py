"""What a site's budget was spent on, what is left, and for how many rounds it lasts.

Everything here is read from the ledger and from public declarations; no image is opened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synth_client.charge import plan_uses
from synth_client.site import read_settings
from synth_common.plan import Plan
from synth_common.privacy.accounting import Use, epsilon, merged
from synth_common.privacy.ledger import Budget, BudgetSet, Ledger

MOST_RUNS = 10
"""Rounds (or releases) that fit are counted up to so many whole runs: more take long to compute."""


@dataclass(frozen=True)
class RunUse:
    """What one run used.

    Attributes:
        run_id: The run.
        rounds: Different rounds whose reply may have left.
        interrupted: Reservations without a reply; they are spent all the same.
        epsilon: Of this run alone.
        uses: What ran, equal kinds added up.
        last: When it last used the data, UTC.
    """

    run_id: str
    rounds: int
    interrupted: int
    epsilon: float
    uses: tuple[Use, ...]
    last: str


@dataclass(frozen=True)
class PlanOutlook:
    """What is left of the budget, in rounds of the plan that was approved last.

    A plan without rounds is one release, which is then counted instead.

    Attributes:
        digest: The plan.
        planned_rounds: Rounds of one whole run of it; 0 for a single release.
        made: Rounds (releases) that left in the run of it that got furthest.
        rounds_left: Rounds (releases) that still fit at ``noise_multiplier``, at most
            ``MOST_RUNS`` runs.
        next_epsilon: Epsilon of the data set after one more; infinite without noise.
        noise_multiplier: Of the run in progress, or of a new run; None without noise.
        sample_rate: Of this site.
    """

    digest: str
    planned_rounds: int
    made: int
    rounds_left: int
    next_epsilon: float
    noise_multiplier: float | None
    sample_rate: float


@dataclass(frozen=True)
class Statement:
    """A site's account.

    Attributes:
        site: Its name.
        data_set: What the budget is for.
        entries: Verified entries of the ledger.
        head: Hash of the last.
        budgets: Every lifetime budget, the holding one last, with who set it, why and when.
        spent: Epsilon composed over everything reserved, at the budget's delta.
        remaining: Budget minus spent; composition is not a sum, so rounds say more.
        runs: What it was spent on, in order.
        outlook: The approved plan's future; None without an approved plan.
    """

    site: str
    data_set: str
    entries: int
    head: str
    budgets: tuple[BudgetSet, ...]
    spent: float | None
    remaining: float | None
    runs: tuple[RunUse, ...]
    outlook: PlanOutlook | None


@dataclass(frozen=True)
class Balance:
    """A ledger in two numbers.

    Attributes:
        spent: Epsilon composed over everything reserved, at the budget's delta.
        remaining: Budget minus spent.
    """

    spent: float
    remaining: float


def balance(path: Path) -> Balance:
    """What the ledger at ``path`` says is spent and what remains, verified.

    Raises:
        BudgetError: No budget is set.
        LedgerError: The ledger does not verify.
    """
    with Ledger.read(path) as ledger:
        budget, history = ledger.budget, ledger.history()
    spent = epsilon(history, budget.delta, budget.accountant)
    return Balance(spent, budget.epsilon - spent)


def statement(directory: Path) -> Statement:
    """The account of the site in ``directory``.

    Raises:
        DataError: There is no site.
        LedgerError: The ledger does not verify.
    """
    settings = read_settings(directory)
    with Ledger.read(directory / "ledger.sqlite") as ledger:
        budgets = ledger.budgets()
        budget = budgets[-1].budget if budgets else None
        history = ledger.history()
        spent = None if budget is None else epsilon(history, budget.delta, budget.accountant)
        return Statement(
            site=settings["name"],
            data_set=ledger.data_set,
            entries=len(ledger.entries),
            head=ledger.head,
            budgets=tuple(budgets),
            spent=spent,
            remaining=None if budget is None or spent is None else budget.epsilon - spent,
            runs=() if budget is None else tuple(_runs(ledger, budget)),
            outlook=None if budget is None else _outlook(ledger, budget, settings),
        )


def _runs(ledger: Ledger, budget: Budget) -> list[RunUse]:
    """One line a run, in the order of their first use."""
    found = []
    for run_id in dict.fromkeys(r.key.run_id for r in ledger.reservations()):
        reserved, uses = ledger.reservations(run_id), ledger.history(run_id)
        found.append(
            RunUse(
                run_id=run_id,
                rounds=ledger.committed_rounds(run_id),
                interrupted=len(reserved) - len(ledger.commits(run_id)),
                epsilon=epsilon(uses, budget.delta, budget.accountant),
                uses=merged(uses),
                last=reserved[-1].time,
            )
        )
    return found


def _outlook(ledger: Ledger, budget: Budget, settings: dict[str, Any]) -> PlanOutlook | None:
    """How many rounds of the plan approved last still fit."""
    approved = ledger.approved()
    if not approved:
        return None
    digest, text = list(approved.items())[-1]
    plan = Plan.from_json(text)
    rate = min(1.0, plan.training.patients_per_step / settings["nominal_patients"])
    rounds = plan.training.rounds
    own = [r for r in ledger.reservations() if r.key.plan == digest]
    made = max((_made(ledger, run, rounds) for run in {r.key.run_id for r in own}), default=0)
    if not plan.privacy.private:
        return PlanOutlook(digest, rounds, made, 0, math.inf, None, rate)
    fresh, *once = plan_uses(plan, rate, 1)
    used = [use for r in own for use in r.uses]
    last = [use for use in used if use.purpose == fresh.purpose]
    one = Use((last or [fresh])[-1].noise_multiplier, fresh.sample_rate, fresh.steps)
    purposes = {use.purpose for use in used}
    history = [*ledger.history(), *(use for use in once if use.purpose not in purposes)]
    left = rounds_that_fit(history, one, budget, MOST_RUNS * max(1, rounds))
    following = epsilon([*history, one], budget.delta, budget.accountant)
    return PlanOutlook(digest, rounds, made, left, following, one.noise_multiplier, rate)


def _made(ledger: Ledger, run_id: str, rounds: int) -> int:
    """Rounds of a run that left; for a plan without rounds, releases."""
    return ledger.committed_rounds(run_id) if rounds else len(ledger.commits(run_id))


def rounds_that_fit(history: Sequence[Use], one: Use, budget: Budget, most: int) -> int:
    """How many more rounds like ``one`` the budget bears, at most ``most``."""
    if math.isinf(budget.epsilon):
        return most

    def fits(rounds: int) -> bool:
        uses = [*history, Use(one.noise_multiplier, one.sample_rate, rounds * one.steps)]
        return epsilon(uses, budget.delta, budget.accountant) <= budget.epsilon

    low, high = 0, 1
    while low < most and fits(high):  # small numbers first: large ones cost seconds
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def describe(account: Statement) -> list[str]:
    """The account for reading, line by line."""
    lines = [
        f"site       {account.site}: {account.data_set}",
        f"ledger     {account.entries} entries, verified; head {account.head[:16]}",
    ]
    if account.spent is None or account.remaining is None:
        return [*lines, "budget     NOT SET: nothing can be used. --set EPSILON --reason TEXT"]
    *before, now = account.budgets
    lines += [_budget_line("before", item) for item in before] + [_budget_line("budget", now)]
    lines.append(f"spent      epsilon {account.spent:.4f} at delta {now.budget.delta:g}")
    if account.remaining < 0:
        lines.append(f"OVERSPENT  by {-account.remaining:.4f}: everything is refused")
    else:
        lines.append(
            f"remains    epsilon {account.remaining:.4f} (costs compose, they do not add up)"
        )
    for run in account.runs:
        lost = f", {run.interrupted} interrupted and spent" if run.interrupted else ""
        lines.append(
            f"run        {run.run_id}: {run.rounds} rounds{lost}; epsilon {run.epsilon:.4f} alone; "
            f"last {run.last}"
        )
        lines += [
            f"             {use.purpose}: {use.steps} x noise {use.noise_multiplier:.4f}, "
            f"sample rate {use.sample_rate:.4g}"
            for use in run.uses
        ]
    return [*lines, _outlook_line(account.outlook, now.budget)]


def _budget_line(name: str, item: BudgetSet) -> str:
    """One lifetime budget, for reading."""
    budget, why = item.budget, item.decision
    return (
        f"{name:<10} epsilon {budget.epsilon:g} per {budget.unit} at delta {budget.delta:g} "
        f"({budget.accountant}), "
        f"set {item.time[:10]} by {why.operator}: {why.reason}"
    )


def _outlook_line(outlook: PlanOutlook | None, budget: Budget) -> str:
    """How long the budget lasts, for reading."""
    if outlook is None:
        return "plan       none is approved: synth-client plan approve FILE"
    begin = f"plan       {outlook.digest[:16]}: "
    if outlook.noise_multiplier is None:
        return f"{begin}trains WITHOUT NOISE; no budget bounds it"
    planned, noise = outlook.planned_rounds, f"{outlook.noise_multiplier:.4f}"
    one = "round" if planned else "release"
    if outlook.rounds_left:
        more = " or more" if outlook.rounds_left >= MOST_RUNS * max(1, planned) else ""
        many = f"{outlook.rounds_left}{more} further {one}{'' if outlook.rounds_left == 1 else 's'}"
        whole = f"; a whole run has {planned}" if planned else ""
        return f"{begin}at noise {noise} the budget bears {many}{whole}"
    if outlook.made >= max(1, planned):
        begin += "its release is made; " if not planned else f"its {planned} rounds are made; "
    return (
        f"{begin}nothing more fits: another {one} at noise {noise} would bring epsilon to "
        f"{outlook.next_epsilon:.4f}, above the budget of {budget.epsilon:g}"
    )
