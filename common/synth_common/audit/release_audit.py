"""The audit of a release: checks, attacks, judgement, gates. No files: images in, facts out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synth_common.audit import audit_facts
from synth_common.audit.battery import (
    Copies,
    SpaceResults,
    Untested,
    attack_space,
    search_copies,
    spaces,
)
from synth_common.audit.candidates import Case
from synth_common.audit.copying import C_T
from synth_common.audit.gates import GateResult, Outcome, decide, verdict
from synth_common.audit.gathering import Gathered, Inputs, check_alike, gather, patient_groups
from synth_common.audit.guarantee import patient_guarantee
from synth_common.audit.judging import Tested, copy_tests, judge, link_tests
from synth_common.audit.measuring import FEWEST, Measured, Scored, measure, measure_group
from synth_common.audit.policy import WrittenPolicy
from synth_common.audit.released_model import ReleasedModel, model_scores
from synth_common.audit.server_view import require_sites, server_scores
from synth_common.audit.shadows import ATTACK, Shadows, attack_shadows
from synth_common.audit.tracing import TRACING, trace_sum
from synth_common.errors import DataError
from synth_common.facts import Fact

Tell = Callable[[str], None]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """What came of an audit.

    Attributes:
        facts: In the order to record them. Computed from patients: they stay at the site.
        gates: The outcome of every gate.
        verdict: Over all of them.
        copies: The search for near-copies, with the closest pairs. SENSITIVE.
    """

    facts: list[Fact]
    gates: list[GateResult]
    verdict: Outcome
    copies: Copies


def audit_release(
    inputs: Inputs,
    written: WrittenPolicy,
    model: ReleasedModel | None,
    seed: int,
    tell: Tell,
    shadows: Shadows | None = None,
) -> Outcomes:
    """Audit synthetic images against the patients that they were made from.

    Args:
        inputs: The sets.
        written: The policy.
        model: The released model, for white-box attacks; None audits the images alone.
        seed: Root seed of draws and resamples.
        tell: Is told each stage in public words as it begins.
        shadows: Shadow models of the model's recipe; None attacks without them.

    Raises:
        UnlikeError: Members and non-members are not alike; nothing was attacked.
        ConfigError: Updates of several sites, and no column ``site``.
        DataError: Fewer than 20 members, non-members, reference or synthetic images.
    """
    policy = written.policy
    tell("are members and non-members alike?")
    likeness = check_alike(inputs, policy)
    gathered = gather(inputs, seed)
    _require_enough(gathered)
    require_sites(gathered, model)
    untested = Untested()
    found = [
        attack_space(gathered, encoder, dict(inputs.synthetic.attributes), seed, tell)
        for encoder in spaces(gathered.real.channels)
    ]
    scored = [s for space in found for s in space.scored]
    scored += _white_box(gathered, model, found[-1].scored[0].blind, untested, tell)
    shadowed, shadow_facts = _shadowed(gathered, found, shadows, seed, tell)
    scored += shadowed
    images = inputs.synthetic.images
    tell(f"near-copies: {len(images)} synthetic images against every real one")
    copies = search_copies(
        images, inputs.members.images, inputs.nonmembers.images, policy.copy_similarity
    )
    tests = [t for space in found for t in _tests(space, untested)]
    level = policy.alpha / 2 / (len(scored) + len(tests) + 1)
    tell(f"intervals, controls and groups of {len(scored)} attacks")
    attacks = [measure(s, level, seed) for s in scored]
    groups = _groups(gathered, found[-1], scored, untested, seed)
    guarantee = patient_guarantee(policy, model, inputs.members.images)
    if isinstance(guarantee, str):
        untested.add("What a guarantee allows at most", guarantee)
    epsilon = None if isinstance(guarantee, str) else guarantee.epsilon
    results = judge(attacks, groups, tests, copies, policy, epsilon)
    gates = decide(results, policy)
    _note_views(model, shadows, untested)
    facts = [
        *audit_facts.input_facts(inputs, gathered, likeness),
        *audit_facts.policy_facts(written),
        *shadow_facts,
        *audit_facts.result_facts(results, policy),
        *audit_facts.ceiling_facts(guarantee, model is not None),
        *audit_facts.gate_facts(gates, verdict(gates), untested.reasons),
    ]
    return Outcomes(facts, gates, verdict(gates), copies)


def _require_enough(gathered: Gathered) -> None:
    """Refuse sets on which no attack could be judged."""
    members, nonmembers = gathered.sides
    counts = {
        "--synthetic": len(gathered.synthetic),
        "--members": members,
        "--nonmembers": nonmembers,
        "--reference": len(gathered.reference),
    }
    for option, count in counts.items():
        if count < FEWEST:
            raise DataError(
                f"{option}: {count} are left to test with ({gathered.reference_how} serve as "
                f"reference); an audit needs at least {FEWEST} of each"
            )


def _white_box(
    gathered: Gathered,
    model: ReleasedModel | None,
    blind: tuple[Array, Array],
    untested: Untested,
    tell: Tell,
) -> list[Scored]:
    """Scores from the model's weights, and from updates where they are stored."""
    if model is None:
        return []
    family = model.plan.generator.family
    tell(f"white-box attacks on the {family}")
    found = model_scores(model.generator, gathered.real)
    if model.released is not None:
        tell(f"tracing the released sum of {len(model.released.vector)} numbers")
        sides = (gathered.real, gathered.patients, gathered.reference)
        traced = trace_sum(model.released, *sides, model.plan.privacy.unit)
        found[TRACING] = traced[gathered.patients]
    if not found:
        untested.add(
            "White-box attacks on the model",
            f"none is known for the weights of the family {family} alone, and no released sum was "
            "found beside them",
        )
    empty = np.zeros((0, 0))
    case = Case(empty, gathered.member, gathered.patients, empty, empty)
    return [
        *(
            Scored("model", name, f"the released {family}", *case.by_patient(scores), blind)
            for name, scores in found.items()
        ),
        *server_scores(gathered, model, blind, untested, tell),
    ]


