"""The weights that a run starts from: drawn from its seed, or public ones that the plan names."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from synth_common.errors import CheckpointError, ConfigError
from synth_common.generators import Generator, build_generator
from synth_common.plan import Plan
from synth_common.privacy.egress import state_digest
from synth_common.randomness import derive_seed


def initial_generator(
    plan: Plan, seed: int, weights: Path | None, key: str = "weights"
) -> Generator:
    """The planned generator with its public initial weights.

    Args:
        plan: Says what generator, and which public weights if any.
        seed: Of the run.
        weights: The safetensors file that ``pretraining.sha256`` names, or None.
        key: The setting that ``weights`` comes from, for errors.

    Raises:
        ConfigError: ``pretraining.sha256`` without the file, or the other way round.
        CheckpointError: The file cannot be read, is not the one that the plan names, or does
            not fit the planned generator.
    """
    tensors = _weights(plan.pretraining.sha256, weights, key)
    return build_generator(
        plan.generator, derive_seed(seed, "generator"), plan.pretraining, tensors
    )


def _weights(named: str | None, path: Path | None, key: str) -> dict[str, Tensor] | None:
    """The tensors of the file, checked against the plan; None where it names none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if named is None and path is None:
        return None
    if named is None or path is None:
        lacks, has = (
            ("pretraining.sha256", f"{key} = {str(path)!r}")
            if named is None
            else (key, f"pretraining.sha256 = {named[:12]!r}...")
        )
        raise ConfigError(f"{has} is given without {lacks}; give both, or neither")
    try:
        tensors = load_file(path.expanduser())
    except (OSError, SafetensorError) as err:
        raise CheckpointError(f"{key} = {str(path)!r} cannot be read: {err}") from err
    found = state_digest(tensors)
    if found != named:
        raise CheckpointError(
            f"{key} = {str(path)!r} holds weights of SHA-256 {found}, but the plan names "
            f"pretraining.sha256 = {named}; give the plan's file, or plan this one"
        )
    return tensors
