"""One round at a site: check, reserve, train, keep the reply, commit, release.

The order is the guarantee. Nothing touches the images before the ledger holds the
reservation, and nothing leaves before it holds the commit. A request that comes twice
gets the stored reply, for free; a round that died half-way was paid for, and is paid
for again when it is asked for again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from synth_client.approval import require_approved, require_keepable
from synth_client.charge import planned_uses
from synth_client.outbox import Outbox, require_run_id
from synth_client.site import Site
from synth_common.errors import CheckpointError, PrivacyError
from synth_common.facts import Fact
from synth_common.generators import Generator, build_generator, public_weights
from synth_common.images.imageset import ImageSet
from synth_common.plan import Plan
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.egress import Outgoing, Permitted, Value, release, state_digest
from synth_common.privacy.ledger import Budget, Ledger, Reservation, RoundKey
from synth_common.privacy.statistics import label_histogram
from synth_common.privacy.training import LocalResult, Mechanism, PrivateTrainer, Steps
from synth_common.randomness import NoiseSource, derive_seed, noise_source

_SOURCE = "synth_client.round.train_round"


@dataclass(frozen=True)
class RoundRequest:
    """What the server asks for.

    Attributes:
        run_id: The run.
        round: 1-based.
        plan: The plan the server speaks of; must be one that the operator approved.
        state: The generator's travelling state to start from.
        anchor: The ledger entry that the server saw last of this site; None before it saw one.
    """

    run_id: str
    round: int
    plan: Plan
    state: Mapping[str, Tensor]
    anchor: str | None = None


def train_round(site: Site, request: RoundRequest) -> Outgoing:
    """Train one round privately and return what may leave.

    Raises:
        PlanError: The operator approved no such plan; names the fields that differ.
        PrivacyError: The request cannot be met without breaking the promise.
        LimitError: The site's own limits forbid a round now; nothing is charged.
        BudgetError: The site's budget or the run's target is spent.
        LedgerError, LedgerHeldError: The ledger does not verify, or is in use.
        CheckpointError: The state does not fit the planned generator.
        TrainingError: A released weight would not be finite.
        StorageError: The disk refused.
    """
    plan, outbox = request.plan, Outbox(site)
    with Ledger.hold(site.ledger_path) as ledger:
        if request.anchor is not None:
            ledger.require(request.anchor)
        require_approved(ledger, plan)
        _check(site, request, ledger.budget)
        generator = build_generator(plan.generator, seed=0, pretraining=plan.pretraining)
        permitted = generator.shared_state()
        generator.load_shared_state(request.state)
        _require_public_weights(request)
        digest = state_digest(request.state)
        key = RoundKey(request.run_id, request.round, digest, plan.digest())
        ledger.require_one_plan(key)
        stored = outbox.paid(ledger, key)  # one that is lost is made and charged again
        if stored is not None:
            made, reservation = stored
            values = _values(ledger, site, plan, reservation)
            return _released(made, values, permitted, (reservation, plan))
        site.require_within_limits(ledger)
        uses = planned_uses(ledger, site, plan, request.run_id)
        reservation = ledger.reserve(key, uses, plan.privacy.unit)
        made, result = _use(site, request, generator, reservation)
        made = _released(made, {}, permitted, (reservation, plan))
        reply = outbox.keep(key, made, result.kept)
        ledger.commit(reservation, reply)
        values = _values(ledger, site, plan, reservation)
    _note_locally(site, request, result)
    return _released(made, values, permitted, (reservation, plan))


def _check(site: Site, request: RoundRequest, budget: Budget) -> None:
    """Refuse a request that cannot be met truthfully; nothing is charged for it."""
    require_run_id(request.run_id)
    rounds = request.plan.training.rounds
    if not 1 <= request.round <= rounds:
        raise PrivacyError(f"round {request.round} is outside the plan's {rounds}")
    require_keepable(site, request.plan, budget)
    broken = [n for n, t in request.state.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise CheckpointError(f"tensor {broken[0]} of the request is not finite")


def _require_public_weights(request: RoundRequest) -> None:
    """Refuse a first round that does not start from the weights that the plan names.

    The weights are public, so privacy does not rest on this; what the operator approved does.
    """
    named = request.plan.pretraining.sha256
    if named is None or request.round != 1:
        return
    found = state_digest(public_weights(request.plan.generator, request.state))
    if found != named:
        raise CheckpointError(
            f"round 1 starts from weights of SHA-256 {found[:12]}, but the approved plan names "
            f"pretraining.sha256 = {named[:12]}...; have the coordinator start from the file of "
            "the plan"
        )


def _use(
    site: Site, request: RoundRequest, generator: Generator, reservation: Reservation
) -> tuple[Outgoing, LocalResult]:
    """Run what was reserved, and nothing else, on the private images."""
    path = ("round", request.run_id, request.round, reservation.number)
    noise = noise_source(request.plan.privacy.noise, site.seed, *path)
    data = site.units(request.plan)
    statistics: dict[str, Tensor] = {}
    result = None
    for use in reservation.uses:
        if use.purpose == "label histogram":
            statistics["label_histogram"] = label_histogram(
                data, len(request.plan.generator.classes), use.noise_multiplier, noise
            )
        else:
            seed = derive_seed(site.seed, *path, "public")
            result = _train(site, request, generator, (data, use, noise), seed)
    if result is None:
        raise PrivacyError(f"reservation {reservation.number} holds no training")
    return Outgoing(generator.shared_state(), {}, statistics), result


def _train(
    site: Site,
    request: RoundRequest,
    generator: Generator,
    charged: tuple[ImageSet, Use, NoiseSource],
    seed: int,
) -> LocalResult:
    """Take the round's private steps, exactly those that were reserved."""
    (data, use, noise), plan = charged, request.plan
    trainer = PrivateTrainer(
        generator,
        data,
        Mechanism(
            noise_multiplier=use.noise_multiplier,
            sample_rate=use.sample_rate,
            clip_norm=plan.privacy.clip_norm if plan.privacy.private else math.inf,
            max_images=plan.privacy.max_images_per_patient,
            denominator=plan.training.patients_per_step,
        ),
        site.training(plan),
        noise,
    )
    first = (request.round - 1) * plan.training.steps_per_round
    kept = Outbox(site).kept_before(request.run_id, request.round)
    return trainer.run(Steps(first, use.steps, seed), kept)


