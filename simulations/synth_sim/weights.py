"""The weights that a scenario's run starts from."""

from __future__ import annotations

from synth_common.generators import Generator
from synth_server import weights
from synth_sim.scenario import Scenario


def initial_generator(scenario: Scenario) -> Generator:
    """The planned generator with its public initial weights; the file is ``data.weights``.

    Errors as :func:`synth_server.weights.initial_generator`.
    """
    plan, path = scenario.plan, scenario.data.weights
    return weights.initial_generator(plan, scenario.seed, path, "data.weights")
