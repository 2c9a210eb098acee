"""What one release is planned to cost: public, so that site and coordinator agree on it."""

from __future__ import annotations

from synth_common.plan import Plan
from synth_common.privacy.accounting import Use, calibrate


def release_noise(plan: Plan) -> float:
    """The noise multiplier of one attempt at the release, as every site of the plan knows it."""
    return release_uses(plan, 1)[0].noise_multiplier if plan.privacy.private else 0.0


def release_uses(plan: Plan, attempts: int) -> tuple[Use, ...]:
    """So many attempts at the release of a private plan; empty if it has none.

    One and the spare ones cost the release's share of the target.
    """
    embedding, terms = plan.release.embedding, plan.privacy
    if embedding is None:
        return ()
    target = (embedding.share * terms.epsilon, terms.delta)
    planned = (1.0, 1 + embedding.spare_attempts)
    sigma = calibrate((), planned, target, terms.accountant)
    return (Use(sigma, 1.0, attempts, "embedding"),)