def _released(
    made: Outgoing,
    values: Mapping[str, Value],
    state: Mapping[str, Tensor],
    charged: tuple[Reservation, Plan],
) -> Outgoing:
    """What was made, through the gate: the planned state and the charged statistics."""
    reservation, plan = charged
    statistics = {
        use.purpose.replace(" ", "_"): (len(plan.generator.classes),)
        for use in reservation.uses
        if use.purpose != "training"
    }
    return release(Outgoing(made.tensors, values, made.statistics), Permitted(state, statistics))


def _values(ledger: Ledger, site: Site, plan: Plan, reservation: Reservation) -> dict[str, Value]:
    """The public values beside an update."""
    uses = ledger.history()
    (own,) = (use for use in reservation.uses if use.purpose == "training")
    return {
        "site": site.name,
        "epsilon": epsilon(uses, plan.privacy.delta, plan.privacy.accountant),
        "steps": sum(use.steps for use in uses if use.purpose == "training"),
        "noise_multiplier": own.noise_multiplier,
        "sample_rate": own.sample_rate,
        "ledger_head": ledger.head,
    }


def _note_locally(site: Site, request: RoundRequest, result: LocalResult) -> None:
    """Write what must not leave into the site's own facts."""
    if result.mean_loss is not None:
        family = request.plan.generator.family
        site.facts.append(
            Fact(
                "training.loss",
                result.mean_loss,
                "site-local",
                _SOURCE,
                site=site.name,
                round=request.round,
                detail={"loss": family, "clipped_share": result.clipped_share},
            )
        )
