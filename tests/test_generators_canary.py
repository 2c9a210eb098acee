"""A canary's gradient is exactly one clip long, in a place no patient reaches."""

from __future__ import annotations

import math

import pytest
import torch
from small_sites import small_plan

from synth_common.generators import Generator, build_generator
from synth_common.generators.canary import CANARY_LENGTH, CANARY_WEIGHTS, CanaryGenerator
from synth_common.plan import GeneratorPlan
from synth_common.privacy.gradients import PatientGradients, Rows

CLASSES, CANARIES = 2, 7


def _generator(family: str, canaries: int = CANARIES) -> Generator:
    plan = small_plan(family).generator.model_copy(update={"canaries": canaries})
    return build_generator(plan, seed=1)


def _clipped(generator: Generator, labels: list[int], counts: tuple[int, ...], clip: float = 0.5):
    """Clipped sum of random pictures with these labels, by parameter name."""
    images = torch.rand(len(labels), 1, 28, 28, generator=torch.Generator().manual_seed(2))
    part = PatientGradients(generator.private_module).clipped_sum(
        lambda: generator.private_loss(
            images, torch.tensor(labels), torch.Generator().manual_seed(3)
        ),
        Rows(counts),
        clip,
    )
    names = {parameter: name for name, parameter in generator.named_parameters()}
    return {names[p]: g for p, g in part.gradients.items()}, part.norms


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_canaries_add_one_clip_each_and_nothing_else(family):
    generator = _generator(family)
    canaries = [CLASSES + 4, CLASSES, CLASSES + 6, CLASSES + 6]  # the last has two images
    gradients, norms = _clipped(generator, canaries, (1, 1, 2))
    assert norms.tolist() == pytest.approx([CANARY_LENGTH] * 3, rel=1e-5)
    weights = gradients.pop(CANARY_WEIGHTS).squeeze(0)
    expected = torch.zeros(CANARIES)
    expected[[4, 0, 6]] = 0.5
    assert torch.allclose(weights, expected, rtol=1e-5, atol=0)
    assert all(not gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_patients_do_not_touch_the_canaries_and_are_clipped_as_ever(family):
    plain, wrapped = _generator(family, canaries=0), _generator(family)
    labels, counts = [0, 1, 1, 0], (1, 1, 2)
    expected, norms = _clipped(plain, labels, counts)
    found, with_canaries = _clipped(wrapped, labels, counts)
    assert not found.pop(CANARY_WEIGHTS).any()
    assert torch.equal(norms, with_canaries)
    assert found.keys() == {f"inner.{name}" for name in expected}
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[f"inner.{name}"])


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_canary_among_patients_moves_the_sum_by_one_clip(family):
    generator = _generator(family)
    without, _ = _clipped(generator, [0, 1], (1, 1))
    beside, _ = _clipped(generator, [0, 1, CLASSES + 2], (1, 1, 1))
    moved = {name: beside[name] - without[name] for name in without}
    total = math.sqrt(sum(m.square().sum().item() for m in moved.values()))
    assert total == pytest.approx(0.5, rel=1e-4)
    assert moved[CANARY_WEIGHTS][0, 2].item() == pytest.approx(0.5, rel=1e-5)


def test_what_a_canary_shows_cannot_spoil_its_gradient():
    generator = _generator("vae")
    images = torch.full((2, 1, 28, 28), math.nan)
    labels = torch.tensor([CLASSES, CLASSES + 1])
    part = PatientGradients(generator.private_module).clipped_sum(
        lambda: generator.private_loss(images, labels, torch.Generator()), Rows((1, 1)), 1.0
    )
    assert torch.isfinite(part.norms).all()
    assert sum(bool(g.any()) for g in part.gradients.values()) == 1


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_the_images_are_those_of_the_same_generator_without_canaries(family):
    plain, wrapped = _generator(family, canaries=0), _generator(family)
    assert isinstance(wrapped, CanaryGenerator)
    assert wrapped.shared_state().keys() == {
        CANARY_WEIGHTS, *(f"inner.{name}" for name in plain.shared_state())
    }  # fmt: skip
    assert not wrapped.shared_state()[CANARY_WEIGHTS].any()
    labels, seeds = torch.tensor([0, 1, 1]), [5, 6, 7]
    assert torch.equal(plain.sample(labels, seeds), wrapped.sample(labels, seeds))
    assert plain.private_rate == wrapped.private_rate
    assert plain.private_betas == wrapped.private_betas
    assert plain.public_examples == wrapped.public_examples


def test_a_plan_carries_no_canary_unless_it_says_so():
    assert GeneratorPlan().canaries == 0
    assert not isinstance(_generator("vae", canaries=0), CanaryGenerator)