def _shadowed(
    gathered: Gathered,
    found: list[SpaceResults],
    shadows: Shadows | None,
    seed: int,
    tell: Tell,
) -> tuple[list[Scored], list[Fact]]:
    """The attack by shadow models and its fact; nothing where it is not asked for."""
    if shadows is None:
        return [], []
    tell(f"shadow models: {shadows.models} trainings of the generator's recipe")
    spaces = [(space.encoder, space.scored[0].blind) for space in found]
    scored, fact = attack_shadows(gathered, spaces, shadows, seed, tell)
    return scored, [fact]


def _tests(space: SpaceResults, untested: Untested) -> list[Tested]:
    """What is no AUC, of one space."""
    if space.linked is None:
        untested.add("Linkability", "no patients with two images on both sides")
    if not space.inferred:
        untested.add(
            "Attribute inference",
            "no attribute with two values or more (class or column of the metadata), at least "
            "ten images each, is recorded for synthetic and real images alike",
        )
    name = space.encoder.name
    if C_T not in space.copying:
        why = "no cell of the space holds ten synthetic images and ten held-out patients"
        untested.add(f"{C_T} ({name})", why)
    return [
        *copy_tests(space.copying, name),
        *link_tests(space.reidentified, space.linked, space.inferred, name),
    ]


def _groups(
    gathered: Gathered,
    space: SpaceResults,
    scored: list[Scored],
    untested: Untested,
    seed: int,
) -> list[Measured]:
    """Every attack in every group that is large enough."""
    found = []
    for name, chosen in patient_groups(gathered, space.remote).items():
        members = int(chosen[: gathered.sides[0]].sum())
        others = int(chosen.sum()) - members
        if min(members, others) < FEWEST:
            why = f"fewer than {FEWEST} members or non-members in it"
            untested.add(f"Group: {name}", why)
            continue
        measured = (measure_group(s, name, chosen, seed) for s in scored)
        found += [m for m in measured if m is not None]
    return found


def _note_views(model: ReleasedModel | None, shadows: Shadows | None, untested: Untested) -> None:
    """What the sets alone cannot show."""
    if model is None:
        untested.add("The released model", "no model was given (--model)")
    if model is None or not model.updates:
        untested.add("A curious server", "no stored updates were given (--updates)")
    if shadows is None:
        untested.add(
            ATTACK,
            "not asked for (--shadow-models K, with --model); it trains the generator K times anew",
        )
    untested.add(
        "Attacks nobody has thought of yet", "only the guarantee by epsilon bounds every attack"
    )
