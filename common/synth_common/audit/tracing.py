"""Tracing: who is in a released sum, told from the sum itself. Pure functions of tensors.

A release is the sum over patients of public vectors, with Gaussian noise. Whoever holds it can
ask of any candidate whether the candidate's vector is in it (Homer et al. 2008; Dwork, Smith,
Steinke, Ullman and Vadhan 2015, "Robust traceability from trace amounts"). For Gaussian noise and
patients the test below is, for every candidate, the most powerful at any rate of false alarms
(Neyman and Pearson 1933; Sankararaman et al. 2009 for sums without noise; Dong, Roth and Su 2022
for the noise alone).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from synth_common.generators.embedding import Embedding, Released
from synth_common.images.imageset import ImageSet
from synth_common.plan import Unit
from synth_common.privacy.training import image_tensor
from synth_common.randomness import numpy_stream

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

TRACING = "Tracing the released sum"
_MOST_REFERENCE = 2000
_VALUES = 2**26
"""Numbers of all reference vectors that are held at once, at most: 512 MiB."""
_VALUES_AT_ONCE = 2**21
_FLOOR = 1e-4
"""Least variance of a coordinate, relative to the mean over all."""
_LEAST_SHRINKAGE = 1e-3
_TINY = 1e-300


def trace_sum(
    released: Released, images: ImageSet, patients: Index, reference: ImageSet, unit: Unit
) -> Array:
    """Score (P,) of every patient: how far the released sum lies towards the patient's vector.

    Let V be the sum over n patients with noise of standard deviation s, z a candidate's vector,
    m and C mean and covariance of vectors in the population, from r reference patients. Then
    ``V ~ N(n m, M)``, and ``N(n m + z - m, M)`` with the candidate in it, where ``M = n (1 + n / r)
    C + s^2 I``; its n^2 / r is the error of m. How many images of a class there are is not
    known, so the classes' means are projected out: with P the inverse of M less what they span,
    the score is ``z' P V / sqrt(z' P z)``, standard normal for who is not in the sum. It is
    monotone in the likelihood ratio of each candidate.

    Args:
        released: The noisy sum.
        images: Of candidates, as the generator's plan has them. SENSITIVE.
        patients: (N,) patient of each image, 0..P-1, each with an image.
        reference: Images of others, whose ``units()`` are patients.
        unit: Of privacy: a patient adds the mean of the patient's vectors, or every image its own.
    """
    known = _population(released, reference, unit)
    towards, found = known.projected(released.vector[None])[0], []
    for z in patient_vectors(released.embedding, images, patients, unit):
        length = (z * known.projected(z)).sum(1).clamp(min=_TINY).sqrt()
        found.append(z @ towards / length)
    return torch.cat(found).numpy()


def patient_vectors(
    embedding: Embedding, images: ImageSet, patients: Index, unit: Unit
) -> Iterator[Tensor]:
    """What each patient adds to a sum, some float64 (B, size) at a time, by patient number.

    Of a patient with more images than enter a sum, the mean over all: which enter is secret.
    """
    x = image_tensor(images, embedding.shape[0] > images.channels)
    y = torch.from_numpy(images.labels)
    order = np.argsort(patients, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(patients[order])) + 1)
    at_once = max(1, _VALUES_AT_ONCE // embedding.size)
    for start in range(0, len(rows), at_once):
        block = []
        for own in rows[start : start + at_once]:
            weight = 1.0 / len(own) if unit == "patient" else 1.0
            weights = torch.full((len(own),), weight, dtype=torch.float64)
            block.append(embedding.weighted_sum(x[own], y[own], weights))
        yield torch.stack(block)


@dataclass(frozen=True)
class _Population:
    """The inverse of M = diag(variance) + spread' spread, less what the classes' means span.

    Taken by Woodbury's identity: nothing of (size, size) is held.

    Attributes:
        variance: (size,), of the noise and of what reference patients do not show.
        spread: (r, size).
        solver: (r, r), Cholesky factor of I + spread diag(variance)^-1 spread'.
        means: (K, size), every class's mean vector in its block.
    """

    variance: Tensor
    spread: Tensor
    solver: Tensor
    means: Tensor

    def projected(self, rows: Tensor) -> Tensor:
        """``rows P`` of (B, size)."""
        towards = self._inverse(self.means)
        weights = torch.linalg.pinv(towards @ self.means.T, hermitian=True)
        found = self._inverse(rows)
        rest: Tensor = found - (found @ self.means.T) @ weights @ towards
        return rest

    def _inverse(self, rows: Tensor) -> Tensor:
        """``rows M^-1`` of (B, size)."""
        plain = rows / self.variance
        inner = torch.cholesky_solve((plain @ self.spread.T).T, self.solver)
        found: Tensor = plain - (inner.T @ self.spread) / self.variance
        return found


def _population(released: Released, reference: ImageSet, unit: Unit) -> _Population:
    """What reference images tell of the sum over others.

    Their covariance is shrunk towards its own diagonal, on the scale of correlations and by the
    intensity of Ledoit and Wolf (2004), as there are more coordinates than patients.
    """
    embedding = released.embedding
    rest, means = _residuals(embedding, reference, unit)
    r = len(rest)
    variance = rest.square().mean(0)
    variance += _FLOOR * variance.mean() + _TINY
    shrinkage = _shrinkage(rest / variance.sqrt())
    count = float(embedding.class_counts(released.vector).sum().clamp(min=1.0))
    spread_of_sum = count * (1.0 + count / r)
    variance = released.sigma**2 + spread_of_sum * shrinkage * variance
    rest *= (spread_of_sum * (1.0 - shrinkage) / r) ** 0.5
    inner = torch.eye(r, dtype=torch.float64) + (rest / variance) @ rest.T
    spans = torch.diag_embed(means.T).permute(1, 2, 0).flatten(1)
    return _Population(variance, rest, torch.linalg.cholesky(inner), spans)


def _residuals(embedding: Embedding, reference: ImageSet, unit: Unit) -> tuple[Tensor, Tensor]:
    """Vectors (r, size) of reference patients less their classes' means (K, size / K)."""
    units = reference.units() if unit == "patient" else np.arange(len(reference), dtype=np.int64)
    most = max(2, min(_MOST_REFERENCE, _VALUES // embedding.size))
    # Drawn, as ids may be in an order that tells the class.
    drawn = numpy_stream(0, "tracing", "reference").permutation(int(units.max()) + 1)
    few = drawn[units] < most
    found = torch.cat([*patient_vectors(embedding, reference.subset(few), drawn[units[few]], unit)])
    shares = torch.stack([embedding.class_counts(vector) for vector in found])
    blocks = found.view(len(found), embedding.classes, -1)
    seen, sums = shares.sum(0)[:, None], blocks.sum(0)
    # A class that no reference patient has is taken to be like all of them.
    means = torch.where(seen > 0, sums / seen.clamp(min=_TINY), sums.sum(0) / seen.sum())
    return found - (shares[:, :, None] * means).flatten(1), means


def _shrinkage(rows: Tensor) -> float:
    """Ledoit and Wolf's (2004, section 3.3) intensity for rows (r, size) of mean 0."""
    r, size = rows.shape
    inner = rows @ rows.T
    squared = float(inner.square().sum()) / r**2
    apart = squared - float(inner.trace() / r) ** 2 / size
    error = (float(inner.diagonal().square().mean()) - squared) / r
    return min(1.0, max(_LEAST_SHRINKAGE, error / apart if apart > 0 else 1.0))
