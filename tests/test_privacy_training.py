"""Poisson draws of patients, noise of the right scale, one noise addition per step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from small_sites import SteadyNoise, blobs, small_plan

from synth_common.generators import build_generator
from synth_common.privacy.augmentation import augmented
from synth_common.privacy.optimiser import PatientOptimiser
from synth_common.privacy.sampling import PatientSampler, physical_batches
from synth_common.privacy.training import Mechanism, PrivateTrainer, Steps
from synth_common.randomness import SecureNoise, SimulationNoise, secret_generator


def _trainer(family: str, noise, data=None, **changes):
    plan = small_plan(family)
    settings = {
        "noise_multiplier": 1.0,
        "sample_rate": 0.25,
        "clip_norm": 1.0,
        "max_images": 4,
        "denominator": 10,
    }
    generator = build_generator(plan.generator, seed=0)
    mechanism = Mechanism(**{**settings, **changes})
    data = blobs(80) if data is None else data
    return generator, PrivateTrainer(generator, data, mechanism, plan.training, noise)


# ------------------------------------------------------------------ who is drawn


@pytest.mark.parametrize("noise", [SimulationNoise(1), SecureNoise()])
def test_every_patient_enters_independently_at_the_stated_rate(noise):
    units = np.repeat(np.arange(200), 3)
    sampler = PatientSampler(units, 0.1, 3, noise)
    sizes, entered = [], np.zeros(200)
    for _ in range(300):
        drawn = sampler.draw()
        sizes.append(len(drawn))
        for images in drawn:
            entered[units[images[0]]] += 1
    assert stats.binomtest(int(entered.sum()), 200 * 300, 0.1).pvalue > 1e-4
    # A shuffled loader would draw a constant number; Poisson sampling varies like this.
    assert 0.7 < np.var(sizes) / (200 * 0.1 * 0.9) < 1.4
    assert stats.chisquare(entered).pvalue > 1e-4


def test_at_most_k_images_of_a_patient_chosen_afresh():
    units = np.array([0] * 10 + [1])
    sampler = PatientSampler(units, 1.0, 3, SimulationNoise(0))
    seen = set()
    for _ in range(60):
        many, one = sampler.draw()
        assert len(many) == len(set(many)) == 3
        assert set(units[many]) == {0}
        assert list(one) == [10]
        seen.update(many)
    assert seen == set(range(10))


def test_a_patient_is_never_cut_between_physical_batches():
    drawn = [np.arange(4), np.array([7]), np.array([8, 9]), np.array([10])]
    batches = list(physical_batches(drawn, 3))
    assert sorted(i for b in batches for i in b.images) == sorted(np.concatenate(drawn))
    for batch in batches:
        assert list(batch.counts) == sorted(batch.counts)
        assert sum(batch.counts) == len(batch.images)
        assert len(batch.images) <= 3 or len(batch.counts) == 1


# ------------------------------------------------------------------ what noise is added


def _noise_added(factor: float, noise) -> np.ndarray:
    """What PatientOptimiser adds to an empty draw, over a declared sigma of 2 * factor."""
    parameter = torch.nn.Parameter(torch.zeros(40_000))
    optimiser = PatientOptimiser(
        torch.optim.SGD([parameter], lr=1.0),
        noise_multiplier=2.0 * factor, clip=0.5, denominator=4, noise=noise,
    )  # fmt: skip
    optimiser.private_step({}, {})
    return -parameter.detach().numpy()


def _passes(values: np.ndarray) -> bool:
    """Whether values look like N(0, (2 * 0.5 / 4)^2)."""
    return stats.kstest(values, "norm", args=(0, 0.25)).pvalue > 1e-3


@pytest.mark.parametrize("noise", [SimulationNoise(7), SecureNoise()])
def test_the_noise_of_an_empty_step_has_the_declared_scale(noise):
    assert _passes(_noise_added(1.0, noise))
    assert not _passes(_noise_added(0.7, noise))
    assert not _passes(_noise_added(1.3, noise))


class _CountingNoise(SimulationNoise):
    """Counts how many Gaussian values were drawn."""

    def __init__(self) -> None:
        super().__init__(0)
        self.values = 0

    def gaussian(self, shape):
        self.values += math.prod(shape)
        return super().gaussian(shape)


@pytest.mark.parametrize("physical", [1, 1000])
@pytest.mark.parametrize("rate", [1e-9, 1.0])
def test_one_noise_addition_per_logical_step_whoever_is_drawn(physical, rate):
    noise = _CountingNoise()
    plan = small_plan("vae")
    generator = build_generator(plan.generator, seed=0)
    training = plan.training.model_copy(update={"physical_batch": physical})
    mechanism = Mechanism(1.0, rate, 1.0, 4, 10)
    result = PrivateTrainer(generator, blobs(20), mechanism, training, noise).run(
        Steps(0, 2, 1), {}
    )
    trained = sum(p.numel() for p in generator.private_module.parameters())
    assert noise.values == 2 * trained
    assert (result.mean_loss is None) == (rate < 1e-6)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_physical_batch_size_does_not_change_the_result(family):
    states = []
    for physical in (3, 1000):
        plan = small_plan(family)
        generator = build_generator(plan.generator, seed=0)
        training = plan.training.model_copy(update={"physical_batch": physical})
        mechanism = Mechanism(0.0, 1.0, 1.0, 4, 10)
        trainer = PrivateTrainer(generator, blobs(12), mechanism, training, SimulationNoise(0))
        trainer.run(Steps(0, 1, 1), {})
        grads = {n: p.grad for n, p in generator.private_module.named_parameters()}
        states.append(grads)
    if family == "gan":  # the VAE draws reparameterisation noise per batch, in another order
        for name, value in states[0].items():
            assert torch.allclose(value, states[1][name], atol=1e-6), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_with_fixed_draws_one_patient_moves_only_the_private_network(dropout):
    """In a GAN's first step the fakes and the generator are made before any patient counts.

    With a critic that a patient cannot move (rate 0) every other travelling tensor is the
    same whether or not the patient took part, dropout or not.
    """
    everyone = blobs(12)
    states = []
    for data in (everyone, everyone.subset(np.arange(10))):
        plan = small_plan("gan")
        wanted = plan.generator.model_copy(update={"critic_steps": 1, "dropout": dropout})
        generator = build_generator(wanted, seed=0)
        training = plan.training.model_copy(update={"learning_rate": 1e-30})
        mechanism = Mechanism(0.0, 1.0, 1.0, 4, 10)
        trainer = PrivateTrainer(generator, data, mechanism, training, SimulationNoise(0))
        trainer.run(Steps(0, 2, 1), {})
        states.append(generator.shared_state())
    fresh = build_generator(small_plan("gan").generator, seed=0).shared_state()
    others = [name for name in states[0] if not name.startswith("critic.")]
    assert any(not torch.equal(states[0][name], fresh[name]) for name in others)
    for name in others:
        assert torch.equal(states[0][name], states[1][name]), name


def test_patients_without_signal_do_not_change_the_denominator():
    """Twice the patients, twice the sum: a data-dependent denominator would hide it."""
    few = blobs(2, per_patient=1)
    both = few.subset(np.array([0, 1, 0, 1]))
    both = type(both)(both.images, both.labels, both.class_names, np.array(list("abcd")))
    moved = []
    for data in (few, both):
        plan = small_plan("gan")
        generator = build_generator(plan.generator, seed=0)
        mechanism = Mechanism(0.0, 1.0, 1.0, 4, 10)
        trainer = PrivateTrainer(generator, data, mechanism, plan.training, SimulationNoise(0))
        parameters = list(generator.private_module.parameters())
        rng = torch.Generator().manual_seed(0)
        parts = [
            trainer._clipped(batch, rng) for batch in physical_batches(trainer._sampler.draw(), 100)
        ]
        trainer._optimiser.private_step(parts[0].gradients, {})
        moved.append(torch.cat([p.grad.flatten() for p in parameters]))
    assert torch.allclose(2 * moved[0], moved[1], atol=1e-6)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_training_is_repeatable_with_simulation_noise_and_not_with_secure(family):
    def trained(noise):
        generator, trainer = _trainer(family, noise)
        trainer.run(Steps(0, 3, 1), {})
        return generator.shared_state()

    a, b, c = trained(SimulationNoise(3)), trained(SimulationNoise(3)), trained(SecureNoise())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_two_rounds_with_kept_moments_equal_one_long_round(family):
    generator, trainer = _trainer(family, SimulationNoise(0), noise_multiplier=0.0, sample_rate=1.0)
    first = trainer.run(Steps(0, 4, 1), {})
    assert any(name.startswith("private.") for name in first.kept)
    assert any(name.startswith("public.") for name in first.kept) == (family == "gan")
    again, fresh = _trainer(family, SimulationNoise(0), noise_multiplier=0.0, sample_rate=1.0)
    again.load_shared_state(generator.shared_state())
    trainer._noise, fresh._noise = SteadyNoise(1), SteadyNoise(1)
    trainer.run(Steps(4, 2, 2), first.kept)
    fresh.run(Steps(4, 2, 2), first.kept)
    for name, value in generator.shared_state().items():
        assert torch.allclose(value, again.shared_state()[name], atol=1e-6), name


def test_augmented_rows_move_alone_and_with_their_masks():
    images = torch.arange(6 * 2 * 8 * 8, dtype=torch.float32).view(6, 2, 8, 8)
    rng = torch.Generator().manual_seed(1)
    moved = augmented(images, 2, True, rng)
    corners = {(float(m[0, 3, 3]), float(m[0, 3, 4])) for m in moved}
    assert len(corners) == 6  # every row had moves of its own
    for before, after in zip(images, moved, strict=True):
        assert torch.equal(after[1] - after[0], torch.full((8, 8), 64.0))  # channels together
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
    assert torch.equal(augmented(images, 0, False, rng), images)
    again = augmented(images[:3], 2, False, torch.Generator().manual_seed(1))
    other = augmented(
        torch.cat([images[:2], -images[2:3]]), 2, False, torch.Generator().manual_seed(1)
    )
    assert torch.equal(again[:2], other[:2])


def test_every_shift_is_drawn_and_none_beyond():
    image = torch.zeros(400, 1, 9, 9)
    image[:, 0, 4, 4] = 1.0
    moved = augmented(image, 2, False, torch.Generator().manual_seed(0))
    places = {tuple(spot) for spot in (moved[:, 0] == 1.0).nonzero()[:, 1:].tolist()}
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_the_private_randomness_follows_the_secret_source_not_the_sites_seed():
    """Who knows a site's seed must not know what each patient's image was mixed with."""

    def stream(noise, seed):
        generator, trainer = _trainer("vae", noise, noise_multiplier=0.0, sample_rate=1.0)
        trainer.run(Steps(0, 2, seed), {})
        return torch.cat([p.flatten() for p in generator.private_module.parameters()])

    known = stream(SimulationNoise(3), 1)
    assert torch.equal(known, stream(SimulationNoise(3), 2))
    assert not torch.equal(known, stream(SimulationNoise(4), 1))
    assert not torch.equal(known, stream(SecureNoise(), 1))


def test_a_secret_generator_keeps_more_than_a_seed():
    """``manual_seed`` would keep 32 bits: two sources that agree on those gave one stream."""

    class Words(SimulationNoise):
        def __init__(self, last):
            super().__init__(0)
            self.last = last

        def uniform(self, n):
            values = SimulationNoise(0).uniform(n)
            values[-1] = self.last
            return values

    def drawn(last):
        return torch.randn(2000, generator=secret_generator(Words(last)))

    assert torch.equal(drawn(0.25), drawn(0.25))
    assert not torch.equal(drawn(0.25), drawn(0.75))
    values = torch.randn(40_000, generator=secret_generator(SecureNoise())).numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-4


def test_several_draws_of_an_image_are_averaged_before_the_clip():
    plan = small_plan("vae")
    generator = build_generator(plan.generator, seed=0)
    training = plan.training.model_copy(update={"draws_per_image": 4})
    mechanism = Mechanism(0.0, 1.0, 1.0, 4, 10)
    data = blobs(6)
    trainer = PrivateTrainer(generator, data, mechanism, training, SimulationNoise(0))
    (batch,) = physical_batches(trainer._sampler.draw(), 100)
    part = trainer._clipped(batch, torch.Generator().manual_seed(0))
    assert part.losses.shape == (24,)
    assert part.norms.shape == (3,)  # three patients, however many draws
