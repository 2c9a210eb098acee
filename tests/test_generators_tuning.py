"""Tuning a part: adapters and frozen layers, and a normalisation that stays at its site."""

from __future__ import annotations

import math

import pytest
import torch
from small_sites import blobs, small_plan

from synth_common.errors import CheckpointError, ConfigError, PrivacyError
from synth_common.generators import build_generator, public_weights
from synth_common.generators.tuning import AdaptedConvolution, AdaptedLinear, untuned
from synth_common.plan import GeneratorPlan, PretrainingPlan
from synth_common.privacy.gradients import PatientGradients, Rows
from synth_common.privacy.training import Mechanism, PrivateTrainer, Steps
from synth_common.randomness import SimulationNoise

FAMILIES = ["vae", "gan"]


def _tuned(tune: str, rank: int = 2) -> PretrainingPlan:
    return PretrainingPlan(sha256="0" * 64, public_data="drawn", tune=tune, rank=rank)


def _plan(family: str, **changes: object) -> GeneratorPlan:
    values = {"family": family, "size": 28, "classes": ("left", "right"), "width": 16}
    return GeneratorPlan(**{**values, "latent_dim": 4, "fakes_per_step": 8, **changes})


def _nudge(module: torch.nn.Module) -> None:
    """Away from the initial zeros and identities, where gradients vanish."""
    rng = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=rng))


def _loss(generator, rows: Rows):
    rng = torch.Generator().manual_seed(3)
    plan = generator.plan
    images = torch.rand(rows.total, plan.channels, plan.size, plan.size, generator=rng)
    labels = torch.randint(len(plan.classes), (rows.total,), generator=rng)
    return lambda: generator.private_loss(images, labels, torch.Generator().manual_seed(5))


def _slow(losses, parameters, rows: Rows, clip: float):
    """The definition: one autograd call per patient over the tuned parameters, clip, sum."""
    total = [torch.zeros_like(p) for p in parameters]
    norms, start = [], 0
    for count in rows.counts:
        mean = losses[start : start + count].mean()
        gradient = torch.autograd.grad(mean, parameters, retain_graph=True)
        norm = math.sqrt(sum(g.square().sum().item() for g in gradient))
        norms.append(norm)
        for t, g in zip(total, gradient, strict=True):
            t += g * min(1.0, clip / norm)
        start += count
    return dict(zip(parameters, total, strict=True)), norms


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("tune", "site"), [("adapters", False), ("adapters", True), ("last", True), ("all", True)]
)
def test_clipped_sums_of_what_is_tuned_equal_the_definition(family, tune, site):
    generator = build_generator(_plan(family, site_normalisation=site), 1, _tuned(tune))
    _nudge(generator.private_module)
    rows = Rows((1, 1, 2, 3))
    loss = _loss(generator, rows)
    parameters = [p for p in generator.private_module.parameters() if p.requires_grad]
    clip = sorted(_slow(loss(), parameters, rows, math.inf)[1])[2]
    expected, norms = _slow(loss(), parameters, rows, clip)
    engine = PatientGradients(generator.private_module)
    engine.rounding = 0.0
    part = engine.clipped_sum(loss, rows, clip)
    assert part.gradients.keys() == expected.keys()
    assert torch.allclose(part.norms, torch.tensor(norms), rtol=1e-4)
    for parameter, total in expected.items():
        assert torch.allclose(part.gradients[parameter], total, rtol=1e-3, atol=1e-4 * clip)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tune", ["last", "adapters"])
def test_frozen_parameters_neither_move_nor_get_noise(family, tune):
    """The step's noise alone would move every parameter that the optimiser knows."""
    plan = small_plan(family)
    generator = build_generator(plan.generator, 0, _tuned(tune))
    private = generator.private_module
    before = {name: p.detach().clone() for name, p in private.named_parameters()}
    frozen = {name for name, p in private.named_parameters() if not p.requires_grad}
    mechanism = Mechanism(5.0, 0.25, 1.0, 4, 10)
    trainer = PrivateTrainer(generator, blobs(80), mechanism, plan.training, SimulationNoise(1))
    trainer.run(Steps(0, 4, 7), {})
    moved = {name for name, p in private.named_parameters() if not torch.equal(p, before[name])}
    assert frozen
    assert moved == before.keys() - frozen
    assert all(p.grad is None for name, p in private.named_parameters() if name in frozen)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tune", ["all", "last", "adapters"])
