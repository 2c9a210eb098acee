"""The release of a run: ask for it, record it, and let the generator learn from it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from synth_common.facts import Fact, Scope
from synth_common.flower import Grid
from synth_common.generators.embedding import Released
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.secure_sum import Grid as Lattice
from synth_common.privacy.secure_sum import NoiseTerms
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

    Both for the site with the least noise, and as if it had answered every attempt.
    """
    terms, settings = run.scenario.privacy, run.scenario.release.embedding
    if settings is None or not terms.private:
        return {"epsilon": float("inf"), "epsilon_if_all_others_collude": float("inf")}
    grid = Lattice(settings.scale_bits, settings.modulus_bits)
    unit = NoiseTerms(1.0, len(kept.vector), grid).sensitivity / grid.scale
    prices = {}
    for name, noises in (
        ("epsilon", kept.noise_multipliers.values()),
        ("epsilon_if_all_others_collude", [s / unit for s in kept.noise_shares.values()]),
    ):
        uses = [Use(min(noises), 1.0, kept.attempts, "embedding")]
        prices[name] = epsilon(uses, terms.delta, terms.accountant)
    return prices
