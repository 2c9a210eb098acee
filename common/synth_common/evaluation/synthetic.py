"""Synthetic images of chosen classes: which labels, and the images of a generator for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from synth_common.errors import DataError
from synth_common.images.drawn import drawn_images
from synth_common.images.imageset import ImageSet
from synth_common.randomness import derive_seed

if TYPE_CHECKING:
    from synth_common.generators import Generator
    from synth_common.plan import Plan

_BATCH = 128


def balanced_labels(plan: Plan, count: int) -> np.ndarray:
    """``count`` labels, int64, the classes in turn: public, whatever a site's own mix is."""
    return np.arange(count, dtype=np.int64) % len(plan.generator.classes)


def class_labels(plan: Plan, count: int, shares: Sequence[float] = ()) -> np.ndarray:
    """``count`` labels, int64, in the given shares of the classes (largest remainders first).

    Empty ``shares`` stand for equal ones. Raises DataError if there are not as many shares
    as classes, or they do not sum to 1.
    """
    if not shares:
        return balanced_labels(plan, count)
    classes = len(plan.generator.classes)
    if len(shares) != classes or abs(sum(shares) - 1.0) > 1e-6:
        raise DataError(f"class shares {list(shares)}: expected {classes} that sum to 1")
    exact = np.asarray(shares) * count
    whole = np.floor(exact).astype(np.int64)
    rest = np.argsort(whole - exact, kind="stable")[: count - int(whole.sum())]
    whole[rest] += 1
    return np.repeat(np.arange(classes, dtype=np.int64), whole)


def sample_images(generator: Generator, labels: np.ndarray, seed: int) -> ImageSet:
    """Synthetic images with the given labels; image i depends on its label, ``seed`` and i.

    Args:
        generator: A generator with its weights loaded.
        labels: int64 (N,).
        seed: Root seed; every image gets one of its own.

    Returns:
        N images in [0, 1], with masks {0, 1} (threshold 0.5) if the generator makes them.
    """
    import torch

    seeds = [derive_seed(seed, "sample", i) for i in range(len(labels))]
    parts = [
        generator.sample(torch.from_numpy(labels[i : i + _BATCH]), seeds[i : i + _BATCH]).numpy()
        for i in range(0, len(labels), _BATCH)
    ]
    size = generator.plan.size
    shape = (0, generator.out_channels, size, size)
    drawn = np.concatenate(parts) if parts else np.zeros(shape, dtype=np.float32)
    return drawn_images(generator.plan, drawn, labels)
