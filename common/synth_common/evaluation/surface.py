"""How far apart the outlines of two masks are, in pixels of the pictures that were compared.

Dice says how much of an area is shared; these say how far the outline is off, which for
thin structures such as vessels is another question.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, distance_transform_edt

Array = npt.NDArray[np.float64]
Masks = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def surface_scores(predicted: Masks, real: Masks) -> tuple[Array, Array]:
    """Average symmetric surface distance and 95 % Hausdorff distance of each pair of masks.

    The outline of a mask is its pixels with a neighbour (of four) outside of it; beyond the
    picture is outside. With ``d(a, B)`` the distance of an outline pixel to the nearest one
    of the other mask, the first is the mean of all ``d(a, B)`` and ``d(b, A)`` together, the
    second the larger of both directions' 95th percentiles (Heimann et al. 2009, section
    III-B; Huttenlocher et al. 1993).

    Args:
        predicted: (N, H, W), not zero is inside.
        real: The same shape.

    Returns:
        Two arrays (N,), pixels, 0 for equal masks; nan where either mask is empty, because
        an empty mask has no outline.
    """
    pairs = [_scores(a != 0, b != 0) for a, b in zip(predicted, real, strict=True)]
    table = np.array(pairs, dtype=np.float64).reshape(len(pairs), 2)
    return table[:, 0], table[:, 1]


def _scores(first: Mask, second: Mask) -> tuple[float, float]:
    """Both distances of one pair."""
    if not (first.any() and second.any()):
        return (np.nan, np.nan)
    edges = _outline(first), _outline(second)
    there = distance_transform_edt(~edges[1])[edges[0]]
    back = distance_transform_edt(~edges[0])[edges[1]]
    mean = (there.sum() + back.sum()) / (len(there) + len(back))
    return float(mean), float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _outline(mask: Mask) -> Mask:
    """The pixels of a mask with a neighbour outside."""
    outline: Mask = mask & ~binary_erosion(mask)
    return outline
