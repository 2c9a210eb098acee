"""What privacy costs in time and memory: a DP step against the same step without DP.

Ways to take one step on one batch, measured alternately: without DP, and with Synthward's
book-keeping clipping per patient (one and four images each, simulated and secure noise).
Then, a third as often and beside Synthward's step again, Opacus' own hooks and its ghost
clipping (per image; Opacus has no patient unit), on our network and on a VAE of strided
convolutions with about as many parameters. Ghost clipping has rules for linear layers and
normalisations; for convolutions Opacus takes each image's gradient there, too. Prints
tables; asserts nothing.

Peak memory is how far the resident set of a fresh process rises while five steps run above
where it stood before them, with network and batch in place (Linux: VmHWM of
/proc/self/status, reset through /proc/self/clear_refs).

    python simulations/benchmarks/dp_step.py [--batch 256] [--repeats 7] [--threads 2]
        [--quality STEPS]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from strided_vae import compare_quality, strided_vae
from torch import Tensor, nn

from synth_common.generators import build_generator
from synth_common.plan import Family, GeneratorPlan
from synth_common.privacy.gradients import PatientGradients, Rows
from synth_common.privacy.optimiser import PatientOptimiser
from synth_common.randomness import NoiseKind, noise_source

Step = Callable[[], None]
OURS = ("plain", "image", "patient", "secure")
OPACUS = ("image", "opacus", "ghost", "strided", "strided opacus")
FAMILIES: tuple[Family, ...] = ("vae", "gan")  # those that take private steps


class Trained(Protocol):
    """What a step needs of a generator."""

    @property
    def private_module(self) -> nn.Module:
        """The network that meets patients."""
        ...

    def private_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """One loss per image."""
        ...


@dataclass(frozen=True)
class Case:
    """One network, size and batch."""

    family: Family
    size: int
    batch: int

    @property
    def plan(self) -> GeneratorPlan:
        """The plan of the network."""
        return GeneratorPlan(family=self.family, size=self.size)

    def network(self, strided: bool) -> Trained:
        """A fresh network."""
        ours = build_generator(self.plan, 0)
        return strided_vae(self.plan, parameters(ours)) if strided else ours

    def images(self) -> tuple[Tensor, Tensor]:
        """A batch of random images and labels."""
        shape = (self.batch, 1, self.size, self.size)
        return torch.rand(shape), torch.randint(2, (self.batch,))


def parameters(trained: Trained) -> int:
    """How many parameters meet patients."""
    return sum(p.numel() for p in trained.private_module.parameters())


def make_step(case: Case, kind: str) -> Step:
    """One of ``OURS`` or ``OPACUS``, on a network and batch of its own."""
    trained, batch = case.network(kind.startswith("strided")), case.images()
    if kind in ("plain", "strided"):
        return _plain(trained, batch)
    if kind.endswith("opacus"):
        return _opacus(trained, batch)
    if kind == "ghost":
        return _ghost(trained, batch)
    noise: NoiseKind = "secure" if kind == "secure" else "simulation"
    return _synthward(trained, batch, 4 if kind == "patient" else 1, noise)


def _plain(trained: Trained, batch: tuple[Tensor, Tensor]) -> Step:
    optimiser = torch.optim.Adam(trained.private_module.parameters(), lr=1e-3)
    rng = torch.Generator().manual_seed(0)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        trained.private_loss(*batch, rng).mean().backward()
        optimiser.step()

    return step


def _synthward(
    trained: Trained, batch: tuple[Tensor, Tensor], per_patient: int, noise: NoiseKind
) -> Step:
    engine = PatientGradients(trained.private_module)
    patients = len(batch[0]) // per_patient
    optimiser = PatientOptimiser(
        torch.optim.Adam(trained.private_module.parameters(), lr=1e-3),
        noise_multiplier=1.0,
        clip=1.0,
        denominator=patients,
        noise=noise_source(noise, 0),
    )
    rng = torch.Generator().manual_seed(0)
    rows = Rows((per_patient,) * patients)

    def step() -> None:
        part = engine.clipped_sum(lambda: trained.private_loss(*batch, rng), rows, 1.0)
        optimiser.private_step(part.gradients, {})

    return step


def _opacus(trained: Trained, batch: tuple[Tensor, Tensor]) -> Step:
    GradSampleModule(trained.private_module, loss_reduction="sum")
    optimiser = DPOptimizer(
        torch.optim.Adam(list(trained.private_module.parameters()), lr=1e-3),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(batch[0]),
    )
    rng = torch.Generator().manual_seed(0)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        trained.private_loss(*batch, rng).sum().backward()
        optimiser.step()

    return step


def _ghost(trained: Trained, batch: tuple[Tensor, Tensor]) -> Step:
    """Norms first, then the gradient of the losses scaled by their clip factors."""
    hooked = GradSampleModuleFastGradientClipping(
        trained.private_module, loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=True
    )
    optimiser = DPOptimizerFastGradientClipping(
        torch.optim.Adam(list(trained.private_module.parameters()), lr=1e-3),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(batch[0]),
        loss_reduction="sum",
    )
    rng = torch.Generator().manual_seed(0)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        losses = trained.private_loss(*batch, rng)
        losses.sum().backward(retain_graph=True)
        factors = hooked.get_clipping_coef()
        optimiser.zero_grad(set_to_none=True)
        hooked.disable_hooks()
        (factors * losses).sum().backward()
        hooked.enable_hooks()
        optimiser.step()

    return step


def _medians(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Median seconds of each step, the steps taken in turn so that load falls on all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if repeat > 1:  # the first are warm-up
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _peak(case: Case, kind: str, threads: int) -> float:
    """How far five steps raise the memory of a fresh process, in MB."""
    arguments = ["--only", case.family, str(case.size), kind]
    sizes = ["--batch", str(case.batch), "--threads", str(threads)]
    command = [sys.executable, __file__, *arguments, *sizes]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(answer.stdout)


def _print_peak(case: Case, kind: str) -> None:
    """What :func:`_peak` asks for."""
    step = make_step(case, kind)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(5):
        step()
    print((_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    """A size of this process, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


