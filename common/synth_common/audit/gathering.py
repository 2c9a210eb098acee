"""From the sets as they were given to those that attacks see: checked, freed of copies, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from synth_common.audit.alike import (
    Likeness,
    compare_quantities,
    differences,
    intensity_quantities,
    shared_patients,
)
from synth_common.audit.candidates import absent_from, copied_in
from synth_common.audit.intake import AuditSet
from synth_common.audit.policy import AuditPolicy
from synth_common.errors import UnlikeError
from synth_common.images.imageset import ImageSet
from synth_common.images.preprocess import text_column
from synth_common.randomness import numpy_stream

Flags = npt.NDArray[np.bool_]

MOST_PATIENTS = 4000
MOST_PER_PATIENT = 4
MOST_SYNTHETIC = 4000
_MOST_VALUES = 10
_PARTS = 3


@dataclass(frozen=True)
class Inputs:
    """The sets of an audit. SENSITIVE but for the synthetic one."""

    synthetic: AuditSet
    members: AuditSet
    nonmembers: AuditSet
    reference: AuditSet | None = None


@dataclass(frozen=True)
class Gathered:
    """What attacks see. SENSITIVE but for the synthetic images.

    Attributes:
        synthetic: The synthetic images, at most 4,000 drawn at random.
        real: Images of members, then of non-members; at most 4,000 patients a side.
        member: (N,) True for images of members.
        patients: (N,) patient of each, 0..P-1, members first.
        reference: The adversary's reference images.
        reference_how: Where they come from.
        attributes: (N,) text by name, of what both sides have.
        left_out: What was left out before, in words, with its number of images.
    """

    synthetic: ImageSet
    real: ImageSet
    member: Flags
    patients: npt.NDArray[np.int64]
    reference: ImageSet
    reference_how: str
    attributes: Mapping[str, npt.NDArray[np.str_]]
    left_out: Mapping[str, int]

    @property
    def sides(self) -> tuple[int, int]:
        """How many patients are members, and how many are not."""
        members = len(np.unique(self.patients[self.member]))
        return members, int(self.patients.max()) + 1 - members


def check_alike(inputs: Inputs, policy: AuditPolicy) -> list[Likeness]:
    """Compare members with non-members before anything is attacked.

    Raises:
        UnlikeError: They share patients or pictures, or a distribution differs by more than
            the policy allows; names each.
    """
    members, nonmembers = inputs.members, inputs.nonmembers
    both = (members.images, nonmembers.images)
    faults = []
    if patients := shared_patients(*both):
        faults.append(f"{patients} patients are on both sides; split by patient")
    pictures = int(copied_in(both[0], [both[1]]).sum())
    if pictures > policy.alike.max_shared_images:
        faults.append(
            f"{pictures} pictures of members are among the non-members too; remove duplicates "
            "before the split (alike.max_shared_images of the policy lets some pass)"
        )
    sides = (_quantities(members), _quantities(nonmembers))
    found = compare_quantities(*sides, policy.alike.max_distance)
    faults += differences(found)
    if faults:
        raise UnlikeError(
            f"--members and --nonmembers are not alike: {'; '.join(faults)}. Attacks would find "
            "these differences and call them membership. Draw the non-members from the same "
            "source, years and devices as the members, by patient"
        )
    return found


def _quantities(given: AuditSet) -> dict[str, npt.NDArray[np.float64]]:
    """All that is compared, a value per patient; stored sizes and dates per row."""
    found = intensity_quantities(given.images)
    sides = given.outline.sides.astype(np.float64)
    found["stored height (pixels)"], found["stored width (pixels)"] = sides[:, 0], sides[:, 1]
    if len(given.dates):
        found["date (days)"] = given.dates
    return found


def gather(inputs: Inputs, seed: int) -> Gathered:
    """Draw the candidates and the reference; an image in several sets stays in none of them."""
    left_out: dict[str, int] = {}
    members, nonmembers = inputs.members, inputs.nonmembers
    first = _without(members, [nonmembers.images])
    second = _without(nonmembers, [members.images])
    left_out["images on both sides"] = (
        len(members.images) + len(nonmembers.images) - len(first.images) - len(second.images)
    )
    if inputs.reference is None:
        second, rest = _halves(second, numpy_stream(seed, "audit", "reference"))
        reference, how = rest.images, "half of the non-members, who then are no candidates"
    else:
        given = inputs.reference.images
        reference = absent_from(given, [members.images, nonmembers.images])
        reference = _without_patients(reference, [members.images, nonmembers.images])
        left_out["reference images of members or non-members"] = len(given) - len(reference)
        how = "the reference set"
    first, second = (
        _drawn(side, numpy_stream(seed, "audit", "draw", name))
        for side, name in ((first, "members"), (second, "nonmembers"))
    )
    synthetic = inputs.synthetic.images
    if len(synthetic) > MOST_SYNTHETIC:
        order = numpy_stream(seed, "audit", "synthetic").permutation(len(synthetic))
        synthetic = synthetic.subset(np.sort(order[:MOST_SYNTHETIC]))
    reference = _some(reference, MOST_SYNTHETIC, numpy_stream(seed, "audit", "draw", "reference"))
    shared = [k for k in first.attributes if k in second.attributes]
    columns = {k: np.concatenate([first.attributes[k], second.attributes[k]]) for k in shared}
    return Gathered(
        synthetic,
        _joined(first.images, second.images),
        np.arange(len(first.images) + len(second.images)) < len(first.images),
        np.concatenate([first.images.units(), first.images.unit_count() + second.images.units()]),
        reference,
        how,
        columns,
        {reason: count for reason, count in left_out.items() if count},
    )


def patient_groups(gathered: Gathered, remote: npt.NDArray[np.float64]) -> dict[str, Flags]:
    """Groups of patients (P,) by class, site, further columns, and how unusual they are.

    Args:
        gathered: The candidates.
        remote: (N,) how far each image lies from the reference images.
    """
    groups: dict[str, Flags] = {}
    names = gathered.real.class_names
    columns = dict(gathered.attributes)
    if len(names) > 1:
        columns = {"class": text_column(np.array(names)[gathered.real.labels]), **columns}
    for column, values in columns.items():
        for value, chosen in _values(values):
            groups[f"{column} {value}"] = of_patients(chosen, gathered.patients)
    farthest = np.full(int(gathered.patients.max()) + 1, -np.inf)
    np.maximum.at(farthest, gathered.patients, remote)
    groups["outliers (the most unusual tenth)"] = farthest >= np.quantile(farthest, 0.9)
    return {name: flags for name, flags in groups.items() if not flags.all()}


def _values(column: npt.NDArray[np.str_]) -> list[tuple[str, Flags]]:
    """The values of a column and who has them; numbers of many values in thirds."""
    values = sorted({v for v in column.tolist() if v})
    if len(values) <= _MOST_VALUES:
        return [(value, column == value) for value in values]
    try:
        numbers = np.array([float(v) if v else np.nan for v in column.tolist()])
    except ValueError:
        return []  # ids, file names, free text
    edges = np.nanquantile(numbers, np.linspace(0, 1, _PARTS + 1))
    found = []
    for k in range(_PARTS):
        below = numbers <= edges[k + 1] if k == _PARTS - 1 else numbers < edges[k + 1]
        found.append((f"{edges[k]:g} to {edges[k + 1]:g}", (numbers >= edges[k]) & below))
    return found


def of_patients(chosen: Flags, patients: npt.NDArray[np.int64]) -> Flags:
    """Patients (P,) of whom an image (N,) was chosen."""
    return np.bincount(patients, weights=chosen) > 0


def _without(given: AuditSet, others: list[ImageSet]) -> AuditSet:
    """A set without the pictures that others hold."""
    copies = copied_in(given.images, others)
    return _subset(given, ~copies) if copies.any() else given


def _subset(given: AuditSet, chosen: Flags | npt.NDArray[np.int64]) -> AuditSet:
    """Some images of a set, with their attributes."""
    attributes = {k: v[chosen] for k, v in given.attributes.items()}
    return replace(given, images=given.images.subset(chosen), attributes=attributes)


def _without_patients(images: ImageSet, others: list[ImageSet]) -> ImageSet:
    """A set without the patients of others."""
    if images.patient_ids is None:
        return images
    known = [o.patient_ids for o in others if o.patient_ids is not None]
    return images.subset(~np.isin(images.patient_ids, np.concatenate(known))) if known else images


def _halves(given: AuditSet, rng: np.random.Generator) -> tuple[AuditSet, AuditSet]:
    """Two halves of a set by patient."""
    count = given.images.unit_count()
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[: count // 2]] = True
    flags = chosen[given.images.units()]
    return _subset(given, ~flags), _subset(given, flags)


def _drawn(given: AuditSet, rng: np.random.Generator) -> AuditSet:
    """At most 4,000 patients with at most four images each."""
    units = given.images.units()
    count = given.images.unit_count()
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[:MOST_PATIENTS]] = True
    order = rng.permutation(len(units))
    ranked = order[np.argsort(units[order], kind="stable")]
    starts = np.searchsorted(units[ranked], units[ranked])
    few = np.sort(ranked[np.arange(len(ranked)) - starts < MOST_PER_PATIENT])
    return _subset(given, few[chosen[units[few]]])


def _some(images: ImageSet, most: int, rng: np.random.Generator) -> ImageSet:
    """At most so many images, drawn at random."""
    if len(images) <= most:
        return images
    return images.subset(np.sort(rng.permutation(len(images))[:most]))


def _joined(first: ImageSet, second: ImageSet) -> ImageSet:
    """Members, then non-members; their ids are no longer needed."""
    masks = None
    if first.masks is not None and second.masks is not None:
        masks = np.concatenate([first.masks, second.masks])
    return ImageSet(
        np.concatenate([first.images, second.images]),
        np.concatenate([first.labels, second.labels]),
        first.class_names,
        masks=masks,
    )
