"""The VAE's own options, decoders that start warm, and what every option of training does."""

from __future__ import annotations

import math

import pytest
import torch
from small_sites import SteadyNoise, blobs, small_plan
from torch.distributions import Normal, kl_divergence

from synth_common.errors import CheckpointError
from synth_common.generators import build_generator
from synth_common.generators.networks import Decoder, one_hot
from synth_common.images.imageset import ImageSet
from synth_common.plan import GeneratorPlan
from synth_common.privacy.gradients import Rows
from synth_common.privacy.training import Mechanism, PrivateTrainer, Steps, adam_epsilon
from synth_common.randomness import SimulationNoise

LABELS, SEEDS = torch.tensor([0, 1, 1]), [1, 2, 3]


def _vae(**options: object):
    return build_generator(small_plan().generator.model_copy(update=options), seed=0)


def _trained(mechanism: Mechanism, family: str = "vae", steps: int = 12, data=None, **training):
    """A small generator after some steps from equal weights, draws and noise."""
    plan = small_plan(family)
    generator = build_generator(plan.generator, seed=0)
    trainer = PrivateTrainer(
        generator,
        blobs(24) if data is None else data,
        mechanism,
        plan.training.model_copy(update=training),
        SteadyNoise(0),
    )
    trainer.run(Steps(0, steps, 1), {})
    return generator


def _weights(generator) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in generator.private_module.parameters()])


# ------------------------------------------------------------------ clip, Adam, decay, schedules


@pytest.mark.parametrize("family", ["vae", "gan"])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_a_tiny_clip_trains_like_a_small_one_with_the_same_noise_multiplier(family, sigma):
    """Both are far below every gradient of the first steps, so that only the unit differs."""
    start = _weights(build_generator(small_plan(family).generator, seed=0))
    moved = [
        _weights(_trained(Mechanism(sigma, 1.0, clip, 4, 4096), family)) - start
        for clip in (1e-2, 1e-5)
    ]
    assert moved[0].abs().max() > 1e-3
    assert (moved[0] - moved[1]).norm() < 0.01 * moved[0].norm()


def test_with_adams_usual_epsilon_a_tiny_clip_would_stand_still(monkeypatch):
    start = _weights(build_generator(small_plan().generator, seed=0))
    tiny = Mechanism(1.0, 1.0, 1e-5, 4, 4096)
    scaled = (_weights(_trained(tiny)) - start).norm()
    monkeypatch.setattr("synth_common.privacy.training.adam_epsilon", lambda mechanism: 1e-8)
    assert (_weights(_trained(tiny)) - start).norm() < 0.5 * scaled


def test_adams_epsilon_follows_clip_over_denominator_and_not_an_infinite_clip():
    assert adam_epsilon(Mechanism(1.0, 0.1, 1e-3, 4, 100)) == pytest.approx(1e-13)
    assert adam_epsilon(Mechanism(0.0, 0.1, math.inf, 4, 100)) == 1e-8


def test_weight_decay_shrinks_weights_that_no_gradient_moves():
    """Nobody is drawn, so that the steps of Adam are zero and only the decay is left."""
    nobody = Mechanism(0.0, 1e-9, 1.0, 4, 10)
    start = _weights(build_generator(small_plan().generator, seed=0))
    options = {"learning_rate": 0.01, "schedule": "constant"}
    still = _trained(nobody, **options, steps=3)
    assert torch.equal(_weights(still), start)
    shrunk = _trained(nobody, **options, steps=3, weight_decay=2.0)
    assert torch.allclose(_weights(shrunk), start * (1 - 0.01 * 2.0) ** 3, atol=1e-7)


def test_the_cosine_schedule_ends_with_smaller_steps_than_the_constant_one():
    def last(schedule: str) -> float:
        noise = Mechanism(1.0, 1e-9, 1.0, 4, 10)
        options = {"schedule": schedule, "rounds": 1, "steps_per_round": 12}
        before, after = (_weights(_trained(noise, steps=n, **options)) for n in (11, 12))
        return (after - before).norm().item()

    assert last("cosine") == pytest.approx(
        last("constant") * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 11 / 12))), rel=0.1
    )