def test_public_weights_fit_and_are_found_again_whatever_is_tuned(family, tune):
    plan = _plan(family, canaries=3, site_normalisation=True)
    weights = build_generator(untuned(plan), 77).shared_state()
    generator = build_generator(plan, 1, _tuned(tune), weights)
    found = public_weights(plan, generator.shared_state())
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_an_adapted_network_begins_as_the_network_it_adapts_and_has_fewer_tuned_parameters():
    plan = _plan("vae")
    plain = build_generator(plan, 1)
    adapted = build_generator(plan, 2, _tuned("adapters"), plain.shared_state())
    rows = Rows((1, 1, 1))
    assert torch.allclose(_loss(plain, rows)(), _loss(adapted, rows)(), rtol=1e-5)
    kinds = {type(m) for m in adapted.private_module.modules()}
    assert {AdaptedLinear, AdaptedConvolution} <= kinds
    tuned = sum(p.numel() for p in adapted.private_module.parameters() if p.requires_grad)
    assert 4 * tuned < sum(p.numel() for p in plain.private_module.parameters())


def test_the_average_that_samples_follows_the_adapters():
    plan = small_plan("vae")
    generator = build_generator(plan.generator, 0, _tuned("adapters"))
    labels, seeds = torch.tensor([0, 1]), [1, 2]
    before = generator.sample(labels, seeds)
    mechanism = Mechanism(0.0, 0.5, math.inf, 4, 10)
    trainer = PrivateTrainer(generator, blobs(80), mechanism, plan.training, SimulationNoise(1))
    trainer.run(Steps(0, 5, 7), {})
    assert not torch.allclose(before, generator.sample(labels, seeds), atol=1e-3)


def test_a_layer_frozen_in_part_is_refused():
    generator = build_generator(_plan("vae"), 0)
    generator.network.posterior.bias.requires_grad_(False)
    with pytest.raises(PrivacyError, match="frozen in part"):
        PatientGradients(generator.private_module)


# ------------------------------------------------------------------ the site's own part


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sites_normalisation_is_trained_kept_and_not_in_the_travelling_state(family):
    plan = small_plan(family)
    wanted = plan.generator.model_copy(update={"site_normalisation": True})
    generator = build_generator(wanted, 0)
    own = generator.site_state()
    assert own
    assert not {name for name in generator.shared_state() if "of_site" in name}
    mechanism = Mechanism(1.0, 0.25, 1.0, 4, 10)
    trainer = PrivateTrainer(generator, blobs(80), mechanism, plan.training, SimulationNoise(1))
    kept = trainer.run(Steps(0, 3, 7), {}).kept
    assert all(not torch.equal(own[name], generator.site_state()[name]) for name in own)

    again = build_generator(wanted, 0)
    again.load_shared_state(generator.shared_state())
    PrivateTrainer(again, blobs(80), mechanism, plan.training, SimulationNoise(2)).run(
        Steps(3, 0, 7), kept
    )
    for name, value in generator.site_state().items():
        assert torch.equal(again.site_state()[name], value), name


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_does_not_know_the_site(family):
    generator = build_generator(_plan(family, site_normalisation=True), 0)
    labels, seeds = torch.tensor([0, 1]), [1, 2]
    before = generator.sample(labels, seeds)
    generator.load_site_state({k: v + 1.0 for k, v in generator.site_state().items()})
    assert torch.equal(before, generator.sample(labels, seeds))


def test_a_state_with_a_sites_own_part_is_refused():
    generator = build_generator(_plan("vae", site_normalisation=True), 0)
    with pytest.raises(CheckpointError, match="unknown"):
        generator.load_shared_state({**generator.shared_state(), **generator.site_state()})


# ------------------------------------------------------------------ the plan


@pytest.mark.parametrize(
    "values",
    [
        {"sha256": "0" * 64},
        {"public_data": "MNIST (CC BY-SA 3.0)"},
        {"sha256": "0" * 64, "public_data": "  "},
        {"tune": "adapters"},
        {"tune": "last"},
        {"sha256": "abc", "public_data": "x"},
    ],
)
def test_weights_without_their_origin_and_tuning_without_weights_are_refused(values):
    with pytest.raises(ValueError, match="sha256"):
        PretrainingPlan(**values)


def test_a_family_without_last_layers_says_so(monkeypatch):
    from synth_common.generators.vae import VAE

    monkeypatch.setattr(VAE, "last_layers", ())
    with pytest.raises(ConfigError, match="names no last layers"):
        build_generator(_plan("vae"), 0, _tuned("last"))
