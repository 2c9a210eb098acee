"""The feature spaces: the features are what they claim, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.feature import graycomatrix, graycoprops
from small_sets import blob_set

from synth_common.evaluation import radiomics
from synth_common.evaluation.encoders import Encoder, radiomics_encoder, random_convolutions
from synth_common.evaluation.selfsupervised import contrastive_loss, selfsupervised_encoder


def _encoders(channels: int) -> list[Encoder]:
    reference = blob_set(70, 99, channels=channels).images
    return [
        radiomics_encoder(),
        random_convolutions(channels),
        random_convolutions(channels, grid=4),
        selfsupervised_encoder(reference, 3, 0),
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_features_do_not_depend_on_the_batch(channels: int) -> None:
    images = blob_set(9, 1, channels=channels).images
    for encoder in _encoders(channels):
        whole = encoder.extract(images)
        single = np.concatenate([encoder.extract(images[i : i + 1]) for i in range(9)])
        np.testing.assert_allclose(whole, single, rtol=1e-4, atol=1e-5, err_msg=encoder.name)
        assert np.isfinite(whole).all()
        assert (whole.std(axis=0) > 0).mean() > 0.6, encoder.name


@pytest.mark.parametrize(("size", "channels", "count"), [(28, 1, 72), (64, 1, 72), (32, 3, 81)])
def test_radiomics_has_the_documented_number_of_features(
    size: int, channels: int, count: int
) -> None:
    images = blob_set(3, 2, size=size, channels=channels).images
    assert radiomics.radiomics_features(images).shape == (3, count)
    assert radiomics.radiomics_features(images[:0]).shape == (0, count)


def test_radiomics_of_blank_images_is_finite() -> None:
    blank = np.concatenate([np.zeros((1, 3, 32, 32)), np.ones((1, 3, 32, 32))]).astype(np.float32)
    assert np.isfinite(radiomics.radiomics_features(blank)).all()


def test_cooccurrence_agrees_with_scikit_image() -> None:
    grey = blob_set(4, 3).images[:, 0].astype(np.float64)
    ours = radiomics._cooccurrence(grey)
    levels = np.minimum((grey * 16).astype(np.uint8), 15)
    for image, row in zip(levels, ours, strict=True):
        for block, (straight, diagonal) in enumerate([(1, 2**0.5), (3, 3 * 2**0.5)]):
            # scikit-image gives one table per angle; ours is their sum.
            tables = [
                graycomatrix(image, [d], [a], levels=16, symmetric=True)
                for d, a in (
                    (straight, 0),
                    (straight, np.pi / 2),
                    (diagonal, np.pi / 4),
                    (diagonal, 3 * np.pi / 4),
                )
            ]
            table = np.sum(tables, axis=0) / np.sum(tables)
            contrast, homogeneity, _, correlation, _, dissimilarity = row[6 * block : 6 * block + 6]
            assert np.expm1(contrast) == pytest.approx(graycoprops(table, "contrast").item())
            assert homogeneity == pytest.approx(graycoprops(table, "homogeneity").item())
            assert correlation == pytest.approx(graycoprops(table, "correlation").item())
            assert dissimilarity == pytest.approx(graycoprops(table, "dissimilarity").item())
            assert row[6 * block + 2] == pytest.approx(graycoprops(table, "ASM").item())


def test_binary_patterns_agree_with_a_loop() -> None:
    grey = blob_set(2, 4, size=28).images[:, 0].astype(np.float64)
    around = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    for image, row in zip(grey, radiomics._binary_patterns(grey), strict=True):
        expected = np.zeros(10)
        for i in range(1, 27):
            for j in range(1, 27):
                bits = [image[i + dy, j + dx] >= image[i, j] for dy, dx in around]
                changes = sum(bits[k] != bits[k - 1] for k in range(8))
                expected[sum(bits) if changes <= 2 else 9] += 1
        np.testing.assert_allclose(row, expected / 26**2)


def test_radiomics_sees_a_turned_and_a_shifted_image() -> None:
    ramp = np.linspace(-0.1, 0.1, 32, dtype=np.float32)[:, None]
    images = np.clip(blob_set(40, 5).images + ramp, 0, 1)
    plain = radiomics.radiomics_features(images)
    spread = plain.std(axis=0) + 0.01
    for changed in (np.rot90(images, axes=(2, 3)), np.roll(images, 8, axis=3)):
        moved = radiomics.radiomics_features(np.ascontiguousarray(changed))
        assert (np.abs(moved.mean(axis=0) - plain.mean(axis=0)) / spread).max() > 0.5


def test_random_convolutions_have_one_fixed_identity() -> None:
    first, second = random_convolutions(1), random_convolutions(1)
    assert first.sha256 == second.sha256
    assert len({first.sha256, random_convolutions(3).sha256, random_convolutions(1, 2).sha256}) == 3
    images = blob_set(3, 6).images
    np.testing.assert_array_equal(first.extract(images), second.extract(images))
    assert first.extract(images).shape == (3, 64)
    assert random_convolutions(1, 4).extract(images).shape == (3, 1024)


def test_contrastive_loss_agrees_with_a_loop_and_rewards_agreement() -> None:
    rng = torch.Generator().manual_seed(0)
    half = torch.randn(5, 8, generator=rng)
    rows = torch.cat([half, half + 0.5 * torch.randn(5, 8, generator=rng)])
    unit = (rows / rows.norm(dim=1, keepdim=True)).double().numpy()
    losses = []
    for i in range(10):
        likeness = np.exp(unit @ unit[i] / 0.2)
        losses.append(-np.log(likeness[(i + 5) % 10] / (likeness.sum() - likeness[i])))
    assert contrastive_loss(rows).item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert contrastive_loss(torch.cat([half, half])) < contrastive_loss(rows)


def test_selfsupervised_training_is_repeatable_and_depends_on_the_reference() -> None:
    reference = blob_set(70, 7).images
    first = selfsupervised_encoder(reference, 2, 1)
    assert selfsupervised_encoder(reference.copy(), 2, 1) is first
    assert selfsupervised_encoder(reference, 2, 2).sha256 != first.sha256
    assert selfsupervised_encoder(reference[1:], 2, 1).sha256 != first.sha256


def test_selfsupervised_training_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    selfsupervised_encoder(blob_set(64, 8).images, 1, 0)
    assert torch.equal(torch.rand(3), expected)
