"""Singling out and linking: what synthetic images say of whom, members against others.

Pure functions of features in one space. The control is built in: the same question asked of
patients who were not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom

from synth_common.audit.distances import Index, nearest
from synth_common.audit.statistics import Difference, share_difference

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_SCALED_BY = 10


@dataclass(frozen=True)
class Reidentification:
    """Patients who are singled out: the top-1 match of a synthetic image in a gallery of both.

    Attributes:
        member_share: Share of members among the patients singled out.
        control_share: The same if membership told nothing: the share of members in the gallery.
        error: Standard error of the first under that assumption.
        chance: Probability of so high a share by chance.
        singled_out: Patients singled out.
        gallery: Patients in the gallery.
    """

    member_share: float
    control_share: float
    error: float
    chance: float
    singled_out: int
    gallery: int

    @property
    def advantage(self) -> float:
        """Member share minus control share."""
        return self.member_share - self.control_share


def reidentify(synthetic: Array, real: Array, member: Flags, patients: Index) -> Reidentification:
    """Match synthetic images with their nearest real one, and look at who is matched.

    In many dimensions a few real images are the nearest of very many synthetic ones (hubs), and
    whether those few are members is chance. So distances are divided by the mean distance of
    the real image to its ten nearest synthetic ones (NICDM; Jegou et al. 2007, Schnitzer
    et al. 2012, JMLR 13), and each patient counts once. At most as many synthetic images are
    matched as there are patients; more would match everybody.

    Args:
        synthetic: (S, D).
        real: (N, D) gallery of members and others.
        member: (N,) True for images of members.
        patients: (N,) patient of each image, 0..P-1.
    """
    count = int(patients.max()) + 1
    truth = np.zeros(count, dtype=bool)
    truth[patients[member]] = True
    scale = np.maximum(nearest(real, synthetic, _SCALED_BY)[0].mean(axis=1), 1e-12)
    probes = np.linspace(0, len(synthetic) - 1, min(count, len(synthetic))).astype(np.int64)
    matched = nearest(synthetic[probes], real, 1, scale)[1][:, 0]
    singled_out = np.unique(patients[matched])
    found, hits, members = len(singled_out), int(truth[singled_out].sum()), int(truth.sum())
    expected, share = members / count, hits / found
    # Drawn without replacement from the gallery: hypergeometric.
    variance = expected * (1 - expected) / found * (count - found) / max(1, count - 1)
    chance = float(hypergeom.sf(hits - 1, count, members, found))
    return Reidentification(share, expected, float(np.sqrt(variance)), chance, found, count)


@dataclass(frozen=True)
class Linkability:
    """Two studies of one patient, linked by way of the synthetic images.

    Attributes:
        linked: Patients linked, of members and of others.
        direct: The same without synthetic images: (hits, patients) of all.
    """

    linked: Difference
    direct: tuple[int, int]


def link_studies(
    synthetic: Array, real: Array, member: Flags, patients: Index, rng: np.random.Generator
) -> Linkability | None:
    """Whether the synthetic images tie a patient's studies together.

    Of every patient with two images or more, one is the probe and another stands in the
    gallery. The probe's nearest synthetic image is taken, and the gallery image nearest to
    THAT; it is a hit if it shows the same patient. (Anonymeter's linkability, Giomi et al.
    2023, section 3.3, with images for the two halves of a record.)

    Returns:
        None if there is no member, or no other, with two images.
    """
    probe, gallery, whom = _two_each(patients, rng)
    is_member = np.zeros(int(patients.max()) + 1, dtype=bool)
    is_member[patients[member]] = True
    side = is_member[whom]
    if not side.any() or side.all():
        return None
    by_way_of = synthetic[nearest(real[probe], synthetic)[1][:, 0]]
    linked = nearest(by_way_of, real[gallery])[1][:, 0] == np.arange(len(whom))
    direct = nearest(real[probe], real[gallery])[1][:, 0] == np.arange(len(whom))
    return Linkability(
        share_difference(
            (int(linked[side].sum()), int(side.sum())),
            (int(linked[~side].sum()), int((~side).sum())),
        ),
        (int(direct.sum()), len(whom)),
    )


def _two_each(patients: Index, rng: np.random.Generator) -> tuple[Index, Index, Index]:
    """Positions of two random images of each patient who has them, and the patients."""
    order = rng.permutation(len(patients))
    order = order[np.argsort(patients[order], kind="stable")]
    ranked = patients[order]
    whom, start, count = np.unique(ranked, return_index=True, return_counts=True)
    chosen = start[count >= 2]
    return order[chosen], order[chosen + 1], whom[count >= 2].astype(np.int64)
