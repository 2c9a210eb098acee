"""Facts about a simulated run itself."""

from __future__ import annotations

from synth_common.facts import Fact
from synth_server import record
from synth_server.record import RunStart
from synth_sim.scenario import Scenario
from synth_sim.transport import Engine


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
    return record.run_facts(start, scenario.plan)


def peak_memory_fact(engine: Engine) -> Fact:
    """Largest resident memory of this process, in bytes."""
    whole = engine == "inprocess"
    return record.peak_memory_fact(
        "simulator and all sites" if whole else "simulator without workers"
    )
