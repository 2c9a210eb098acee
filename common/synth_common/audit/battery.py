"""All attacks on a release: which are run, in which feature spaces, and what could not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from synth_common.audit.attacks import (
    attribute_confidence,
    blind_baseline,
    domias,
    gan_leaks,
    gan_leaks_full,
    monte_carlo,
    remoteness,
    synthetic_likeness,
)
from synth_common.audit.candidates import Case
from synth_common.audit.copying import (
    AUTHENTICITY,
    C_T,
    CopyTest,
    authenticity,
    data_copying,
    find_neighbours,
    mixing,
)
from synth_common.audit.gathering import Flags, Gathered
from synth_common.audit.linkage import Linkability, Reidentification, link_studies, reidentify
from synth_common.audit.measuring import Scored
from synth_common.audit.near_copies import FLIPS, BestMatch, best_matches
from synth_common.audit.statistics import Difference, share_difference
from synth_common.errors import UnlikeError
from synth_common.evaluation.encoders import Encoder, radiomics_encoder, random_convolutions
from synth_common.evaluation.fidelity import standardise
from synth_common.images.imageset import ImageSet
from synth_common.randomness import numpy_stream

Array = npt.NDArray[np.float64]
Tell = Callable[[str], None]

_GRID = 4
_FEWEST_PER_VALUE = 10
_RARE = 0.0005
"""A difference between members and non-members that chance alone would give so rarely."""


@dataclass(frozen=True)
class Copies:
    """Near-copies of members, and of non-members as the control.

    Attributes:
        synthetic: Synthetic images looked at.
        of_members, of_nonmembers: Synthetic images that are a near-copy of an image of theirs.
        patients: Members and non-members copied: (members, non-members).
        sides: Patients looked through: (members, non-members).
        flips: How the copies of members were turned, by kind.
        highest: Largest similarity seen with a member, and with a non-member.
        difference: Copied members against copied non-members.
        pairs: (S, 2) positions of synthetic image and member's, most alike first; SENSITIVE.
        match: Best match of every synthetic image; SENSITIVE.
    """

    synthetic: int
    of_members: int
    of_nonmembers: int
    patients: tuple[int, int]
    sides: tuple[int, int]
    flips: dict[str, int]
    highest: tuple[float, float]
    difference: Difference
    pairs: npt.NDArray[np.int64]
    match: BestMatch


@dataclass(frozen=True)
class SpaceResults:
    """What was found in one feature space.

    Attributes:
        encoder: The space.
        scored: Attacks with a score per patient. SENSITIVE.
        copying: Tests for copying of the whole set, by name; those that could be run.
        reidentified: Singling out.
        linked: Linking; None where no patient has two images on both sides.
        inferred: Attribute inference by attribute: right guesses of members against others.
        remote: (N,) how unusual each candidate is.
    """

    encoder: Encoder
    scored: list[Scored]
    copying: dict[str, CopyTest]
    reidentified: Reidentification
    linked: Linkability | None
    inferred: dict[str, Difference]
    remote: Array


@dataclass
class Untested:
    """What was not tested, with the reason, in the order it came up."""

    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, why: str) -> None:
        """Note it once."""
        self.reasons.setdefault(what, why)


def spaces(channels: int) -> tuple[Encoder, Encoder]:
    """The feature spaces: radiomics-style features, and random convolutions on a 4 x 4 grid."""
    return radiomics_encoder(), random_convolutions(channels, _GRID)


def attack_space(
    gathered: Gathered,
    encoder: Encoder,
    synthetic_attributes: dict[str, npt.NDArray[np.str_]],
    seed: int,
    tell: Tell,
) -> SpaceResults:
    """Run everything that works on features, in one space.

    Raises:
        UnlikeError: Members and non-members keep to themselves without any synthetic image.
    """
    tell(f"{encoder.name}: features of {len(gathered.real) + len(gathered.synthetic)} images")
    sets = (gathered.real, gathered.synthetic, gathered.reference)
    features = [encoder.extract(s.images) for s in sets]
    # The scale is that of what the adversary holds.
    real, synthetic, reference = standardise(np.concatenate(features[1:]), *features)
    case = Case(real, gathered.member, gathered.patients, synthetic, reference)
    stream = (seed, "audit", encoder.name)
    found = find_neighbours(synthetic, real, case.member, case.patients)
    _require_mixed(mixing(found, numpy_stream(*stream, "mixing")), encoder.name)
    tell(f"{encoder.name}: membership attacks")
    scored = _membership(case, encoder.name)
    inferred: dict[str, Difference] = {}
    for name, (truth, drawn) in _attributes(gathered, synthetic_attributes).items():
        confidence, right = attribute_confidence(real, truth, synthetic, drawn)
        attack = f"Attribute inference: {name}"
        scored.append(_scored(case, attack, encoder.name, confidence, scored[0].blind))
        inferred[name] = _right_guesses(case, right)
    tell(f"{encoder.name}: copying, re-identification, linking")
    copying = {AUTHENTICITY: authenticity(found, numpy_stream(*stream, "authenticity"))}
    if (test := data_copying(found, numpy_stream(*stream, "copying"))) is not None:
        copying[C_T] = test
    return SpaceResults(
        encoder,
        scored,
        copying,
        reidentify(synthetic, real, case.member, case.patients),
        link_studies(synthetic, real, case.member, case.patients, numpy_stream(*stream, "link")),
        inferred,
        remoteness(real, reference),
    )


def _require_mixed(found: CopyTest, space: str) -> None:
    """Refuse members and non-members that keep to themselves, before any attack is run."""
    if found.chance < _RARE:
        raise UnlikeError(
            f"--members and --nonmembers are not alike in {space}: the image nearest to a real one "
            f"is on the other side for {found.value:.1%} of them, by chance it would be "
            f"{found.control:.1%} or so. Either they come from different sources, or patients have "
            "several images and no patient ids tell: record patient_id"
        )


def _membership(case: Case, space: str) -> list[Scored]:
    """The membership attacks, with one blind baseline."""
    x, s, r = case.candidates, case.synthetic, case.reference
    blind = case.by_patient(blind_baseline(x, case.member, case.patients))
    attacks: dict[str, Callable[[], Array]] = {
        "GAN-Leaks, full black box": lambda: gan_leaks_full(x, s),
        "GAN-Leaks, calibrated": lambda: gan_leaks(x, s, r),
        "Monte Carlo": lambda: monte_carlo(x, s),
        "DOMIAS": lambda: domias(x, s, r),
        "Classifier (LOGAN)": lambda: synthetic_likeness(x, s, r),
    }
    return [_scored(case, name, space, run(), blind) for name, run in attacks.items()]


def _scored(
    case: Case, attack: str, space: str, scores: Array, blind: tuple[Array, Array]
) -> Scored:
    """Scores by patient."""
    members, nonmembers = case.by_patient(scores)
    return Scored("images", attack, space, members, nonmembers, blind)


def _attributes(
    gathered: Gathered, synthetic: dict[str, npt.NDArray[np.str_]]
) -> dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Attributes that real and synthetic images have, as codes (N,) and (S,)."""
    found = {}
    names = np.array(gathered.real.class_names)
    real = {"class": names[gathered.real.labels], **gathered.attributes}
    drawn = {"class": names[gathered.synthetic.labels], **synthetic}
    for name in real:
        if name not in drawn:
            continue
        values, counts = np.unique(drawn[name], return_counts=True)
        values = values[counts >= _FEWEST_PER_VALUE]
        usable = np.isin(drawn[name], values).all() and np.isin(real[name], values).mean() > 0.5
        if 2 <= len(values) <= 10 and usable:
            every = sorted({*real[name].tolist(), *values.tolist()})
            codes = {value: code for code, value in enumerate(every)}
            found[name] = (
                np.array([codes[v] for v in real[name].tolist()], dtype=np.int64),
                np.array([codes[v] for v in drawn[name].tolist()], dtype=np.int64),
            )
    return found


