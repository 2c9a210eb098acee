"""What privacy costs in time: a DP step against the same step without DP.

Three ways to take one step on the same network and batch, measured alternately in one
run: without DP, with Synthward's book-keeping clipping per patient, and with Opacus' own
hooks (per image; Opacus has no patient unit). Prints a table; asserts nothing.

    python simulations/benchmarks/dp_step.py [--batch 256] [--repeats 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer

from synth_common.generators import Generator, build_generator
from synth_common.plan import Family, GeneratorPlan
from synth_common.privacy.gradients import PatientGradients, Rows
from synth_common.privacy.optimiser import PatientOptimiser
from synth_common.randomness import SimulationNoise

Step = Callable[[], None]


def _plain(generator: Generator, batch: tuple[torch.Tensor, torch.Tensor]) -> Step:
    optimiser = torch.optim.Adam(generator.private_module.parameters(), lr=1e-3)
    rng = torch.Generator().manual_seed(0)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        generator.private_loss(*batch, rng).mean().backward()
        optimiser.step()

    return step


def _synthward(
    generator: Generator, batch: tuple[torch.Tensor, torch.Tensor], per_patient: int
) -> Step:
    engine = PatientGradients(generator.private_module)
    patients = len(batch[0]) // per_patient
    optimiser = PatientOptimiser(
        torch.optim.Adam(generator.private_module.parameters(), lr=1e-3),
        noise_multiplier=1.0,
        clip=1.0,
        denominator=patients,
        noise=SimulationNoise(0),
    )
    rng = torch.Generator().manual_seed(0)
    rows = Rows((per_patient,) * patients)

    def step() -> None:
        part = engine.clipped_sum(lambda: generator.private_loss(*batch, rng), rows, 1.0)
        optimiser.private_step(part.gradients, {})

    return step


def _opacus(generator: Generator, batch: tuple[torch.Tensor, torch.Tensor]) -> Step:
    GradSampleModule(generator.private_module, loss_reduction="sum")
    parameters = list(generator.private_module.parameters())
    optimiser = DPOptimizer(
        torch.optim.Adam(parameters, lr=1e-3),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(batch[0]),
    )
    rng = torch.Generator().manual_seed(0)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        generator.private_loss(*batch, rng).sum().backward()
        optimiser.step()

    return step


def _medians(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Median seconds of each step, the steps taken in turn so that load falls on all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if repeat:  # the first is warm-up
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _row(family: Family, size: int, batch: int, repeats: int) -> str:
    plan = GeneratorPlan(family=family, size=size)
    images = torch.rand(batch, 1, size, size)
    labels = torch.randint(2, (batch,))
    fresh = [build_generator(plan, 0) for _ in range(4)]
    times = _medians(
        {
            "plain": _plain(fresh[0], (images, labels)),
            "image": _synthward(fresh[1], (images, labels), 1),
            "patient": _synthward(fresh[2], (images, labels), 4),
            "opacus": _opacus(fresh[3], (images, labels)),
        },
        repeats,
    )
    count = sum(p.numel() for p in fresh[0].private_module.parameters())
    ratios = [times[name] / times["plain"] for name in ("image", "patient", "opacus")]
    return (
        f"| {family} | {size} px | {count / 1e3:.0f}k | {batch / times['plain']:.0f} "
        f"| {ratios[0]:.2f} | {ratios[1]:.2f} | {ratios[2]:.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=256, help="images a step")
    parser.add_argument("--repeats", type=int, default=7, help="measured steps of each kind")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    print(f"batch {options.batch}, {options.threads} threads, torch {torch.__version__}")
    print("time of a step over the time of the same step without DP\n")
    print(
        "| network | size | parameters | non-private images/s | DP, 1 image a patient "
        "| DP, 4 images a patient | Opacus hooks, per image |"
    )
    print("|---|---|---|---|---|---|---|")
    families: tuple[Family, ...] = ("vae", "gan")
    for family in families:
        for size in (32, 64):
            print(_row(family, size, options.batch, options.repeats), flush=True)


if __name__ == "__main__":
    main()
