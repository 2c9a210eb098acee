"""Buffers that live from step to step."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import Tensor

_LARGEST = 32_000_000
"""Bytes of the largest block after whose release glibc stops mapping blocks of that size."""


class Workspace:
    """Scratch memory, kept because mapping it afresh costs more than the arithmetic in it.

    A buffer grows to the largest shape it was asked for. SENSITIVE: what is left in it is
    made of patients' gradients; it never leaves the process.
    """

    def __init__(self) -> None:
        self._buffers: dict[Hashable, Tensor] = {}
        # glibc hands freed memory back to the system, and every step would map it afresh. Once
        # a large block was freed, it keeps twice as much (mallopt(3), M_MMAP_THRESHOLD).
        torch.empty(_LARGEST, dtype=torch.uint8)

    def empty(self, name: Hashable, like: Tensor, *shape: int) -> Tensor:
        """A contiguous tensor with the dtype and device of ``like`` and arbitrary contents.

        It is the caller's until the same name is asked for again.
        """
        size, buffer = math.prod(shape), self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.device != like.device:
            buffer = self._buffers[name] = like.new_empty(size)
        return buffer[:size].view(shape)

    def zeros(self, name: Hashable, like: Tensor, *shape: int) -> Tensor:
        """The same, filled with zeros."""
        return self.empty(name, like, *shape).zero_()
