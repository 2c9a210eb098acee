"""Membership inference from synthetic images alone, with a baseline and a control.

The adversary holds the synthetic images and a reference of other people's images, looks at
a candidate patient and guesses whether that patient was trained on. A figure counts only
beside two others: what can be guessed without any synthetic image (baseline), and what the
same attack says when members are set against members (control). Scores of single patients
disclose membership; they stay in this module, and only rates leave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from synth_common.audit.attacks import blind_baseline, domias, gan_leaks
from synth_common.audit.candidates import (
    Case,
    absent_from,
    at_most_each,
    refuse_shared_patients,
    some_units,
    split_units,
)
from synth_common.audit.statistics import (
    AucBootstrap,
    bootstrap_auc,
    detectable_auc,
    leading_members,
    tpr_at_fpr,
)
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.encoders import Encoder, random_convolutions
from synth_common.evaluation.fidelity import standardise
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet
from synth_common.randomness import numpy_stream

Array = npt.NDArray[np.float64]

FOUND = "attack found"
NOT_FOUND = "attack not found"
NOT_TESTED = "not tested"

MIN_PATIENTS = 20
"""Below this many members or non-members no attack is run."""

_ATTACKS = {"GAN-Leaks, calibrated": gan_leaks, "DOMIAS": domias}
_GRID = 4
_RATE = 0.01
_CHANCE_OF_LEADERS = 0.005
_SOURCE = "synth_common.audit.membership.evaluate_membership"


def evaluate_membership(  # noqa: PLR0913 - four sets of images that must not be mixed up
    train: ImageSet,
    holdout: ImageSet,
    synthetic: ImageSet,
    reference: ImageSet | None,
    config: EvaluationConfig,
    seed: int,
    site: str | None,
) -> list[Fact]:
    """Run two black-box attacks with a blind baseline and a member-versus-member control.

    Patients are the units: each counts once, with its highest image. Images that occur on
    both sides, or in the reference, are left out first. Of members, non-members and reference
    at most ``config.attack_patients`` units each are drawn.

    Args:
        train: Images the generator was trained on (members).
        holdout: Images of other patients of the same source (non-members).
        synthetic: Synthetic images the adversary holds.
        reference: Images of others that the adversary holds; None gives it the images of
            half of the holdout patients, who then are no candidates.
        config: Settings.
        seed: Root seed of draws and resamples.
        site: The site the facts speak of.

    Returns:
        One ``membership.attack`` fact per attack. With too few patients or images the
        numbers are None and the verdict is "not tested".

    Raises:
        DataError: A patient is in both ``train`` and ``holdout``.
    """
    refuse_shared_patients(train, holdout)
    rng = numpy_stream(seed, "membership")
    train, holdout = _without_duplicates(train, holdout)
    if reference is None:
        reference, holdout = split_units(holdout, rng)
        reference_how = "half of the holdout patients"
    else:
        reference = absent_from(reference, [train, holdout])
        reference_how = "the reference set"
    train, holdout, reference = (
        some_units(images, config.attack_patients, numpy_stream(seed, "membership", "cap", name))
        for name, images in (("train", train), ("holdout", holdout), ("reference", reference))
    )
    encoder = random_convolutions(train.channels, _GRID)
    detail = {
        "n_members": train.unit_count(),
        "n_nonmembers": holdout.unit_count(),
        "n_synthetic": len(synthetic),
        "n_reference": len(reference),
        "reference_how": reference_how,
        "encoder": encoder.name,
        "encoder_sha256": encoder.sha256,
    }
    smallest = min(train.unit_count(), holdout.unit_count(), len(synthetic), len(reference))
    if smallest < MIN_PATIENTS:
        return [_fact(_untested(name, detail), detail, site) for name in _ATTACKS]
    most = config.attack_images_per_patient
    sides = (at_most_each(train, most, rng), at_most_each(holdout, most, rng))
    case = _case(sides, synthetic, reference, encoder)
    return _run_attacks(case, config.bootstrap, detail, seed, site)


def _run_attacks(
    case: Case, resamples: int, detail: Mapping[str, Any], seed: int, site: str | None
) -> list[Fact]:
    """One fact per attack, judged against a common baseline."""

    def bootstrap(members: Array, nonmembers: Array, *path: str) -> AucBootstrap:
        stream = numpy_stream(seed, "membership", "bootstrap", *path)
        return bootstrap_auc(members, nonmembers, resamples, stream)

    # Attack and baseline draw the same patients, so that their difference is paired.
    blind = case.by_patient(blind_baseline(case.candidates, case.member, case.patients))
    baseline = bootstrap(*blind)
    facts = []
    for name, attack in _ATTACKS.items():
        scores = attack(case.candidates, case.synthetic, case.reference)
        members, nonmembers = case.by_patient(scores)
        measured = bootstrap(members, nonmembers)
        halves = numpy_stream(seed, "membership", "control", name).permutation(members)
        half = len(halves) // 2
        control = bootstrap(halves[:half], halves[half:], "control")
        leaders, chance = leading_members(members, nonmembers)
        point = tpr_at_fpr(members, nonmembers, _RATE)
        found = _found(measured, baseline, chance)
        value = {
            "attack": name,
            "auc": measured.value,
            "auc_interval": measured.interval(),
            "tpr_at_1pct_fpr": point.tpr,
            "tpr_interval": point.interval,
            "baseline_auc": baseline.value,
            "baseline_interval": baseline.interval(),
            "control_auc": control.value,
            "control_interval": control.interval(),
            "verdict": FOUND if found else NOT_FOUND,
            "power": _power(len(members), len(nonmembers), baseline, control),
        }
        more = {"leading_members": leaders, "leading_members_chance": chance}
        facts.append(_fact(value, {**detail, **more}, site))
    return facts


def _found(measured: AucBootstrap, baseline: AucBootstrap, chance: float) -> bool:
    """The rule, fixed before any run: the AUC, or a run of members at the top, says so.

    The AUC must lie above 0.5 and above the paired baseline with its whole interval. A run
    of members above every non-member counts below a chance of 0.005, unless the baseline
    shows that members and non-members differ by themselves.
    """
    above_chance = measured.interval()[0] > 0.5
    gain = AucBootstrap(
        measured.value - baseline.value, measured.resamples - baseline.resamples
    ).interval()[0]
    alike = baseline.interval()[0] <= 0.5
    return (above_chance and gain > 0) or (alike and chance < _CHANCE_OF_LEADERS)


def _power(members: int, nonmembers: int, baseline: AucBootstrap, control: AucBootstrap) -> str:
    """What the numbers could have shown, and what weakens them."""
    text = (
        f"at power 0.80 an AUC of {detectable_auc(members, nonmembers):.3f} or more would be "
        f"found with {members} member and {nonmembers} non-member units"
    )
    if baseline.interval()[0] > 0.5:
        text += (
            "; members and non-members differ without any synthetic image (baseline above "
            "0.5), which can hide a weaker leak"
        )
    low, high = control.interval()
    if not low <= 0.5 <= high:
        text += "; the control's interval misses 0.5 (one in twenty does by chance): repeat it"
    return text


def _untested(name: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    """The value of an attack that was not run."""
    numbers = (
        "auc",
        "auc_interval",
        "baseline_auc",
        "baseline_interval",
        "control_auc",
        "control_interval",
    )
    return {
        "attack": name,
        **dict.fromkeys(numbers),
        "tpr_at_1pct_fpr": "not resolvable",
        "tpr_interval": "not resolvable",
        "verdict": NOT_TESTED,
        "power": (
            f"too few: {detail['n_members']} members, {detail['n_nonmembers']} non-members, "
            f"{detail['n_synthetic']} synthetic and {detail['n_reference']} reference images; "
            f"{MIN_PATIENTS} of each needed"
        ),
    }


def _fact(value: Mapping[str, Any], detail: Mapping[str, Any], site: str | None) -> Fact:
    """A membership fact; it is computed from patients and stays at the site."""
    return Fact("membership.attack", value, "site-local", _SOURCE, site=site, detail=detail)


def _without_duplicates(first: ImageSet, second: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Both sets without the images that the other holds too."""
    return absent_from(first, [second]), absent_from(second, [first])


def _case(
    sides: tuple[ImageSet, ImageSet], synthetic: ImageSet, reference: ImageSet, encoder: Encoder
) -> Case:
    """Features of all sets, in the scale of what the adversary holds."""
    members, nonmembers = sides
    images = (members, nonmembers, synthetic, reference)
    features = [encoder.extract(s.images) for s in images]
    m, n, s, r = standardise(np.concatenate(features[2:]), *features)
    return Case(
        candidates=np.concatenate([m, n]),
        member=np.arange(len(m) + len(n)) < len(m),
        patients=np.concatenate([members.units(), members.unit_count() + nonmembers.units()]),
        synthetic=s,
        reference=r,
    )
