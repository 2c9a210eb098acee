"""Gaussian noise on the integers: drawn exactly, and what sums of it cost.

The discrete Gaussian N_Z(0, V) gives the integer y a probability proportional to
exp(-y^2 / 2V) (Canonne, Kamath and Steinke 2020, arXiv 2004.00010). Sums of it survive
arithmetic modulo a power of two, which floating-point noise does not, and no value tells
by its last bits what it was added to.

What it costs. Write rho_V(y) = exp(-y^2 / 2V). By Poisson's summation, the sum of rho_V over
Z + x is sqrt(2 pi V) (1 + theta) with theta between -e(V) and e(V),
e(V) = 2 q / (1 - q), q = exp(-2 pi^2 V), whatever x is. So two such sums differ by a factor
of at most exp(L(V)), L(V) = log((1 + e) / (1 - e)), and two facts follow, both pointwise:

1. The sum of N_Z(0, V) and N_Z(0, W) is N_Z(0, V + W) up to a factor exp(L(u)), where
   1/u = 1/V + 1/W (Kairouz, Liu and Steinke 2021, arXiv 2102.06387, on the distributed
   discrete Gaussian): complete the square.
2. N_Z(0, V), shifted by an integer, is up to a factor exp(L(s)) what becomes of the
   *continuous* N(0, V - s) with the same shift when each value is rounded at random, by a
   discrete Gaussian of variance s around it (Peikert 2010, Theorem 3.1). Rounding at random
   is post-processing.

Hence a sum of m such noises of total variance V on d coordinates costs what one continuous
Gaussian of variance V - s costs, but for a factor exp(H) in every probability, with
H = d (sum of the m - 1 terms L(u) + L(s)): if the continuous release is (epsilon, delta)-DP,
alone or composed with others, the discrete one is (epsilon + 2 H, exp(H) delta)-DP.
:func:`divergence` bounds 2 H. At variances of a few dozen it is below 1e-100.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np
import numpy.typing as npt

from synth_common.errors import PrivacyError
from synth_common.randomness import NoiseSource

ROUNDING_VARIANCE = 16
"""s of the module's text: the variance by which the discrete noise exceeds the continuous one
that it is charged as, in units of the integer grid."""

_MOST_DEVIATION = 2**52
_SURE = 2.0**20
"""A 64-bit word this far from its threshold decides; nearer ones get more bits. The threshold
2^64 exp(-g) has a relative error of a few 2^-53 from exp, and exp(-g) g 2^-51 <= 2^-52 from
rounding of g: below 2^15 in all."""

_Exponent = Callable[[int], tuple[int, int]]
"""The exact exponent of a position, as numerator and denominator."""


def discrete_gaussian(n: int, variance: int, noise: NoiseSource) -> npt.NDArray[np.int64]:
    """``n`` independent draws of N_Z(0, variance), exact if the source's words are.

    Algorithm 3 of Canonne, Kamath and Steinke 2020, over vectors: propose from a discrete
    Laplace of scale t = floor(sigma) + 1, keep with probability
    exp(-(abs(y) - variance / t)^2 / (2 variance)). How long it takes depends on the noise alone.

    Args:
        n: How many.
        variance: sigma^2 in units of the grid, an integer; 0 draws zeros.
        noise: Where the bits come from.

    Raises:
        PrivacyError: The variance is negative, or sigma is 2^52 or more.
    """
    if not 0 <= variance < _MOST_DEVIATION**2:
        raise PrivacyError(f"variance = {variance}: must be from 0 to below 2^104")
    if variance == 0 or n == 0:
        return np.zeros(n, dtype=np.int64)
    scale = math.isqrt(variance) + 1
    found: list[npt.NDArray[np.int64]] = []
    missing = n
    while missing > 0:
        proposed = _discrete_laplace(2 * missing + 64, scale, noise)
        kept = proposed[_accepted(proposed, variance, scale, noise)][:missing]
        found.append(kept)
        missing -= len(kept)
    return np.concatenate(found)


def divergence(least_variance: float, summands: int, coordinates: int) -> float:
    """By how much the epsilon of a sum of discrete Gaussians exceeds the continuous one's.

    Twice H of the module's text, an upper bound. Delta grows by the factor exp(H).

    Args:
        least_variance: Variance of the weakest summand, in units of the grid.
        summands: How many noises are added up.
        coordinates: Length of the vector.
    """
    terms = _factor(ROUNDING_VARIANCE)
    if summands > 1:
        # 1/u = 1/V + 1/W with V, W >= least_variance, so u >= least_variance / 2.
        terms += (summands - 1) * _factor(least_variance / 2)
    return 2.0 * coordinates * terms


def _factor(variance: float) -> float:
    """L of the module's text."""
    q = math.exp(-2.0 * math.pi**2 * variance)
    e = 2.0 * q / (1.0 - q) if q < 1.0 else math.inf
    return math.log1p(e) - math.log1p(-e) if e < 1.0 else math.inf


