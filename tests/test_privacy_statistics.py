"""What is released once: one patient moves it by at most 1, and noise of the declared scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from synth_common.generators.embedding import build_embedding, cosine_basis
from synth_common.images.imageset import ImageSet
from synth_common.plan import GeneratorPlan
from synth_common.privacy.secure_sum import SLACK
from synth_common.privacy.statistics import embedding_sum, label_histogram
from synth_common.randomness import SecureNoise, SimulationNoise

CLASSES = tuple(f"class-{i}" for i in range(400))


class _NoNoise(SimulationNoise):
    """Lets the exact sum through, to see what one patient moves."""

    def gaussian(self, shape):
        return torch.zeros(shape)


def _images(labels, patients=None) -> ImageSet:
    labels = np.asarray(labels, dtype=np.int64)
    ids = None if patients is None else np.asarray(patients, dtype=str)
    return ImageSet(np.zeros((len(labels), 1, 4, 4), np.float32), labels, CLASSES, ids)


def test_a_patient_counts_once_however_many_images_there_are():
    exact = label_histogram(
        _images([0, 0, 0, 1, 2, 2], ["a", "a", "a", "a", "b", "c"]), 400, 1.0, _NoNoise(0)
    )
    assert exact[:4].tolist() == [0.75, 0.25, 2.0, 0.0]
    by_image = label_histogram(_images([0, 0, 1]), 400, 1.0, _NoNoise(0))
    assert by_image[:2].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("labels", [[5], [5] * 9, [5, 6], list(range(9))])
def test_one_patient_moves_the_histogram_by_at_most_one(labels):
    others = ([0, 1, 2, 2], ["a", "b", "c", "c"])
    without = label_histogram(_images(*others), 400, 1.0, _NoNoise(0))
    more = _images([*others[0], *labels], [*others[1], *["new"] * len(labels)])
    moved = label_histogram(more, 400, 1.0, _NoNoise(0)) - without
    assert float(moved.norm()) <= 1.0 + 1e-6
    assert float(moved.abs().sum()) == pytest.approx(1.0)


def _passes(values: np.ndarray, scale: float) -> bool:
    """Whether values look like N(0, scale^2)."""
    return stats.kstest(values, "norm", args=(0, scale)).pvalue > 1e-3


@pytest.mark.parametrize("kind", [lambda i: SimulationNoise(i), lambda _: SecureNoise()])
def test_the_noise_of_a_release_has_the_declared_scale_and_no_other(kind):
    """Passes at the declared 5 patients; the same draws fail at 0.7 and 1.3 of it."""
    data, exact = _images([0, 1]), _images([0, 1])
    truth = label_histogram(exact, 400, 1.0, _NoNoise(0)).numpy()
    noise = np.concatenate(
        [label_histogram(data, 400, 5.0, kind(i)).numpy() - truth for i in range(20)]
    )
    assert _passes(noise, 5.0)
    assert not _passes(noise, 5.0 * 0.7)
    assert not _passes(noise, 5.0 * 1.3)


def test_an_audits_canaries_have_no_vote():
    mixed = _images([0, 1, 3, 3], ["a", "b", "canary", "canary"])
    assert label_histogram(mixed, 2, 1.0, _NoNoise(0)).tolist() == [1.0, 1.0]


# ------------------------------------------------------------------ embeddings

_PLAN = GeneratorPlan(size=28, classes=("a", "b", "c"))
_MASKED = GeneratorPlan(size=28, classes=("a", "b", "c"), channels=3, with_mask=True)


def _pictures(labels, patients, plan=_PLAN, seed=0, fill=None) -> ImageSet:
    """Images of the plan's shape; ``fill`` makes every pixel that value."""
    rng, n = np.random.default_rng(seed), len(labels)
    shape = (n, plan.channels, plan.size, plan.size)
    images = rng.random(shape, np.float32) if fill is None else np.full(shape, fill, np.float32)
    masks = (rng.random((n, 28, 28)) < 0.5).astype(np.uint8) if plan.with_mask else None
    names = (*plan.classes, "canary-1", "canary-2")
    ids = np.asarray(patients, dtype=str)
    return ImageSet(images, np.asarray(labels, dtype=np.int64), names, ids, masks)


