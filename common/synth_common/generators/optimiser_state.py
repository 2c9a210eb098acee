"""Adam's moments as named tensors, so that they can be kept in a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_FIELDS = ("step", "exp_avg", "exp_avg_sq")


def pack_adam(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of every parameter as ``{position}.{field}`` tensors on the CPU."""
    state = optimiser.state_dict()["state"]
    return {
        f"{position}.{field}": torch.as_tensor(entry[field]).detach().cpu().clone()
        for position, entry in state.items()
        for field in _FIELDS
    }


def unpack_adam(optimiser: torch.optim.Optimizer, packed: Mapping[str, Tensor]) -> None:
    """Restore what :func:`pack_adam` made; an empty mapping leaves the optimiser fresh."""
    if not packed:
        return
    whole = optimiser.state_dict()
    whole["state"] = {
        position: {field: packed[f"{position}.{field}"].clone() for field in _FIELDS}
        for position in sorted({int(key.split(".")[0]) for key in packed})
    }
    optimiser.load_state_dict(whole)
