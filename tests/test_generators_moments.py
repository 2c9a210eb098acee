"""The embedding family: what it learns from sums whose moments are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from synth_common.errors import TrainingError
from synth_common.generators import build_generator
from synth_common.generators.embedding import (
    CONSTANT,
    Released,
    build_embedding,
    cosine_basis,
)
from synth_common.generators.moments import _cleaned, _spectrum
from synth_common.images.imageset import ImageSet
from synth_common.plan import (
    EmbeddingPlan,
    GeneratorPlan,
    Plan,
    PretrainingPlan,
    ReleasePlan,
    TrainingPlan,
)
from synth_common.privacy.public_training import train_openly
from synth_server.learning import learn_release

_SETTINGS = EmbeddingPlan(radius=0.5)
_PLAN = GeneratorPlan(family="embedding", size=28, classes=("a", "b"), frequencies=5)


def _pictures(n: int, plan: GeneratorPlan = _PLAN, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Low-frequency pictures of two classes with different means and spreads."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    channels = plan.channels + int(plan.with_mask)
    draws = torch.randn(n, channels, 4, 4, generator=rng, dtype=torch.float64)
    draws[labels == 0] *= torch.tensor([0.3, 0.2, 0.1, 0.05], dtype=torch.float64)
    draws[labels == 1] *= 0.1
    draws[labels == 1, :, 0, 1] += 2.0
    basis = cosine_basis(plan.size, 4)
    images = (0.5 + basis.T @ draws @ basis).clamp(0, 1).to(torch.float32)
    return images, labels


def _released(n: int, sigma: float, plan: GeneratorPlan = _PLAN) -> Released:
    images, labels = _pictures(n, plan)
    embedding = build_embedding(plan, _SETTINGS)
    total = embedding.weighted_sum(images, labels, torch.ones(n))
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(total.shape, generator=rng, dtype=torch.float64)
    return Released(total + sigma * noise, sigma, embedding)


def _learned(released: Released, plan: GeneratorPlan = _PLAN):
    generator = build_generator(plan, seed=0)
    said: list[str] = []
    generator.learn_release(released, 0, said.append)
    return generator, said


def test_a_sum_is_the_outer_products_of_what_a_slow_version_computes():
    images, labels = _pictures(6)
    embedding = build_embedding(_PLAN, _SETTINGS)
    weights = torch.tensor([1.0, 0.5, 0.25, 1.0, 2.0, 0.0])
    matrices = embedding.matrices(embedding.weighted_sum(images, labels, weights))
    expected = torch.zeros_like(matrices)
    basis = cosine_basis(28, 5).numpy()
    for image, label, weight in zip(images, labels, weights, strict=True):
        flat = (basis @ (image[0].double().numpy() - 0.5) @ basis.T).ravel() / (0.5 * 28)
        flat *= min(1.0, 1.0 / np.linalg.norm(flat)) * np.sqrt(0.75)
        features = torch.from_numpy(np.concatenate([[0.5], flat]))
        expected[label] += weight * torch.outer(features, features)
    assert torch.allclose(matrices, expected, atol=1e-6)


def test_the_norm_of_the_vector_is_that_of_the_matrix():
    """So that the noise in the vector is what the accountant was told."""
    released = _released(40, 0.0)
    matrices = released.embedding.matrices(released.vector)
    assert matrices.square().sum() == pytest.approx(released.vector.square().sum().item())
    assert torch.equal(matrices, matrices.transpose(1, 2))


@pytest.mark.parametrize("with_mask", [False, True])
def test_moments_of_samples_are_those_of_the_images(with_mask):
    plan = _PLAN.model_copy(update={"channels": 3, "with_mask": with_mask})
    generator, _ = _learned(_released(4000, 0.0, plan), plan)
    images, labels = _pictures(4000, plan, seed=5)
    samples = generator.sample(labels, range(4000))
    assert samples.shape == images.shape
    assert 0.0 <= samples.min() <= samples.max() <= 1.0
    for label in (0, 1):
        mine, real = samples[labels == label], images[labels == label]
        assert (mine.mean(0) - real.mean(0)).abs().max() < 0.02
        assert (mine.std(0) / real.std(0) - 1).abs().mean() < 0.05


def test_noise_that_is_known_hurts_less_than_noise_that_is_not():
    """The pull towards the shared covariance is what makes small sets usable."""
    exact, _ = _learned(_released(2000, 0.0))
    noisy = _released(2000, 8.0)
    known, _ = _learned(noisy)
    unknown, _ = _learned(Released(noisy.vector, 1e-9, noisy.embedding))

    def error(generator) -> float:
        factor, truth = generator.get_buffer("factor"), exact.get_buffer("factor")
        return (factor @ factor.mT - truth @ truth.mT).norm().item()

    assert error(known) < 0.8 * error(unknown)


def _noise(d: int, seed: int) -> torch.Tensor:
    """Symmetric noise, standard deviation 1 off the diagonal."""
    rng = torch.Generator().manual_seed(seed)
    whole = torch.randn(d, d, generator=rng, dtype=torch.float64)
    return (whole + whole.T) / 2**0.5


def test_what_stands_out_of_noise_is_shrunk_by_what_noise_added_to_it():
    """Nearer to the truth than keeping the eigenvalue as it is seen, and than dropping it."""
    d, one = 100, torch.tensor(1.0, dtype=torch.float64)
    axis = torch.ones(d, dtype=torch.float64) / d**0.5
    truth = 2.5 * d**0.5 * torch.outer(axis, axis)
    errors = torch.zeros(2)
    for seed in range(8):
        found = truth + _noise(d, seed)
        values, vectors = torch.linalg.eigh(found)
        seen = values[-1] * torch.outer(vectors[:, -1], vectors[:, -1])
        cleaned = _cleaned(found, torch.zeros_like(found), one)
        errors += torch.tensor([(e - truth).norm() for e in (cleaned, seen)])
    assert errors[0] < 0.95 * errors[1]
    assert errors[0] < 0.7 * 8 * truth.norm()


def test_pure_noise_leaves_what_was_expected():
    expected = torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64))
    level = torch.tensor(1.1, dtype=torch.float64)  # the edge is reached by the largest value
    assert torch.allclose(_cleaned(expected + _noise(100, 0), expected, level), expected)


def test_variances_expected_never_rise_with_the_frequency():
    plan = _PLAN.model_copy(update={"frequencies": 8})
    embedding = build_embedding(plan, _SETTINGS)
    rising = torch.arange(64, dtype=torch.float64) + 1.0
    found = _spectrum(rising, torch.tensor(0.0), embedding).view(8, 8)
    rings = [found[0, k].item() for k in range(8)]
    assert rings == sorted(rings, reverse=True)
    assert found.min() > 0.0


def test_means_that_noise_tears_apart_are_pulled_together():
    released = _released(400, 8.0)
    generator, _ = _learned(released)
    exact, _ = _learned(_released(400_000, 0.0))
    matrices = released.embedding.matrices(released.vector)
    raw = matrices[:, 0, 1:] / matrices[:, :1, 0] * CONSTANT
    scale = released.embedding.unit / (1.0 - CONSTANT**2) ** 0.5
    truth = exact.get_buffer("mean")
    torn = (raw[0] - raw[1]).mul(scale).float() - (truth[0] - truth[1])
    mean = generator.get_buffer("mean")
    pulled = (mean[0] - mean[1]) - (truth[0] - truth[1])
    assert pulled.norm() < 0.9 * torn.norm()


def test_a_class_that_the_noise_drowns_is_drawn_like_the_largest_and_named():
    plan = _PLAN.model_copy(update={"classes": ("a", "b", "c")})
    images, labels = _pictures(900)
    labels[:3] = 2
    labels[3:403] = 1
    embedding = build_embedding(plan, _SETTINGS)
    total = embedding.weighted_sum(images, labels, torch.ones(900))
    generator, said = _learned(Released(total, 2.0, embedding), plan)
    mean = generator.get_buffer("mean")
    assert int((labels == 1).sum()) > int((labels == 0).sum())
    assert torch.equal(mean[2], mean[1])
    assert not torch.equal(mean[2], mean[0])
    assert "[2]" in said[0]
    _, said = _learned(Released(total * 0.0, 2.0, embedding), plan)
    assert "no class" in said[0]


def test_a_sample_depends_on_its_own_seed_and_label_alone():
    generator, _ = _learned(_released(400, 0.1))
    labels = torch.tensor([0, 1, 1])
    whole = generator.sample(labels, [3, 4, 5])
    assert torch.allclose(generator.sample(labels[1:2], [4])[0], whole[1], atol=1e-6)
    assert not torch.allclose(whole[1], whole[2], atol=1e-3)


def test_the_family_takes_no_private_step():
    generator = build_generator(_PLAN, seed=0)
    assert not list(generator.private_module.parameters())
    with pytest.raises(TrainingError, match=r"training\.rounds"):
        generator.private_loss(torch.zeros(1), torch.zeros(1), torch.Generator())


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_other_families_start_from_what_the_release_says(family):
    plan = Plan(
        generator=GeneratorPlan(family=family, size=28, classes=("a", "b"), frequencies=5, width=8),
        training=TrainingPlan(rounds=0, patients_per_step=32),
        release=ReleasePlan(embedding=EmbeddingPlan(radius=0.5, warm_steps=150)),
    )
    released = _released(2000, 0.1, plan.generator)
    generator = build_generator(plan.generator, seed=0)
    labels, said = torch.arange(64) % 2, []

    def distance() -> float:
        images, truth = _pictures(2000, plan.generator)
        samples = generator.sample(labels, range(64))
        gaps = [samples[labels == c].mean(0) - images[truth == c].mean(0) for c in (0, 1)]
        return max(gap.square().mean().sqrt().item() for gap in gaps)

    before = distance()
    learn_release(generator, released, plan, 3, said.append)
    assert distance() < 0.6 * before
    assert "150 steps" in said[-1]
    again = build_generator(plan.generator, seed=0)
    learn_release(again, released, plan, 3, said.append)
    for name, value in generator.shared_state().items():
        assert torch.equal(value, again.shared_state()[name]), name


def test_plans_that_no_release_can_serve_are_refused():
    whole, rounds = ReleasePlan(embedding=EmbeddingPlan()), TrainingPlan(rounds=0)
    with pytest.raises(ValidationError, match=r"training\.rounds"):
        Plan(generator=_PLAN)
    carrying = _PLAN.model_copy(update={"canaries": 3})
    with pytest.raises(ValidationError, match=r"canaries"):
        Plan(generator=carrying, training=rounds, release=whole)
    wide = _PLAN.model_copy(update={"frequencies": 32, "channels": 3, "with_mask": True})
    with pytest.raises(ValidationError, match=r"frequencies = 32"):
        Plan(generator=wide, training=rounds, release=whole)


def test_no_plan_pays_for_a_release_and_is_refused_in_its_first_round():
    named = PretrainingPlan(sha256="0" * 64, public_data="phantoms")
    half = ReleasePlan(embedding=EmbeddingPlan(share=0.5))
    with pytest.raises(ValidationError, match=r"pretraining\.sha256 and release\.embedding"):
        Plan(release=half, pretraining=named)
    own = _PLAN.model_copy(update={"site_normalisation": True})
    with pytest.raises(ValidationError, match=r"site_normalisation"):
        Plan(
            generator=own,
            training=TrainingPlan(rounds=0),
            release=ReleasePlan(embedding=EmbeddingPlan()),
        )


@pytest.mark.parametrize("place", ["site", "server"])
def test_public_training_trains_a_gans_generator_wherever_rounds_would(place):
    images, labels = _pictures(64)
    public = ImageSet(images.numpy(), labels.numpy(), ("a", "b"))
    plan = _PLAN.model_copy(update={"family": "gan", "width": 8})
    generator = build_generator(plan, seed=0)
    before = {k: v.clone() for k, v in generator.shared_state().items()}
    training = TrainingPlan(patients_per_step=16, generator_training=place)
    train_openly(generator, public, training, 10, seed=1)
    moved = {k for k, v in generator.shared_state().items() if not torch.equal(v, before[k])}
    for part in ("critic.", "generator.", "average."):
        assert any(name.startswith(part) for name in moved), part


def test_training_on_public_images_learns_them():
    images, labels = _pictures(256)
    public = ImageSet(images.numpy(), labels.numpy(), ("a", "b"))
    generator = build_generator(_PLAN.model_copy(update={"family": "vae", "width": 8}), seed=0)

    def loss() -> float:
        with torch.no_grad():
            rng = torch.Generator().manual_seed(0)
            return generator.private_loss(images, labels, rng).mean().item()

    before = loss()
    train_openly(generator, public, TrainingPlan(patients_per_step=32), 30, seed=2)
    assert loss() < before - 10.0  # nats an image; the entropy of grey pixels stays
