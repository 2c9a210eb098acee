"""One round at a site: check, reserve, train, keep the reply, commit, release.

The order is the guarantee. Nothing touches the images before the ledger holds the
reservation, and nothing leaves before it holds the commit. A request that comes twice
gets the stored reply, for free; a round that died half-way was paid for, and is paid
for again when it is asked for again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synth_client.site import Site
from synth_common.errors import BudgetError, CheckpointError, PrivacyError, StorageError
from synth_common.facts import Fact
from synth_common.generators import Generator, build_generator
from synth_common.plan import Plan
from synth_common.privacy.accounting import Use, calibrate, epsilon
from synth_common.privacy.egress import Outgoing, Value, release_state, state_digest
from synth_common.privacy.ledger import Budget, Entry, Ledger, RoundKey
from synth_common.privacy.training import LocalResult, Mechanism, PrivateTrainer, Steps
from synth_common.randomness import derive_seed, noise_source

_SOURCE = "synth_client.round.train_round"
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_GROWTH = 4.0
"""A round that needs this many times the run's first noise would undo what was learnt."""


@dataclass(frozen=True)
class RoundRequest:
    """What the server asks for.

    Attributes:
        run_id: The run.
        round: 1-based.
        plan_digest: The plan the server speaks of; must be the one the site holds.
        state: The generator's travelling state to start from.
    """

    run_id: str
    round: int
    plan_digest: str
    state: Mapping[str, Tensor]


def train_round(site: Site, plan: Plan, request: RoundRequest) -> Outgoing:
    """Train one round privately and return what may leave.

    Raises:
        PrivacyError: The request deviates from the plan, or the unit cannot be kept.
        BudgetError: The site's budget or the run's target is spent.
        LedgerError, LedgerHeldError: The ledger does not verify, or is in use.
        CheckpointError: The state does not fit the planned generator.
        TrainingError: A released weight would not be finite.
        StorageError: The disk refused.
    """
    _check(site, plan, request)
    generator = build_generator(plan.generator, seed=0)
    generator.load_shared_state(request.state)
    key = RoundKey(request.run_id, request.round, state_digest(request.state))
    with Ledger.hold(site.ledger_path) as ledger:
        done = ledger.committed(key)
        if done is not None:
            tensors = _stored_reply(site, key, done)
            return release_state(tensors, generator.shared_state(), _values(ledger, plan, site))
        use = _planned_use(ledger, site, plan, request.run_id)
        limit = Budget(site.budget_epsilon, site.budget_delta, plan.privacy.accountant)
        reservation = ledger.reserve(key, use, limit)
        result = _train(site, plan, request, generator, (use, reservation))
        outgoing = release_state(generator.shared_state(), request.state, {})
        _store(site, key, outgoing.tensors, result.kept)
        ledger.commit(reservation, state_digest(outgoing.tensors))
        values = _values(ledger, plan, site)
    _note_locally(site, plan, request, result)
    return release_state(outgoing.tensors, request.state, values)