@dataclass(frozen=True)
class Measured:
    """Median seconds of a step by kind, and peak memory in MB."""

    ours: dict[str, float]
    peaks: dict[str, float]


def _measure_ours(case: Case, repeats: int, threads: int) -> Measured:
    times = _medians({kind: make_step(case, kind) for kind in OURS}, repeats)
    peaks = {kind: _peak(case, kind, threads) for kind in ("plain", "image", "patient")}
    return Measured(times, peaks)


def _measure_opacus(case: Case, repeats: int) -> dict[str, float]:
    kinds = OPACUS if case.family == "vae" else OPACUS[:3]
    return _medians({kind: make_step(case, kind) for kind in kinds}, repeats)


def _row(case: Case, measured: Measured, opacus: dict[str, float]) -> str:
    """A row of the table."""
    times, peaks = measured.ours, measured.peaks
    ratios = [times[kind] / times["plain"] for kind in OURS[1:]]
    growth = [peaks[kind] / peaks["plain"] for kind in ("image", "patient")]
    rates = {kind: case.batch / seconds for kind, seconds in (opacus | times).items()}
    cells = [
        case.family,
        f"{case.size} px",
        f"{parameters(case.network(False)) / 1e3:.0f}k",
        f"{rates['plain']:.0f}",
        *(f"{ratio:.2f}" for ratio in ratios),
        " / ".join(f"{ratio:.2f}" for ratio in growth),
        f"{rates['image']:.0f} / {rates['patient']:.0f}",
        f"{rates['opacus']:.0f}",
        f"{rates['ghost']:.0f}",
    ]
    if "strided opacus" in rates:
        usual = parameters(case.network(True)) / 1e3
        cells.append(
            f"{rates['strided opacus']:.0f} ({usual:.0f}k; {rates['strided']:.0f} without DP)"
        )
        cells.append(f"{opacus['strided opacus'] / opacus['image']:.1f}")
    else:
        cells += ["", ""]
    return "| " + " | ".join(cells) + " |"


HEADINGS = (
    "network", "size", "parameters", "non-private images/s", "DP, 1 image a patient",
    "DP, 4 images a patient", "DP, secure noise", "peak memory, 1 / 4 images",
    "private images/s, 1 / 4 images", "Opacus hooks, images/s",
    "Opacus ghost clipping, images/s", "Opacus hooks on the strided VAE, images/s", "factor",
)  # fmt: skip


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=256, help="images a step")
    parser.add_argument("--repeats", type=int, default=7, help="measured steps of each kind")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--quality", type=int, default=0, help="compare VAEs after this many steps")
    parser.add_argument("--only", nargs=3, help="family, size and kind whose peak memory to print")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.only:
        family, size, kind = options.only
        _print_peak(Case(family, int(size), options.batch), kind)
        return
    print(f"batch {options.batch}, {options.threads} threads, torch {torch.__version__}")
    print("DP: time of a step, or peak memory, over the same step without DP\n")
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|")
    cases = [Case(f, size, options.batch) for f in FAMILIES for size in (32, 64)]
    # Opacus apart and last: its gigabytes would leave no cache to the steps around it.
    ours = [_measure_ours(case, options.repeats, options.threads) for case in cases]
    others = [_measure_opacus(case, max(1, options.repeats // 3)) for case in cases]
    for case, measured, opacus in zip(cases, ours, others, strict=True):
        print(_row(case, measured, opacus), flush=True)
    if options.quality:
        print(compare_quality(options.quality))


if __name__ == "__main__":
    main()
