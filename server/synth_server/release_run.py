"""The release of a run: get it once, record it, and let the generator learn from it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from synth_common.facts import Fact
from synth_common.generators.embedding import Released
from synth_common.plan import Plan
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.discrete_gaussian import ROUNDING_VARIANCE
from synth_common.privacy.release_noise import release_noise
from synth_common.privacy.secure_sum import Lattice, NoiseTerms
from synth_common.promise import trust_words
from synth_common.randomness import derive_seed
from synth_server.coordination import Coordination
from synth_server.deployed import release_values
from synth_server.learning import learn_release
from synth_server.pictures import scope_of
from synth_server.release import Releasing
from synth_server.release_store import Release, load_release, save_release
from synth_server.rounds import State

_SOURCE = "synth_server.release_run"
NO_BOUND = {"epsilon": math.inf, "epsilon_if_all_others_collude": math.inf}
"""The prices of a release without noise."""


def learn(run: Coordination, asking: Releasing) -> State:
    """Get the release, once in a run's life, and let the generator learn from it.

    What was released is kept before it is used, so that a stop while learning costs nothing. The
    state after it is the checkpoint of round 0.

    Raises:
        FederationError: Too few sites took part.
    """
    plan, folder = run.plan, run.checkpoints
    kept = load_release(folder, run.run_id, plan.digest())
    if kept is None:
        run.tell.note("every site is asked for its part of the release")
        kept = asking.run()
        save_release(folder, kept)
    run.memory.counts = asking.embedding.class_counts(kept.vector).tolist()
    began = time.perf_counter()
    run.tell.note(f"the generator learns from the release ({len(kept.sites)} sites)")
    seed = derive_seed(run.seed, "release")
    released = Released(kept.vector, kept.sigma, asking.embedding)
    learn_release(run.generator, released, plan, seed, run.tell.note)
    facts = _facts(run, kept, time.perf_counter() - began)
    run.log.extend([*facts, *run.more(0, release_values(kept))])
    state = run.generator.shared_state()
    run.keep(0, state)
    return state


def _facts(run: Coordination, kept: Release, learning: float) -> list[Fact]:
    """What was released, at what price, and the classes' shares in it."""
    plan = run.plan
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
        **run.prices(kept),
        "bytes_up": kept.bytes_up,
        "messages": kept.messages,
        "seconds": round(kept.seconds, 3),
        "learning_seconds": round(learning, 3),
    }
    source = f"{_SOURCE}._facts"
    shares = dict(zip(plan.generator.classes, run.memory.shares(), strict=False))
    detail = {"noise": None, "released_with": "embedding"}
    # Without privacy the counts carry no noise: nothing was charged, so nothing was released.
    return [
        Fact("release.embedding", value, "public", source),
        Fact("data.label_shares", shares, scope_of(plan), source, detail=detail),
    ]


def prices_by_replies(plan: Plan, sites: int, kept: Release) -> Mapping[str, float]:
    """Epsilon of the release alone, from above, by what the sites said of their last attempt.

    A coordinator sees no ledger. It knows that no attempt was charged with less noise than the
    planned, and what each site was charged for the last one.

    Args:
        plan: The plan.
        sites: Most sites that can have shared the noise of an attempt that was lost.
        kept: The release.
    """
    terms = plan.privacy
    if plan.release.embedding is None or not terms.private:
        return NO_BOUND
    size, planned = len(kept.vector), Use(release_noise(plan), 1.0, 1, "embedding")
    lost = [planned] * (kept.attempts - 1)
    lost_alone = [if_all_others_collude(plan, use, size, sites) for use in lost]
    charged, alone = [], []
    for noise in sorted(set(kept.noise_multipliers.values())):
        last = Use(noise, 1.0, 1, "embedding")
        own = if_all_others_collude(plan, last, size, len(kept.sites))
        charged.append(epsilon([*lost, last], terms.delta, terms.accountant))
        alone.append(epsilon([*lost_alone, own], terms.delta, terms.accountant))
    return {"epsilon": max(charged), "epsilon_if_all_others_collude": max(alone)}


def if_all_others_collude(plan: Plan, use: Use, size: int, sites: int) -> Use:
    """An attempt among ``sites`` if all others tell what they added; no cheaper than charged.

    Args:
        plan: A plan with a release.
        use: The attempt, as charged.
        size: Of the released vector.
        sites: Who shared the noise.
    """
    settings = plan.release.embedding
    masked = plan.privacy.trust_model == "secure-aggregation"
    if settings is None or not masked:
        return use
    lattice = Lattice(settings.scale_bits, settings.modulus_bits)
    terms = NoiseTerms(release_noise(plan), size, lattice, sites, settings.colluders)
    variance = max(0, terms.variance(use.noise_multiplier) - ROUNDING_VARIANCE)
    own = math.sqrt(variance) / terms.sensitivity
    return Use(min(use.noise_multiplier, own), 1.0, use.steps, use.purpose)
