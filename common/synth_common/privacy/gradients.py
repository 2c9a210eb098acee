"""Sum of clipped per-patient gradients in one backward pass (book-keeping).

The method is book-keeping (Bu et al. 2023, arXiv 2210.00038) carried from images to
patients. A *row* is one image (or one augmented draw of it); a patient owns one or more
consecutive rows, and the patient's gradient is the mean over them. For a layer with
inputs ``a_r`` and output gradients ``b_r`` the patient's gradient is a sum of products of
the two, so its norm follows from the pair, and after the clip factors are known ONE
batched weight gradient of the scaled ``b_r`` gives the clipped sum; a convolution whose
patients' gradients fit in little memory forms and keeps them instead. Parameters never get
an ordinary gradient, which saves half of a usual backward pass.

Linear layers and convolutions have fast rules (:mod:`.layer_gradients`). Any other layer is
handled by the per-sample rule registered for it with Opacus (``register_grad_sampler``), and
a parameter without any rule is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from synth_common.errors import PrivacyError
from synth_common.privacy.layer_gradients import LayerGradient, has_rule, layer_gradient
from synth_common.privacy.rows import Rows
from synth_common.privacy.workspace import Workspace

__all__ = ["ClippedSum", "PatientGradients", "Rows", "sum_gradients"]

_ROUNDING = torch.finfo(torch.float32).eps
"""Twice the relative error of one float32 operation; norms are rounded up by multiples of it."""


@dataclass
class _Record:
    """One layer's part in a forward pass."""

    layer: nn.Module
    inputs: Tensor
    output: Tensor


@dataclass(frozen=True)
class ClippedSum:
    """What a batch of patients adds to a step. SENSITIVE until noise is added.

    Attributes:
        gradients: One tensor per trainable parameter: the sum over patients of clipped
            gradients, each of norm at most the clip.
        norms: (P,) norms before clipping, rounded up; not finite for a patient left out.
        losses: (R,) losses of the rows.
    """

    gradients: dict[nn.Parameter, Tensor]
    norms: Tensor
    losses: Tensor


class PatientGradients:
    """Computes clipped per-patient gradient sums of one network.

    A layer whose parameters ask for no gradient is frozen: it is part of the loss, but
    nothing of it is in a norm or a sum.

    Raises:
        PrivacyError: The network mixes examples (batch normalisation) or holds a trained
            parameter for which no per-example rule exists, or a layer frozen in part.
    """

    def __init__(self, network: nn.Module) -> None:
        problems = ModuleValidator.validate(network, strict=False)
        if problems:
            raise PrivacyError(
                "the network is not safe under DP-SGD: " + "; ".join(str(p) for p in problems)
            )
        self.network = network
        self.rounding = _ROUNDING
        self._workspace = Workspace()
        self.layers = [m for m in network.modules() if _is_trained(m)]
        for layer in self.layers:
            if not has_rule(layer):
                raise PrivacyError(
                    f"no per-example gradient rule for {type(layer).__name__}; "
                    "register one with opacus.grad_sample.register_grad_sampler"
                )

    def clipped_sum(self, loss: Callable[[], Tensor], rows: Rows, clip: float) -> ClippedSum:
        """Sum over patients of g_p * min(1, clip / |g_p|), g_p the mean over p's rows.

        A patient whose gradient is not finite contributes nothing: whether that happens
        depends on the patient, so it must not show in anything but the (noisy) sum.

        Args:
            loss: Runs the network once and returns one loss per row (R,), in row order.
            rows: Which rows belong to which patient.
            clip: The clip norm C; ``inf`` leaves the gradients as they are.

        Raises:
            PrivacyError: The network used a layer twice, so that its rule would be wrong.
        """
        with self._recording() as records:
            losses = loss()
        if losses.shape != (rows.total,):
            raise PrivacyError(f"loss has shape {tuple(losses.shape)}, expected ({rows.total},)")
        weights = rows.per_row(1.0 / torch.tensor(rows.counts, device=losses.device))
        flows = list(torch.autograd.grad((losses * weights).sum(), [r.output for r in records]))
        with torch.no_grad():
            layers: list[LayerGradient] = []
            squares = torch.zeros(len(rows.counts), device=losses.device)
            while records:  # what a layer does not keep is free before the next one
                record = records.pop()
                layer = layer_gradient(
                    record.layer, record.inputs.detach(), flows.pop(), rows, self._workspace
                )
                del record
                squares += layer.squares(self.rounding)
                layers.append(layer)
            norms = squares.sqrt()
            factors = (clip / norms.clamp(min=1e-12)).clamp(max=1.0)
            usable = torch.isfinite(norms)
            if not bool(usable.all()):
                factors = torch.where(usable, factors, 0.0)
                for layer in layers:
                    layer.leave_out(~usable)
            gradients: dict[nn.Parameter, Tensor] = {}
            while layers:
                gradients.update(layers.pop().weighted(factors))
        return ClippedSum(gradients, norms, losses.detach())

    @contextmanager
    def _recording(self) -> Iterator[list[_Record]]:
        """Record each layer's input and output; outputs start the graph, parameters do not."""
        records: list[_Record] = []
        used: set[int] = set()

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if id(layer) in used:
                raise PrivacyError(
                    f"{type(layer).__name__} ran twice in one loss; per-example rules hold for "
                    "one use, so give the second use a layer of its own"
                )
            used.add(id(layer))
            if not output.requires_grad:
                output.requires_grad_(True)
            records.append(_Record(layer, inputs[0], output))
            return output

        wanted = [(p, p.requires_grad) for p in self.network.parameters()]
        handles = [layer.register_forward_hook(hook) for layer in self.layers]
        try:
            for parameter, _ in wanted:
                parameter.requires_grad_(False)
            yield records
        finally:
            for handle in handles:
                handle.remove()
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)


def _is_trained(layer: nn.Module) -> bool:
    """Whether a layer's own parameters are trained. Raises PrivacyError for a part of them."""
    flags = {parameter.requires_grad for parameter in layer.parameters(recurse=False)}
    if len(flags) > 1:
        raise PrivacyError(
            f"{type(layer).__name__} is frozen in part, and per-example rules cover a layer's "
            "weight and bias together; freeze both or neither"
        )
    return flags == {True}


def sum_gradients(parts: Sequence[ClippedSum]) -> dict[nn.Parameter, Tensor]:
    """Add the clipped sums of several physical batches of one logical step."""
    total: dict[nn.Parameter, Tensor] = {}
    for part in parts:
        for parameter, gradient in part.gradients.items():
            total[parameter] = total[parameter] + gradient if parameter in total else gradient
    return total
