"""What federation itself costs: rounds of K sites against the same local training alone.

Usage: python simulations/benchmarks/federation.py [--sites 2,8,32] [--steps 40] [--repeat 3]
       python simulations/benchmarks/federation.py --sites 10,30,100,300 --steps 4 --repeat 1

Both sides run the same ``train_round`` on the same sites, weights and requests, in one
process: once called in a plain loop, once through client app, in-process grid and strategy
(messages, copies, checks, average). The ledger, the private steps and the noise are on
both sides. Processor seconds are compared: nothing here waits for a network, and a busy
machine stretches wall clocks by more than is measured. The best of the repeats of each
side is taken. Few steps and many sites, as in the second line, show whether the cost of a
round grows in proportion to the sites: the cost per site then stays the same.
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from synth_client.app import SiteApp
from synth_client.approval import accept
from synth_client.evaluate import SiteEvaluation
from synth_client.round import RoundRequest, train_round
from synth_client.site import Site, load_site, save_site
from synth_common.evaluation.config import EvaluationConfig
from synth_common.generators import build_generator
from synth_common.images.imageset import ImageSet
from synth_common.images.phantom import PhantomSource
from synth_common.images.preprocess import Target
from synth_common.images.sources import load_source
from synth_common.images.split import split_patients
from synth_common.plan import (
    FederationPlan,
    GeneratorPlan,
    Plan,
    PrivacyPlan,
    TrainingPlan,
)
from synth_common.privacy.ledger import Budget, Decision
from synth_server.rounds import State, discover_sites, run_rounds
from synth_server.strategy import UniformAverage
from synth_sim.transport import PartitionSites, open_grid

_PATIENTS = 80
_HOSPITALS = 8  # different ones; more sites have copies of their images


def _plan(steps: int) -> Plan:
    """A 32 px VAE at the demo's size; RDP, so that accounting is not what is measured."""
    return Plan(
        generator=GeneratorPlan(size=32),
        training=TrainingPlan(rounds=1, steps_per_round=steps, patients_per_step=16, device="cpu"),
        privacy=PrivacyPlan(epsilon=2.0, accountant="rdp", noise="simulation", spare_rounds=0),
        federation=FederationPlan(min_sites=1),
    )


@functools.cache
def _images(generator: GeneratorPlan, number: int) -> tuple[ImageSet, ImageSet]:
    """Drawn patients to train on, and some held out."""
    target = Target(size=generator.size, channels=generator.channels, classes=generator.classes)
    source = PhantomSource(patients=_PATIENTS, images_per_patient=(1, 2), seed=number)
    return split_patients(load_source(source, target, None).images, 0.1, number)


def _make_sites(plan: Plan, count: int, folder: Path) -> list[Path]:
    """Fresh sites with drawn patients and empty ledgers."""
    directories = []
    for number in range(count):
        train, holdout = _images(plan.generator, number % _HOSPITALS)
        directory = folder / f"site-{number:03d}"
        site = Site(directory.name, directory, train, holdout, 320, number, simulated=True)
        save_site(site)
        accept(site.ledger_path, Budget(math.inf, 1e-5), plan, Decision("benchmark", "none left"))
        directories.append(directory)
    return directories


def _alone(plan: Plan, directories: Sequence[Path], state: State) -> float:
    """Processor seconds of the same training without federation."""
    sites = [load_site(directory) for directory in directories]
    request = RoundRequest("alone", 1, plan, state)
    began = time.process_time()
    for site in sites:
        train_round(site, request)
    return time.process_time() - began


def _federated(plan: Plan, directories: Sequence[Path], state: State) -> float:
    """Processor seconds of one federated round over the in-process transport."""
    app = SiteApp(PartitionSites(tuple(directories)), SiteEvaluation(EvaluationConfig(), seed=0))
    with open_grid("inprocess", app, len(directories)) as grid:
        strategy = UniformAverage(discover_sites(grid, 60.0), 1, "federated", plan)
        began = time.process_time()
        ended = run_rounds(grid, strategy, plan, (0, dict(state)), lambda result: None)
        seconds = time.process_time() - began
    if len(strategy.outcome.replies) != len(directories) or ended.completed != 1:
        raise SystemExit(f"the round failed: {strategy.outcome.failures}")
    return seconds


def measure(count: int, steps: int, repeat: int) -> tuple[float, float]:
    """Best processor seconds alone and federated for one round of ``count`` sites."""
    plan = _plan(steps)
    state = build_generator(plan.generator, seed=0).shared_state()
    times: dict[str, list[float]] = {"alone": [], "federated": []}
    sides = [("alone", _alone), ("federated", _federated)]
    for _ in range(repeat):
        sides.reverse()  # neither side is always the one that finds caches warm
        for name, run in sides:
            with tempfile.TemporaryDirectory() as folder:
                directories = _make_sites(plan, count, Path(folder))
                times[name].append(run(plan, directories, state))
    return min(times["alone"]), min(times["federated"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sites", default="2,8,32", help="numbers of sites")
    parser.add_argument("--steps", type=int, default=40, help="private steps per round")
    parser.add_argument("--repeat", type=int, default=3, help="repeats; the best counts")
    arguments = parser.parse_args()
    measure(1, arguments.steps, 1)  # imports, calibration and memory pools: not measured
    print(f"processor seconds; {torch.get_num_threads()} threads, {arguments.steps} steps a round")
    print(f"{'sites':>5} {'alone':>9} {'federated':>12} {'ms a site':>10} {'overhead %':>11}")
    for count in map(int, arguments.sites.split(",")):
        alone, federated = measure(count, arguments.steps, arguments.repeat)
        overhead = 100 * (federated / alone - 1)
        each = 1000 * federated / count
        print(
            f"{count:>5} {alone:>9.2f} {federated:>12.2f} {each:>10.1f} {overhead:>11.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
