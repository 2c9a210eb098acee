"""Norms of patients' gradients in a convolution, by whichever exact way is cheapest.

A patient owns ``count`` consecutive images. With T output pixels of one patient, the
gradient of the weights is ``sum_t b_t patch_t^T`` over output gradients b_t (C_out) and
input patches (C_in k^2). Three ways lead to its norm:

*Forming it*: products of the output gradients with shifted inputs. What is formed is
kept where memory allows, and then the clipped sum is a weighted sum of what was kept.

*Gram matrices*: ``sum_ts (patch_t . patch_s)(b_t . b_s)`` (Bu et al. 2022, arXiv
2205.10683, equation 2.4). The products of patches are sums along the diagonals of the
products of pixels, so no patch is ever copied. The cost grows with T^2.

*Unfolding* the patches, for strides, dilations and other paddings.

Work goes in portions of a few patients, whose buffers stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth_common.privacy.workspace import Workspace

_STACKED = 500_000
"""Floats of stacked inputs in one portion (measured: 2 MB stay in cache)."""

_GRAMS = 250_000
"""Floats of a portion's Gram matrix (measured)."""

_PER_PIXEL_PAIR = 90
"""What summing one entry of a Gram matrix costs, in multiply-adds of a product (measured)."""

_PER_WEIGHT = 20
"""What writing and squaring one weight's gradient costs, in multiply-adds (measured)."""

_SECOND_PASS = 1.1
"""A batched weight gradient's multiply-adds, beside those of small products (measured)."""

KEPT = 6_000_000
"""Most floats of one layer's patient gradients that are kept (24 MB). Above this, memory is
mapped afresh at every step, which costs more than a second pass over the layer."""


@dataclass(frozen=True)
class Block:
    """Equally many images of each of some patients, in one convolution.

    Attributes:
        inputs: (patients * count, C_in, H, W).
        flows: (patients * count, C_out, H', W') output gradients, contiguous.
        patients: How many patients.
        workspace: Where scratch memory comes from.
    """

    layer: nn.Conv2d
    inputs: Tensor
    flows: Tensor
    patients: int
    workspace: Workspace

    @property
    def count(self) -> int:
        """Images of each patient."""
        return self.inputs.shape[0] // self.patients

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        height, width = self.layer.kernel_size
        return height, width

    @property
    def weights(self) -> int:
        """Number of the layer's weights, the bias left out."""
        return self.layer.weight.numel()

    def images(self, tensor: Tensor) -> Tensor:
        """(patients * count, C, H, W) as (patients, count, C, H, W)."""
        return tensor.view(self.patients, self.count, *tensor.shape[1:])


def is_plain(layer: nn.Module) -> bool:
    """Whether one of the three ways holds for this layer."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def is_shifting(layer: nn.Conv2d) -> bool:
    """Whether the layer is stride 1 with 'same' padding, so that patches are shifted pixels."""
    k, p = layer.kernel_size, layer.padding
    same = all(isinstance(q, int) and 2 * q == s - 1 for q, s in zip(p, k, strict=True))
    return same and layer.stride == (1, 1) and layer.dilation == (1, 1)


def worth_keeping(blocks: list[Block]) -> bool:
    """Whether forming and keeping every patient's gradient beats norms and a second pass."""
    layer = blocks[0].layer
    if not is_shifting(layer) or sum(b.patients for b in blocks) * blocks[0].weights > KEPT:
        return False
    norms = sum(min(_forming(b), _gramming(b)) for b in blocks)
    second = sum(_SECOND_PASS * b.weights * b.flows[:, 0].numel() for b in blocks)
    return sum(_forming(b) for b in blocks) < norms + second


def squared_norms(block: Block, bound: Tensor, rounding: float) -> Tensor:
    """(patients,) squared norms of the weights' gradients, rounded up.

    Args:
        block: The layer and what ran through it.
        bound: (patients,) what the squared norms would be if nothing cancelled.
        rounding: Twice the relative error of one operation.
    """
    # The clipped sum is added up anew, in an order of its own: a sum of n products may differ
    # from the true one by n / 2 times ``rounding`` of what it would be if nothing cancelled
    # (Higham 2002, section 4.2), and the norm's own sum by as much again.
    terms = block.flows[: block.count, 0].numel()
    if not is_shifting(block.layer):
        return round_up(_unfolded(block), bound, terms * rounding)
    if _gramming(block) < _forming(block):
        squares = gram_squares(block) + _gram_terms(block) / 2 * rounding * bound
        return round_up(squares, bound, terms / 2 * rounding)
    return round_up(form(block, keep=None)[1], bound, terms * rounding)