def test_draws_are_averaged_before_the_clip_so_that_many_weigh_what_one_does():
    """The clipped sum of a patient seen in four draws is its mean gradient, clipped once."""
    generator = _vae()
    plan = small_plan()
    data = blobs(2, per_patient=1)
    one = ImageSet(data.images[:1], data.labels[:1], data.class_names, data.patient_ids[:1])
    training = plan.training.model_copy(update={"draws_per_image": 4})
    mechanism = Mechanism(0.0, 1.0, 0.5, 4, 10)
    trainer = PrivateTrainer(generator, one, mechanism, training, SimulationNoise(0))
    clipped = trainer._private_gradient(torch.Generator().manual_seed(0), [], [])
    images = torch.from_numpy(one.images).repeat(4, 1, 1, 1)
    labels = torch.from_numpy(one.labels).repeat(4)
    losses = generator.private_loss(images, labels, torch.Generator().manual_seed(0))
    parameters = list(generator.private_module.parameters())
    mean = torch.autograd.grad(losses.mean(), parameters)
    norm = torch.cat([g.flatten() for g in mean]).norm()
    assert norm > 0.5
    for parameter, gradient in zip(parameters, mean, strict=True):
        assert torch.allclose(clipped[parameter], gradient * 0.5 / norm, rtol=1e-3, atol=1e-7)


# ------------------------------------------------------------------ the KL weight


def test_a_linear_kl_weight_grows_with_the_step_and_then_stays():
    plan = GeneratorPlan(kl_schedule="linear", kl_warmup=0.5)
    assert [plan.kl_factor(step, 8) for step in (0, 1, 3, 4, 7)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert GeneratorPlan().kl_factor(0, 8) == 1.0


def test_the_schedule_reaches_the_loss():
    generator = _vae(kl_schedule="linear", kl_weight=50.0)
    plan = small_plan()
    generator.begin_round(plan.training, {})
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([0, 1, 0])

    def loss(step: int) -> torch.Tensor:
        generator.begin_step(step)
        return generator.private_loss(images, labels, torch.Generator().manual_seed(0))

    kl = generator.reconstruct(images, labels).kl
    rise = plan.generator.model_copy(update={"kl_schedule": "linear"})
    part = rise.kl_factor(1, 15) - rise.kl_factor(0, 15)
    generator.train()
    assert torch.allclose(loss(1) - loss(0), 50.0 * part * kl, rtol=1e-2, atol=1e-2)


# ------------------------------------------------------------------ the learned prior


def test_the_kl_from_a_learned_prior_agrees_with_torch_distributions():
    generator = _vae(prior="learned")
    with torch.no_grad():
        generator.network.prior.table.weight.copy_(
            torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        )
    label = one_hot(LABELS, 2)
    mean, log_variance = torch.randn(2, 3, 4).unbind()
    centre, spread = generator.network.prior(label)
    slow = kl_divergence(
        Normal(mean, (0.5 * log_variance).exp()), Normal(centre, (0.5 * spread).exp())
    )
    assert torch.allclose(generator._kl(mean, log_variance, label), slow.sum(1), rtol=1e-4)


def test_an_untrained_learned_prior_is_the_standard_one():
    standard, learned = _vae(), _vae(prior="learned")
    state = {**learned.shared_state(), **standard.shared_state()}
    learned.load_shared_state(state)
    assert torch.equal(standard.sample(LABELS, SEEDS), learned.sample(LABELS, SEEDS))


def test_samples_follow_the_averaged_prior_of_their_own_class():
    generator = _vae(prior="learned")
    before = generator.sample(LABELS, SEEDS)
    with torch.no_grad():
        generator.average_prior.table.weight[:4, 1] = 2.0
    after = generator.sample(LABELS, SEEDS)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1:], after[1:], atol=1e-3)
    latent = torch.randn(3, 4)
    shifted = generator.decode(latent - 2.0, LABELS)
    with torch.no_grad():
        generator.average_prior.table.weight.zero_()
    assert torch.allclose(shifted[1:], generator.decode(latent, LABELS)[1:], atol=1e-5)


