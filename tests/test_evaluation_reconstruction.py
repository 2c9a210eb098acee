"""Reconstruction scores, with generators whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from small_sets import blob_set
from torch import Tensor, nn

from synth_common.errors import DataError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.reconstruction import evaluate_reconstruction, pixel_scores
from synth_common.generators.interface import Generator, Health, Reconstruction
from synth_common.plan import GeneratorPlan


class _Echo(Generator):
    """Gives back what it gets, shifted by a constant; its losses are the labels."""

    def __init__(self, shift: float, *, with_mask: bool = False) -> None:
        super().__init__()
        self.plan = GeneratorPlan(with_mask=with_mask)
        self.shift = shift
        self.batches: list[tuple[int, ...]] = []

    @property
    def private_module(self) -> nn.Module:
        return self

    def private_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        raise NotImplementedError

    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def health(self, images: Tensor, labels: Tensor) -> Health:
        raise NotImplementedError

    def reconstruct(self, images: Tensor, labels: Tensor) -> Reconstruction | None:
        self.batches.append(tuple(images.shape))
        return Reconstruction(images + self.shift, labels.float() * 10, labels.float())


class _NoEncoder(_Echo):
    def reconstruct(self, images: Tensor, labels: Tensor) -> Reconstruction | None:
        return None


def test_a_known_shift_gives_known_errors() -> None:
    holdout = blob_set(150, 1)
    generator = _Echo(0.01)
    pixels, elbo = evaluate_reconstruction(generator, holdout, EvaluationConfig(), "A")
    assert pixels.value["mse"] == pytest.approx(1e-4, rel=1e-3)
    assert pixels.value["mae"] == pytest.approx(0.01, rel=1e-3)
    assert pixels.value["psnr"] == pytest.approx(40.0, abs=0.01)
    assert 0.9 < pixels.value["ssim"] < 1.0
    assert elbo.value == {"reconstruction_loss": pytest.approx(5.0), "kl": pytest.approx(0.5)}
    assert pixels.detail["n_real"] == elbo.detail["n_real"] == 150
    assert pixels.site == elbo.site == "A"
    assert sum(shape[0] for shape in generator.batches) == 150
    assert generator.training


def test_a_larger_error_scores_worse_and_a_perfect_one_is_finite() -> None:
    images = blob_set(5, 1).images
    noise = np.random.default_rng(0).normal(size=images.shape)
    scores = [pixel_scores(images, (images + s * noise).astype(np.float32)) for s in (0, 0.02, 0.2)]
    assert scores[0]["ssim"] == pytest.approx(1.0)
    assert scores[0]["psnr"] == 100.0
    for key, sign in (("ssim", -1), ("psnr", -1), ("mse", 1), ("mae", 1)):
        values = [sign * s[key] for s in scores]
        assert values == sorted(values)
        assert len(set(values)) == 3


def test_a_family_without_encoder_or_an_empty_holdout_gives_no_facts() -> None:
    holdout = blob_set(4, 1)
    assert evaluate_reconstruction(_NoEncoder(0.0), holdout, EvaluationConfig(), None) == []
    empty = holdout.subset(np.arange(0))
    assert evaluate_reconstruction(_Echo(0.0), empty, EvaluationConfig(), None) == []


def test_masks_travel_as_the_last_channel_and_are_not_scored() -> None:
    bare = blob_set(4, 1)
    masks = (bare.images[:, 0] > 0.5).astype(np.uint8)
    holdout = type(bare)(bare.images, bare.labels, bare.class_names, masks=masks)
    generator = _Echo(0.0, with_mask=True)
    facts = evaluate_reconstruction(generator, holdout, EvaluationConfig(max_images=3), None)
    assert generator.batches == [(3, 2, 32, 32)]
    assert facts[0].value["mse"] == 0.0
    assert facts[0].detail["n_real"] == 3
    with pytest.raises(DataError, match="with_mask"):
        evaluate_reconstruction(generator, bare, EvaluationConfig(), None)
