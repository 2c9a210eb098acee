"""What a release cost, as a simulation can tell: it reads every site's ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from synth_client.site import Site
from synth_common.plan import Plan
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.ledger import Ledger
from synth_server.release_run import NO_BOUND, if_all_others_collude
from synth_server.release_store import Release


def prices(plan: Plan, sites: Sequence[Site], kept: Release) -> Mapping[str, float]:
    """Epsilon of the release alone, as charged and if all other sites collude.

    Both of the site that paid most, over every attempt in its ledger: a site whose budget is
    small charges a later attempt with more noise than the ones before. Alone, a site is hidden
    by the noise that it added itself.
    """
    terms = plan.privacy
    if plan.release.embedding is None or not terms.private:
        return NO_BOUND
    charged, alone = [], []
    for site in sites:
        uses = _uses(site.ledger_path, kept.run_id)
        # In the last attempt all sites in the sum shared the noise; before it at most all there
        # are did, and the more share it, the less each adds.
        last = kept.attempts if site.name in kept.sites else None
        own = [
            if_all_others_collude(
                plan, use, len(kept.vector), len(kept.sites if number == last else sites)
            )
            for number, use in uses
        ]
        charged.append(epsilon([use for _, use in uses], terms.delta, terms.accountant))
        alone.append(epsilon(own, terms.delta, terms.accountant))
    return {"epsilon": max(charged), "epsilon_if_all_others_collude": max(alone)}


def _uses(ledger_path: Path, run_id: str) -> list[tuple[int, Use]]:
    """A site's attempts at the release, answered or not: number and charge of each."""
    with Ledger.read(ledger_path) as ledger:
        return [
            (made.key.attempt, use)
            for made in ledger.reservations(run_id)
            for use in made.uses
            if use.purpose == "embedding"
        ]
