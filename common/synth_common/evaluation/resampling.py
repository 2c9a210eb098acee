"""Draws for intervals and comparisons: patients, not images, are what is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def bootstrap_weights(units: Index, resamples: int, rng: np.random.Generator) -> Array:
    """How often each image is drawn when units are drawn with replacement.

    Images of one patient come and go together, as they would if the study were repeated
    with other patients (cluster bootstrap, Davison and Hinkley 1997, section 3.8).

    Args:
        units: (N,), the unit 0..U-1 of each image.
        resamples: Number of resamples B.
        rng: Source of the draws.

    Returns:
        float64, (B, N), non-negative whole numbers.
    """
    count = int(units.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn.astype(np.float64)[:, units]


@dataclass(frozen=True)
class Draws:
    """Seeds and patients drawn again, B times.

    Attributes:
        seeds: (B, S), the share of each seed in a resample.
        images: (B, N), how often each image is drawn; a patient's images together.
    """

    seeds: Array
    images: Array

    def means(self, scores: Array) -> Array:
        """(B,) mean scores over seeds and images of (S, N) scores; nan counts for nothing.

        A resample with nothing but nan is nan.
        """
        there = ~np.isnan(scores)
        total = (self.images * (self.seeds @ np.where(there, scores, 0.0))).sum(axis=1)
        weight = (self.images * (self.seeds @ there)).sum(axis=1)
        drawn: Array = np.full(len(total), np.nan)
        np.divide(total, weight, out=drawn, where=weight > 0)
        return drawn


def draw_again(units: Index, repeats: int, resamples: int, rng: np.random.Generator) -> Draws:
    """Draw patients and seeds with replacement.

    Args:
        units: (N,), the unit 0..U-1 of each image.
        repeats: Number of seeds S.
        resamples: Number of resamples B.
        rng: Source of the draws.
    """
    images = bootstrap_weights(units, resamples, rng)
    seeds = rng.multinomial(repeats, np.full(repeats, 1 / repeats), size=resamples) / repeats
    return Draws(seeds, images)


def percentile_interval(values: Array, confidence: float = 0.95) -> list[float]:
    """The central ``confidence`` share of resampled values: [low, high]."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return [float(low), float(high)]


def comparable_count(target: Index, pools: list[Index], most: int) -> int:
    """How many images each side of a comparison can give at equal N and class mix.

    ``target`` holds the labels of the real images, ``pools`` those of the sets they are
    compared with. A class scarce in a pool lowers N so that the mix can be kept, but to
    no less than half; beyond that the mix gives way (:func:`draw_like`), and the missing
    class counts against the pool.
    """
    n = min(most, len(target), *(len(p) for p in pools))
    fit = float(n)
    classes, counts = np.unique(target, return_counts=True)
    for pool in pools:
        for label, share in zip(classes, counts / len(target), strict=True):
            available = int((pool == label).sum())
            if available:
                fit = min(fit, available / share)
    return int(max(fit, n / 2)) if n else 0


def draw_like(wanted: Index, pool: Index, rng: np.random.Generator) -> Index:
    """Positions in ``pool`` (labels) that repeat the class mix of ``wanted`` (labels).

    As many distinct positions as ``wanted`` has, in random order. What a class cannot
    give is filled at random from the rest. ``pool`` must not be shorter than ``wanted``.
    """
    order = rng.permutation(len(pool))
    taken = np.zeros(len(pool), dtype=bool)
    for label, count in zip(*np.unique(wanted, return_counts=True), strict=True):
        taken[order[pool[order] == label][:count]] = True
    missing = len(wanted) - int(taken.sum())
    taken[order[~taken[order]][:missing]] = True
    chosen: Index = order[taken[order]]
    return chosen
