"""What the site's operator decided: the lifetime budget, and what a coordinator may ask."""

from __future__ import annotations

from pathlib import Path

from synth_common.errors import PlanError
from synth_common.plan import Plan
from synth_common.privacy.ledger import Budget, Decision, Ledger


def accept(path: Path, budget: Budget, plan: Plan, decision: Decision) -> None:
    """Set the budget of the ledger at ``path`` and approve ``plan``, unless both are done.

    Raises:
        LedgerError, LedgerHeldError, StorageError: As :meth:`Ledger.hold`.
    """
    with Ledger.hold(path) as ledger:
        if not ledger.budgets():
            ledger.set_budget(budget, decision)
        if plan.digest() not in ledger.approved():
            ledger.approve(plan.digest(), plan.to_json(), decision)


def require_approved(ledger: Ledger, asked: Plan) -> None:
    """Refuse a plan whose digest the operator did not approve.

    Raises:
        PlanError: Names every field in which it differs from the plan approved last, with
            both values.
    """
    approved = ledger.approved()
    if asked.digest() in approved:
        return
    if not approved:
        raise PlanError(
            f"no plan is approved at this site, and {asked.digest()[:12]} is asked for; its "
            "operator reads and approves one with synth-client plan approve FILE --site NAME"
        )
    digest, text = list(approved.items())[-1]
    differences = "; ".join(asked.differences(Plan.from_json(text)))
    raise PlanError(
        f"plan {asked.digest()[:12]} is asked for, but {digest[:12]} is approved "
        f"(asked against approved): {differences}"
    )
