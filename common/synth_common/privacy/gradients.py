"""Sum of clipped per-patient gradients, without ever forming one (book-keeping).

The method is book-keeping (Bu et al. 2023, arXiv 2210.00038) carried from images to
patients. A *row* is one image (or one augmented draw of it); a patient owns one or more
consecutive rows, and the patient's gradient is the mean over them. For a layer with
inputs ``a_r`` and output gradients ``b_r`` the patient's gradient is a sum of products of
the two, so its norm follows from the pair, and after the clip factors are known ONE
batched weight gradient of the scaled ``b_r`` gives the clipped sum. Parameters never get
an ordinary gradient, which saves half of a usual backward pass.

Linear layers and convolutions have fast rules here. Any other layer is handled by the
per-sample rule registered for it with Opacus (``register_grad_sampler``), and a parameter
without any rule is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional as F

from synth_common.errors import PrivacyError

_UNFOLDING = 32
"""What copying a patch costs beside the products it saves, in multiply-adds (measured)."""

_ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Relative rounding error allowed for when a norm is computed from products that may cancel."""


@dataclass(frozen=True)
class Rows:
    """How the rows of a batch belong to patients.

    Rows of one patient are consecutive, and patients are ordered by how many rows they
    own, so that patients with equally many rows form one block.

    Attributes:
        counts: Rows per patient, ascending, one entry per patient.
    """

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(a > b for a, b in zip(self.counts, self.counts[1:], strict=False)):
            raise PrivacyError("patients of a batch must be ordered by their number of rows")
        if self.counts and self.counts[0] < 1:
            raise PrivacyError("a drawn patient owns no row")

    @property
    def total(self) -> int:
        """Rows in the batch."""
        return sum(self.counts)

    def blocks(self) -> Iterator[tuple[slice, int, int]]:
        """(rows, patients, rows per patient) of every block of equal counts."""
        start, position = 0, 0
        while position < len(self.counts):
            count = self.counts[position]
            patients = self.counts.count(count)
            yield slice(start, start + patients * count), patients, count
            start += patients * count
            position += patients

    def per_row(self, values: Tensor) -> Tensor:
        """Repeat one value per patient (P,) for each of its rows (R,)."""
        return values.repeat_interleave(torch.tensor(self.counts, device=values.device))


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

    Raises:
        PrivacyError: The network mixes examples (batch normalisation) or holds a
            parameter for which no per-example rule exists.
    """

    def __init__(self, network: nn.Module) -> None:
        problems = ModuleValidator.validate(network, strict=False)
        if problems:
            raise PrivacyError(
                "the network is not safe under DP-SGD: " + "; ".join(str(p) for p in problems)
            )
        self.network = network
        self.rounding = _ROUNDING
        self.layers = [m for m in network.modules() if any(True for _ in m.parameters(False))]
        for layer in self.layers:
            if not _has_rule(layer):
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
        outputs = [r.output for r in records]
        backward = torch.autograd.grad((losses * weights).sum(), outputs)
        with torch.no_grad():
            squares = torch.zeros(len(rows.counts), device=losses.device)
            for record, flow in zip(records, backward, strict=True):
                squares += _squared_norms(record, flow, rows, self.rounding)
            norms = squares.sqrt()
            usable = torch.isfinite(norms)
            factors = rows.per_row((clip / norms.clamp(min=1e-12)).clamp(max=1.0))
            keep = None if bool(usable.all()) else rows.per_row(usable)
            gradients: dict[nn.Parameter, Tensor] = {}
            for record, flow in zip(records, backward, strict=True):
                gradients.update(_summed(record.layer, *_clipped(record, flow, factors, keep)))
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


def _has_rule(layer: nn.Module) -> bool:
    """Whether per-example gradients of this layer can be taken."""
    return isinstance(layer, nn.Linear) or type(layer) in GradSampleModule.GRAD_SAMPLERS


def _clipped(
    record: _Record, flow: Tensor, factors: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Inputs and scaled output gradients; the rows of patients left out become zero."""
    inputs, shape = record.inputs.detach(), (-1, *[1] * (flow.dim() - 1))
    if keep is None:
        return inputs, flow * factors.view(shape)
    factors = torch.where(keep, factors, 0.0)
    flow = torch.where(keep.view(shape), flow, 0.0)
    inputs = torch.where(keep.view(-1, *[1] * (inputs.dim() - 1)), inputs, 0.0)
    return inputs, flow * factors.view(shape)


