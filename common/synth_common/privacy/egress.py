"""The only door out of a site.

A reply is built here and nowhere else, and everything in it has a declared kind. *Released*:
tensors that a charged mechanism made, the travelling state of a generator that DP-SGD
trained and the statistics that the plan names. *Public*: single values that say nothing of
a patient, by the table below. Everything else (losses, gradient norms, counts, metrics,
exception texts) is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from synth_common.errors import PrivacyError, TrainingError
from synth_common.plan import Plan, TrustModel

Value = float | int | str

PUBLIC_VALUES: Mapping[str, str] = MappingProxyType(
    {
        "site": "The site's name, known to every peer",
        "round": "Echo of the request",
        "epsilon": "Composed epsilon by the ledger; depends on settings only",
        "steps": "Steps composed so far; fixed by the plan and by retries",
        "noise_multiplier": "Chosen from budget and plan, never from data",
        "sample_rate": "From the site's public declaration of its size",
        "attempt": "Echo of the request",
        "noise_share": "Noise that the site added itself; chosen like the noise multiplier",
        "ledger_head": "Salted hash of the ledger's last entry; says nothing of its content",
        "done": "Acknowledgement",
    }
)
"""Values that may leave without a charge, and why each says nothing about a patient."""

STATISTICS: Mapping[str, str] = MappingProxyType(
    {
        "label_histogram": "Gaussian release, charged as a use of purpose 'label histogram'",
        "embedding": "Discrete Gaussian release, charged as a use of purpose 'embedding'",
        "masked_embedding": "The same with a site's part of the noise, under masks that cancel in "
        "the sum over at least three sites; charged as a use of purpose 'embedding'",
    }
)
"""Tensors beside the generator that may leave when the plan says so, and what charges them."""

_TYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"embedding": torch.int64, "masked_embedding": torch.int64}
)
"""Types of statistics that are not float32."""

_TRUST: Mapping[str, TrustModel] = MappingProxyType(
    {"embedding": "local", "masked_embedding": "secure-aggregation"}
)
"""The only trust model under which a statistic may leave, where there is one: a vector with a
part of the noise must be masked, and one that is masked promises a sum that others complete."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "loss": "is a mean over patients that nobody noised",
        "gradient_norm": "is computed from patients before the noise",
        "clipped_share": "is computed from patients before the noise",
        "examples": "an exact number of patients or images tells who is there",
        "accuracy": "a metric on private images is a function of them",
        "exception": "the text of an error may hold a path, a name or a pixel",
    }
)
"""What other systems send and this one does not, with the reason for the error message."""


def declared(plan: Plan) -> dict[str, Any]:
    """All that this program lets leave a site under a plan, and what it refuses, in words."""
    embedding = plan.release.embedding is not None
    masked = plan.privacy.trust_model == "secure-aggregation"
    names = (["masked_embedding" if masked else "embedding"] if embedding else []) + (
        ["label_histogram"] if plan.release.label_histogram is not None else []
    )
    rounds = plan.training.rounds
    return {
        "tensors": f"the generator's travelling state, in each of {rounds} rounds"
        if rounds
        else "none: no round is planned",
        "statistics": {name: STATISTICS[name] for name in names} or "none",
        "values": sorted(PUBLIC_VALUES),
        "refused": sorted(REFUSED),
    }


@dataclass(frozen=True)
class Outgoing:
    """What passed the gate.

    Attributes:
        tensors: Released: the generator's travelling state; empty in acknowledgements.
        values: Public.
        statistics: Released: what the plan names beside the generator.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Value]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


def acknowledge(values: Mapping[str, Value]) -> Outgoing:
    """Public values only.

    Raises:
        PrivacyError: A value is not declared public.
    """
    for name in sorted(values.keys() - PUBLIC_VALUES.keys()):
        why = REFUSED.get(name, "is not declared in egress.PUBLIC_VALUES")
        raise PrivacyError(
            f"refused to let {name!r} leave the site: it {why}. Keep it in the site's own facts, "
            "or release it through a charged mechanism that the plan names"
        )
    return Outgoing(MappingProxyType({}), MappingProxyType(dict(values)))


@dataclass(frozen=True)
class Permitted:
    """What one reply may and must hold.

    Attributes:
        state: Names, shapes and types of the generator's travelling state.
        statistics: Shapes of the statistics that were charged for this reply.
        trust_model: The plan's.
    """

    state: Mapping[str, Tensor]
    statistics: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    trust_model: TrustModel = "local"


def release(made: Outgoing, permitted: Permitted) -> Outgoing:
    """A round's reply: trained state, charged statistics, public values.

    Args:
        made: What the round made.
        permitted: What the plan names and the ledger charged; no more and no less passes.

    Raises:
        PrivacyError: A tensor or value was not declared.
        TrainingError: A tensor is not finite.
    """
    undeclared = sorted(permitted.statistics.keys() - STATISTICS.keys())
    if undeclared:
        raise PrivacyError(f"statistics {undeclared} are not declared in egress.STATISTICS")
    for name in permitted.statistics:
        if _TRUST.get(name, permitted.trust_model) != permitted.trust_model:
            raise PrivacyError(
                f"refused to let {name!r} leave the site under privacy.trust_model = "
                f"{permitted.trust_model!r}: it may under {_TRUST[name]!r} only"
            )
    shapes = {
        name: torch.empty(shape, dtype=_TYPES.get(name, torch.float32))
        for name, shape in permitted.statistics.items()
    }
    for what, part, wanted in (
        ("tensors leave that the plan does not name", made.tensors, permitted.state),
        ("statistics leave that nothing charged", made.statistics, shapes),
    ):
        if part.keys() != wanted.keys():
            odd = sorted(part.keys() ^ wanted.keys())
            raise PrivacyError(f"refused to let {what}: {odd}")
        for name, tensor in part.items():
            if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
                raise PrivacyError(f"tensor {name} changed its shape or type since the plan")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise TrainingError(f"tensor {name} is not finite; nothing was released")
    return Outgoing(
        MappingProxyType(dict(made.tensors)),
        acknowledge(made.values).values,
        MappingProxyType(dict(made.statistics)),
    )


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state's safetensors form, hexadecimal."""
    ordered = {name: state[name].contiguous() for name in sorted(state)}
    return hashlib.sha256(save(ordered)).hexdigest()
