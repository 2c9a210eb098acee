"""What the columns of a comparison mean: title, group, unit, and which way is better."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

GROUPS: Final = (
    "Privacy",
    "Quality",
    "Diversity",
    "Usefulness",
    "Fairness",
    "Membership risk",
    "Time and memory",
    "Other",
)
"""Groups of columns in the order of the page."""

# The first word found in a column's name decides; the order therefore matters.
_BY_WORD: Final[tuple[tuple[str, str, str], ...]] = (
    ("membership", "Membership risk", "lower"),
    ("attack", "Membership risk", "lower"),
    ("tpr", "Membership risk", "lower"),
    ("epsilon", "Privacy", "lower"),
    ("noise_multiplier", "Privacy", ""),
    ("diversity", "Diversity", "higher"),
    ("recall_per_class", "Usefulness", "higher"),
    ("accuracy", "Usefulness", "higher"),
    ("utility", "Usefulness", "higher"),
    ("dice", "Usefulness", "higher"),
    ("surface_distance", "Usefulness", "lower"),
    ("anomaly", "Usefulness", "higher"),
    ("augmentation", "Usefulness", "higher"),
    ("worst_group_", "Fairness", "higher"),
    ("worst_group", "Fairness", ""),  # which one it is
    ("frechet", "Quality", "lower"),
    ("kid", "Quality", "lower"),
    ("precision", "Quality", "higher"),
    ("recall", "Quality", "higher"),
    ("coverage", "Quality", "higher"),
    ("density", "Quality", "higher"),
    ("inception", "Quality", "higher"),
    ("ssim", "Quality", "higher"),
    ("psnr", "Quality", "higher"),
    ("mse", "Quality", "lower"),
    ("mae", "Quality", "lower"),
    ("seconds", "Time and memory", "lower"),
    ("memory", "Time and memory", "lower"),
    ("bytes", "Time and memory", "lower"),
)

_SPELLED: Final = {
    "kid": "KID",
    "auc": "AUC",
    "auroc": "AUROC",
    "tpr": "TPR",
    "fpr": "FPR",
    "ssim": "SSIM",
    "ms": "MS",
    "psnr": "PSNR",
    "mse": "MSE",
    "mae": "MAE",
    "frechet": "Fréchet",
    "pixels": "(pixels)",
    "mm": "(mm)",
    "seconds": "time",
}


@dataclass(frozen=True)
class Column:
    """A column of a comparison.

    Attributes:
        name: Its key in the rows.
        title: As printed.
        group: One of :data:`GROUPS`.
        better: "lower", "higher", or "" where neither is.
        unit: "seconds", "bytes", or "" for a plain number.
    """

    name: str
    title: str
    group: str
    better: str
    unit: str


def column_of(name: str) -> Column:
    """The meaning of a column, read from the words of its name."""
    floor = name.endswith("_floor")
    group, better = next(
        ((group, better) for word, group, better in _BY_WORD if word in name), ("Other", "")
    )
    unit = "seconds" if "seconds" in name else "bytes" if "bytes" in name else ""
    words = [re.sub(r"^([\d.]+)pct$", r"\1 %", word) for word in name.split("_") if word != "bytes"]
    title = " ".join(_SPELLED.get(word, word) for word in words).replace("MS SSIM", "MS-SSIM")
    title = title[:1].upper() + title[1:]
    return Column(name, title, group, "" if floor else better, unit)


def ranked(columns: Iterable[Column]) -> list[Column]:
    """Columns by group, in the order of :data:`GROUPS`; within a group as they came."""
    return sorted(columns, key=lambda column: GROUPS.index(column.group))
