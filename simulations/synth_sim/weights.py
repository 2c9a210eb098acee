"""The weights that a run starts from: drawn from its seed, or public ones that the plan names."""

from __future__ import annotations

from torch import Tensor

from synth_common.errors import CheckpointError, ConfigError
from synth_common.generators import Generator, build_generator
from synth_common.privacy.egress import state_digest
from synth_common.randomness import derive_seed
from synth_sim.scenario import Scenario


def initial_generator(scenario: Scenario) -> Generator:
    """The planned generator with its public initial weights.

    Raises:
        ConfigError: ``pretraining.sha256`` without ``data.weights``, or the other way round.
        CheckpointError: The file cannot be read, is not the one that the plan names, or does
            not fit the planned generator.
    """
    seed = derive_seed(scenario.seed, "generator")
    weights = _weights(scenario)
    return build_generator(scenario.generator, seed, scenario.pretraining, weights)


def _weights(scenario: Scenario) -> dict[str, Tensor] | None:
    """The tensors of ``data.weights``, checked against the plan; None where it names none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    named, path = scenario.pretraining.sha256, scenario.data.weights
    if named is None and path is None:
        return None
    if named is None or path is None:
        lacks, has = (
            ("pretraining.sha256", f"data.weights = {str(path)!r}")
            if named is None
            else ("data.weights", f"pretraining.sha256 = {named[:12]!r}...")
        )
        raise ConfigError(f"{has} is given without {lacks}; give both, or neither")
    try:
        tensors = load_file(path.expanduser())
    except (OSError, SafetensorError) as err:
        raise CheckpointError(f"data.weights = {str(path)!r} cannot be read: {err}") from err
    found = state_digest(tensors)
    if found != named:
        raise CheckpointError(
            f"data.weights = {str(path)!r} holds weights of SHA-256 {found}, but the plan names "
            f"pretraining.sha256 = {named}; give the plan's file, or plan this one"
        )
    return tensors
