"""What every family promises through the interface."""

from __future__ import annotations

import pytest
import torch

from synth_common.errors import CheckpointError
from synth_common.generators import build_generator
from synth_common.generators.networks import diversity
from synth_common.plan import GeneratorPlan, TrainingPlan

FAMILIES = ["vae", "gan"]
SHAPES = [(28, 1, False), (32, 3, True), (64, 1, True), (128, 3, False)]


def _build(family: str, size: int = 28, channels: int = 1, mask: bool = False, **more):
    plan = GeneratorPlan(
        family=family, size=size, channels=channels, with_mask=mask, width=8, latent_dim=4, **more
    )
    return build_generator(plan, seed=4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("size", "channels", "mask"), SHAPES)
def test_samples_have_the_planned_shape_and_range(family, size, channels, mask):
    generator = _build(family, size, channels, mask)
    images = generator.sample(torch.tensor([0, 1, 1]), [1, 2, 3])
    assert images.shape == (3, channels + int(mask), size, size)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_depends_on_its_seed_and_label_alone(family):
    generator = _build(family)
    together = generator.sample(torch.tensor([0, 1, 0, 1]), [5, 6, 7, 8])
    alone = generator.sample(torch.tensor([1]), [6])
    assert torch.allclose(together[1], alone[0], atol=1e-6)
    assert not torch.allclose(together[0], together[2], atol=1e-3)
    other_label = generator.sample(torch.tensor([0]), [6])
    assert not torch.allclose(alone, other_label, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_an_example_does_not_see_its_batch(family):
    generator = _build(family).eval()
    images, labels = torch.rand(8, 1, 28, 28), torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])

    def losses(n):
        rng = torch.Generator().manual_seed(0)
        return generator.private_loss(images[:n], labels[:n], rng)

    assert torch.allclose(losses(8)[:4], losses(4), rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_private_loss_reaches_the_private_network_only(family):
    generator = _build(family)
    private = {id(p) for p in generator.private_module.parameters()}
    loss = generator.private_loss(
        torch.rand(2, 1, 28, 28), torch.tensor([0, 1]), torch.Generator().manual_seed(0)
    )
    loss.sum().backward()
    for name, parameter in generator.named_parameters():
        if id(parameter) not in private:
            assert parameter.grad is None, name


@pytest.mark.parametrize("family", FAMILIES)
def test_travelling_state_makes_the_same_generator_elsewhere(family):
    here, there = _build(family), build_generator(_build(family).plan, seed=99)
    labels, seeds = torch.tensor([0, 1]), [1, 2]
    assert not torch.allclose(here.sample(labels, seeds), there.sample(labels, seeds))
    there.load_shared_state(here.shared_state())
    assert torch.equal(here.sample(labels, seeds), there.sample(labels, seeds))


def test_a_state_that_does_not_fit_is_refused_by_name():
    generator = _build("vae")
    state = generator.shared_state()
    name = next(iter(state))
    with pytest.raises(CheckpointError, match="missing"):
        generator.load_shared_state({k: v for k, v in state.items() if k != name})
    with pytest.raises(CheckpointError, match="unknown"):
        generator.load_shared_state({**state, "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="shape"):
        generator.load_shared_state({**state, name: torch.zeros(1, 2, 3)})


@pytest.mark.parametrize("family", FAMILIES)
def test_no_layer_mixes_examples(family):
    generator = _build(family, 64)
    kinds = {type(m).__name__ for m in generator.modules()}
    assert not any("BatchNorm" in k or "ConvTranspose" in k for k in kinds)


def test_dropout_is_applied_in_training_only():
    generator = _build("vae", dropout=0.5)
    images, labels = torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64)

    def losses():
        return generator.private_loss(images, labels, torch.Generator().manual_seed(0))

    assert not torch.allclose(losses(), losses())
    generator.eval()
    assert torch.allclose(losses(), losses())


def test_the_average_lags_behind_the_weights():
    generator = _build("vae")
    generator.begin_round(TrainingPlan(ema_decay=0.9), {})
    with torch.no_grad():
        for parameter in generator.private_module.parameters():
            parameter.add_(1.0)
    before = generator.average.out.weight.clone()
    generator.public_step(1000, torch.Generator())
    moved = (generator.average.out.weight - before).mean().item()
    assert moved == pytest.approx(0.1, rel=1e-3)


def test_collapse_is_noticed_from_samples_alone():
    generator = _build("vae")
    labels = torch.zeros(8, dtype=torch.int64)
    same = torch.full((8, 1, 28, 28), 0.4)
    assert diversity(same, labels) == 0
    assert any("mode collapse" in w for w in generator.health(same, labels).warnings)
    assert not generator.health(torch.rand(8, 1, 28, 28), labels).warnings


def test_a_critic_that_wins_and_a_gradient_that_vanishes_are_noticed():
    generator = _build("gan")
    labels, images = torch.zeros(8, dtype=torch.int64), torch.rand(8, 1, 28, 28)
    generator.pace.accuracy.fill_(1.0)
    generator.gradient_norm.fill_(1e-9)
    warnings = " ".join(generator.health(images, labels).warnings)
    assert "divergence" in warnings
    assert "vanishing gradient" in warnings


def test_a_weight_that_is_not_finite_is_noticed():
    for family in FAMILIES:
        generator = _build(family)
        with torch.no_grad():
            next(generator.private_module.parameters()).fill_(float("inf"))
        labels = torch.zeros(4, dtype=torch.int64)
        warnings = generator.health(torch.rand(4, 1, 28, 28), labels).warnings
        assert any("not a finite number" in w for w in warnings)
