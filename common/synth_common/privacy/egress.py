"""The only door out of a site.

A reply is built here and nowhere else. Tensors leave only as the travelling state of a
generator that DP-SGD trained; single values leave only if their name is declared public
below. Everything else (losses, gradient norms, counts, histograms, exception texts) is
refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from safetensors.torch import save
from torch import Tensor

from synth_common.errors import PrivacyError, TrainingError

Value = float | int | str

PUBLIC_VALUES: Mapping[str, str] = MappingProxyType(
    {
        "site": "The site's name, known to every peer",
        "round": "Echo of the request",
        "epsilon": "Composed epsilon by the ledger; depends on settings only",
        "steps": "Steps composed so far; fixed by the plan and by retries",
        "noise_multiplier": "Chosen from budget and plan, never from data",
        "sample_rate": "From the site's public declaration of its size",
        "ledger_head": "Hash of the ledger's last entry; says nothing of its content",
        "done": "Acknowledgement",
        "error": "Name of an error class, never its text",
        "exit_code": "Numbered kind of the error",
    }
)
"""Values that may leave without a charge, and why each says nothing about a patient."""


@dataclass(frozen=True)
class Outgoing:
    """What passed the gate.

    Attributes:
        tensors: The generator's travelling state, DP-released; empty in acknowledgements.
        values: Declared public values.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Value]


def acknowledge(values: Mapping[str, Value]) -> Outgoing:
    """Public values only.

    Raises:
        PrivacyError: A value is not declared public.
    """
    undeclared = sorted(values.keys() - PUBLIC_VALUES.keys())
    if undeclared:
        raise PrivacyError(
            f"refused to let {undeclared} leave the site: declare a value public in "
            "egress.PUBLIC_VALUES with the reason why it says nothing about a patient"
        )
    return Outgoing(MappingProxyType({}), MappingProxyType(dict(values)))


def release_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], values: Mapping[str, Value]
) -> Outgoing:
    """A trained travelling state beside public values.

    Args:
        state: What training made.
        expected: What the plan lets travel; names and shapes must agree.
        values: Declared public values.

    Raises:
        PrivacyError: A tensor or value was not declared.
        TrainingError: A tensor is not finite.
    """
    if state.keys() != expected.keys():
        odd = sorted(state.keys() ^ expected.keys())
        raise PrivacyError(f"refused to let tensors leave that the plan does not name: {odd}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise PrivacyError(f"tensor {name} changed its shape or type since the plan")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise TrainingError(f"tensor {name} is not finite; nothing was released")
    return Outgoing(MappingProxyType(dict(state)), acknowledge(values).values)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state's safetensors form, hexadecimal."""
    ordered = {name: state[name].contiguous() for name in sorted(state)}
    return hashlib.sha256(save(ordered)).hexdigest()
