"""Black-box membership attacks: who was in the training set, told from synthetic images.

Pure functions of features (N, D) in one space; no input or output, no labels of who is a
member. Every attack returns one score per candidate, higher meaning "more likely a member".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KernelDensity

from synth_common.audit.distances import nearest, share_within

Array = npt.NDArray[np.float64]

_FOLDS = 5
_BASELINE_COMPONENTS = 32
_TREES = 100


def nearest_distance(candidates: Array, targets: Array) -> Array:
    """Euclidean distance of every candidate to the nearest target."""
    return nearest(candidates, targets)[0][:, 0]


def gan_leaks_full(candidates: Array, synthetic: Array) -> Array:
    """GAN-Leaks, full black box: ``-min d(x, S)`` (Chen et al., CCS 2020, section 5.2)."""
    return -nearest_distance(candidates, synthetic)


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


def monte_carlo(candidates: Array, synthetic: Array) -> Array:
    """Monte Carlo attack: share of ``S`` within ``eps`` of x (Hilprecht et al. 2019, section 4).

    ``eps`` is the median of the candidates' distances to their nearest synthetic image, as
    the paper's heuristic has it.
    """
    radius = float(np.median(nearest_distance(candidates, synthetic)))
    return share_within(candidates, synthetic, radius)


def synthetic_likeness(candidates: Array, synthetic: Array, reference: Array) -> Array:
    """LOGAN black box: how synthetic a classifier takes x to be (Hayes et al. 2019, section 4).

    Extremely randomised trees, grown to the end so that they remember, tell synthetic from
    reference images in at most 32 principal components; the score is their vote, in [0, 1].
    """
    known = np.concatenate([synthetic, reference])
    space = _components(known, _BASELINE_COMPONENTS)
    trees = ExtraTreesClassifier(_TREES, class_weight="balanced", random_state=0)
    trees.fit(space.transform(known), np.arange(len(known)) < len(synthetic))
    vote: Array = trees.predict_proba(space.transform(candidates))[:, 1]
    return vote


def attribute_confidence(
    candidates: Array,
    attribute: npt.NDArray[np.int64],
    synthetic: Array,
    synthetic_attribute: npt.NDArray[np.int64],
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Attribute inference by an adversary who learnt the attribute from synthetic images alone.

    A ridge-penalised logistic regression in at most 32 principal components of the synthetic
    images. What it infers of non-members as well as of members is knowledge of people, not of
    the persons trained on; hence only the difference counts (WP216's inference criterion, as
    Giomi et al. 2023 measure it).

    Args:
        candidates: (N, D).
        attribute: (N,) true value of each candidate, 0 upwards.
        synthetic: (S, D).
        synthetic_attribute: (S,), at least two values.

    Returns:
        (N,) probability given to the true value, 0 for one that no synthetic image has, and
        (N,) whether it was the value guessed.
    """
    space = _components(synthetic, _BASELINE_COMPONENTS)
    model = LogisticRegression(C=0.1, max_iter=500)
    model.fit(space.transform(synthetic), synthetic_attribute)
    shares = model.predict_proba(space.transform(candidates))
    known = np.zeros((len(candidates), int(max(attribute.max(), model.classes_.max())) + 1))
    known[:, model.classes_] = shares
    rows = np.arange(len(candidates))
    return known[rows, attribute], known.argmax(axis=1) == attribute


def remoteness(points: Array, reference: Array, neighbours: int = 5) -> Array:
    """Mean distance to the ``neighbours`` nearest reference images: high for unusual images."""
    remote: Array = nearest(points, reference, neighbours)[0].mean(axis=1)
    return remote


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