def _check(site: Site, plan: Plan, request: RoundRequest) -> None:
    """Refuse a request that is not what the site agreed to; nothing is charged for it."""
    if not _RUN_ID.fullmatch(request.run_id):  # it becomes part of a file name
        raise PrivacyError(f"run id {request.run_id[:80]!r} is not 1 to 64 letters, digits, - or _")
    if request.plan_digest != plan.digest():
        raise PrivacyError(
            f"plan digest {request.plan_digest[:12]} differs from the approved {plan.digest()[:12]}"
        )
    if not 1 <= request.round <= plan.training.rounds:
        raise PrivacyError(f"round {request.round} is outside the plan's {plan.training.rounds}")
    if plan.privacy.delta > site.budget_delta:
        raise PrivacyError(
            f"privacy.delta = {plan.privacy.delta:g} is above the {site.budget_delta:g} that the "
            f"budget of site {site.name} is stated at"
        )
    broken = [n for n, t in request.state.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise CheckpointError(f"tensor {broken[0]} of the request is not finite")
    if plan.privacy.unit == "patient" and site.train.patient_ids is None:
        raise PrivacyError(
            f"site {site.name} has no patient ids, so privacy.unit = patient cannot be kept; "
            "add a patient_id column or set privacy.unit = image"
        )


def _planned_use(ledger: Ledger, site: Site, plan: Plan, run_id: str) -> Use:
    """This round's noise: the run's own, or a larger one if interruptions ate the reserve.

    The site computes it from the plan and from its own ledger. Which round a message asks
    for does not enter: what is left is what the ledger has not committed.
    """
    terms, training = plan.privacy, plan.training
    rate, per_round = site.sample_rate(plan), training.steps_per_round
    if not terms.private:
        return Use(0.0, rate, per_round)
    own = ledger.history(run_id)
    left = max(1, training.rounds - ledger.committed_rounds(run_id)) * per_round
    if own:
        rest = Use(own[-1].noise_multiplier, rate, left)
        if epsilon([*own, rest], terms.delta, terms.accountant) <= terms.epsilon:
            return Use(rest.noise_multiplier, rate, per_round)
        growth = _MOST_GROWTH * own[0].noise_multiplier
        target = (terms.epsilon, terms.delta)
        noise = calibrate(own, (rate, left), target, terms.accountant, growth)
    else:
        planned = (rate, left + terms.spare_rounds * per_round)
        noise = calibrate(own, planned, (terms.epsilon, terms.delta), terms.accountant)
    uses = ledger.history()
    whole = epsilon([*uses, Use(noise, rate, left)], site.budget_delta, terms.accountant)
    if whole > site.budget_epsilon:
        spent = epsilon(uses, site.budget_delta, terms.accountant)
        raise BudgetError(
            f"budget_epsilon = {site.budget_epsilon:.4g} of site {site.name}: {spent:.4g} is "
            f"spent and the {left} steps still planned would bring it to {whole:.4g}"
        )
    return Use(noise, rate, per_round)


def _train(
    site: Site,
    plan: Plan,
    request: RoundRequest,
    generator: Generator,
    charge: tuple[Use, Entry],
) -> LocalResult:
    """Take the round's private steps, exactly those that were reserved."""
    use, reservation = charge
    terms = plan.privacy
    path = ("round", request.run_id, request.round, reservation.number)
    # The unit of the plan decides, whether or not the site knows its patients.
    data = site.train if terms.unit == "patient" else replace(site.train, patient_ids=None)
    trainer = PrivateTrainer(
        generator,
        data,
        Mechanism(
            noise_multiplier=use.noise_multiplier,
            sample_rate=use.sample_rate,
            clip_norm=terms.clip_norm if terms.private else math.inf,
            max_images=terms.max_images_per_patient,
            denominator=plan.training.patients_per_step,
        ),
        plan.training,
        noise_source(terms.noise, site.seed, *path),
    )
    first = (request.round - 1) * plan.training.steps_per_round
    steps = Steps(first, use.steps, derive_seed(site.seed, *path, "public"))
    return trainer.run(steps, _kept(site, request.run_id, request.round - 1))


def _values(ledger: Ledger, plan: Plan, site: Site) -> dict[str, Value]:
    """The public values beside an update."""
    uses = ledger.history()
    return {
        "site": site.name,
        "epsilon": epsilon(uses, plan.privacy.delta, plan.privacy.accountant),
        "steps": sum(use.steps for use in uses),
        "noise_multiplier": uses[-1].noise_multiplier,
        "sample_rate": uses[-1].sample_rate,
        "ledger_head": ledger.head(),
    }


def _reply_path(site: Site, run_id: str, number: int) -> Path:
    return site.outbox / f"{run_id}-{number:04d}.safetensors"


def _kept_path(site: Site, run_id: str, number: int) -> Path:
    return site.directory / "kept" / f"{run_id}-{number:04d}.safetensors"


def _store(
    site: Site, key: RoundKey, reply: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> None:
    """Keep the reply (to send it again for free) and the optimiser moments; older ones go."""
    for path, tensors in (
        (_kept_path(site, key.run_id, key.round), kept),
        (_reply_path(site, key.run_id, key.round), reply),
    ):
        partial = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(dict(tensors), partial)
            partial.replace(path)
            for old in path.parent.glob(f"{key.run_id}-*.safetensors"):
                if int(old.stem.rsplit("-", 1)[1]) < key.round - 1:
                    old.unlink()
        except OSError as err:
            raise StorageError(f"cannot write {path}: {err.strerror}") from err


def _stored_reply(site: Site, key: RoundKey, commit: Entry) -> dict[str, Tensor]:
    """The reply of a committed round, checked against the ledger."""
    path = _reply_path(site, key.run_id, key.round)
    try:
        tensors = load_file(path)
    except OSError as err:
        raise StorageError(f"round {key.round} was paid for, but its reply {path} is lost") from err
    if state_digest(tensors) != commit.reply:
        raise PrivacyError(f"{path} is not the reply that the ledger committed")
    return tensors


def _kept(site: Site, run_id: str, number: int) -> dict[str, Tensor]:
    """Optimiser moments of a round; none for the first, or when they are gone."""
    path = _kept_path(site, run_id, number)
    return load_file(path) if path.is_file() else {}


def _note_locally(site: Site, plan: Plan, request: RoundRequest, result: LocalResult) -> None:
    """Write what must not leave into the site's own facts."""
    if result.mean_loss is not None:
        detail = {"loss": plan.generator.family, "clipped_share": result.clipped_share}
        site.facts.append(
            Fact(
                "training.loss",
                result.mean_loss,
                "site-local",
                _SOURCE,
                site=site.name,
                round=request.round,
                detail=detail,
            )
        )
