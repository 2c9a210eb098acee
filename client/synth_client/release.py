"""A site's part of a release: one noisy sum over its patients, in one message.

The order is that of a round: check, reserve, compute, keep the reply, commit, leave. Under
secure aggregation the sum carries a part of the noise and leaves under masks that cancel
over all participants; under the local trust model it carries all of the noise.

Every attempt that is answered draws fresh noise and is charged as a release of its own: a
coordinator that says that an attempt failed may have got its sum all the same, and if a site
sent one noisy vector in two sums, their difference would show another site's vector with
that one's noise alone. And no attempt is answered twice but by the same kept reply, because
a mask hides one vector only.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace

import torch

from synth_client.approval import require_approved, require_keepable
from synth_client.charge import planned_release
from synth_client.enrol import load_key, load_peers
from synth_client.outbox import Outbox, require_run_id
from synth_client.site import Site
from synth_common.errors import AttemptSpentError, PlanError, PrivacyError
from synth_common.generators.embedding import Embedding, build_embedding
from synth_common.plan import EmbeddingPlan, Plan
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.egress import Outgoing, Permitted, Value, acknowledge, release
from synth_common.privacy.ledger import Ledger, Reservation, RoundKey
from synth_common.privacy.pairwise_masks import MaskContext, Words, total_mask
from synth_common.privacy.release_noise import release_noise
from synth_common.privacy.secure_sum import Lattice, NoiseTerms, noisy
from synth_common.privacy.statistics import embedding_sum
from synth_common.randomness import noise_source

_MORE_THAN_DECLARED = 16
"""A site may have so many times its declared patients before the grid is found too small."""


@dataclass(frozen=True)
class ReleaseRequest:
    """What the server asks for.

    Attributes:
        run_id: The run.
        attempt: From 1, and each is answered once; 0 in a roll-call.
        participants: Sites whose vectors are added up, sorted.
        plan: The plan the server speaks of; must be one that the operator approved.
        anchor: The ledger entry that the server saw last of this site; None before it saw one.
    """

    run_id: str
    attempt: int
    participants: tuple[str, ...]
    plan: Plan
    anchor: str | None = None

    @property
    def key(self) -> RoundKey:
        """What the ledger calls it."""
        asked = json.dumps([self.attempt, self.participants], separators=(",", ":"))
        digest = hashlib.sha256(f"release {asked}".encode()).hexdigest()
        return RoundKey(self.run_id, 0, digest, self.plan.digest(), self.attempt)

    @property
    def masked(self) -> bool:
        """Whether the server shall learn the sum only."""
        return self.plan.privacy.trust_model == "secure-aggregation"


def ready(site: Site, plan: Plan, run_id: str, anchor: str | None = None) -> Outgoing:
    """The answer to a roll-call: the site's name, if it could take part in a release now.

    Free: nothing is reserved, and no image is looked at. The checks are those of an attempt.
    A roll-call names no participants: under secure aggregation they are taken to be all
    enrolled sites, so that an attempt is refused for another one only if the site does not
    know it.

    Args:
        site: The site.
        plan: The plan the server speaks of.
        run_id: The run.
        anchor: As in :class:`ReleaseRequest`.

    Raises:
        ConfigError, PlanError, PrivacyError, BudgetError, LimitError, LedgerError: Why it could
            not.
    """
    with Ledger.read(site.ledger_path) as ledger:
        request = ReleaseRequest(run_id, 0, (site.name,), plan, anchor)
        embedding = _allowed(ledger, site, request)
        if request.masked:
            enrolled = sorted({site.name, *load_peers(site.directory)})
            request = replace(request, participants=tuple(enrolled))
        _prepared(ledger, site, request, embedding)
    return acknowledge({"site": site.name})


def release_embedding(site: Site, request: ReleaseRequest) -> Outgoing:
    """One attempt at the release; returns what may leave.

    Raises:
        ConfigError: The installed NumPy draws other random features than the other sites'.
        PlanError: The operator approved no such plan, it has no release, or the run was begun
            under another one.
        AttemptSpentError: The attempt was begun before, and its reply is lost or answered
            another request.
        PrivacyError: The request cannot be met without breaking the promise.
        LimitError: The site's own limits forbid an attempt now; nothing is charged.
        BudgetError: The site's budget, or the release's share of the target, does not bear it
            or the rounds after it.
        LedgerError, LedgerHeldError: The ledger does not verify, or is in use.
        StorageError: The disk refused.
    """
    plan, outbox, key = request.plan, Outbox(site), request.key
    with Ledger.hold(site.ledger_path) as ledger:
        embedding = _allowed(ledger, site, request)
        stored = outbox.paid(ledger, key)
        if stored is None:
            _require_fresh(ledger, request)
            use, mask = _prepared(ledger, site, request, embedding)
            reservation = ledger.reserve(key, (use,), plan.privacy.unit)
            made = _use(site, request, reservation, (embedding, mask))
            made = _released(made, {}, request, embedding)
            ledger.commit(reservation, outbox.keep(key, made, {}))
        else:
            made, reservation = stored
        values = _values(ledger, site, request, (reservation, embedding))
    return _released(made, values, request, embedding)


def _allowed(ledger: Ledger, site: Site, request: ReleaseRequest) -> Embedding:
    """What the plan releases; refuses who may not ask for it, and a site that cannot keep it."""
    if request.anchor is not None:
        ledger.require(request.anchor)
    require_approved(ledger, request.plan)
    require_run_id(request.run_id)
    require_keepable(site, request.plan, ledger.budget)
    ledger.require_one_plan(request.key)
    _settings(request.plan)
    return build_embedding(request.plan.generator)


def _prepared(
    ledger: Ledger, site: Site, request: ReleaseRequest, embedding: Embedding
) -> tuple[Use, Words | None]:
    """All that a new attempt needs before it is charged; refuses what would fail after that."""
    site.require_within_limits(ledger)
    use = planned_release(ledger, site, request.plan, request.run_id)
    return use, _mask(site, request, embedding, use)


def _settings(plan: Plan) -> EmbeddingPlan:
    """The plan's release."""
    if plan.release.embedding is None:
        raise PlanError("release.embedding: a release is asked for, and the plan has none")
    return plan.release.embedding


