"""Facts about the run itself: what ran, on what, under which promise."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from synth_common.energy import EnergyMeter
from synth_common.facts import Fact, read_facts
from synth_common.generators import Generator
from synth_common.images.preprocess import Target, minimised
from synth_common.plan import Plan, PretrainingPlan
from synth_common.privacy.egress import declared, state_digest
from synth_common.promise import ADJACENCY, trust_words
from synth_common.software import code_value

_SOURCE = "synth_server.record"
_LIBRARIES = ("synthward", "torch", "opacus", "flwr", "dp-accounting", "numpy", "scikit-learn")
_NOISE = {
    "simulation": "Seeded noise, so that the run can be repeated: this is a simulation and "
    "its images are not a release.",
    "secure": "Noise and draws come from a cipher keyed by the operating system.",
}


@dataclass(frozen=True)
class RunStart:
    """How a run was started, apart from its plan.

    Attributes:
        run_id: The run.
        name: Of the scenario or of the federation.
        title: The same for readers.
        seed: Of everything reproducible that is not private.
        engine: Transport between coordinator and sites.
        command: Command line.
        simulation: Whether one machine plays every hospital.
    """

    run_id: str
    name: str
    title: str
    seed: int
    engine: str
    command: str
    simulation: bool


def run_facts(start: RunStart, plan: Plan) -> list[Fact]:
    """What is known of a run before it trains."""
    source, terms = f"{_SOURCE}.run_facts", plan.privacy
    values: dict[str, Any] = {
        "run.id": start.run_id,
        "run.scenario": {"name": start.name, "title": start.title},
        "run.command": start.command,
        "run.seed": start.seed,
        "run.engine": start.engine,
        "run.simulation": start.simulation,
        "run.versions": _versions(start.engine),
        "run.device": _device(plan),
        "run.code": code_value(),
        "data.minimisation": minimised(_target(plan)),
        "security.egress": declared(plan),
        "plan.digest": plan.digest(),
        "plan.settings": plan.model_dump(mode="json"),
        "privacy.unit": terms.unit,
        "privacy.delta": terms.delta,
        "privacy.trust_model": {"name": terms.trust_model, "meaning": trust_words(plan)},
        "privacy.adjacency": ADJACENCY[terms.unit],
        "privacy.noise_source": {"kind": terms.noise, "statement": _NOISE[terms.noise]},
    }
    return [Fact(name, value, "public", source) for name, value in values.items()]


def generator_fact(generator: Generator) -> Fact:
    """Family and size of a generator, what meets patients and what travels."""
    state, private = generator.shared_state(), generator.private_module.parameters()
    value = {
        "family": generator.plan.family,
        "parameters": sum(p.numel() for p in generator.parameters()),
        "private_parameters": sum(p.numel() for p in private if p.requires_grad),
        "travelling": sorted(state),
        "bytes": sum(t.numel() * t.element_size() for t in state.values()),
    }
    return Fact("generator.summary", value, "public", f"{_SOURCE}.generator_fact")


def pretraining_fact(plan: PretrainingPlan) -> Fact:
    """What was public in the weights that training starts from; ``public_data`` None for nothing.

    Recorded after the weights were checked against the plan's SHA-256.
    """
    value = {
        "sha256": plan.sha256,
        "public_data": plan.public_data or None,
        "tune": plan.tune,
        "rank": plan.rank if plan.tune == "adapters" else None,
    }
    return Fact("pretraining.public", value, "public", f"{_SOURCE}.pretraining_fact")


def weights_fact(generator: Generator) -> Fact:
    """SHA-256 of the weights with which a run ends, as they travel and are kept."""
    digest = state_digest(generator.shared_state())
    return Fact("run.weights", digest, "public", f"{_SOURCE}.weights_fact")


def roles_fact(coordinator: str, sites: Sequence[str]) -> Fact:
    """Who coordinated, and which sites could take part."""
    value = {"coordinator": coordinator, "sites": list(sites)}
    return Fact("run.roles", value, "public", f"{_SOURCE}.roles_fact")


def energy_fact(meter: EnergyMeter, resumed: bool) -> Fact:
    """What was consumed since the process began to count; before a resume nobody counted."""
    covers = "training and evaluation, by the process that ended the run"
    if resumed:
        covers += "; what was consumed before the last interruption is not known"
    return meter.fact(covers, f"{_SOURCE}.energy_fact")


def energy_meter(plan: Plan) -> EnergyMeter:
    """A meter for a process that trains where the plan says."""
    from synth_common.privacy.training import pick_device

    return EnergyMeter(accelerator=pick_device(plan.training.device).type == "cuda")


def peak_memory_fact(covers: str) -> Fact:
    """Largest resident memory of this process, in bytes, and what it covers in words."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    detail = {"covers": covers}
    source = f"{_SOURCE}.peak_memory_fact"
    return Fact("run.peak_memory_bytes", peak * unit, "public", source, detail=detail)


def resumed_fact(plan: Plan, completed: int | None) -> Fact:
    """Where a stopped run goes on: after ``completed`` rounds, None before any and the release."""
    if completed is None:
        at = "round 1" if plan.release.embedding is None else "the release"
    else:
        last = completed >= plan.training.rounds
        at = "the evaluation" if last else f"round {completed + 1}"
    return Fact("run.resumed", {"at": at}, "public", f"{_SOURCE}.resumed_fact")


def time_facts(log: Path, evaluation: float, process: float) -> Sequence[Fact]:
    """Seconds by phase. A resumed run adds up what its processes recorded.

    Args:
        log: The run's facts so far.
        evaluation: What judging took, in this process.
        process: What this process took, all told.
    """
    known = list(read_facts(log))
    rounds = {f.round: float(f.value["seconds"]) for f in known if f.name == "federation.round"}
    training = sum(rounds.values())
    released = {f.name: f.value for f in known if f.name == "release.embedding"}
    training += sum(v["seconds"] + v["learning_seconds"] for v in released.values())
    total = process
    if any(fact.name == "run.resumed" for fact in known):
        data = sum(float(f.value) for f in known if f.name == "run.seconds")
        total = data + training + evaluation
    return [
        seconds_fact("training", training),
        seconds_fact("evaluation", evaluation),
        seconds_fact("total", total),
    ]


def seconds_fact(phase: str, seconds: float) -> Fact:
    """Wall-clock seconds of a phase."""
    detail = {"phase": phase}
    source = f"{_SOURCE}.seconds_fact"
    return Fact("run.seconds", round(seconds, 3), "public", source, detail=detail)


def _versions(engine: str) -> dict[str, str]:
    """Python's and the libraries' versions."""
    found = {"python": platform.python_version()}
    for name in (*_LIBRARIES, *(("ray",) if engine == "ray" else ())):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "NOT RECORDED"
    return found


def _target(plan: Plan) -> Target:
    """The picture that every site brings its images to."""
    made = plan.generator
    return Target(
        size=made.size, channels=made.channels, classes=made.classes, with_mask=made.with_mask
    )


def _device(plan: Plan) -> dict[str, Any]:
    """Where training runs."""
    import torch

    from synth_common.privacy.training import pick_device

    device = pick_device(plan.training.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": device.type, "threads": torch.get_num_threads(), "processor": name}


def _processor() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