def test_private_steps_train_the_prior_and_its_average_and_it_travels():
    plan = small_plan()
    wanted = plan.generator.model_copy(update={"prior": "learned"})
    generator = build_generator(wanted, seed=0)
    mechanism = Mechanism(1.0, 1.0, 1.0, 4, 10)
    PrivateTrainer(generator, blobs(24), mechanism, plan.training, SimulationNoise(0)).run(
        Steps(0, 6, 1), {}
    )
    state = generator.shared_state()
    for name in ("network.prior.table.weight", "average_prior.table.weight"):
        assert state[name].abs().max() > 0
    there = build_generator(wanted, seed=9)
    there.load_shared_state(state)
    assert torch.equal(there.sample(LABELS, SEEDS), generator.sample(LABELS, SEEDS))


def test_the_priors_gradients_are_those_of_each_example():
    generator = _vae(prior="learned")
    trainer = PrivateTrainer(
        generator, blobs(4), Mechanism(0.0, 1.0, 1e9, 4, 1), small_plan().training,
        SimulationNoise(0),
    )  # fmt: skip
    images, labels = torch.rand(2, 1, 28, 28), torch.tensor([0, 1])

    def loss() -> torch.Tensor:
        return generator.private_loss(images, labels, torch.Generator().manual_seed(0))

    weight = generator.network.prior.table.weight
    (slow,) = torch.autograd.grad(loss().sum(), [weight])
    fast = trainer._engine.clipped_sum(loss, Rows((1, 1)), 1e9).gradients[weight]
    assert torch.allclose(fast, slow, rtol=1e-4, atol=1e-6)
    assert slow.abs().max() > 0


# ------------------------------------------------------------------ a warm start


def _decoder(plan: GeneratorPlan, gain: float = 1.0) -> Decoder:
    torch.manual_seed(5)
    return Decoder(plan, plan.channels, gain)


@pytest.mark.parametrize("family", ["vae", "gan"])
@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_a_warm_start_makes_the_images_of_the_given_decoder(family, gain):
    generator = build_generator(small_plan(family).generator, seed=0)
    decoder = _decoder(generator.plan, gain)
    generator.warm_start(decoder.state_dict(), label_gain=gain)
    latent = torch.randn(3, 4)
    with torch.no_grad():
        wanted = decoder(latent, one_hot(LABELS, 2)).sigmoid()
    assert torch.allclose(generator.decode(latent, LABELS), wanted, atol=1e-5)
    own = generator.network.decoder if family == "vae" else generator.generator
    assert torch.equal(own.stem.weight, generator.average.stem.weight)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_warm_start_refuses_what_does_not_fit_by_name(family):
    generator = build_generator(small_plan(family).generator, seed=0)
    before = generator.shared_state()
    state = _decoder(generator.plan).state_dict()
    with pytest.raises(CheckpointError, match=r"missing \['out.bias'\]"):
        generator.warm_start({k: v for k, v in state.items() if k != "out.bias"})
    with pytest.raises(CheckpointError, match=r"unknown \['more'\]"):
        generator.warm_start({**state, "more": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"out.bias has shape"):
        generator.warm_start({**state, "out.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"out.bias holds NaN"):
        generator.warm_start({**state, "out.bias": state["out.bias"] * math.nan})
    with pytest.raises(CheckpointError, match="label_gain = 0"):
        generator.warm_start(state, label_gain=0.0)
    after = generator.shared_state()
    assert all(torch.equal(before[name], after[name]) for name in before)
