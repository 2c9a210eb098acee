"""Drawn patients for audits: members, others, a reference and fresh images from one source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from synth_common.audit.gathering import Inputs
from synth_common.audit.intake import AuditSet, Outline
from synth_common.images.imageset import ImageSet
from synth_common.images.phantom import Look, PhantomSource
from synth_common.images.preprocess import Target
from synth_common.images.sources import IntakeReport, load_source

SIZE = 32
PATIENTS = 304
TARGET = Target(size=SIZE, channels=1, classes=("lesion", "normal"))


def phantoms(
    patients: int,
    seed: int,
    images: int | tuple[int, int] = 1,
    target: Target = TARGET,
    look: Look = "ct",
) -> ImageSet:
    """Drawn patients of one source; another seed draws other people."""
    span = images if isinstance(images, tuple) else (images, images)
    source = PhantomSource(patients=patients, images_per_patient=span, seed=seed, look=look)
    drawn = load_source(source, target, None).images
    assert drawn.patient_ids is not None
    return replace(drawn, patient_ids=np.char.add(f"{seed}-", drawn.patient_ids))


@dataclass(frozen=True)
class People:
    """Four groups of different people from one source."""

    members: ImageSet
    others: ImageSet
    reference: ImageSet
    fresh: ImageSet


def people(patients: int = PATIENTS) -> People:
    """Members and others have two images of every fourth patient."""
    drawn = [phantoms(patients, seed, images=2) for seed in (1, 2)]
    kept = np.flatnonzero((np.arange(2 * patients) % 2 == 0) | (np.arange(2 * patients) % 8 == 1))
    members, others = (d.subset(kept) for d in drawn)
    return People(members, others, phantoms(patients, 3), phantoms(patients, 4))


def audit_set(images: ImageSet, **attributes: np.ndarray) -> AuditSet:
    """A set as the intake hands it on."""
    from synth_common.images.duplicates import find_exact

    sides = np.full((len(images), 2), images.size)
    outline = Outline(Path("drawn"), None, images.class_names, sides, images.channels == 3)
    report = IntakeReport("drawn", len(images), len(images), {}, find_exact(images))
    return AuditSet(images, outline, report, attributes)


def nobodys(images: ImageSet) -> ImageSet:
    """The same pictures as a synthetic set has them: without ids."""
    return replace(images, patient_ids=None)


def inputs(synthetic: ImageSet, drawn: People) -> Inputs:
    """An audit of a synthetic set against these people."""
    return Inputs(
        audit_set(nobodys(synthetic)),
        audit_set(drawn.members),
        audit_set(drawn.others),
        audit_set(drawn.reference),
    )


def disguised(image: np.ndarray, number: int) -> np.ndarray:
    """A copy (C, H, W): as it is, mirrored, moved by two pixels, or with another contrast."""
    kind = number % 4
    if kind == 1:
        return image[:, :, ::-1]
    if kind == 2:
        moved = np.zeros_like(image)
        moved[:, 2:, :-1] = image[:, :-2, 1:]
        return moved
    return np.clip(0.6 * image + 0.2, 0, 1) if kind == 3 else image


def planted(drawn: People, share: float, kind: int | None = None) -> tuple[ImageSet, int]:
    """Fresh images among which a share are disguised copies of members, and how many.

    All of one ``kind`` of :func:`disguised`, or of all kinds in turn.
    """
    count = round(share * len(drawn.fresh))
    pixels = drawn.fresh.images.copy()
    for i in range(count):
        pixels[i] = disguised(drawn.members.images[7 * i], i if kind is None else kind)
    return replace(drawn.fresh, images=pixels), count


POLICY = """
name = "tests"

[[gates]]
measure = "membership"
limit = 0.62

[[gates]]
measure = "auc"
limit = 0.65

[[gates]]
measure = "tpr-at-1-percent"
limit = 0.12

[[gates]]
measure = "near-copies"
limit = 0.0

[[gates]]
measure = "data-copying"

[[gates]]
measure = "reidentification"
limit = 0.25

[[gates]]
measure = "linkability"
limit = 0.3

[[gates]]
measure = "attribute-inference"
limit = 0.2

[[gates]]
measure = "membership"
view = "model"
limit = 0.9
required = false
"""
