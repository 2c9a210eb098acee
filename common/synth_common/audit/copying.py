"""Has a generator copied its training set? Tests of the whole set, not of single patients.

A generator that draws typical images lies nearer to ANY real image than real images lie to
each other, so both statistics cry wolf by themselves. They are therefore set against what
they say when membership is dealt out anew among the same patients, which is the control.
Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata
from sklearn.cluster import KMeans

from synth_common.audit.distances import Index, nearest

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

AUTHENTICITY = "Authenticity"
C_T = "Data copying, C_T"

_KEPT = 64
_DEALS = 200
_MOST_CELLS = 10
_PER_CELL = 50
_LEAST_PER_CELL = 10


@dataclass(frozen=True)
class CopyTest:
    """A statistic for the members as they are, and its control.

    Attributes:
        value: With the true members.
        control: Mean with members dealt out at random.
        control_interval: Where 95 % of these lie.
        chance: Probability of a value as extreme, towards copying, if membership tells
            nothing; from the normal distribution with the control's mean and spread.
    """

    value: float
    control: float
    control_interval: list[float]
    chance: float


@dataclass(frozen=True)
class Neighbours:
    """Nearest real images, found once for all ways to deal membership. SENSITIVE.

    Attributes:
        member: (N,) True for images of members.
        patients: (N,) patient of each real image, 0..P-1.
        synthetic_distance, synthetic_index: (S, K) nearest real images of synthetic ones.
        real_distance, real_index: (N, K) nearest real images of other patients.
        synthetic_cell, real_cell: Cell of a partition of the space, made from all real images.
    """

    member: Flags
    patients: Index
    synthetic_distance: Array
    synthetic_index: Index
    real_distance: Array
    real_index: Index
    synthetic_cell: Index
    real_cell: Index


def find_neighbours(synthetic: Array, real: Array, member: Flags, patients: Index) -> Neighbours:
    """Find what the tests need, from features (S, D) and (N, D) of one space."""
    distance, index = nearest(synthetic, real, _KEPT)
    own, own_index = nearest(real, real, _KEPT + 8)
    foreign = patients[own_index] != patients[:, None]
    # Images of the same patient go to the end, and their distance counts as unknown.
    order = np.argsort(~foreign, axis=1, kind="stable")[:, :_KEPT]
    own = np.take_along_axis(np.where(foreign, own, np.inf), order, axis=1)
    holdout = len(np.unique(patients[~member]))
    cells = int(np.clip(holdout // _PER_CELL, 1, _MOST_CELLS))
    partition = KMeans(cells, n_init=1, random_state=0).fit(real)
    return Neighbours(
        member,
        patients,
        distance,
        index,
        own,
        np.take_along_axis(own_index, order, axis=1),
        partition.predict(synthetic).astype(np.int64),
        partition.labels_.astype(np.int64),
    )


def authenticity(found: Neighbours, rng: np.random.Generator) -> CopyTest:
    """Share of authentic synthetic images (Alaa et al. 2022, section 3.3); low means copying.

    A synthetic image is authentic if it lies farther from its nearest training image than
    that lies from the nearest training image of another patient.
    """

    def statistic(member: Flags) -> float:
        distance, place = _first(found.synthetic_distance, found.synthetic_index, member)
        between, _ = _first(found.real_distance, found.real_index, member)
        return float((distance > between[place]).mean())

    return _against_deals(statistic, found, rng)


def data_copying(found: Neighbours, rng: np.random.Generator) -> CopyTest | None:
    """C_T of Meehan, Chaudhuri and Dasgupta 2020 (section 3.2); far below 0 means copying.

    In every cell, the z of a Mann-Whitney test whether synthetic images lie farther from the
    training set than held-out images do (one per patient); the mean, weighted by the
    held-out images of the cells. Cells with fewer than 10 of either are left out; None where no
    cell is left, or where most deals of membership leave none.
    """
    single = np.zeros(len(found.patients), dtype=bool)
    single[np.unique(found.patients, return_index=True)[1]] = True

    def statistic(member: Flags) -> float:
        near, _ = _first(found.synthetic_distance, found.synthetic_index, member)
        far, _ = _first(found.real_distance, found.real_index, member)
        held = ~member & single
        total, weight = 0.0, 0
        for cell in range(int(found.real_cell.max()) + 1):
            drawn, real = near[found.synthetic_cell == cell], far[held & (found.real_cell == cell)]
            if min(len(drawn), len(real)) >= _LEAST_PER_CELL:
                total += len(real) * _rank_z(drawn, real)
                weight += len(real)
        return total / weight if weight else np.nan

    test = _against_deals(statistic, found, rng)
    return None if np.isnan(test.value + test.control) else test


def mixing(found: Neighbours, rng: np.random.Generator) -> CopyTest:
    """Share of real images whose nearest of another patient is on the other side; low is bad.

    No synthetic image is looked at (Schilling 1986, the nearest-neighbour test of two samples).
    Where members and non-members differ, or where several images of a patient count as several
    people, images keep to their own side.
    """

    def statistic(member: Flags) -> float:
        return float((member[found.real_index[:, 0]] != member).mean())

    return _against_deals(statistic, found, rng)


def _against_deals(
    statistic: Callable[[Flags], float], found: Neighbours, rng: np.random.Generator
) -> CopyTest:
    """The statistic of the true members against that of members dealt out at random.

    Deals in which it cannot be computed (nan) are left out; if they are most, the control is nan.
    """
    patients = int(found.patients.max()) + 1
    truth = np.zeros(patients, dtype=bool)
    truth[found.patients[found.member]] = True
    value = statistic(found.member)
    deals = np.array([statistic(rng.permutation(truth)[found.patients]) for _ in range(_DEALS)])
    deals = deals[~np.isnan(deals)]
    if len(deals) <= _DEALS // 2:
        return CopyTest(value, np.nan, [np.nan, np.nan], 1.0)
    centre, spread = float(deals.mean()), max(float(deals.std(ddof=1)), 1e-9)
    half = 1.96 * spread
    chance = float(norm.cdf((value - centre) / spread))
    return CopyTest(value, centre, [centre - half, centre + half], chance)


def _first(distance: Array, index: Index, member: Flags) -> tuple[Array, Index]:
    """Distance to, and position of, the nearest member; the farthest known where none is near."""
    chosen = member[index]
    place = np.where(chosen.any(axis=1), chosen.argmax(axis=1), index.shape[1] - 1)
    rows = np.arange(len(index))
    return distance[rows, place], index[rows, place]


def _rank_z(first: Array, second: Array) -> float:
    """Z of the Mann-Whitney statistic, positive if ``first`` is the larger; 0 if all are equal."""
    m, n = len(first), len(second)
    ranks = rankdata(np.concatenate([first, second]))
    wins = ranks[:m].sum() - m * (m + 1) / 2
    spread = np.sqrt(m * n / (m + n - 1) * ranks.var())
    return float((wins - m * n / 2) / spread) if spread > 0 else 0.0
