"""Shadow models: the generator's recipe followed anew, with and without each candidate (LiRA).

The likelihood-ratio attack of Carlini et al. 2022 ("Membership inference attacks from first
principles", algorithm 1, online), on images: how close a synthetic set comes to a candidate is
compared with how close sets come that were made with, and without, that candidate. Who trains
is passed in; scores of single patients stay here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from synth_common.audit.distances import nearest
from synth_common.audit.gathering import Gathered
from synth_common.audit.measuring import Scored
from synth_common.errors import ConfigError, DataError
from synth_common.evaluation.encoders import Encoder
from synth_common.evaluation.fidelity import standardise
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet
from synth_common.randomness import numpy_stream

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]

ATTACK = "Shadow models (LiRA)"
FEWEST_MODELS = 8
"""Fewer leave no more than three values to tell a spread by."""

_OWN_SPREAD = 64
"""From so many models on a candidate has spreads of its own; with fewer, Carlini et al. find one
spread for all candidates to serve better."""
_NEIGHBOURS = 5
_SMALLEST_DISTANCE = 1e-3
"""Of the median distance: closer than this is a copy, and how much closer says nothing more."""
_SMALLEST_SPREAD = 1e-3
_SOURCE = "synth_common.audit.shadows.attack_shadows"


@dataclass(frozen=True)
class Shadows:
    """How shadow models are had.

    Attributes:
        models: How many, even.
        draw: Follows the recipe on training images with ``patient_ids`` (SENSITIVE) and draws an
            image for every label (S,), from the number of the model, 0 upwards.
        recipe: What is to be recorded of the recipe, asked for after the last training.
    """

    models: int
    draw: Callable[[int, ImageSet, Labels], ImageSet]
    recipe: Callable[[], Mapping[str, Any]]


def require_models(models: int) -> None:
    """Refuse a number of shadow models that cannot be balanced. Raises ConfigError."""
    if models < FEWEST_MODELS or models % 2:
        raise ConfigError(
            f"--shadow-models {models}: must be even, so that each candidate is in half of the "
            f"trainings, and at least {FEWEST_MODELS}"
        )


def draw_halves(patients: int, models: int, rng: np.random.Generator) -> Flags:
    """(K, P) who is trained on: random halves, each followed by its complement.

    Every patient is in exactly K / 2 of them, so that in and out are equally well known.

    Args:
        patients: P, members and non-members together.
        models: K, even.
        rng: Draws the halves.
    """
    halves = []
    for _ in range(models // 2):
        chosen = np.zeros(patients, dtype=bool)
        chosen[rng.permutation(patients)[: patients // 2]] = True
        halves += [chosen, ~chosen]
    return np.stack(halves)


def closeness(candidates: Array, synthetic: Array, floor: float) -> Array:
    """(N,) mean of ``-log max(d, floor)`` over the five nearest of a set: how close it comes.

    GAN-Leaks' statistic (Chen et al., CCS 2020, section 5.2) with four neighbours more: a density
    that rises around a candidate shows in all of them, and one copy in the first. Its calibration
    by a reference would be the same for every set, and LiRA takes out whatever is a candidate's
    own. The logarithm makes the spread of near and far candidates alike, as Carlini et al. ask
    of a statistic that is to be taken for Gaussian.
    """
    distances = nearest(candidates, synthetic, _NEIGHBOURS)[0]
    close: Array = -np.log(np.maximum(distances, floor)).mean(axis=1)
    return close


def lira_scores(target: Array, shadows: Array, included: Flags) -> Array:
    """``log N(f; in) - log N(f; out)`` of every candidate (Carlini et al. 2022, algorithm 1).

    Means are each candidate's own. With fewer than 64 models the two spreads are those of all
    candidates together around their means, else each candidate's own.

    Args:
        target: (N,) statistic f of the audited set.
        shadows: (K, N) the same of every shadow model's set.
        included: (K, N) whether the model was trained on the candidate.

    Returns:
        (N,), higher for members.

    Raises:
        DataError: A candidate is in, or out of, fewer than two models.
    """
    if min(included.sum(axis=0).min(), (~included).sum(axis=0).min()) < 2:
        raise DataError("a candidate is in, or out of, fewer than two shadow models")
    own = len(shadows) >= _OWN_SPREAD
    floor = max(_SMALLEST_SPREAD * float(shadows.std()), np.finfo(np.float64).tiny)
    inside = _log_density(target, shadows, included, own, floor)
    return inside - _log_density(target, shadows, ~included, own, floor)


def _log_density(target: Array, shadows: Array, chosen: Flags, own: bool, floor: float) -> Array:
    """(N,) of the Gaussian fitted to the chosen values of each candidate, but for a constant."""
    counts = chosen.sum(axis=0)
    mean = np.where(chosen, shadows, 0.0).sum(axis=0) / counts
    squares = (np.where(chosen, shadows - mean, 0.0) ** 2).sum(axis=0)
    variance = squares / (counts - 1) if own else squares.sum() / (counts - 1).sum()
    spread = np.maximum(np.sqrt(variance), floor)
    density: Array = -np.log(spread) - 0.5 * ((target - mean) / spread) ** 2
    return density


def attack_shadows(
    gathered: Gathered,
    spaces: Sequence[tuple[Encoder, tuple[Array, Array]]],
    shadows: Shadows,
    seed: int,
    tell: Callable[[str], None],
) -> tuple[list[Scored], Fact]:
    """Train shadow models, and attack with them in every space.

    Each model's set holds as many images of each class as the audited one, so that distances to
    the nearest compare.

    Args:
        gathered: The candidates and the audited set.
        spaces: Feature spaces with their blind baselines by patient.
        shadows: How many models, and who trains them.
        seed: Root seed; who is trained on does not depend on who is a member.
        tell: Is told after each model how long all take.

    Returns:
        The attack's scores by patient in each space, and the fact ``audit.shadows``.
    """
    began = monotonic()
    patients = gathered.patients
    halves = draw_halves(
        int(patients.max()) + 1, shadows.models, numpy_stream(seed, "audit", "shadows")
    )
    included = halves[:, patients]
    views = [_Space.of(encoder, gathered) for encoder, _ in spaces]
    values = np.zeros((len(views), shadows.models, len(patients)))
    people = replace(gathered.real, patient_ids=np.char.mod("p%d", patients))
    trained = monotonic()
    for number in range(shadows.models):
        drawn = shadows.draw(number, people.subset(included[number]), gathered.synthetic.labels)
        for view, rows in zip(views, values, strict=True):
            rows[number] = view.of_set(drawn)
        tell(pace(number + 1, shadows.models, monotonic() - trained))
    scored = []
    for view, rows, (encoder, blind) in zip(views, values, spaces, strict=True):
        scores = _by_patient(lira_scores(view.audited, rows, included), patients)
        split = gathered.sides[0]
        scored.append(Scored("images", ATTACK, encoder.name, scores[:split], scores[split:], blind))
    value = {
        "models": shadows.models,
        "patients_each": int(halves[0].sum()),
        "images_drawn_each": len(gathered.synthetic),
        "spread": "each candidate's own" if shadows.models >= _OWN_SPREAD else "of all candidates",
        "seconds": monotonic() - began,
        **shadows.recipe(),
    }
    return scored, Fact("audit.shadows", value, "site-local", _SOURCE)


@dataclass(frozen=True)
class _Space:
    """A feature space in the scale of what the adversary holds, and the candidates in it."""

    encoder: Encoder
    basis: Array
    candidates: Array
    floor: float
    audited: Array

    @staticmethod
    def of(encoder: Encoder, gathered: Gathered) -> _Space:
        """The space with the audited set's closeness to every candidate (N,)."""
        sets = (gathered.real, gathered.synthetic, gathered.reference)
        features = [encoder.extract(s.images) for s in sets]
        basis = np.concatenate(features[1:])
        real, synthetic = standardise(basis, *features[:2])
        floor = _SMALLEST_DISTANCE * float(np.median(nearest(real, synthetic)[0]))
        if floor == 0.0:  # more than half are copies: any distance that is not 0 will do
            floor = _SMALLEST_DISTANCE
        return _Space(encoder, basis, real, floor, closeness(real, synthetic, floor))

    def of_set(self, drawn: ImageSet) -> Array:
        """(N,) the closeness of another set to every candidate."""
        (features,) = standardise(self.basis, self.encoder.extract(drawn.images))
        return closeness(self.candidates, features, self.floor)


def _by_patient(scores: Array, patients: npt.NDArray[np.int64]) -> Array:
    """(P,) the log ratios of a patient's images together: each is evidence of its own."""
    together: Array = np.bincount(patients, weights=scores).astype(np.float64)
    return together


def pace(done: int, models: int, seconds: float) -> str:
    """How far the trainings are: the first tells what all take, the others what is left."""
    if done == 1:
        return (
            f"shadow models: 1 of {models} took {span(seconds)}; about "
            f"{span(seconds * models)} for all; Ctrl-C stops"
        )
    left = seconds / done * (models - done)
    return f"shadow models: {done} of {models}" + (f", about {span(left)} left" if left else "")


def span(seconds: float) -> str:
    """Seconds as people say them: ``41 s``, ``10 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
