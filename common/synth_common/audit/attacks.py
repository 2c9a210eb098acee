"""Black-box membership attacks: who was in the training set, told from synthetic images.

Pure functions of features (N, D) in one space; no input or output, no labels of who is a
member. Every attack returns one score per candidate, higher meaning "more likely a member".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KernelDensity, NearestNeighbors

Array = npt.NDArray[np.float64]

_FOLDS = 5
_BASELINE_COMPONENTS = 32


def nearest_distance(candidates: Array, targets: Array) -> Array:
    """Euclidean distance of every candidate to the nearest target."""
    found = NearestNeighbors(n_neighbors=1).fit(targets).kneighbors(candidates)[0]
    distance: Array = found[:, 0]
    return distance


def gan_leaks(candidates: Array, synthetic: Array, reference: Array) -> Array:
    """Calibrated GAN-Leaks: ``min d(x, R) - min d(x, S)`` (Chen et al., CCS 2020, section 5.5).

    The reference takes out how easy an image is: a plain image lies near everything.
    """
    return nearest_distance(candidates, reference) - nearest_distance(candidates, synthetic)


def domias(candidates: Array, synthetic: Array, reference: Array, dimensions: int = 8) -> Array:
    """DOMIAS: ``log p_S(x) - log p_R(x)`` (van Breugel et al. 2023, arXiv 2302.12580).

    Gaussian kernel densities (Scott's bandwidth) in the first whitened principal components
    of synthetic and reference images together, at most ``dimensions`` of them.
    """
    known = np.concatenate([synthetic, reference])
    space = _components(known, dimensions)
    x, s, r = (space.transform(part) for part in (candidates, synthetic, reference))
    score: Array = _density(s).score_samples(x) - _density(r).score_samples(x)
    return score


def _components(points: Array, count: int) -> PCA:
    """The leading principal components, whitened; at most as many as the points allow."""
    count = min(count, *points.shape)
    return PCA(count, whiten=True, svd_solver="randomized", random_state=0).fit(points)


def _density(points: Array) -> KernelDensity:
    """A kernel density with Scott's bandwidth ``n^(-1 / (d + 4))`` for whitened points."""
    n, dimensions = points.shape
    return KernelDensity(bandwidth=n ** (-1.0 / (dimensions + 4))).fit(points)


def blind_baseline(
    candidates: Array, member: npt.NDArray[np.bool_], units: npt.NDArray[np.int64]
) -> Array:
    """Scores of an adversary who sees no synthetic image, cross-validated by patient.

    A ridge-penalised logistic regression learns members from non-members outright, which no
    real adversary can; if even that fails, the split tells nothing. If it succeeds, training
    and holdout differ by themselves, and an attack must do better to count.

    Args:
        candidates: (N, D) features of members and non-members.
        member: (N,) True for members.
        units: (N,) patient of each candidate; no patient is in two folds.
    """
    # The components are found without knowing who is a member, so once for all folds.
    features = _components(candidates, _BASELINE_COMPONENTS).transform(candidates)
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    scores: Array = cross_val_predict(
        model, features, member, groups=units, cv=folds, method="decision_function"
    )
    return scores
