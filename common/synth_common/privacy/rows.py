"""How the rows of a batch belong to patients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from synth_common.errors import PrivacyError


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
        if self.total == len(self.counts):
            return values
        return values.repeat_interleave(torch.tensor(self.counts, device=values.device))

    def sums(self, values: Tensor) -> Tensor:
        """Sum over the rows of each patient: (R, ...) to (P, ...)."""
        if self.total == len(self.counts):
            return values
        parts = [
            values[block].reshape(patients, count, *values.shape[1:]).sum(1)
            for block, patients, count in self.blocks()
        ]
        return torch.cat(parts)
