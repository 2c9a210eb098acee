"""Who takes part in a step: patients by Poisson sampling, at most k images of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synth_common.randomness import NoiseSource


@dataclass(frozen=True)
class Draw:
    """The patients of one physical batch. SENSITIVE.

    Attributes:
        images: int64, positions of the drawn images; a patient's are consecutive, and
            patients are ordered by how many they have (ascending).
        counts: Images per drawn patient, ascending.
    """

    images: npt.NDArray[np.int64]
    counts: tuple[int, ...]


class PatientSampler:
    """Draws every unit independently with the same probability at every step.

    Args:
        units: int64 (N,), the unit of each image, 0..U-1 (``ImageSet.units``).
        sample_rate: Probability of each unit at each step.
        most: At most this many images of one unit in a step, chosen afresh each time.
        noise: Where the secret draws come from.
    """

    def __init__(
        self, units: npt.NDArray[np.int64], sample_rate: float, most: int, noise: NoiseSource
    ) -> None:
        order = np.argsort(units, kind="stable")
        cuts = np.flatnonzero(np.diff(units[order])) + 1
        self._images_of = np.split(order.astype(np.int64), cuts) if len(units) else []
        self._rate, self._most, self._noise = sample_rate, most, noise

    def draw(self) -> list[npt.NDArray[np.int64]]:
        """Image positions of each drawn unit; may be empty."""
        chosen = np.flatnonzero(self._noise.uniform(len(self._images_of)) < self._rate)
        return [self._some(self._images_of[u]) for u in chosen]

    def _some(self, images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """At most k of a unit's images, each subset equally likely."""
        if len(images) <= self._most:
            return images
        keys = self._noise.uniform(len(images))
        return images[np.sort(np.argsort(keys)[: self._most])]


def physical_batches(drawn: list[npt.NDArray[np.int64]], most_images: int) -> Iterator[Draw]:
    """Cut one logical draw into batches that fit memory; a patient is never cut.

    A batch exceeds ``most_images`` only if a single patient does.
    """
    ordered = sorted(drawn, key=len)
    batch: list[npt.NDArray[np.int64]] = []
    held = 0
    for images in ordered:
        if batch and held + len(images) > most_images:
            yield Draw(np.concatenate(batch), tuple(len(i) for i in batch))
            batch, held = [], 0
        batch.append(images)
        held += len(images)
    if batch:
        yield Draw(np.concatenate(batch), tuple(len(i) for i in batch))
