"""Distances: analytic cases, slow versions, extremes, and the order of corruptions."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import polynomial_kernel
from small_sets import blob_set

from synth_common.errors import DataError
from synth_common.evaluation.encoders import in_chunks, radiomics_encoder, random_convolutions
from synth_common.evaluation.fidelity import (
    diversity_pairs,
    frechet_distance,
    inception_score,
    kernel_distance,
    mean_ms_ssim,
    ms_ssim_scales,
    neighbourhood,
    standardise,
)
from synth_common.evaluation.selfsupervised import selfsupervised_encoder

Array = npt.NDArray[np.float64]


def _exact_gaussian(rng: np.random.Generator, mean: Array, spread: Array) -> Array:
    """Points whose sample mean and covariance are exactly ``mean`` and ``diag(spread^2)``."""
    raw = rng.normal(size=(60, len(mean)))
    raw -= raw.mean(axis=0)
    whitened = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return whitened * spread + mean


def test_frechet_of_gaussians_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    mean, first, second = np.array([1.0, -2.0, 0.5]), np.array([1.0, 2, 3]), np.array([2.0, 1, 3])
    x, y = _exact_gaussian(rng, 0 * mean, first), _exact_gaussian(rng, mean, second)
    expected = (mean**2).sum() + ((first - second) ** 2).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_a_set_with_itself_is_zero_even_with_few_rows() -> None:
    features = np.random.default_rng(1).normal(size=(20, 72))
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-4)


def test_kernel_distance_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(7, 3)), rng.normal(0.5, 1, size=(9, 3))

    def kernel(a: Array, b: Array) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_x = np.mean([kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(9) for j in range(9) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between)


def test_kernel_distance_is_unbiased_at_small_n() -> None:
    rng = np.random.default_rng(3)
    values = [kernel_distance(*rng.normal(size=(2, 15, 4))) for _ in range(200)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert 0.2 < np.mean(np.array(values) < 0) < 0.8
    shifted = [
        kernel_distance(rng.normal(size=(15, 4)), rng.normal(1, 1, (15, 4))) for _ in range(20)
    ]
    assert np.mean(shifted) > 10 * error


def test_neighbourhood_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(4)
    real, fake, k = rng.normal(size=(30, 2)), rng.normal(0.7, 0.8, size=(25, 2)), 3

    def radius(points: Array, i: int) -> float:
        return float(np.sort(np.linalg.norm(points - points[i], axis=1))[k])

    real_radius = [radius(real, i) for i in range(30)]
    fake_radius = [radius(fake, i) for i in range(25)]
    gap = [[np.linalg.norm(r - f) for f in fake] for r in real]
    inside = [[gap[i][j] <= real_radius[i] for j in range(25)] for i in range(30)]
    got = neighbourhood(real, fake, k)
    assert got.precision == pytest.approx(
        np.mean([any(inside[i][j] for i in range(30)) for j in range(25)])
    )
    assert got.recall == pytest.approx(
        np.mean([any(gap[i][j] <= fake_radius[j] for j in range(25)) for i in range(30)])
    )
    assert got.density == pytest.approx(np.sum(inside) / (k * 25))
    assert got.coverage == pytest.approx(np.mean([any(row) for row in inside]))


def test_neighbourhood_extremes() -> None:
    rng = np.random.default_rng(5)
    real = rng.normal(size=(80, 4))
    same = neighbourhood(real, real, 5)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    far = neighbourhood(real, real + 100, 5)
    assert (far.precision, far.recall, far.density, far.coverage) == (0.0, 0.0, 0.0, 0.0)
    collapsed = neighbourhood(real, np.repeat(real[:1], 80, axis=0), 5)
    assert collapsed.precision == 1.0
    assert collapsed.recall < 0.1
    assert collapsed.coverage < 0.2


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="needs 6"):
        neighbourhood(np.zeros((5, 2)), np.zeros((9, 2)), 5)
    with pytest.raises(DataError, match="1 synthetic"):
        frechet_distance(np.zeros((5, 2)), np.zeros((1, 2)))


def test_standardise_caps_a_feature_that_hardly_varies() -> None:
    basis = np.array([[0.0, 1.0], [0.0, 3.0]])
    flat, varied = standardise(basis, np.array([[0.005, 4.0]]))[0].tolist()[0]
    assert flat == pytest.approx(0.5)
    assert varied == pytest.approx(2.0)


def test_corruptions_rank_by_severity_in_every_space() -> None:
    real, fresh = blob_set(160, 1).images, blob_set(160, 2).images
    rng = np.random.default_rng(0)
    noise = rng.normal(size=fresh.shape)
    picked = [np.arange(160) % m for m in (40, 10, 2)]
    series = {
        "noise": [np.clip(fresh + s * noise, 0, 1) for s in (0.02, 0.08, 0.3)],
        "blur": [gaussian_filter(fresh, (0, 0, s, s)) for s in (0.5, 1.0, 3.0)],
        "collapse": [fresh[p] for p in picked],
    }
    reference = blob_set(128, 3).images
    spaces = [radiomics_encoder(), random_convolutions(1), selfsupervised_encoder(reference, 60, 0)]
    for encoder in spaces:
        base = encoder.extract(real)

        def distance(images: npt.NDArray[np.floating], base: Array = base, e=encoder) -> float:  # type: ignore[no-untyped-def]
            a, b = standardise(base, base, e.extract(images.astype(np.float32)))
            return frechet_distance(a, b)

        floor = distance(fresh)
        for name, steps in series.items():
            values = [floor] + [distance(images) for images in steps]
            # SimCLR is trained to overlook a slight blur: a tie within 10 % is no misrank.
            rising = all(b > 0.9 * a for a, b in itertools.pairwise(values))
            assert rising, (encoder.name, name, values)
            assert values[-1] > 3 * floor, (encoder.name, name, values)


@pytest.mark.parametrize(("size", "scales"), [(28, 2), (32, 2), (44, 3), (64, 3), (128, 4)])
def test_ms_ssim_works_at_every_size(size: int, scales: int) -> None:
    assert ms_ssim_scales(size) == scales
    images = blob_set(4, 1, size=size).images
    assert mean_ms_ssim(images, images) == pytest.approx(1.0, abs=1e-5)
    assert mean_ms_ssim(images[:2], images[2:]) < 0.99


def test_diversity_pairs_join_two_patients_of_one_class() -> None:
    images = blob_set(12, 1, images_per_patient=3)
    units = images.units()
    first, second = diversity_pairs(images.labels, units, 60, np.random.default_rng(0))
    assert len(first) == 60
    np.testing.assert_array_equal(images.labels[first], images.labels[second])
    assert (units[first] != units[second]).all()
    np.testing.assert_array_equal(np.bincount(images.labels[first]), [30, 30])
    lonely = np.zeros(4, dtype=np.int64)
    assert len(diversity_pairs(lonely, lonely, 10, np.random.default_rng(0))[0]) == 0


def test_inception_score_extremes() -> None:
    assert inception_score(np.eye(4)[np.arange(40) % 4]) == pytest.approx(4.0)
    assert inception_score(np.full((10, 4), 0.25)) == pytest.approx(1.0)
    assert inception_score(np.eye(4)[np.zeros(10, dtype=int)]) == pytest.approx(1.0)


def test_no_metric_holds_a_matrix_of_all_pairs() -> None:
    """3,000 rows a side: all pairs would take 69 MiB; and blocks change no value."""
    rng = np.random.default_rng(7)
    real, fake = rng.normal(size=(3000, 8)), rng.normal(0.2, 1, size=(3000, 8))
    tracemalloc.start()
    near, distance = neighbourhood(real, fake, 5), kernel_distance(real, fake)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert peak < 45, f"{peak:.0f} MiB"
    gap = pairwise_distances(real, fake)
    ball = np.sort(pairwise_distances(real), axis=1)[:, 5]
    assert near.precision == (gap <= ball[:, None]).any(axis=0).mean()
    assert near.density == pytest.approx((gap <= ball[:, None]).sum() / (5 * 3000), rel=1e-6)
    kernels = [polynomial_kernel(a, b, degree=3) for a, b in ((real, real), (fake, fake))]
    within = [(k.sum() - np.trace(k)) / (3000 * 2999) for k in kernels]
    between = polynomial_kernel(real, fake, degree=3).mean()
    assert distance == pytest.approx(sum(within) - 2 * between, rel=1e-6)


def test_features_in_chunks_are_the_features() -> None:
    images = blob_set(40, 1).images
    index = np.random.default_rng(0).permutation(40)[:33]
    for encoder in (radiomics_encoder(), random_convolutions(1)):
        whole = encoder.extract(images)[index]
        np.testing.assert_allclose(in_chunks(encoder.extract, images, index), whole, atol=1e-5)
