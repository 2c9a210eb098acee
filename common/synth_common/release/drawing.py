"""The images of a release: which classes, which seeds, which split.

Drawing from a frozen generator that differentially private training made is post-processing
(Dwork and Roth 2014, proposition 2.1): any number of images costs no patient anything, as long as
nothing else that depends on patients enters. So the mix of classes is that of the shares that the
sites released, or equal; never that of private counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synth_common.evaluation.synthetic import class_labels
from synth_common.images.drawn import drawn_images
from synth_common.plan import Plan
from synth_common.randomness import derive_seed, numpy_stream
from synth_common.release.names import SPLITS
from synth_common.release.picture import Picture

if TYPE_CHECKING:
    from synth_common.generators import Generator

MOST_IMAGES = 100_000
_BATCH = 128
_TRAIN, _VAL, _TEST = SPLITS
# Of ten images of a class in a row, as MedMNIST deals them: seven, one and two.
_PATTERN = (_TRAIN, _TRAIN, _TRAIN, _VAL, _TRAIN, _TRAIN, _TEST, _TRAIN, _TRAIN, _TEST)


@dataclass(frozen=True)
class Mix:
    """How many images of each class.

    Attributes:
        shares: Released shares by class; empty for equal ones.
        labels: int64 (N,), in the order of the release.
    """

    shares: Mapping[str, float]
    labels: npt.NDArray[np.int64]


def mix(plan: Plan, count: int, shares: Mapping[str, float], seed: int) -> Mix:
    """The labels of ``count`` images in the released shares, shuffled so that classes alternate.

    Raises:
        DataError: The shares are not those of the plan's classes.
    """
    ordered = [shares.get(name, 0.0) for name in plan.generator.classes] if shares else []
    labels = class_labels(plan, count, ordered)
    return Mix(shares, numpy_stream(seed, "release order").permutation(labels))


def splits(labels: npt.NDArray[np.int64]) -> list[str]:
    """A split for every image: within each class seven, one and two of ten."""
    seen: dict[int, int] = {}
    found = []
    for label in labels.tolist():
        at = seen.get(label, 0)
        found.append(_PATTERN[at % len(_PATTERN)])
        seen[label] = at + 1
    return found


def draw(generator: Generator, labels: npt.NDArray[np.int64], seed: int) -> Iterator[Picture]:
    """The images one by one; each has a seed of its own, and does not depend on the others.

    Args:
        generator: With its final weights loaded.
        labels: int64 (N,).
        seed: Root of the images' seeds.
    """
    import torch

    parts = splits(labels)
    seeds = [derive_seed(seed, "release", i) for i in range(len(labels))]
    for start in range(0, len(labels), _BATCH):
        some = slice(start, start + _BATCH)
        raw = generator.sample(torch.from_numpy(labels[some]), seeds[some]).numpy()
        images = drawn_images(generator.plan, raw, labels[some])
        for i in range(len(images)):
            number = start + i
            yield Picture(
                number=number,
                split=parts[number],
                label=int(labels[number]),
                seed=seeds[number],
                pixels=np.rint(images.images[i] * 255).astype(np.uint8),
                mask=None if images.masks is None else images.masks[i],
            )
