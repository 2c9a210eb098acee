"""One layer's part in the patients' gradients: its squared norms, and its clipped sum.

Linear layers and convolutions have fast rules; any other layer is handled by the
per-sample rule registered for it with Opacus.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from synth_common.privacy.convolution_norms import (
    Block,
    form,
    is_plain,
    round_up,
    squared_norms,
    weighted_sum,
    worth_keeping,
)
from synth_common.privacy.rows import Rows
from synth_common.privacy.workspace import Workspace


def has_rule(layer: nn.Module) -> bool:
    """Whether per-example gradients of this layer can be taken."""
    return isinstance(layer, nn.Linear) or type(layer) in GradSampleModule.GRAD_SAMPLERS


class LayerGradient(ABC):
    """The patients' gradients in one layer that ran once.

    Products of one patient's rows may cancel, and then what is left of them in float32 may
    be smaller than the gradient that is added up later. A bound on that error is added to
    every norm: ``rounding`` times the number of roundings, times what the norm would be if
    nothing cancelled. Where norm and sum are made of the same numbers, a few are enough.

    Args:
        layer: The layer.
        inputs: (R, ...) its inputs.
        flows: (R, ...) gradients of the summed loss with respect to its outputs.
        rows: Which rows belong to which patient.
        workspace: Where scratch memory comes from.
    """

    def __init__(
        self, layer: nn.Module, inputs: Tensor, flows: Tensor, rows: Rows, workspace: Workspace
    ) -> None:
        self.layer, self.rows, self.workspace = layer, rows, workspace
        self.inputs, self.flows = inputs, flows.contiguous()

    @abstractmethod
    def squares(self, rounding: float) -> Tensor:
        """(P,) squared norms, rounded up; not finite where the gradient is not. Call once."""

    @abstractmethod
    def weighted(self, factors: Tensor) -> dict[nn.Parameter, Tensor]:
        """Sum over patients of gradients times ``factors`` (P,). Call after ``squares``."""

    def leave_out(self, patients: Tensor) -> None:
        """Make the gradients of some patients zero, ``patients`` being true (P,)."""
        self._silence(patients)

    def _silence(self, patients: Tensor) -> None:
        """Make the rows of some patients zero, ``patients`` being true (P,)."""
        out = self.rows.per_row(patients)
        self.inputs, self.flows = _without(self.inputs, out), _without(self.flows, out)

    def _bound(self, area: int) -> tuple[Tensor, Tensor | None]:
        """What the squared norms (P,) would be if nothing cancelled (Cauchy-Schwarz).

        ``area`` is how many outputs an input reaches; a bias is a weight whose input is 1.
        A patient for whom this is not finite is left out at once (and returned as true
        (P,)), since what is not finite does not stay within its patient when it meets the
        zeros between the patients of one product.
        """
        ones = math.prod(self.flows.shape[2:])
        inputs = self.rows.sums(_squares(self.inputs) * area + ones)
        bound = inputs * self.rows.sums(_squares(self.flows))
        sound = torch.isfinite(bound)
        if bool(sound.all()):
            return bound, None
        self._silence(~sound)
        return bound, ~sound

    def _named(self, weight: Tensor, bias: Tensor) -> dict[nn.Parameter, Tensor]:
        """Gradients by the parameter they belong to; the bias only where there is one."""
        own = dict(self.layer.named_parameters(recurse=False))
        named = {own["weight"]: weight}
        if "bias" in own:
            named[own["bias"]] = bias
        return named


class _Linear(LayerGradient):
    """|sum_r b_r a_r^T|^2 = sum_rs (a_r . a_s)(b_r . b_s), rows r, s of one patient."""

    def squares(self, rounding: float) -> Tensor:
        bound, spoilt = self._bound(1)
        biased, parts = self.layer.bias is not None, []
        for block, patients, count in self.rows.blocks():
            a, b = self.inputs[block], self.flows[block]
            if count == 1:
                parts.append((_squares(a) + float(biased)) * _squares(b))
                continue
            a, b = a.view(patients, count, -1), b.view(patients, count, -1)
            gram = a @ a.mT + 1.0 if biased else a @ a.mT
            parts.append((gram * (b @ b.mT)).sum((1, 2)).clamp(min=0.0))
        squares = torch.cat([bound[:0], *parts])
        most = self.rows.counts[-1] if self.rows.counts else 1
        if most > 1:
            terms = self.inputs.shape[1] + self.flows.shape[1] + 64
            squares = squares + terms / 2 * rounding * bound
        return _marked(round_up(squares, bound, (most + 4) * rounding), spoilt)

    def weighted(self, factors: Tensor) -> dict[nn.Parameter, Tensor]:
        flows = self.flows * self.rows.per_row(factors)[:, None]
        return self._named(flows.mT @ self.inputs, flows.sum(0))


class _Convolution(LayerGradient):
    """Forms and keeps the patients' gradients, or takes norms and sums in a second pass."""

    layer: nn.Conv2d

    def squares(self, rounding: float) -> Tensor:
        bound, spoilt = self._bound(math.prod(self.layer.kernel_size))
        self._biases = self.rows.sums(self.flows.sum((2, 3)))
        self._formed: list[Tensor] = []
        blocks = [
            Block(self.layer, self.inputs[block], self.flows[block], patients, self.workspace)
            for block, patients, _ in self.rows.blocks()
        ]
        bounds = self._split(bound)
        if blocks and worth_keeping(blocks):
            parts = []
            for number, (block, most) in enumerate(zip(blocks, bounds, strict=True)):
                formed, squares = form(block, keep=(self.layer, number))
                self._formed.append(formed)
                parts.append(round_up(squares, most, 4 * rounding))
            self.inputs = self.flows = self.flows[:0].clone()  # their memory is free again
        else:
            parts = [squared_norms(b, m, rounding) for b, m in zip(blocks, bounds, strict=True)]
        total = torch.cat([bound[:0], *parts])
        if self.layer.bias is not None:
            total = total + self._biases.square().sum(1)
        return _marked(total, spoilt)

    def leave_out(self, patients: Tensor) -> None:
        """See :class:`LayerGradient`."""
        if self._formed:
            for formed, part in zip(self._formed, self._split(patients), strict=True):
                formed[:, part] = 0.0
        else:
            self._silence(patients)
        self._biases = _without(self._biases, patients)

    def weighted(self, factors: Tensor) -> dict[nn.Parameter, Tensor]:
        bias = factors @ self._biases
        if self._formed:
            sums = [
                weighted_sum(self.layer, formed, part)
                for formed, part in zip(self._formed, self._split(factors), strict=True)
            ]
            return self._named(torch.stack(sums).sum(0), bias)
        layer, scale = self.layer, self.rows.per_row(factors)[:, None, None, None]
        flows = self.workspace.empty("scaled", self.flows, *self.flows.shape)
        torch.mul(self.flows, scale, out=flows)
        _, weight, _ = torch.ops.aten.convolution_backward(
            flows, self.inputs, layer.weight, None, layer.stride, layer.padding, layer.dilation,
            False, [0, 0], layer.groups, (False, True, False),
        )  # fmt: skip
        return self._named(weight, bias)

    def _split(self, values: Tensor) -> list[Tensor]:
        """One value per patient (P,), block by block."""
        sizes = [patients for _, patients, _ in self.rows.blocks()]
        return list(torch.split(values, sizes)) if sizes else []


