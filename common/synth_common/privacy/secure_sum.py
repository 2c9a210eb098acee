"""Sums of vectors over sites, of which nobody learns more than the sum, with noise in it.

A vector that is released once is put on an integer grid, gets discrete Gaussian noise
(:mod:`discrete_gaussian`) and, where the server shall learn the sum alone, masks that cancel
over the sites (:mod:`pairwise_masks`); all arithmetic is modulo 2^b. With K sites each adds
the part 1/(K - t) of the noise's variance, so that the noise of a sum suffices even against t
sites that tell what they added (or, being honest, know it themselves and subtract it).

Sensitivity. Rounding moves each coordinate by at most 1/2, so two roundings of vectors that
differ by 1 in L2 differ by at most ``scale + sqrt(d)`` on the grid: the noise is scaled to
that, and :data:`SLACK` covers the floating-point error of the vector itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synth_common.errors import PrivacyError
from synth_common.privacy.discrete_gaussian import (
    ROUNDING_VARIANCE,
    discrete_gaussian,
    divergence,
)
from synth_common.privacy.pairwise_masks import Words
from synth_common.randomness import NoiseSource

LEAST_SITES = 3
"""Of two sites, each would see the other's vector by subtracting its own from the sum."""
SLACK = 1e-4
"""Public allowance, in units of the sensitivity, for a vector computed in floating point."""
_NEGLIGIBLE = 1e-6
"""Largest share of delta that the discreteness of the noise may cost."""
_TAIL = 16.0
"""Standard deviations that the public check of the range leaves for noise."""

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lattice:
    """The integers that stand for a vector's values; public.

    Attributes:
        scale_bits: One unit of the vector is 2^scale_bits steps of the grid.
        modulus_bits: Sums are known modulo 2^modulus_bits; at most 64.
    """

    scale_bits: int = 24
    modulus_bits: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.scale_bits < self.modulus_bits <= 64:
            raise PrivacyError(
                f"scale_bits = {self.scale_bits}, modulus_bits = {self.modulus_bits}: expected "
                "1 <= scale_bits < modulus_bits <= 64"
            )

    @property
    def scale(self) -> float:
        """Steps of the grid in one unit of the vector."""
        return float(2**self.scale_bits)

    def room(self, sites: int) -> int:
        """The largest size that a coordinate of one site may have, in steps of the grid."""
        return int((2 ** (self.modulus_bits - 1) - 1) // max(2, sites))

    def rounded(self, vector: Floats, sites: int) -> Integers:
        """The nearest points of the grid, int64 (size,).

        Raises:
            PrivacyError: A value is not finite, or could wrap around in the sum of ``sites``.
        """
        scaled = np.rint(np.asarray(vector, dtype=np.float64) * self.scale)
        if not bool((np.abs(scaled) < float(self.room(sites))).all()):  # also catches NaN
            raise PrivacyError(self._no_room(sites))
        return scaled.astype(np.int64)

    def require_room(self, most: float, deviation: float, sites: int) -> None:
        """Refuse, from public values alone, a grid that some sum would not fit on.

        Args:
            most: Largest size of a coordinate that is expected, in units of the vector.
            deviation: Standard deviation of one site's noise, in steps of the grid.
            sites: How many vectors are added up.

        Raises:
            PrivacyError: The grid is too small; names its bits.
        """
        if most * self.scale + _TAIL * deviation >= float(self.room(sites)):
            raise PrivacyError(self._no_room(sites))

    def wrapped(self, values: Integers) -> Words:
        """Integers modulo 2^modulus_bits, uint64."""
        return self.reduced(values.view(np.uint64))

    def reduced(self, words: Words) -> Words:
        """Words modulo 2^modulus_bits."""
        if self.modulus_bits == 64:
            return words
        return words & np.uint64(2**self.modulus_bits - 1)

    def vector(self, total: Words) -> Floats:
        """The values that a sum stands for, float64 (size,)."""
        shift = np.uint64(64 - self.modulus_bits)
        # Moved to the top, the sign bit is where int64 expects it.
        signed = (total << shift).view(np.int64) >> np.int64(shift)
        return signed.astype(np.float64) / self.scale

    def _no_room(self, sites: int) -> str:
        return (
            f"a value could leave the range of modulus_bits = {self.modulus_bits} at scale_bits = "
            f"{self.scale_bits} in a sum over {sites} sites: raise the one or lower the other"
        )


@dataclass(frozen=True)
class NoiseTerms:
    """The noise of one sum, as all sites know it.

    Attributes:
        noise_multiplier: Standard deviation over sensitivity of the continuous Gaussian as
            which the sum is charged; 0 for no noise.
        coordinates: Length of the vector.
        lattice: What it is rounded to.
        sites: How many sites share the noise; 1 where each adds all of it.
        colluders: Against how many of them the others' noise must suffice.
    """

    noise_multiplier: float
    coordinates: int
    lattice: Lattice
    sites: int = 1
    colluders: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.colluders < self.sites:
            raise PrivacyError(
                f"colluders = {self.colluders} of {self.sites} sites: must be 0 or more, and fewer "
                "than the sites"
            )

    @property
    def sensitivity(self) -> float:
        """Most that one unit moves the rounded vector, L2, in steps of the grid."""
        return self.lattice.scale * (1.0 + SLACK) + math.sqrt(self.coordinates)

    def variance(self, own_multiplier: float | None = None) -> int:
        """Variance that one site adds, in steps of the grid, rounded up.

        Args:
            own_multiplier: What a site charges itself where its budget asks for more noise than
                the plan. It relies on the others for the planned share only, and adds all
                that is missing.
        """
        own = self.noise_multiplier if own_multiplier is None else own_multiplier
        if own == 0.0:
            return 0
        honest = self.sites - self.colluders
        planned = self._whole(self.noise_multiplier)
        missing = self._whole(max(own, self.noise_multiplier)) - planned
        return math.ceil(planned / honest + missing)

    def require_negligible(self, delta: float) -> None:
        """Refuse noise so small that its being discrete would cost something.

        A release that is (epsilon + h, (1 + h) delta)-DP is (epsilon, delta + 2 h)-DP for
        small h; see :func:`divergence`.

        Raises:
            PrivacyError: Names the grid.
        """
        if self.noise_multiplier == 0.0:
            return
        excess = divergence(self.variance(), self.sites, self.coordinates)
        if not 2.0 * math.expm1(min(excess, 1.0)) <= _NEGLIGIBLE * delta:
            raise PrivacyError(
                f"scale_bits = {self.lattice.scale_bits}: the noise of one site has a variance of "
                f"{self.variance()} on the grid, too little for its discreteness to be negligible "
                f"against delta = {delta:g}; raise scale_bits"
            )

    def _whole(self, multiplier: float) -> float:
        """Variance that the noise of the sum needs, in steps of the grid."""
        return (multiplier * self.sensitivity) ** 2 + ROUNDING_VARIANCE


def noisy(vector: Floats, variance: int, lattice: Lattice, sites: int, noise: NoiseSource) -> Words:
    """A site's vector on the grid with its noise, modulo 2^b, uint64 (size,).

    Args:
        vector: float64 (size,). SENSITIVE.
        variance: Of the noise, in steps of the grid.
        lattice: Where it is rounded to.
        sites: How many such vectors will be added up.
        noise: Where the noise is drawn.

    Raises:
        PrivacyError: A value could wrap around in the sum.
    """
    values = lattice.rounded(vector, sites)
    values += discrete_gaussian(len(values), variance, noise)
    if int(np.abs(values).max(initial=0)) > lattice.room(sites):
        raise PrivacyError(lattice._no_room(sites))
    return lattice.wrapped(values)


class RunningSum:
    """Adds up vectors modulo 2^b as they come; the order does not matter.

    Args:
        size: Length of the vectors.
        lattice: What they are made of.
    """

    def __init__(self, size: int, lattice: Lattice) -> None:
        self._total: Words = np.zeros(size, dtype=np.uint64)
        self._lattice = lattice
        self.count = 0

    def add(self, words: Words) -> None:
        """Add one site's vector, uint64 (size,)."""
        self._total += words
        self.count += 1

    def vector(self) -> Floats:
        """The sum in units of the vector, float64 (size,)."""
        return self._lattice.vector(self._lattice.reduced(self._total))
