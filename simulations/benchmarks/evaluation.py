"""How many images the evaluator judges per second, step by step.

Run ``python simulations/benchmarks/evaluation.py [--images N] [--sizes 32 64]``. Every line
is measured on this machine, on smooth random images; nothing is asserted. Images per second
counts the synthetic images of a step, and for training the images shown to the network.

``--fidelity 1000 10000`` measures instead all metrics of fidelity between so many images a side,
each N in a fresh process: seconds, and the peak of resident memory over what the images take.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from synth_common.audit.membership import evaluate_membership
from synth_common.evaluation.classifier import train_classifier
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.encoders import radiomics_encoder, random_convolutions
from synth_common.evaluation.suite import evaluate_fidelity, evaluate_utility
from synth_common.images.imageset import ImageSet


def _images(count: int, size: int, seed: int) -> ImageSet:
    """Smooth random images of two classes (the second brighter), one per patient."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = np.empty((count, 1, size, size), dtype=np.float32)
    for i in range(0, count, 500):  # in parts, so that what is measured later is the peak
        part = slice(i, i + 500)
        noise = rng.normal(size=pixels[part].shape).astype(np.float32)
        smooth = gaussian_filter(noise, (0, 0, 2, 2)) * 0.6
        pixels[part] = np.clip(0.4 + smooth + 0.1 * labels[part, None, None, None], 0, 1)
    return ImageSet(
        pixels,
        labels.astype(np.int64),
        ("a", "b"),
        np.array([f"{seed}-{i}" for i in range(count)], dtype=str),
    )


def _seconds(step: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _rows(count: int, size: int, config: EvaluationConfig) -> list[tuple[str, int, float]]:
    """(step, images, seconds) of every step at one size."""
    train, holdout, synthetic = (_images(count, size, seed) for seed in (1, 2, 3))
    shown = config.classifier_steps * config.classifier_batch
    steps: list[tuple[str, int, Callable[[], object]]] = [
        ("radiomics features", count, lambda: radiomics_encoder().extract(synthetic.images)),
        ("random convolutions", count, lambda: random_convolutions(1).extract(synthetic.images)),
        (
            "classifier training",
            shown,
            lambda: train_classifier(train, config.classifier_steps, config.classifier_batch, 0),
        ),
        (
            "all of fidelity",
            count,
            lambda: evaluate_fidelity(holdout, train, synthetic, None, config, 0, None),
        ),
        (
            "all of utility",
            3 * config.utility_seeds * shown,
            lambda: evaluate_utility(train, holdout, synthetic, config, 0),
        ),
        (
            "all of membership",
            count,
            lambda: evaluate_membership(train, holdout, synthetic, None, config, 0, None),
        ),
    ]
    return [(name, images, _seconds(step)) for name, images, step in steps]


def _peak() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _fidelity(case: tuple[int, int]) -> tuple[float, float, float, float]:
    """Seconds of wall clock and processor, peak memory before and after, of one N and size."""
    count, size = case
    _rows(40, 32, EvaluationConfig(classifier_steps=2, utility_seeds=1))  # load libraries
    train, holdout, synthetic = (_images(count, size, seed) for seed in (1, 2, 3))
    config = EvaluationConfig(max_images=count)
    before, used = _peak(), time.process_time()
    seconds = _seconds(lambda: evaluate_fidelity(holdout, train, synthetic, None, config, 0, None))
    return seconds, time.process_time() - used, before, _peak()


def _print_fidelity(counts: list[int], sizes: list[int]) -> None:
    """One line per N and size, each from a process of its own."""
    print("all of fidelity, N real and N synthetic images (and N of the floor)")
    heads = (("pixels", 6), ("N", 8), ("seconds", 10), ("processor s", 13), ("peak MiB", 10))
    print("".join(f"{name:>{width}}" for name, width in heads) + f"{'over images':>13}")
    context = multiprocessing.get_context("spawn")
    for size in sizes:
        for count in counts:
            with context.Pool(1) as pool:
                seconds, used, before, peak = pool.map(_fidelity, [(count, size)])[0]
            print(
                f"{size:>6}{count:>8}{seconds:>10.1f}{used:>13.1f}{peak:>10.0f}"
                f"{peak - before:>13.0f}"
            )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1000, help="images in each set")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="pixels a side")
    parser.add_argument("--fidelity", type=int, nargs="+", metavar="N", help="only fidelity, by N")
    options = parser.parse_args()
    if options.fidelity:
        _print_fidelity(options.fidelity, options.sizes)
        return
    print(f"{options.images} images a set, {torch.get_num_threads()} threads")
    print(f"{'pixels':>6}  {'step':<22}{'images':>8}{'seconds':>10}{'images/s':>10}")
    config = EvaluationConfig()
    _rows(40, 32, EvaluationConfig(classifier_steps=2, utility_seeds=1))  # load libraries
    for size in options.sizes:
        for name, images, seconds in _rows(options.images, size, config):
            print(f"{size:>6}  {name:<22}{images:>8}{seconds:>10.2f}{images / seconds:>10.0f}")


if __name__ == "__main__":
    main()
