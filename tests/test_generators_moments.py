"""The embedding family: what it learns from sums whose moments are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from synth_common.errors import TrainingError
from synth_common.generators import build_generator
from synth_common.generators.denoising import (
    _clean_covariance,
    _interpolated,
    _spectrum,
    cleaned_gaussians,
)
from synth_common.generators.embedding import (
    CONSTANT,
    Released,
    build_embedding,
    cosine_basis,
)
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

_PLAN = GeneratorPlan(family="embedding", size=28, classes=("a", "b"), frequencies=5, features=0)
"""Moments alone; what features add has tests of its own."""


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
    embedding = build_embedding(plan)
    total = embedding.weighted_sum(images, labels, torch.ones(n))
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(total.shape, generator=rng, dtype=torch.float64)
    return Released(total + sigma * noise, sigma, embedding)


def _learned(released: Released, plan: GeneratorPlan = _PLAN):
    generator = build_generator(plan, seed=0)
    said: list[str] = []
    generator.learn_release(released, 0, said.append)
    return generator, said


def test_a_sum_is_what_a_slow_version_computes():
    images, labels = _pictures(6)
    embedding = build_embedding(_PLAN)
    weights = torch.tensor([1.0, 0.5, 0.25, 1.0, 2.0, 0.0])
    sums = embedding.sums(embedding.weighted_sum(images, labels, weights))
    counts, first = np.zeros(2), np.zeros((2, 10, 10))
    second, energy = np.zeros((2, 25, 25)), np.zeros((2, embedding.bands))
    basis = cosine_basis(28, 28).numpy()
    for image, label, weight in zip(images, labels, weights.numpy(), strict=True):
        found = basis @ (image[0].double().numpy() - 0.5) @ basis.T / (0.5 * 28)
        found *= min(1.0, 1.0 / np.linalg.norm(found)) * np.sqrt(0.75)
        low = found[:5, :5].ravel()
        counts[label] += weight
        first[label] += weight * found[:10, :10]
        second[label] += weight * np.outer(low, low)
        for i, j in np.ndindex(28, 28):
            if i >= 5 or j >= 5:
                band = int(2 * np.log2(round((i * i + j * j) ** 0.5) / 5))
                energy[label, band] += weight * found[i, j] ** 2
    for ours, slow in (
        (sums.counts, counts),
        (sums.first[:, 0], first),
        (sums.second, second),
        (sums.energy[:, 0], energy),
    ):
        np.testing.assert_allclose(ours.numpy(), slow, atol=1e-9)


@pytest.mark.parametrize("fill", [0.0, 0.4, 1.0, None])
def test_the_longest_vector_of_an_image_has_length_one(fill):
    """The noise of a release is calibrated to it."""
    images = torch.rand(8, 1, 28, 28) if fill is None else torch.full((1, 1, 28, 28), fill)
    embedding = build_embedding(_PLAN)
    lengths = [
        embedding.weighted_sum(image[None], torch.tensor([1]), torch.ones(1)).norm().item()
        for image in images
    ]
    assert max(lengths) <= 1.0 + 1e-12
    if fill in (0.0, 1.0):
        assert lengths[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("features", "share"), [(0, 0.5), (40, 0.5), (40, 0.2)])
def test_noise_enters_each_part_as_strongly_as_it_says(features, share):
    settings = {"features": features, "feature_share": share}
    embedding = build_embedding(_PLAN.model_copy(update=settings))
    moments = embedding.moment_factor
    rng = torch.Generator().manual_seed(3)
    draws = [torch.randn(embedding.size, generator=rng, dtype=torch.float64) for _ in range(200)]
    sums = [embedding.sums(vector) for vector in draws]
    second = torch.stack([s.second for s in sums])
    off = ~torch.eye(25, dtype=torch.bool)
    root = 2**0.5
    for found, stated in (
        (torch.stack([s.counts for s in sums]).std(), 1 / CONSTANT**2 / moments),
        (torch.stack([s.first for s in sums]).std(), 1 / (root * CONSTANT) / moments),
        (second[..., off].std(), 1 / root / moments),
        (second.diagonal(dim1=2, dim2=3).std(), 1.0 / moments),
        (torch.stack([s.energy for s in sums]).std(), 1.0 / moments),
    ):
        assert found.item() == pytest.approx(stated, rel=0.12)
    if features:
        found = torch.stack([s.features for s in sums]).std()
        assert found.item() == pytest.approx(share**-0.5, rel=0.12)
    assert torch.equal(second, second.transpose(2, 3))


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


def test_correlations_seen_through_noise_come_nearer_to_the_truth():
    """Nearer than what is seen, and than what was expected alone."""
    d, level = 60, torch.tensor(0.05, dtype=torch.float64)
    variances = torch.linspace(1.0, 0.05, d, dtype=torch.float64)
    correlated = variances.sqrt()[:, None] * variances.sqrt()[None] * 0.6
    truth = correlated + torch.diag(0.4 * variances)
    expected = torch.diag(variances)
    errors = torch.zeros(3)
    for seed in range(8):
        found = truth + level * _noise(d, seed)
        cleaned = _clean_covariance(found, expected, level, variances)
        errors += torch.tensor([(e - truth).norm() for e in (cleaned, found, expected)])
    assert errors[0] < 0.95 * errors[1]
    assert errors[0] < 0.3 * errors[2]


def test_pure_noise_leaves_what_was_expected():
    d, level = 60, torch.tensor(0.05, dtype=torch.float64)
    variances = torch.linspace(1.0, 0.05, d, dtype=torch.float64)
    expected = torch.diag(variances)
    moved = []
    for seed in range(8):
        found = expected + level * _noise(d, seed)
        cleaned = _clean_covariance(found, expected, level, variances)
        moved.append((cleaned - expected).norm() / (found - expected).norm())
    assert sum(moved) / len(moved) < 0.25


def test_what_noise_makes_negative_becomes_a_covariance():
    d, level = 40, torch.tensor(1.0, dtype=torch.float64)
    variances = torch.full((d,), 0.01, dtype=torch.float64)
    found = torch.diag(variances) + _noise(d, 0)
    cleaned = _clean_covariance(found, torch.diag(variances), level, variances)
    assert torch.linalg.eigvalsh(cleaned).min() > 0.0


def test_correlations_that_noise_pretends_do_not_raise_the_variances():
    """Strong noise in some correlations, or the whole picture becomes noise."""
    d, level = 40, torch.tensor(0.05, dtype=torch.float64)
    variances = torch.full((d,), 0.01, dtype=torch.float64)
    found = torch.diag(variances)
    found[:8, 20:28] = 0.05
    found[20:28, :8] = 0.05
    cleaned = _clean_covariance(found, torch.diag(variances), level, variances)
    assert torch.all(cleaned.diagonal() <= variances * (1.0 + 1e-9))
    assert torch.all(cleaned.diagonal() >= 0.5 * variances)


def _falling(power: float, plan: GeneratorPlan = _PLAN):
    """Variances that fall by a power of the frequency, as a release without noise gives them."""
    embedding = build_embedding(plan)
    axis = torch.arange(28, dtype=torch.float64)
    ring = (axis[:, None].square() + axis[None].square()).sqrt().round().clamp(min=1.0)
    truth = ring**-power
    k = embedding.frequencies
    members = [embedding.band_of == band for band in range(embedding.bands)]
    bands = torch.stack([truth[mine].sum() for mine in members])[None]
    return embedding, truth, truth[:k, :k].flatten(), bands


@pytest.mark.parametrize("power", [1.5, 3.0, 4.0])
def test_variances_expected_are_those_released(power):
    embedding, truth, low, bands = _falling(power)
    found = _spectrum(low, bands, torch.tensor(0.0), embedding)[0]
    assert (found / truth).log().abs().max() < 0.5
    assert (found[:5, :5] / truth[:5, :5]).log().abs().max() < 0.1


def test_variances_that_noise_hides_fall_by_a_power():
    """Here by the third, which is what is expected beyond the last that is seen."""
    embedding, truth, low, bands = _falling(3.0)
    rng, noise = torch.Generator().manual_seed(0), torch.tensor(0.02, dtype=torch.float64)
    seen = low + noise * torch.randn(low.shape, generator=rng, dtype=torch.float64)
    hidden = bands + noise * torch.randn(bands.shape, generator=rng, dtype=torch.float64)
    found = _spectrum(seen, hidden, noise, embedding)[0]
    assert (found / truth).log().abs().max() < 1.5


def test_variances_expected_never_rise_with_the_frequency():
    embedding, _, low, bands = _falling(3.0)
    found = _spectrum(low.flip(0), bands, torch.tensor(0.0), embedding)[0]
    row = found[0, 1:].tolist()
    assert row == sorted(row, reverse=True)
    assert found.min() > 0.0


def test_means_that_noise_tears_apart_are_pulled_together():
    released = _released(400, 8.0)
    sums = released.embedding.sums(released.vector)
    mean = cleaned_gaussians(sums, released.sigma, released.embedding).mean[..., :10, :10]
    exact = _released(400_000, 0.0)
    truth = exact.embedding.sums(exact.vector)
    truth = truth.first / truth.counts[:, None, None, None]
    raw = sums.first / sums.counts[:, None, None, None]
    torn = (raw[0] - raw[1]) - (truth[0] - truth[1])
    pulled = (mean[0] - mean[1]) - (truth[0] - truth[1])
    assert pulled.norm() < 0.7 * torn.norm()


def test_a_class_that_the_noise_drowns_is_drawn_like_the_largest_and_named():
    plan = _PLAN.model_copy(update={"classes": ("a", "b", "c")})
    images, labels = _pictures(900)
    labels[:3] = 2
    labels[3:403] = 1
    embedding = build_embedding(plan)
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
        generator=_PLAN.model_copy(update={"family": family, "width": 8}),
        training=TrainingPlan(rounds=0, patients_per_step=32),
        release=ReleasePlan(embedding=EmbeddingPlan(warm_steps=150)),
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
    wide = _PLAN.model_copy(update={"frequencies": 17, "channels": 3, "with_mask": True})
    with pytest.raises(
        ValidationError, match=r"frequencies = 17: 1156 coefficients .* most are 1024"
    ):
        Plan(generator=wide, training=rounds, release=whole)
    for most in (27, 28, 32):
        bare = _PLAN.model_copy(update={"frequencies": most})
        if most < 28:
            assert build_embedding(Plan(generator=bare, training=rounds, release=whole).generator)
            continue
        with pytest.raises(ValidationError, match=rf"frequencies = {most}: .* set fewer than 28"):
            Plan(generator=bare, training=rounds, release=whole)


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


def test_one_variance_that_noise_lifted_lifts_no_other():
    """Ten rings of 1e-4 seen through noise of 1e-3, of which the last came out at 3e-3."""
    ring = torch.arange(1, 12, dtype=torch.float64)
    truth, noise = torch.full((10,), 1e-4), 1e-3
    found = truth + noise * torch.tensor([1.0, -1.0, 0.5, -0.5, 1.0, -1.0, 0.5, -1.5, 0.0, 2.9])
    cells = [(r, v, torch.tensor(noise)) for r, v in zip(ring[1:], found, strict=True)]
    cells.insert(0, (ring[0], torch.tensor(1e-1), torch.tensor(noise)))
    cells.append((torch.tensor(20.0), torch.tensor(1e-5), torch.tensor(1e-6)))
    assert _interpolated(cells, ring)[6:].max() < 1e-3