def _discrete_laplace(n: int, scale: int, noise: NoiseSource) -> npt.NDArray[np.int64]:
    """At most ``n`` draws with probability proportional to exp(-|y| / scale); their Algorithm 2."""
    within = _below(n, scale, noise)
    keep = _happens(within.astype(np.float64) / scale, lambda i: (int(within[i]), scale), noise)
    within = within[keep].astype(np.int64)
    size = within + scale * _geometric(len(within), noise)
    negative = (noise.words(len(size)) & np.uint64(1)).astype(np.bool_)
    once = ~(negative & (size == 0))  # else zero would be drawn twice as often
    values: npt.NDArray[np.int64] = np.where(negative, -size, size)[once]
    return values


def _accepted(
    proposed: npt.NDArray[np.int64], variance: int, scale: int, noise: NoiseSource
) -> npt.NDArray[np.bool_]:
    """Which proposals of the discrete Laplace stay."""
    distance = np.abs(proposed).astype(np.float64) - variance / scale

    def exact(i: int) -> tuple[int, int]:
        y = abs(int(proposed[i]))
        return (y * scale - variance) ** 2, 2 * variance * scale**2

    return _happens(distance**2 / (2.0 * variance), exact, noise)


def _geometric(n: int, noise: NoiseSource) -> npt.NDArray[np.int64]:
    """How often in a row something of probability exp(-1) happens."""
    count = np.zeros(n, dtype=np.int64)
    alive = np.arange(n)
    while len(alive):
        alive = alive[_happens(np.ones(len(alive)), lambda _: (1, 1), noise)]
        count[alive] += 1
    return count


def _below(n: int, bound: int, noise: NoiseSource) -> npt.NDArray[np.uint64]:
    """``n`` integers uniform on 0 .. bound - 1; words of an incomplete last block are redrawn."""
    words = noise.words(n)
    rest = 2**64 % bound
    if rest:
        while len(late := np.flatnonzero(words >= np.uint64(2**64 - rest))):
            words[late] = noise.words(len(late))
    return words % np.uint64(bound)


def _happens(
    exponents: npt.NDArray[np.float64], exact: _Exponent, noise: NoiseSource
) -> npt.NDArray[np.bool_]:
    """True with probability exp(-exponent), for each: a uniform number compared lazily.

    64 bits decide but where they lie too near to the threshold; there the exact exponent and
    more bits do.
    """
    words = noise.words(len(exponents))
    gap = words.astype(np.float64) - np.exp(-exponents) * 2.0**64
    below: npt.NDArray[np.bool_] = gap < 0.0
    for i in np.flatnonzero(np.abs(gap) < _SURE):
        below[i] = _below_exactly(int(words[i]), exact(int(i)), noise)
    return below


def _below_exactly(word: int, exponent: tuple[int, int], noise: NoiseSource) -> bool:
    """Whether a uniform number that begins with ``word`` is below exp(-exponent)."""
    value, bits = word, 64
    while True:
        for more in noise.words(3):
            value, bits = (value << 64) | int(more), bits + 64
        with localcontext() as context:
            context.prec = bits // 3 + 30  # 2^bits has 0.302 bits digits
            threshold = (Decimal(-exponent[0]) / Decimal(exponent[1])).exp() * 2**bits
            gap = Decimal(value) - threshold
        if abs(gap) > 2:
            return bool(gap < 0)
