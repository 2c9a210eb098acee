"""Moments and features of one release, together: what the refiner is taught, and who it draws."""

from __future__ import annotations

import pytest
import torch

from synth_common.generators import build_generator, moments
from synth_common.generators.embedding import CONSTANT, Released, build_embedding
from synth_common.generators.moments import class_gaussians
from synth_common.plan import GeneratorPlan

_PLAN = GeneratorPlan(
    family="embedding",
    size=28,
    classes=("a", "b", "c"),
    frequencies=4,
    features=60,
    feature_share=0.8,
    refine_steps=2,
)
_SIGMA = 0.5


def _released(plan: GeneratorPlan = _PLAN, counts: tuple[int, ...] = (60, 140, 0)) -> Released:
    """The exact sum of random pictures, said to hold noise."""
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(len(labels), 1, 28, 28, generator=rng)
    embedding = build_embedding(plan)
    total = embedding.weighted_sum(images, labels, torch.ones(len(labels)))
    return Released(total, _SIGMA, embedding)


def _learned(released: Released, plan: GeneratorPlan = _PLAN) -> moments.MomentGenerator:
    generator = build_generator(plan, seed=0)
    generator.learn_release(released, 0, lambda _: None)
    return generator


def test_who_is_seen_depends_on_the_noise_in_the_moments():
    """At a share of 0.8 the noise of counts is 5 ** 0.5 times what it would be alone."""
    least = 4.0 * _SIGMA / CONSTANT**2 * 5**0.5
    told = class_gaussians(_released(counts=(int(least) - 1, int(least) + 1, 40)), lambda _: None)
    assert told.seen.tolist() == [False, True, True]
    assert told.like.tolist() == [2, 1, 2]


def test_the_refiner_learns_the_mean_features_of_the_classes_seen(monkeypatch):
    lessons = []
    monkeypatch.setattr(moments, "teach", lambda refiner, lesson, *rest: lessons.append(lesson))
    released = _released()
    _learned(released)
    sums, (lesson,) = released.embedding.sums(released.vector), lessons
    assert lesson.taught.tolist() == [True, True, False]
    lengths = lesson.means[:2].norm(dim=1)
    assert bool((lengths <= 1.0).all())
    assert bool((lengths > 0.3).all())
    expected = sums.features[1] / 140
    torch.testing.assert_close(lesson.means[1], expected.to(torch.float32))


def test_what_is_drawn_is_refined():
    generator, labels = _learned(_released()), torch.tensor([0, 1])
    refined = generator.sample(labels, [1, 2])
    generator.refiner = None
    assert (refined - generator.sample(labels, [1, 2])).abs().max() > 1e-3


def test_nobody_seen_leaves_the_refiner_as_it_was():
    generator, labels = _learned(_released(counts=(1, 1, 1))), torch.tensor([0, 1])
    refined = generator.sample(labels, [1, 2])
    generator.refiner = None
    assert torch.equal(refined, generator.sample(labels, [1, 2]))


def test_a_release_in_which_nobody_is_seen_forgets_what_an_earlier_one_taught():
    generator, labels = _learned(_released()), torch.tensor([0, 1])
    generator.learn_release(_released(counts=(1, 1, 1)), 0, lambda _: None)
    refined = generator.sample(labels, [1, 2])
    generator.refiner = None
    assert torch.equal(refined, generator.sample(labels, [1, 2]))


def test_neither_making_nor_teaching_a_generator_touches_the_generator_of_torch():
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        generator = moments.MomentGenerator(_PLAN)
        states.append(generator.shared_state())
        generator.learn_release(_released(), 0, lambda _: None)
        states.append(generator.shared_state())
        assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(states[:2], states[2:], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_floor_is_what_noise_alone_leaves():
    """Over many draws of the noise, the true features are so far from the released ones."""
    exact, seen = _released(), torch.tensor([True, True, False])
    sums = exact.embedding.sums(exact.vector)
    rng, away = torch.Generator().manual_seed(1), []
    for _ in range(200):
        noise = _SIGMA * torch.randn(exact.vector.shape, generator=rng, dtype=torch.float64)
        noisy = exact.embedding.sums(exact.vector + noise)
        gaps = (noisy.features - sums.features)[:2] / sums.counts[:2, None]
        away.append(gaps.square().sum().item())
    floor = moments.feature_lesson(exact, seen, 1).floor
    assert floor == pytest.approx(sum(away) / len(away), rel=0.05)


def test_a_class_that_was_not_seen_is_refined_like_the_largest():
    plan = _PLAN.model_copy(update={"refine_by_class": True})
    generator = _learned(_released(plan), plan)
    _, second, third = generator.sample(torch.tensor([0, 1, 2]), [5, 5, 5])
    assert torch.allclose(third, second, atol=1e-6)
    first_told, second_told, third_told = generator.refiner.to_whole.weight[:, -3:].T
    assert torch.equal(third_told, second_told)
    assert not torch.equal(third_told, first_told)


def test_what_travels_refines_alike():
    generator, other = _learned(_released()), build_generator(_PLAN, seed=9)
    other.load_shared_state(generator.shared_state())
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(other.sample(labels, [1, 2, 3]), generator.sample(labels, [1, 2, 3]))
