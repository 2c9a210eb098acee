"""Facts about a simulated run itself."""

from __future__ import annotations

from collections.abc import Mapping

from synth_common.facts import Fact
from synth_server import record
from synth_server.record import RunStart
from synth_sim.scenario import Scenario
from synth_sim.transport import Engine

_LINKS: Mapping[Engine, str] = {
    "inprocess": "calls within one process: a simulation, nothing travelled",
    "ray": "Flower's Ray engine on one machine: a simulation, nothing travelled",
}


def run_facts(scenario: Scenario, engine: Engine, command: str) -> list[Fact]:
    """What is known of a run before it trains."""
    start = RunStart(
        run_id=scenario.run_id(),
        name=scenario.name,
        title=scenario.title,
        seed=scenario.seed,
        engine=engine,
        command=command,
        simulation=True,
    )
    sites = [site.name for site in scenario.partition.sites]
    return [
        *record.run_facts(start, scenario.plan),
        record.roles_fact("synth-sim, which played every hospital, too", sites),
        Fact("security.link", _LINKS[engine], "public", f"{__name__}.run_facts"),
    ]


def peak_memory_fact(engine: Engine) -> Fact:
    """Largest resident memory of this process, in bytes."""
    whole = engine == "inprocess"
    return record.peak_memory_fact(
        "simulator and all sites" if whole else "simulator without workers"
    )
