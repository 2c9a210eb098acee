"""Random features: their length is the promise that a release's noise is calibrated to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_sites import other_numpy
from torch.nn import functional

from synth_common.errors import ConfigError
from synth_common.generators import features as module
from synth_common.generators.embedding import Embedding, build_embedding
from synth_common.generators.features import RandomFeatures, _for_four
from synth_common.plan import GeneratorPlan

_SHAPES = [(1, 28, 28), (3, 32, 32), (2, 64, 64), (1, 36, 36)]
_FIRST_FILTER_ROW = [0.0131782, 0.1861225, -0.3452461, -0.1458264, -0.0940111]
_PIXELS = [0.0657478, 0.1254152, 0.0462381]


def _extremes(shape: tuple[int, int, int]) -> torch.Tensor:
    """Pictures at the ends of what pictures can be."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(4, *shape, generator=rng)
    board = (torch.arange(shape[1])[:, None] + torch.arange(shape[2])) % 2
    flat = [torch.full((1, *shape), value) for value in (0.0, 0.5, 1.0)]
    return torch.cat([noise, noise.round(), board.expand(1, *shape).float(), *flat])


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("count", [2, 300, 3000])
def test_no_picture_has_features_longer_than_one(shape, count):
    found = RandomFeatures(shape, count, radius=0.4)(_extremes(shape))
    lengths = found.to(torch.float64).norm(dim=1)
    assert found.shape == (12, count)
    assert bool((lengths <= 1.0).all())
    assert bool((lengths > 1.0 - 1e-5).all())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_vector_with_features_is_no_longer_than_one(share):
    embedding = Embedding(2, (1, 28, 28), 6, 0.5, 0.5, features=600, feature_share=share)
    for image in _extremes((1, 28, 28)):
        vector = embedding.weighted_sum(image[None], torch.tensor([1]), torch.ones(1))
        assert 0.3 < vector.norm().item() <= 1.0


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_features_of_a_picture_do_not_depend_on_its_neighbours(dtype, atol):
    images = _extremes((1, 28, 28)).to(dtype)
    features = RandomFeatures((1, 28, 28), 300, radius=0.4)
    together = features(images)
    alone = torch.cat([features(image[None]) for image in images])
    assert together.dtype == dtype
    np.testing.assert_allclose(alone.numpy(), together.numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize("shape", _SHAPES)
def test_neighbours_move_no_image_in_a_sum(shape):
    """Any error here adds up over all patients, whose batches shift when one of them leaves."""
    embedding = Embedding(2, shape, 6, 0.5, 0.5, features=600, feature_share=0.5)
    images, labels = _extremes(shape), torch.arange(12) % 2
    together = embedding.weighted_sum(images, labels, torch.ones(12))
    alone = [
        embedding.weighted_sum(image[None], label[None], torch.ones(1))
        for image, label in zip(images, labels, strict=True)
    ]
    assert (torch.stack(alone).sum(0) - together).norm().item() < 1e-12


def test_every_machine_draws_the_same_constants():
    """Sites and coordinator never exchange them, so they may not move with a library."""
    features = RandomFeatures((1, 28, 28), 300, radius=0.4)
    first = features._filters[1][0, 0, 0]
    np.testing.assert_allclose(first.numpy(), _FIRST_FILTER_ROW, atol=1e-6)
    np.testing.assert_allclose(features._directions[2][:3, 0].numpy(), _PIXELS, atol=1e-6)


def test_a_numpy_that_draws_other_constants_is_refused(monkeypatch):
    plan = GeneratorPlan(size=28, features=10)
    module.require_known_constants.cache_clear()
    build_embedding(plan)
    other_numpy(monkeypatch)
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(ConfigError, match=rf"NumPy {np.__version__} .* constraints\.txt"):
            build_embedding(plan)
    build_embedding(plan.model_copy(update={"features": 0}))


def test_the_constants_are_checked_once_a_process(monkeypatch):
    drawn, sample = [], module._sample_of_constants
    monkeypatch.setattr(module, "_sample_of_constants", lambda: drawn.append(1) or sample())
    module.require_known_constants.cache_clear()
    for count in (10, 20):
        build_embedding(GeneratorPlan(size=28, features=count))
    assert len(drawn) == 1


def test_rounding_hides_how_processors_compute_and_nothing_else():
    """No constant is so near the border of two steps that single precision could cross it."""
    steps = module._sample_of_constants() / module._ROUNDING
    border = np.abs(steps - np.floor(steps) - 0.5) * module._ROUNDING
    assert border.min() > 10 * np.finfo(np.float32).eps * np.abs(steps).max() * module._ROUNDING


def test_features_see_texture_that_means_do_not():
    """Two sets with equal means: stripes of either phase, and flat grey."""
    stripes = (torch.arange(28) // 2 % 2).float().expand(1, 1, 28, 28)
    both = torch.cat([stripes, 1.0 - stripes])
    grey = torch.full((2, 1, 28, 28), 0.5)
    features = RandomFeatures((1, 28, 28), 900, radius=0.5)
    assert torch.equal(both.mean(0), grey.mean(0))
    assert (features(both).mean(0) - features(grey).mean(0)).norm().item() > 0.5


def test_no_features_are_an_empty_vector():
    assert RandomFeatures((1, 28, 28), 0, radius=0.4)(torch.rand(3, 1, 28, 28)).shape == (3, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_four_pixels_at_a_time_are_a_convolution(channels):
    rng = torch.Generator().manual_seed(0)
    bank = torch.randn(8, channels, 5, 5, generator=rng)
    images = torch.rand(2, channels, 12, 12, generator=rng)
    slow = functional.conv2d(images, bank, padding=2)
    fast = functional.conv2d(functional.pixel_unshuffle(images, 2), _for_four(bank), padding=1)
    np.testing.assert_allclose(functional.pixel_shuffle(fast, 2), slow, atol=1e-5)


def test_a_chequered_pattern_is_seen():
    """One sign of it at every second pixel: a grid of every second pixel sees none of it."""
    board = ((torch.arange(28)[:, None] + torch.arange(28)) % 2).float() - 0.5
    flat = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    features = RandomFeatures((1, 28, 28), 3000, radius=0.4)
    plain, chequered = features(flat).mean(0), features(flat + 0.1 * board).mean(0)
    assert (plain - chequered).norm().item() > 0.05
