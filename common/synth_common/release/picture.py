"""One synthetic image of a release."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Picture:
    """One synthetic image.

    Attributes:
        number: Its place in the release, from 0.
        split: ``train``, ``val`` or ``test``.
        label: Index of its class.
        seed: What it was drawn with; with the weights and the label it gives the image again.
        pixels: uint8 (1 or 3, H, W).
        mask: uint8 (H, W), values {0, 1}; None where the generator makes none.
    """

    number: int
    split: str
    label: int
    seed: int
    pixels: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8] | None

    @property
    def stem(self) -> str:
        """Its file name without an ending: six digits that say nothing."""
        return f"{self.number:06d}"
