"""From the class names of a source to the classes of the federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synth_common.errors import ConfigError, DataError

LEFT_OUT = -1
"""Code of an image whose class the configuration leaves out."""


@dataclass(frozen=True)
class LabelRule:
    """How a source's class names are read.

    Attributes:
        where: How an error names the source.
        label_map: Source class -> canonical class. A name that is canonical already
            needs no entry.
        leave_out: Source classes whose images are set aside.
        classes: Canonical classes in label order.
    """

    where: str
    label_map: Mapping[str, str]
    leave_out: Sequence[str]
    classes: tuple[str, ...]

    def codes(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Canonical label of each source class in ``names``, or :data:`LEFT_OUT`.

        Raises:
            ConfigError: A map entry points to no canonical class, or speaks of a class
                that the source does not have.
            DataError: The source has a class that is neither mapped nor left out.
        """
        strangers = sorted((set(self.label_map) | set(self.leave_out)) - set(names))
        if strangers:
            raise ConfigError(
                f"{self.where}: label_map or leave_out names {strangers}, "
                f"but the source has the classes {list(names)}"
            )
        wrong = sorted(set(self.label_map.values()) - set(self.classes))
        if wrong:
            raise ConfigError(
                f"{self.where}: label_map leads to {wrong}, "
                f"but the classes are {list(self.classes)}"
            )
        return np.array([self._code(name) for name in names], dtype=np.int64)

    def _code(self, name: str) -> int:
        """Canonical label of one source class."""
        if name in self.leave_out:
            return LEFT_OUT
        canonical = self.label_map.get(name, name)
        if canonical not in self.classes:
            raise DataError(
                f"{self.where}: class {name!r} is none of {list(self.classes)}; "
                "add it to label_map or to leave_out"
            )
        return self.classes.index(canonical)

    def encode(self, column: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
        """Canonical label of every image from its source class name, (N,)."""
        names, inverse = np.unique(column, return_inverse=True)
        return self.codes([str(n) for n in names])[inverse]
