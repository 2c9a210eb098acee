"""The release of a run: ask for it, record it, and let the generator learn from it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synth_client.charge import release_noise
from synth_common.facts import Fact, Scope
from synth_common.flower import Grid
from synth_common.generators.embedding import Released
from synth_common.plan import Plan
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.discrete_gaussian import ROUNDING_VARIANCE
from synth_common.privacy.ledger import Ledger
from synth_common.privacy.secure_sum import Lattice, NoiseTerms
from synth_common.randomness import derive_seed
from synth_server.checkpoint import Checkpoint, save_checkpoint
from synth_server.learning import learn_release
from synth_server.release import Releasing
from synth_server.release_store import AttemptBook, Release, load_release, save_release
from synth_server.rounds import State
from synth_server.strategy import UniformAverage
from synth_sim.record import trust_words

if TYPE_CHECKING:
    from synth_sim.federate import Federation

_SOURCE = "synth_sim.release"


def releasing(run: Federation, grid: Grid, strategy: UniformAverage) -> Releasing:
    """What asks this run's sites for their release."""
    return Releasing(grid, strategy, AttemptBook(run.out / "checkpoints"))


def learn(run: Federation, asking: Releasing) -> State:
    """Get the release, once in a run's life, and let the generator learn from it.

    What was released is kept before it is used, so that a stop while learning costs nothing. The
    state after it is the checkpoint of round 0.

    Raises:
        FederationError: Too few sites took part.
    """
    plan, folder = run.scenario.plan, run.out / "checkpoints"
    kept = load_release(folder, run.scenario.run_id(), plan.digest())
    if kept is None:
        run.tell.note("every site is asked for its part of the release")
        kept = asking.run()
        save_release(folder, kept)
    run.memory.counts = asking.embedding.class_counts(kept.vector).tolist()
    began = time.perf_counter()
    run.tell.note(f"the generator learns from the release ({len(kept.sites)} sites)")
    seed = derive_seed(run.scenario.seed, "release")
    released = Released(kept.vector, kept.sigma, asking.embedding)
    learn_release(run.generator, released, plan, seed, run.tell.note)
    run.log.extend(_facts(run, kept, time.perf_counter() - began))
    state = run.generator.shared_state()
    save_checkpoint(folder, Checkpoint(run.scenario.run_id(), 0, plan.digest(), state, run.memory))
    return state


def _facts(run: Federation, kept: Release, learning: float) -> list[Fact]:
    """What was released, at what price, and the classes' shares in it."""
    plan = run.scenario.plan
    value: dict[str, Any] = {
        "kind": "embedding",
        "trust_model": plan.privacy.trust_model,
        "meaning": trust_words(plan),
        "sites": kept.sites,
        "attempts": kept.attempts,
        "size": len(kept.vector),
        "noise_multiplier": min(kept.noise_multipliers.values()),
        "sigma": kept.sigma,
        "noise_shares": dict(kept.noise_shares),
        **_prices(run, kept),
        "bytes_up": kept.bytes_up,
        "messages": kept.messages,
        "seconds": round(kept.seconds, 3),
        "learning_seconds": round(learning, 3),
    }
    source = f"{_SOURCE}._facts"
    shares = dict(zip(plan.generator.classes, run.memory.shares(), strict=False))
    detail = {"noise": None, "released_with": "embedding"}
    # Without privacy the counts carry no noise: nothing was charged, so nothing was released.
    scope: Scope = "released" if plan.privacy.private else "site-local"
    return [
        Fact("release.embedding", value, "public", source),
        Fact("data.label_shares", shares, scope, source, detail=detail),
    ]


def _prices(run: Federation, kept: Release) -> dict[str, float]:
    """Epsilon of the release alone, as charged and if all other sites collude.

    Both of the site that paid most, over every attempt in its ledger: a site whose budget is
    small charges a later attempt with more noise than the ones before. Alone, a site is hidden
    by the noise that it added itself.
    """
    plan = run.scenario.plan
    terms, settings = plan.privacy, plan.release.embedding
    if settings is None or not terms.private:
        return {"epsilon": math.inf, "epsilon_if_all_others_collude": math.inf}
    charged, alone = [], []
    for site in run.sites:
        uses = _uses(site.ledger_path, run.scenario.run_id())
        # In the last attempt all sites in the sum shared the noise; before it at most all there
        # are did, and the more share it, the less each adds.
        last = kept.attempts if site.name in kept.sites else None
        own = [
            _alone(plan, use, kept, len(kept.sites if number == last else run.sites))
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


def _alone(plan: Plan, use: Use, kept: Release, sites: int) -> Use:
    """An attempt among ``sites`` if all others tell what they added; no cheaper than charged."""
    settings = plan.release.embedding
    masked = plan.privacy.trust_model == "secure-aggregation"
    if settings is None or not masked:
        return use
    lattice = Lattice(settings.scale_bits, settings.modulus_bits)
    noise = release_noise(plan)
    terms = NoiseTerms(noise, len(kept.vector), lattice, sites, settings.colluders)
    variance = max(0, terms.variance(use.noise_multiplier) - ROUNDING_VARIANCE)
    own = math.sqrt(variance) / terms.sensitivity
    return Use(min(use.noise_multiplier, own), 1.0, use.steps, use.purpose)
