"""Small drawn image sets for tests: textured pictures with a class, a patient and a site."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from synth_common.images.imageset import ImageSet

CLASSES = ("normal", "lesion")


def blob_set(
    patients: int,
    seed: int,
    *,
    size: int = 32,
    channels: int = 1,
    images_per_patient: int = 1,
    prefix: str = "p",
) -> ImageSet:
    """A soft body with its own place, width and texture per patient; lesions are bright spots."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    images, labels, names = [], [], []
    for patient in range(patients):
        label = patient % 2
        cy, cx, width = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6), rng.uniform(0.15, 0.25)
        phase, tilt = rng.uniform(0, 6, 2), rng.uniform(0.5, 1.5, 2)
        ly, lx = cy + rng.uniform(-0.1, 0.1), cx + rng.uniform(-0.1, 0.1)
        for _ in range(images_per_patient):
            body = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
            stripes = np.sin(12 * tilt[0] * x + phase[0]) * np.sin(12 * tilt[1] * y + phase[1])
            picture = 0.15 + 0.5 * body + 0.08 * stripes * body
            if label:
                picture += 0.3 * np.exp(-((y - ly) ** 2 + (x - lx) ** 2) / (2 * 0.06**2))
            picture += rng.normal(0, 0.02, (size, size))
            images.append(np.repeat(picture[None], channels, axis=0))
            labels.append(label)
            names.append(f"{prefix}{seed}-{patient}")
    return ImageSet(
        images=np.clip(np.stack(images), 0, 1).astype(np.float32),
        labels=np.array(labels, dtype=np.int64),
        class_names=CLASSES,
        patient_ids=np.array(names, dtype=str),
    )


def with_images(images: ImageSet, pixels: npt.NDArray[np.floating]) -> ImageSet:
    """A synthetic-looking set: other pixels, the same labels, nobody's ids."""
    return ImageSet(np.clip(pixels, 0, 1).astype(np.float32), images.labels, images.class_names)
