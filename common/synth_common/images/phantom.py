"""Phantoms: drawn patients.

They need no download, belong to nobody, and are the ground truth of the tests, because
where the lesion is, and which image shows whom, is known.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from synth_common.errors import ConfigError
from synth_common.images.imageset import ImageSet
from synth_common.images.labels import LabelRule
from synth_common.images.preprocess import LUMA, Collected, Target, text_column
from synth_common.plan import StrictModel
from synth_common.randomness import numpy_stream

Look = Literal["radiograph", "ct", "mri", "histology"]
"""Chest radiograph, abdominal CT slice, brain MRI slice, stained tissue section."""

RAW_CLASSES = ("normal", "lesion")
_OVERSAMPLING = 2
_NOISE = 0.015  # standard deviation of the acquisition noise, share of full scale


class PhantomSource(StrictModel):
    """Drawn patients.

    Attributes:
        name: How sites and reports call the source.
        look: What is drawn.
        patients: How many patients.
        images_per_patient: Fewest and most images of a patient; drawn evenly.
        lesion_share: Share of patients whose images show a lesion.
        seed: Names the patients: another seed draws other people.
        label_map: ``normal`` or ``lesion`` -> canonical class, where names differ.
    """

    kind: Literal["phantom"] = "phantom"
    name: Annotated[str, Field(min_length=1)] = "phantom"
    look: Look = "radiograph"
    patients: Annotated[int, Field(ge=1, le=100_000)] = 240
    images_per_patient: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1, le=64)]] = (
        1,
        3,
    )
    lesion_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    seed: Annotated[int, Field(ge=0)] = 0
    label_map: dict[str, str] = Field(default_factory=dict)

    @field_validator("images_per_patient")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError("the fewest images of a patient must come first")
        return value

    @property
    def licence(self) -> str:
        """Drawn by this program: nobody's picture and nobody's property."""
        return "drawn by Synthward, shows no person; Apache-2.0 like the program"


def draw(
    look: Look, lesion: bool, seed: int, size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """One phantom image.

    The same seed with and without a lesion is the same picture but for the lesion.

    Args:
        look: What is drawn.
        lesion: Whether there is a lesion.
        seed: Names patient, pose and noise together.
        size: Height and width in pixels, 8 or more.

    Returns:
        The image, float32 in [0, 1], (size, size), or (size, size, 3) for histology, and
        the lesion's mask, uint8 {0, 1}, (size, size).
    """
    return _draw(look, lesion, (seed, 0, 0), size)


def load_phantom(source: PhantomSource, target: Target) -> Collected:
    """Draw every image of a source at the target's size.

    Patient ``i`` and its image ``j`` depend on the seed, ``i`` and ``j`` alone, not on
    how many others are drawn.

    Raises:
        ConfigError: The classes lack ``normal`` or ``lesion`` and no label map helps.
    """
    unknown = {source.label_map.get(c, c) for c in RAW_CLASSES} - set(target.classes)
    if unknown:
        raise ConfigError(
            f"source {source.name!r}: phantoms are {RAW_CLASSES}; {sorted(unknown)} is none of "
            f"the classes {list(target.classes)}. Rename the classes or set label_map"
        )
    where = f"source {source.name!r}"
    codes = LabelRule(where, source.label_map, (), target.classes).codes(RAW_CLASSES)
    pictures, masks, labels, patients = [], [], [], []
    for i in range(source.patients):
        lesion = _has_lesion(i, source.lesion_share)
        for j in range(_image_count(source, i)):
            picture, mask = _draw(source.look, lesion, (source.seed, i, j), target.size)
            pictures.append(_channels(picture, target.channels))
            masks.append(mask)
            labels.append(codes[int(lesion)])
            patients.append(f"phantom-{i:05d}")
    images = ImageSet(
        images=np.stack(pictures),
        labels=np.array(labels, dtype=np.int64),
        class_names=target.classes,
        patient_ids=text_column(patients),
        masks=np.stack(masks) if target.with_mask else None,
    )
    return Collected(images=images, offered=len(images), set_aside=())


def _draw(
    look: Look, lesion: bool, name: tuple[int, int, int], size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Image ``name`` = (seed, patient, image): anatomy and lesion belong to the patient."""
    from synth_common.images.phantom_canvas import Canvas, Pose
    from synth_common.images.phantom_looks import LOOKS

    seed, patient, number = name
    acquisition = numpy_stream(seed, "phantom", look, patient, "image", number)
    pose = Pose.sample(acquisition)
    canvas = Canvas.blank(size * _OVERSAMPLING, pose, colour=look == "histology")
    mask = LOOKS[look](
        canvas,
        numpy_stream(seed, "phantom", look, patient, "anatomy"),
        numpy_stream(seed, "phantom", look, patient, "lesion") if lesion else None,
    )
    picture = _reduce(canvas.image) * np.float32(acquisition.uniform(0.94, 1.06))
    picture += acquisition.normal(0.0, _NOISE, picture.shape).astype(np.float32)
    return np.clip(picture, 0.0, 1.0), (_reduce(mask) >= 0.5).astype(np.uint8)


def _reduce(canvas: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean over blocks of the oversampled canvas, (H, W[, C])."""
    k, size = _OVERSAMPLING, canvas.shape[0] // _OVERSAMPLING
    blocks = canvas.reshape(size, k, size, k, *canvas.shape[2:])
    mean: npt.NDArray[np.float32] = blocks.mean(axis=(1, 3), dtype=np.float32)
    return mean


def _channels(picture: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    """(H, W) or (H, W, 3) to (C, H, W)."""
    if picture.ndim == 3:
        return np.moveaxis(picture, 2, 0) if channels == 3 else (picture @ LUMA)[None]
    return np.repeat(picture[None], channels, axis=0)


def _has_lesion(patient: int, share: float) -> bool:
    """Whether a patient has a lesion: the share holds for any number of patients."""
    return int((patient + 1) * share) > int(patient * share)


def _image_count(source: PhantomSource, patient: int) -> int:
    """How many images a patient has."""
    low, high = source.images_per_patient
    rng = numpy_stream(source.seed, "phantom", source.look, patient, "count")
    return int(rng.integers(low, high + 1))
