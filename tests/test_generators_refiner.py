"""The refiner: it learns from mean features alone."""

from __future__ import annotations

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


def _lesson(steps: int, taught: tuple[bool, ...] = (True, True)) -> Lesson:
    """The features of clean bars."""
    features = RandomFeatures(_SHAPE, 300, radius=0.5)
    means = torch.stack([features(bars[None, None])[0] for bars in _bars()])
    return Lesson(means, torch.tensor(taught), features, steps)


def _taught(lesson: Lesson, seed: int = 1) -> tuple[Refiner, list[str]]:
    torch.manual_seed(0)
    refiner, said = Refiner(1, 28), []
    teach(refiner, lesson, _grain, seed, said.append)
    return refiner, said


@pytest.mark.parametrize("size", [28, 32, 36, 60, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_new_refiner_changes_nothing(size, channels):
    pictures = torch.rand(2, channels, size, size)
    refined = Refiner(channels, size)(pictures)
    assert torch.equal(refined, pictures)


def test_refined_pictures_have_the_released_features():
    lesson = _lesson(60)
    labels = torch.arange(64) % 2
    grain = _grain(labels, 9)
    refiner, said = _taught(lesson)

    def away(pictures: torch.Tensor) -> float:
        found = lesson.features(pictures.clamp(0, 1)).view(32, 2, -1).transpose(0, 1)
        return _distance(found, lesson.means).item()

    with torch.no_grad():
        after = away(refiner(grain))
    assert after < 0.2 * away(grain)
    assert "step 60 of 60" in said[-1]


def test_a_class_without_features_teaches_nothing():
    lesson = _lesson(2, taught=(True, False))
    broken = torch.where(lesson.taught[:, None], lesson.means, torch.nan)
    refiner, _ = _taught(Lesson(broken, lesson.taught, lesson.features, 2))
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