def _right_guesses(case: Case, right: Flags) -> Difference:
    """Patients whose first image was guessed right, members against others."""
    patients, first = np.unique(case.patients, return_index=True)
    members = len(np.unique(case.patients[case.member]))
    hits = right[first]
    return share_difference(
        (int(hits[:members].sum()), members),
        (int(hits[members:].sum()), len(patients) - members),
    )


def search_copies(
    synthetic: ImageSet, members: ImageSet, nonmembers: ImageSet, threshold: float
) -> Copies:
    """Look for every synthetic image among the members, and among the others as the control."""
    match = best_matches(synthetic.images, members.images)
    control = best_matches(synthetic.images, nonmembers.images)
    copied, alike = match.similarity >= threshold, control.similarity >= threshold
    patients = (
        len(np.unique(members.units()[match.index[copied]])),
        len(np.unique(nonmembers.units()[control.index[alike]])),
    )
    sides = (members.unit_count(), nonmembers.unit_count())
    order = np.argsort(-match.similarity, kind="stable")
    flips = match.flip[copied]
    return Copies(
        len(synthetic),
        int(copied.sum()),
        int(alike.sum()),
        patients,
        sides,
        {name: int((flips == k).sum()) for k, name in enumerate(FLIPS) if (flips == k).any()},
        (float(match.similarity.max()), float(control.similarity.max())),
        share_difference((patients[0], sides[0]), (patients[1], sides[1])),
        np.stack([order, match.index[order]], axis=1),
        match,
    )
