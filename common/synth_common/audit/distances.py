"""Distances between many feature vectors, by blocked matrix products.

Products are taken in float32, a block of rows at a time, so that memory does not grow with
the sets; what is returned is computed anew in float64 for the few pairs that were kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from synth_common.errors import DataError

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

_BLOCK = 512


def nearest(
    points: Array, targets: Array, count: int = 1, scale: Array | None = None
) -> tuple[Array, Index]:
    """The ``count`` nearest targets of every point, nearest first.

    Args:
        points: (N, D).
        targets: (T, D), T >= 1.
        count: How many; at most T are returned.
        scale: (T,), above 0: what distances to each target are divided by; None for 1.

    Returns:
        Euclidean distances (N, K), divided by ``scale``, and positions (N, K).

    Raises:
        DataError: There are no targets.
    """
    if not len(targets):
        raise DataError("no images to measure distances to")
    count = min(count, len(targets))
    low, norms = _prepared(targets)
    units = np.ones(len(targets)) if scale is None else scale
    weight = (units**-2)[None].astype(np.float32)
    index = np.empty((len(points), count), dtype=np.int64)
    for start in range(0, len(points), _BLOCK):
        rows = slice(start, start + _BLOCK)
        score = norms - 2.0 * (points[rows].astype(np.float32) @ low.T)
        if scale is not None:
            # Without a scale |x|^2 is the same for all targets of a point, and may stay out.
            own = np.einsum("nd,nd->n", points[rows], points[rows])[:, None].astype(np.float32)
            score = (score + own) * weight
        index[rows] = np.argpartition(score, count - 1, axis=1)[:, :count]
    distance = np.empty(index.shape)
    for start in range(0, len(points), _BLOCK):
        rows = slice(start, start + _BLOCK)
        for k in range(count):
            gap = points[rows] - targets[index[rows, k]]
            distance[rows, k] = np.sqrt(np.einsum("nd,nd->n", gap, gap)) / units[index[rows, k]]
    order = np.argsort(distance, axis=1, kind="stable")
    return np.take_along_axis(distance, order, axis=1), np.take_along_axis(index, order, axis=1)


def share_within(points: Array, targets: Array, radius: float) -> Array:
    """Share of the targets that lie within ``radius`` of each point, (N,) in [0, 1]."""
    low, norms = _prepared(targets)
    share = np.empty(len(points))
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        squared = norms - 2.0 * (block.astype(np.float32) @ low.T)
        own = np.einsum("nd,nd->n", block, block)[:, None]
        share[start : start + _BLOCK] = (squared + own <= radius**2).mean(axis=1)
    return share


def _prepared(targets: Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Targets in float32 and their squared lengths (1, T)."""
    norms = np.einsum("td,td->t", targets, targets)[None]
    return targets.astype(np.float32), norms.astype(np.float32)