class _Sampled(LayerGradient):
    """Per-row gradients by the rule registered with Opacus, added up for each patient."""

    def squares(self, rounding: float) -> Tensor:
        self._formed = {p: self.rows.sums(s) for p, s in self._samples().items()}
        total = sum(_squares(formed) for formed in self._formed.values())
        return torch.as_tensor(total)

    def _samples(self) -> dict[nn.Parameter, Tensor]:
        """(R, ...) gradients of the rows."""
        rule = GradSampleModule.GRAD_SAMPLERS[type(self.layer)]
        samples = rule(self.layer, [self.inputs], self.flows)
        return {p: sample for p, sample in samples.items() if sample is not None}

    def leave_out(self, patients: Tensor) -> None:
        """See :class:`LayerGradient`."""
        self._formed = {p: _without(formed, patients) for p, formed in self._formed.items()}

    def weighted(self, factors: Tensor) -> dict[nn.Parameter, Tensor]:
        return {
            p: (factors @ formed.flatten(1)).view(p.shape) for p, formed in self._formed.items()
        }


def layer_gradient(
    layer: nn.Module, inputs: Tensor, flows: Tensor, rows: Rows, workspace: Workspace
) -> LayerGradient:
    """The rule for a layer; the arguments are those of :class:`LayerGradient`."""
    kind: type[LayerGradient] = _Sampled
    if isinstance(layer, nn.Linear) and inputs.dim() == 2:
        kind = _Linear
    elif is_plain(layer):
        kind = _Convolution
    return kind(layer, inputs, flows, rows, workspace)


def _squares(tensor: Tensor) -> Tensor:
    """(N,) squared norm of each item of a (N, ...) tensor."""
    norms: Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1)
    return norms.square()


def _without(tensor: Tensor, out: Tensor) -> Tensor:
    """A (N, ...) tensor with zeros for the items where ``out`` (N,) is true."""
    return tensor.masked_fill(out.view(-1, *[1] * (tensor.dim() - 1)), 0.0)


def _marked(squares: Tensor, spoilt: Tensor | None) -> Tensor:
    """Squares of patients left out, not finite."""
    return squares if spoilt is None else squares.masked_fill(spoilt, math.inf)