def _gram_terms(block: Block) -> float:
    """How many roundings an entry of the weighted Gram matrix and its share of a sum pass."""
    channels = block.inputs.shape[1] + block.flows.shape[1]
    return float(channels + block.kernel[0] * block.kernel[1] + 64)


def round_up(squares: Tensor, bound: Tensor, error: float) -> Tensor:
    """Squares of norms raised by a relative ``error`` of what they were without cancelling."""
    return (squares.sqrt() + error * bound.sqrt()).square()


def _forming(block: Block) -> float:
    """Cost of forming the patients' gradients, in multiply-adds."""
    tall = block.flows.shape[2] + (block.kernel[0] // 2 if block.count > 1 else 0)
    pixels = block.flows.shape[0] * tall * block.flows.shape[3]
    return block.weights * (pixels + _PER_WEIGHT * block.patients)


def _gramming(block: Block) -> float:
    """Cost of the norms through Gram matrices, in multiply-adds."""
    down, right = block.kernel[0] // 2, block.kernel[1] // 2
    pixels = block.count * (block.inputs.shape[2] + down) * (block.inputs.shape[3] + right)
    channels = block.inputs.shape[1] + block.flows.shape[1]
    return block.patients * pixels**2 * (channels + _PER_PIXEL_PAIR)


def form(block: Block, keep: Hashable | None) -> tuple[Tensor, Tensor]:
    """Form the patients' gradients of a shifting convolution.

    The inputs are copied once per column of the kernel, side by side, with rows of zeros
    between the images of a patient; a row of the kernel is then one product with the
    copies moved by whole rows.

    Returns:
        What was formed, (k, patients, C_out, k * C_in): rows of the kernel first, last its
        columns and the channels; only the last portion without ``keep``, which names the
        buffer to keep it in. And (patients,) the squared norms.
    """
    (tall, wide), count, patients = block.kernel, block.count, block.patients
    (c_in, height, width), c_out = block.inputs.shape[1:], block.flows.shape[1]
    gap = tall // 2
    rows = count * (height + gap) + gap
    portion = max(1, min(patients, _STACKED // (rows * width * wide * c_in)))
    take, like = block.workspace, block.flows
    padded = take.zeros("padded", like, portion, rows, width + wide - 1, c_in)
    inside = padded[:, gap:].view(portion, count, height + gap, -1, c_in)
    inside = inside[:, :, :height, wide // 2 : wide // 2 + width]
    steps = padded.stride()
    columns = padded.as_strided((portion, rows, width, wide * c_in), steps)
    stacked = take.empty("stacked", like, portion, rows * width, wide * c_in)
    spaced = take.zeros("spaced", like, portion, c_out, count, height + gap, width)
    used = (count * (height + gap) - gap) * width
    kept = portion if keep is None else patients
    formed = take.empty(keep or "formed", like, tall, kept, c_out, wide * c_in)
    norms = padded.new_empty(tall, patients, c_out)
    inputs = block.images(block.inputs).permute(0, 1, 3, 4, 2)
    flows = block.images(block.flows).transpose(1, 2)
    for start, stop in _portions(patients, portion):
        here = slice(0, stop - start)
        inside[here].copy_(inputs[start:stop])
        stacked[here].view_as(columns[here]).copy_(columns[here])
        if count == 1:
            left = flows[start:stop].flatten(2)
        else:
            spaced[here, :, :, :height].copy_(flows[start:stop])
            left = spaced[here].flatten(2)[:, :, :used]
        products = formed[:, here if keep is None else slice(start, stop)]
        for row in range(tall):
            moved = stacked[here, row * width : row * width + used]
            torch.bmm(left, moved, out=products[row])
        torch.linalg.vector_norm(products, dim=3, out=norms[:, start:stop])
    return formed, norms.square().sum((0, 2))


def weighted_sum(layer: nn.Conv2d, formed: Tensor, weights: Tensor) -> Tensor:
    """Sum over patients of ``weights`` (patients,) times what :func:`form` kept."""
    tall, patients, c_out = formed.shape[:3]
    total = torch.stack([weights @ formed[row].view(patients, -1) for row in range(tall)])
    return total.view(tall, c_out, layer.kernel_size[1], -1).permute(1, 3, 0, 2).contiguous()


def gram_squares(block: Block) -> Tensor:
    """(patients,) squared norms of a shifting convolution through Gram matrices.

    Pixels of a patient stand in a line, with columns and rows of zeros between, so that
    a shift of the kernel is one step along the line, and one step along the diagonal of
    the Gram matrix is a shift of the whole flat buffer. What a shift carries over from
    the next line or patient is zero, because its pixels are.
    """
    (tall, wide), patients = block.kernel, block.patients
    down, right = tall // 2, wide // 2
    height, width = block.inputs.shape[2:]
    line = block.count * (height + down) * (width + right)
    portion = max(1, min(patients, _GRAMS // line**2))
    pixels = _Line(block, "inputs", portion)
    flows = _Line(block, "flows", portion)
    diagonal = line + 1
    lower = (width + right) * diagonal
    margin = down * lower + right * diagonal
    take, size = block.workspace, portion * line**2 + 2 * margin
    grams = take.zeros("grams", block.flows, size)
    across = take.empty("across", block.flows, size)
    other = take.empty("other", block.flows, portion, line, line)
    squares = grams.new_empty(patients)
    for start, stop in _portions(patients, portion):
        size = (stop - start) * line**2
        here = grams[margin : margin + size].view(-1, line, line)
        pixel, flow = pixels.fill(start, stop), flows.fill(start, stop)
        torch.bmm(pixel.mT, pixel, out=here)
        second = torch.bmm(flow.mT, flow, out=other[: stop - start])
        reach = size + 2 * down * lower
        summed = _moved_sum(grams, diagonal, wide, across[:reach])
        summed = _moved_sum(summed, lower, tall, grams[:size])
        second.view(-1).mul_(summed)
        torch.sum(second, (1, 2), out=squares[start:stop])
        grams[:margin] = 0.0
    return squares.clamp(min=0.0)


class _Line:
    """Pixels of some patients in a line each, columns and rows of zeros between them."""

    def __init__(self, block: Block, which: Literal["inputs", "flows"], portion: int) -> None:
        tensor = block.inputs if which == "inputs" else block.flows
        down, right = block.kernel[0] // 2, block.kernel[1] // 2
        self._source = block.images(tensor).transpose(1, 2)
        channels, count, height, width = self._source.shape[1:]
        self._buffer = block.workspace.zeros(
            f"line of {which}", tensor, portion, channels, count, height + down, width + right
        )
        self._inside = self._buffer[..., :height, :width]

    def fill(self, start: int, stop: int) -> Tensor:
        """(stop - start, C, length of the line) of patients ``start`` to ``stop``."""
        self._inside[: stop - start].copy_(self._source[start:stop])
        return self._buffer[: stop - start].flatten(2)


def _moved_sum(source: Tensor, step: int, moves: int, out: Tensor) -> Tensor:
    """Sum of ``moves`` views of a flat buffer, each ``step`` further, into ``out``."""
    size = out.shape[0]
    if moves == 1:
        return out.copy_(source[:size])
    torch.add(source[:size], source[step : step + size], out=out)
    for move in range(2, moves):
        out.add_(source[move * step : move * step + size])
    return out


def _unfolded(block: Block) -> Tensor:
    """(patients,) squared norms for any stride, dilation and padding."""
    layer, count = block.layer, block.count
    vertical, horizontal = (int(side) for side in layer.padding)
    (height, width), total = block.flows.shape[2:], []
    most = _STACKED // (count * layer.weight[0].numel() * height * width)
    for start, stop in _portions(block.patients, max(1, most)):
        patches = F.unfold(
            block.inputs[start * count : stop * count],
            layer.kernel_size, layer.dilation, (vertical, horizontal), layer.stride,
        )  # fmt: skip
        patches = patches.view(-1, count, *patches.shape[1:]).transpose(1, 2).flatten(2)
        flows = block.images(block.flows)[start:stop].transpose(1, 2).flatten(2)
        norms = torch.linalg.vector_norm(flows @ patches.mT, dim=2)
        total.append(norms.square().sum(1))
    return torch.cat(total)


def _portions(patients: int, portion: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive portions of the patients."""
    for start in range(0, patients, portion):
        yield start, min(start + portion, patients)
