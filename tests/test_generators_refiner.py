"""The refiner: it learns from mean features alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from synth_common.generators.features import RandomFeatures
from synth_common.generators.refiner import Lesson, Refiner, _distance, teach

_SHAPE = (1, 28, 28)


def _bars() -> torch.Tensor:
    """(2, 28, 28): bars that stand, and bars that lie."""
    standing = (torch.arange(28) // 4 % 2).float().expand(28, 28)
    return torch.stack([standing, standing.T])


def _grain(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Faint bars of the class under noise."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(labels), *_SHAPE, generator=rng)
    return (0.4 + 0.2 * _bars()[labels][:, None] + 0.2 * noise).clamp(0, 1)


def _lesson(steps: int, taught: tuple[bool, ...] = (True, True), batch: int = 32) -> Lesson:
    """The features of clean bars."""
    features = RandomFeatures(_SHAPE, 300, radius=0.5)
    means = torch.stack([features(bars[None, None])[0] for bars in _bars()])
    return Lesson(means, torch.tensor(taught), features, steps, floor=0.25, batch=batch)


def _taught(lesson: Lesson, seed: int = 1) -> tuple[Refiner, list[str]]:
    torch.manual_seed(0)
    refiner, said = Refiner(1, 28, 0), []
    teach(refiner, lesson, _grain, seed, said.append)
    return refiner, said


@pytest.mark.parametrize("size", [28, 32, 36, 60, 64, 128])
@pytest.mark.parametrize(("channels", "classes"), [(1, 0), (3, 3)])
def test_a_new_refiner_changes_nothing(size, channels, classes):
    pictures = torch.rand(2, channels, size, size)
    refined = Refiner(channels, size, classes)(pictures, torch.tensor([0, 2]))
    assert torch.equal(refined, pictures)


def test_refined_pictures_have_the_released_features():
    lesson = _lesson(30)
    labels = torch.arange(64) % 2
    grain = _grain(labels, 9)
    refiner, said = _taught(lesson)

    def away(pictures: torch.Tensor) -> float:
        found = lesson.features(pictures.clamp(0, 1)).view(32, 2, -1).transpose(0, 1)
        return _distance(found, lesson.means).item()

    with torch.no_grad():
        after = away(refiner(grain, labels))
    assert after < 0.05 * away(grain)
    assert "step 30 of 30" in said[-1]
    assert said[-1].endswith("; their noise alone leaves about 0.2500")


@pytest.mark.parametrize(("batch", "each"), [(None, 208), (96, 48), (1, 16)])
def test_a_step_takes_as_many_pictures_as_the_lesson_says(batch, each):
    """At 28 pixels and two classes; without a number, 320 * 32 * 32 pixels."""
    lesson, sizes = _lesson(1), []

    class Counting(RandomFeatures):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return super().__call__(images)

    counting = Counting(_SHAPE, 300, radius=0.5)
    _taught(replace(lesson, features=counting, batch=batch))
    assert sizes == [2 * each]


@pytest.mark.parametrize(
    ("shape", "classes", "pooled"),
    [
        ((1, 28, 28), 2, 8192),
        ((1, 64, 64), 2, 8192),
        ((1, 128, 128), 2, 4096),
        ((4, 128, 128), 2, 1024),
        ((4, 128, 128), 100, 1600),
        ((1, 28, 28), 1000, 16_000),
    ],
)
def test_what_is_drawn_to_learn_from_fits_the_memory(shape, classes, pooled):
    """At most 2 ** 26 values, at most 8,192 pictures, at least 16 of each class."""
    taught = torch.ones(classes, dtype=torch.bool)
    features = RandomFeatures(shape, 2, radius=0.5)
    lesson = Lesson(torch.zeros(classes, 2), taught, features, steps=0)
    drawn = []

    def draw(labels: torch.Tensor, seed: int) -> torch.Tensor:
        drawn.append(labels)
        return torch.zeros(1).expand(len(labels), *shape)

    teach(Refiner(shape[0], shape[1], 0), lesson, draw, 0, lambda _: None)
    assert [len(labels) for labels in drawn] == [pooled]
    assert int(torch.bincount(drawn[0]).min()) >= 16


def test_a_class_without_features_teaches_nothing():
    lesson = _lesson(2, taught=(True, False))
    broken = torch.where(lesson.taught[:, None], lesson.means, torch.nan)
    refiner, _ = _taught(replace(lesson, means=broken))
    assert all(bool(torch.isfinite(p).all()) for p in refiner.parameters())


def test_one_seed_gives_one_refiner():
    states = [_taught(_lesson(3), seed)[0].state_dict() for seed in (4, 4, 5)]
    weights = [state["out.weight"] for state in states]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_distance_of_a_sample_to_its_own_distribution_is_zero_on_average():
    rng = torch.Generator().manual_seed(0)
    wanted = torch.zeros(1, 8)
    found = [_distance(torch.randn(1, 5, 8, generator=rng), wanted).item() for _ in range(4000)]
    mean = sum(found) / len(found)
    assert abs(mean) < 0.1  # a biased one has 8 / 5
