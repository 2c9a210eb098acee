"""What one release costs: the sum at a site, the cleaning and the training at the coordinator.

Images a second of the sum, with 3,000 random features and without, beside the
random Fourier features that a mean embedding of pixels needs (4,000 of them, as in DP-MERF; Harder,
Adamczewski & Park 2021), measured alternately. The seconds in which the coordinator cleans the
moments, and the milliseconds of one step of the refiner. Then the open training of a VAE on images
drawn from the release: time per step in tenths of the run, which denormal numbers would let grow,
and the share of it spent in products of matrices and convolutions.
Drawn numbers, no data. Prints; asserts nothing.

    python simulations/benchmarks/release.py [--threads 1] [--images 2048] [--steps 400]
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from synth_common.generators import build_generator
from synth_common.generators.embedding import Embedding, Released, build_embedding
from synth_common.images.imageset import ImageSet
from synth_common.plan import GeneratorPlan, TrainingPlan
from synth_common.privacy.public_training import train_openly

_BATCH = 256
_FEATURES = 4000
_TENTHS = 10
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution", "conv")
_CLASSES = tuple("0123456789")


def main() -> None:
    """Print the table of releases, then the lines of the open training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{options.threads} thread(s), torch {torch.__version__}")
    print(
        "size  frequencies  sum, images/s  moments alone  Fourier features, images/s  "
        "cleaning, s  refining, ms a step  drawing, images/s"
    )
    for size, frequencies in ((28, 12), (28, 14), (64, 12)):
        print(_release_line(size, frequencies, options.images))
    _training_lines(options.steps)


def _release_line(size: int, frequencies: int, count: int) -> str:
    plan = GeneratorPlan(
        family="embedding", size=size, classes=_CLASSES, frequencies=frequencies, features=3000
    )
    embedding, moments = (
        build_embedding(p) for p in (plan, plan.model_copy(update={"features": 0}))
    )
    images, labels = torch.rand(count, 1, size, size), torch.arange(count) % len(_CLASSES)
    weights = torch.ones(count)
    directions = torch.randn(size * size, _FEATURES // 2) / size

    def release(of: Embedding = embedding) -> Tensor:
        total = torch.zeros(of.size, dtype=torch.float64)
        for start in range(0, count, _BATCH):
            rows = slice(start, start + _BATCH)
            total += of.weighted_sum(images[rows], labels[rows], weights[rows])
        return total

    def fourier() -> Tensor:
        total = torch.zeros(len(_CLASSES), _FEATURES)
        for start in range(0, count, _BATCH):
            rows = slice(start, start + _BATCH)
            angles = images[rows].flatten(1) @ directions
            features = torch.cat([angles.cos(), angles.sin()], dim=1) / math.sqrt(_FEATURES / 2)
            total.index_add_(0, labels[rows], features)
        return total

    ours, theirs = _alternately(release, fourier)
    alone, _ = _alternately(lambda: release(moments), fourier)
    released = Released(release(), 1.0, embedding)

    def learning(steps: int) -> float:
        learner = build_generator(plan.model_copy(update={"refine_steps": steps}), seed=0)
        return _seconds(lambda: learner.learn_release(released, 0, lambda _: None))

    cleaning, few, more = learning(0), learning(5), learning(25)
    generator = build_generator(plan, seed=0)
    drawing = _seconds(lambda: generator.sample(labels[:512], range(512)))
    return (
        f"{size:4}  {frequencies:11}  {count / ours:13,.0f}  {count / alone:13,.0f}  "
        f"{count / theirs:26,.0f}  {cleaning:11.2f}  {1e3 * (more - few) / 20:19.0f}  "
        f"{512 / drawing:17,.0f}"
    )


def _training_lines(steps: int) -> None:
    """Time per step in each tenth of a training, and what it goes into."""
    plan = GeneratorPlan(family="vae", size=28, classes=_CLASSES, width=16)
    rng = np.random.default_rng(0)
    pictures = rng.random((1024, 1, 28, 28), dtype=np.float32)
    images = ImageSet(pictures, np.arange(1024) % len(_CLASSES), _CLASSES)
    generator, training = build_generator(plan, seed=0), TrainingPlan(patients_per_step=_BATCH)
    tenth = max(1, steps // _TENTHS)
    train_openly(generator, images, training, 5, 0)
    each = [
        _seconds(lambda: train_openly(generator, images, training, tenth, 1)) / tenth
        for _ in range(_TENTHS)
    ]
    print(
        "milliseconds a step, VAE of 28 px, in tenths: " + " ".join(f"{1e3 * s:.1f}" for s in each)
    )
    print(f"last tenth over first: {each[-1] / each[0]:.2f}")
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        train_openly(generator, images, training, 10, 2)
    events = seen.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    products = sum(
        event.self_cpu_time_total
        for event in events
        if any(part in event.key.split("::")[-1] for part in _PRODUCTS)
    )
    print(f"in products of matrices and convolutions: {products / whole:.0%}")


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _alternately(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of each, run in turns after a first of each."""
    one(), other()
    pairs = [(_seconds(one), _seconds(other)) for _ in range(7)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


if __name__ == "__main__":
    main()