def _squared_norms(record: _Record, flow: Tensor, rows: Rows, rounding: float) -> Tensor:
    """(P,) squared norm of each patient's gradient in this layer, rounded up.

    Products of one patient's rows may cancel, and then what is left of them in float32 may
    be smaller than the gradient that is added up later. The bound on that error, which is
    ``rounding`` times the product of the factors' norms, is added.
    """
    layer, inputs, parts = record.layer, record.inputs.detach(), []
    for block, patients, count in rows.blocks():
        a, b = inputs[block], flow[block]
        if isinstance(layer, nn.Linear) and a.dim() == 2:
            part = _linear_squares(layer, a, b, patients)
            part = part.clamp(min=0.0) + rounding * _largest(a, b, patients, 1)
        elif isinstance(layer, nn.Conv2d) and _plain(layer):
            part = _convolution_squares(layer, a, b, patients, rounding)
        else:
            part = torch.zeros(patients, device=b.device)
            for sample in _opacus_samples(layer, a, b).values():
                part += sample.view(patients, count, -1).sum(1).square().sum(1)
        parts.append(part)
    return torch.cat(parts) if parts else torch.zeros(0, device=flow.device)


def _largest(a: Tensor, b: Tensor, patients: int, area: int) -> Tensor:
    """(P,) what the squared norm would be if nothing cancelled (Cauchy-Schwarz).

    ``area`` is how many outputs an input reaches; a bias is a weight whose input is 1.
    """
    per_patient = area * a.reshape(patients, -1).square().sum(1)
    ones = b[0, 0].numel() if b.dim() == 4 else 1
    per_patient = per_patient + ones * (b.shape[0] // patients)
    return per_patient * b.reshape(patients, -1).square().sum(1)


def _linear_squares(layer: nn.Linear, a: Tensor, b: Tensor, patients: int) -> Tensor:
    """|sum_r b_r a_r^T|^2 = sum_rs (a_r . a_s)(b_r . b_s), rows r, s of one patient."""
    a, b = a.view(patients, -1, a.shape[-1]), b.view(patients, -1, b.shape[-1])
    gram_a, gram_b = a @ a.mT, b @ b.mT
    if layer.bias is not None:  # a bias is a weight whose input is always 1
        gram_a = gram_a + 1.0
    return (gram_a * gram_b).sum((1, 2))


def _plain(layer: nn.Conv2d) -> bool:
    """Whether the fast convolution rules hold for this layer."""
    return (
        layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    )


def _shifts_only(layer: nn.Conv2d) -> bool:
    """Whether the layer is stride 1 with 'same' padding, so that patches are shifted pixels."""
    k, p = layer.kernel_size, layer.padding
    same = all(isinstance(q, int) and 2 * q == s - 1 for q, s in zip(p, k, strict=True))
    return same and layer.stride == (1, 1) and layer.dilation == (1, 1)


def _convolution_squares(
    layer: nn.Conv2d, a: Tensor, b: Tensor, patients: int, rounding: float
) -> Tensor:
    """Squared norms for a convolution, rounded up, by the cheaper of two exact ways.

    With T output pixels of one patient and K = C_in k^2: through T x T Gram matrices,
    or by forming the (C_out, K) gradient of each patient.
    """
    count = a.shape[0] // patients
    pixels = count * b.shape[2] * b.shape[3]
    area = layer.kernel_size[0] * layer.kernel_size[1]
    k = a.shape[1] * area
    error = rounding * _largest(a, b, patients, area)
    through_gram = pixels * (a.shape[1] + b.shape[1] + 8 * layer.kernel_size[0])
    if _shifts_only(layer) and through_gram < k * (b.shape[1] + _UNFOLDING):
        grams = _patch_grams(layer, a, patients)
        flows = b.view(patients, count, b.shape[1], -1).transpose(1, 2).flatten(2)
        total = (grams * (flows.mT @ flows)).sum((1, 2)).clamp(min=0.0) + error
    else:
        padding = tuple(int(side) for side in layer.padding)
        patches = F.unfold(a, layer.kernel_size, layer.dilation, padding, layer.stride)
        patches = patches.view(patients, count, k, -1).transpose(1, 2).flatten(2)
        flows = b.view(patients, count, b.shape[1], -1).transpose(1, 2).flatten(2)
        # The gradient itself is formed here, so its error enters before the square.
        norm = (flows @ patches.mT).square().sum((1, 2)).sqrt()
        total = (norm + (rounding * error).sqrt()).square()
    if layer.bias is not None:
        total = total + flows.sum(2).square().sum(1)
    return total


def _patch_grams(layer: nn.Conv2d, a: Tensor, patients: int) -> Tensor:
    """Inner products of all k x k patches of one patient (P, T, T), without unfolding them.

    The product of two patches is the sum, over the k^2 offsets, of products of single
    pixels shifted by that offset: the pixel Gram matrix summed along its diagonals, which
    is done for the rows first and then for the columns.
    """
    channels, height, width = a.shape[1:]
    count = a.shape[0] // patients
    pixels = a.view(patients, count, channels, height * width).transpose(1, 2).flatten(2)
    grams = (pixels.mT @ pixels).view(patients, count, height, width, count, height, width)
    for axis, kernel in ((2, layer.kernel_size[0]), (3, layer.kernel_size[1])):
        grams = _diagonal_sums(grams, axis, kernel // 2)
    return grams.view(patients, count * height * width, -1)


def _diagonal_sums(grams: Tensor, axis: int, reach: int) -> Tensor:
    """Sum of ``grams`` moved by -reach..reach along ``axis`` and its twin (``axis`` + 3)."""
    total, length = grams.clone(), grams.shape[axis]
    for shift in range(1, reach + 1):
        if shift >= length:
            break
        kept = length - shift
        for here, there in ((0, shift), (shift, 0)):
            source = grams.narrow(axis, there, kept).narrow(axis + 3, there, kept)
            total.narrow(axis, here, kept).narrow(axis + 3, here, kept).add_(source)
    return total


def _summed(layer: nn.Module, a: Tensor, b: Tensor) -> dict[nn.Parameter, Tensor]:
    """The batched gradient of a layer's parameters for output gradients ``b``."""
    if isinstance(layer, nn.Linear) and a.dim() == 2:
        return _named(layer, b.mT @ a, b.sum(0))
    if isinstance(layer, nn.Conv2d) and _plain(layer):
        _, weight, _ = torch.ops.aten.convolution_backward(
            b, a, layer.weight, None, layer.stride, layer.padding, layer.dilation,
            False, [0, 0], layer.groups, (False, True, False),
        )  # fmt: skip
        return _named(layer, weight, b.sum((0, 2, 3)))
    return {p: sample.sum(0) for p, sample in _opacus_samples(layer, a, b).items()}


def _named(
    layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Gradients by the parameter they belong to; the bias only where there is one."""
    own = dict(layer.named_parameters(recurse=False))
    named = {own["weight"]: weight}
    if "bias" in own:
        named[own["bias"]] = bias
    return named


def _opacus_samples(layer: nn.Module, a: Tensor, b: Tensor) -> dict[nn.Parameter, Tensor]:
    """Per-row gradients (R, ...) by the rule registered with Opacus."""
    rule = GradSampleModule.GRAD_SAMPLERS[type(layer)]
    return {p: s for p, s in rule(layer, [a], b).items() if s is not None}


def sum_gradients(parts: Sequence[ClippedSum]) -> dict[nn.Parameter, Tensor]:
    """Add the clipped sums of several physical batches of one logical step."""
    total: dict[nn.Parameter, Tensor] = {}
    for part in parts:
        for parameter, gradient in part.gradients.items():
            total[parameter] = total[parameter] + gradient if parameter in total else gradient
    return total