def _sum(data, plan=_PLAN, most=3, seed=0):
    embedding = build_embedding(plan)
    return embedding_sum(data, embedding, plan, most, SimulationNoise(seed))


def _join(*sets: ImageSet) -> ImageSet:
    from synth_common.images.imageset import concatenate

    return concatenate(sets)


@pytest.mark.parametrize("plan", [_PLAN, _MASKED], ids=["plain", "masked"])
@pytest.mark.parametrize("fill", [None, 1.0])
@pytest.mark.parametrize("labels", [[0], [2] * 3, [0, 1, 2], [1] * 40, [3], [0, 4, 4], [3] * 9])
def test_one_patient_moves_the_sum_of_embeddings_by_at_most_one(plan, fill, labels):
    others = _pictures([0, 1, 2, 1] * 150, [f"p{i // 3}" for i in range(600)], plan)
    new = _pictures(labels, ["new"] * len(labels), plan, seed=1, fill=fill)
    moved = _sum(_join(others, new), plan) - _sum(others, plan)
    assert np.linalg.norm(moved) <= 1.0 + SLACK / 2
    known = [label for label in labels if label < 3]
    assert (np.linalg.norm(moved) > 1e-3) == bool(known)


@pytest.mark.parametrize("frequencies", [2, 5, 27])
def test_no_single_wave_in_any_channel_goes_beyond_the_bound(frequencies):
    """All of a picture's strength in one coefficient, of those kept and of every band."""
    plan = _PLAN.model_copy(
        update={"size": 28, "channels": 3, "with_mask": True, "frequencies": frequencies}
    )
    embedding = build_embedding(plan)
    waves = cosine_basis(28, 28)
    for i, j in [(0, 0), (1, 0), (1, 1), (2, 3), (6, 0), (13, 13), (20, 4), (27, 27)]:
        wave = torch.outer(waves[i], waves[j])
        for sign, channels in ((1, slice(0, 1)), (-1, slice(3, 4)), (1, slice(0, 4))):
            image = torch.full((1, 4, 28, 28), 0.5)
            image[0, channels] += sign * 0.5 * (wave / wave.abs().max()).to(torch.float32)
            vector = embedding.weighted_sum(image, torch.tensor([1]), torch.ones(1))
            assert 0.05 < vector.norm().item() <= 1.0 + 1e-12


def test_the_bound_is_reached_by_the_brightest_patient():
    """So that a test which holds trivially would show."""
    moved = _sum(_pictures([1] * 7, ["a"] * 7, fill=1.0))
    assert np.linalg.norm(moved) == pytest.approx(1.0, rel=1e-6)


def test_a_patient_counts_once_and_which_images_count_is_drawn():
    embedding = build_embedding(_PLAN)
    data = _pictures([0] * 6 + [1], ["a"] * 6 + ["b"])
    sums = [torch.from_numpy(_sum(data, most=2, seed=seed)) for seed in range(40)]
    for vector in sums:
        assert embedding.class_counts(vector).tolist() == pytest.approx([1.0, 1.0, 0.0])
    m = embedding.mean_frequencies
    features = embedding.coefficients(torch.from_numpy(data.images))[..., :m, :m]
    means = [embedding.sums(vector).first for vector in sums]
    pairs = {
        (i, j)
        for mean in means
        for i in range(6)
        for j in range(i)
        if torch.allclose(mean[0], (features[i] + features[j]) / 2)
    }
    assert len(pairs) > 8  # of 15
    assert torch.allclose(means[0][1], features[6])


def test_the_sum_of_nobody_is_zero():
    assert not _sum(_pictures([], [])).any()
    assert not _sum(_pictures([3, 4], ["a", "b"])).any()