def _require_fresh(ledger: Ledger, request: ReleaseRequest) -> None:
    """Refuse an attempt that was begun before: its masks may hide another vector already."""
    if any(r.key.attempt == request.attempt for r in ledger.reservations(request.run_id)):
        raise AttemptSpentError(
            f"attempt {request.attempt} at the release of run {request.run_id} was begun before, "
            "and its reply is lost or went to another request; ask for an attempt with another "
            "number"
        )


def _terms(request: ReleaseRequest, embedding: Embedding) -> NoiseTerms:
    """The noise that the plan asks for; without masks each site adds all of it.

    Raises:
        PrivacyError: Too few participants to share it.
    """
    settings, plan = _settings(request.plan), request.plan
    lattice = Lattice(settings.scale_bits, settings.modulus_bits)
    if not request.masked:
        return NoiseTerms(release_noise(plan), embedding.size, lattice)
    if len(request.participants) < plan.release_sites:
        raise PrivacyError(
            f"participants = {list(request.participants)}: a sum needs at least "
            f"{plan.release_sites} sites to hide each of them (colluders = {settings.colluders}, "
            f"federation.min_sites = {plan.federation.min_sites})"
        )
    sites = len(request.participants)
    return NoiseTerms(release_noise(plan), embedding.size, lattice, sites, settings.colluders)


def _sites(request: ReleaseRequest) -> int:
    """Vectors in the sum: those named, and never fewer than a sum is made of."""
    return max(len(request.participants), request.plan.release_sites)


def _mask(site: Site, request: ReleaseRequest, embedding: Embedding, use: Use) -> Words | None:
    """The site's masks, None without secure aggregation; refuses what cannot be met.

    Everything here depends on the request and on public values only.
    """
    terms = _terms(request, embedding)
    terms.require_negligible(request.plan.privacy.delta)
    deviation = math.sqrt(terms.variance(use.noise_multiplier))
    most = float(_MORE_THAN_DECLARED * site.nominal_patients)
    terms.lattice.require_room(most, deviation, _sites(request))
    context = MaskContext(
        request.run_id, request.attempt, request.participants, request.plan.digest()
    )
    if not request.masked:
        return None
    key, peers = load_key(site.directory), load_peers(site.directory)
    return total_mask(site.name, key, peers, context, embedding.size)


def _use(
    site: Site,
    request: ReleaseRequest,
    reservation: Reservation,
    public: tuple[Embedding, Words | None],
) -> Outgoing:
    """Sum over the private images, add the noise that was reserved, and mask."""
    (embedding, mask), plan = public, request.plan
    path = ("release", request.run_id, request.attempt, reservation.number)
    noise = noise_source(plan.privacy.noise, site.seed, *path)
    vector = embedding_sum(
        site.units(plan), embedding, plan.generator, plan.privacy.max_images_per_patient, noise
    )
    (use,), terms = reservation.uses, _terms(request, embedding)
    variance = terms.variance(use.noise_multiplier)
    words = noisy(vector, variance, terms.lattice, len(request.participants), noise)
    if mask is not None:
        words = terms.lattice.reduced(words + mask)
    return Outgoing({}, {}, {_name(request): torch.from_numpy(words.view("int64"))})


def _name(request: ReleaseRequest) -> str:
    """What the egress gate calls the vector."""
    return "masked_embedding" if request.masked else "embedding"


def _released(
    made: Outgoing, values: dict[str, Value], request: ReleaseRequest, embedding: Embedding
) -> Outgoing:
    """The vector that was charged, through the gate."""
    permitted = Permitted({}, {_name(request): (embedding.size,)}, request.plan.privacy.trust_model)
    return release(Outgoing({}, values, made.statistics), permitted)


def _values(
    ledger: Ledger, site: Site, request: ReleaseRequest, charged: tuple[Reservation, Embedding]
) -> dict[str, Value]:
    """The public values beside the vector."""
    (reservation, embedding), terms = charged, request.plan.privacy
    (use,) = reservation.uses
    shared = _terms(request, embedding)
    deviation = math.sqrt(shared.variance(use.noise_multiplier))
    return {
        "site": site.name,
        "attempt": request.attempt,
        "epsilon": epsilon(ledger.history(), terms.delta, terms.accountant),
        "noise_multiplier": use.noise_multiplier,
        "noise_share": deviation / shared.lattice.scale,
        "ledger_head": ledger.head,
    }
