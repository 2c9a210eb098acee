"""Are members and non-members alike but for membership? If not, nothing can be concluded.

Where non-members come from another scanner or another year, every attack finds "members"
by the scanner or the year. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from synth_common.images.imageset import ImageSet

Array = npt.NDArray[np.float64]

_FEWEST = 5
_RARE = 0.001


@dataclass(frozen=True)
class Likeness:
    """How far a quantity differs between members and non-members.

    Attributes:
        quantity: What was compared.
        members, nonmembers: Its medians.
        distance: Largest gap of the two distribution functions (Kolmogorov-Smirnov), 0 to 1.
        chance: Probability of so large a gap by chance.
        alike: Whether that passes.
    """

    quantity: str
    members: float
    nonmembers: float
    distance: float
    chance: float
    alike: bool


def compare_quantities(
    members: Mapping[str, Array], nonmembers: Mapping[str, Array], limit: float
) -> list[Likeness]:
    """Compare every quantity that both sides have, a value per patient.

    A quantity differs if its gap is above ``limit`` and chance alone would give such a gap in
    any quantity less than once in a thousand audits. In large sets the gap decides, in small
    ones the chance.
    """
    shared = [name for name in members if name in nonmembers]
    shared = [n for n in shared if min(len(members[n]), len(nonmembers[n])) >= _FEWEST]
    found = []
    for name in shared:
        first, second = members[name], nonmembers[name]
        test = ks_2samp(first, second, method="asymp")
        differs = test.statistic > limit and test.pvalue < _RARE / len(shared)
        found.append(
            Likeness(
                name,
                float(np.median(first)),
                float(np.median(second)),
                float(test.statistic),
                float(test.pvalue),
                not differs,
            )
        )
    return found


def intensity_quantities(images: ImageSet) -> dict[str, Array]:
    """Brightness and contrast of each patient's images, and how many they are.

    Means over a patient's images; grey values in [0, 1]; colours are averaged.
    """
    grey = images.images.mean(axis=1).reshape(len(images), -1)
    dark, bright = np.quantile(grey, [0.05, 0.95], axis=1)
    columns = {
        "mean brightness": grey.mean(axis=1),
        "contrast (standard deviation)": grey.std(axis=1),
        "darkest twentieth": dark,
        "brightest twentieth": bright,
    }
    units = images.units()
    found = {name: by_unit(values, units) for name, values in columns.items()}
    return {**found, "images per patient": np.bincount(units).astype(np.float64)}


def by_unit(values: npt.NDArray[np.floating], units: npt.NDArray[np.int64]) -> Array:
    """Mean value of each unit 0..U-1."""
    sums = np.bincount(units, weights=values.astype(np.float64))
    return np.asarray(sums / np.bincount(units))


def shared_patients(first: ImageSet, second: ImageSet) -> int:
    """How many patient ids are in both sets; 0 where one has no ids."""
    if first.patient_ids is None or second.patient_ids is None:
        return 0
    return len(np.intersect1d(first.patient_ids, second.patient_ids))


def differences(found: Sequence[Likeness]) -> list[str]:
    """What is not alike, in words."""
    return [
        f"{item.quantity} (median {item.members:.4g} of members, {item.nonmembers:.4g} of "
        f"non-members; distributions differ by {item.distance:.2f})"
        for item in found
        if not item.alike
    ]
