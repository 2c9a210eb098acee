"""Simulated scanner character: a site's images as another machine would show them.

This is a simulation of a difference between hospitals, not of any real scanner, and every
record of it says so. It is applied after preprocessing, in the simulator alone: a real
site has a real scanner.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from synth_common.images.imageset import ImageSet
from synth_common.plan import StrictModel
from synth_common.randomness import numpy_stream


class Scanner(StrictModel):
    """How a site's machine differs from the neutral one; the defaults change nothing.

    Attributes:
        window: Values shown as black and as white, on the scale [0, 1].
        gamma: Exponent of the tone curve; above 1 darkens the middle.
        blur: Standard deviation of a Gaussian blur, pixels of the final image.
        noise: Standard deviation of added Gaussian noise, share of full scale.
        border_text: Whether a burnt-in line of letter-like blocks stands in a corner.
    """

    window: tuple[
        Annotated[float, Field(ge=-1.0, le=1.0)], Annotated[float, Field(ge=0.0, le=2.0)]
    ] = (0.0, 1.0)
    gamma: Annotated[float, Field(ge=0.2, le=5.0)] = 1.0
    blur: Annotated[float, Field(ge=0.0, le=8.0)] = 0.0
    noise: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    border_text: bool = False

    @field_validator("window")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] - value[0] < 0.05:
            raise ValueError("white must lie at least 0.05 above black")
        return value

    def as_fact_value(self) -> dict[str, Any]:
        """The value of the fact ``data.scanner_shift``; always labelled as simulated."""
        return {"simulated": True, **self.model_dump(mode="json")}


def apply(scanner: Scanner, images: ImageSet, seed: int) -> ImageSet:
    """Show the images as the simulated scanner does: blur, window, gamma, noise, text.

    Args:
        scanner: The character.
        images: Images of one site; masks, labels and ids are kept as they are.
        seed: Names the noise and the text; the text is the same on all images.

    Returns:
        The set with other pixels, in [0, 1] again.
    """
    pixels = images.images
    if scanner.blur > 0:
        from scipy.ndimage import gaussian_filter  # slow to import, seldom needed

        sigma = (0.0, 0.0, scanner.blur, scanner.blur)
        pixels = gaussian_filter(pixels, sigma, mode="nearest", output=np.float32)
    low, high = scanner.window
    pixels = np.clip((pixels - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    if scanner.gamma != 1.0:
        pixels = pixels ** np.float32(scanner.gamma)
    if scanner.noise > 0:
        rng = numpy_stream(seed, "scanner", "noise")
        noise = rng.standard_normal(pixels.shape, dtype=np.float32)
        pixels = np.clip(pixels + np.float32(scanner.noise) * noise, 0.0, 1.0)
    if scanner.border_text:
        pixels = np.where(_text(images.size, seed), np.float32(1.0), pixels)
    return replace(images, images=pixels.astype(np.float32, copy=False))


def _text(size: int, seed: int) -> npt.NDArray[np.bool_]:
    """White pixels of five letter-like blocks in the upper left corner, bool (H, W)."""
    rng = numpy_stream(seed, "scanner", "text")
    dot = max(1, size // 64)
    line = np.zeros((5, 5 * 4), dtype=np.bool_)
    for letter in range(5):
        half = rng.random((5, 2)) < 0.6  # mirrored, so that the blocks look like capitals
        line[:, 4 * letter : 4 * letter + 3] = half[:, [0, 1, 0]]
        line[:, 4 * letter] = True
    block = np.kron(line, np.ones((dot, dot), dtype=np.bool_))
    page = np.zeros((size, size), dtype=np.bool_)
    page[dot : dot + block.shape[0], dot : dot + block.shape[1]] = block
    return page
