"""The one door through which images come in: a source's configuration to an ImageSet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from synth_common.errors import DataError
from synth_common.images.duplicates import Duplicates, find_exact
from synth_common.images.folder import FolderSource, load_folder
from synth_common.images.imageset import ImageSet
from synth_common.images.npz import NpzSource, load_npz
from synth_common.images.phantom import PhantomSource, load_phantom
from synth_common.images.preprocess import Collected, Target
from synth_common.images.tiles import TilesSource, load_tiles

__all__ = [
    "FolderSource",
    "Intake",
    "IntakeReport",
    "NpzSource",
    "PhantomSource",
    "SourceConfig",
    "TilesSource",
    "load_source",
]

SourceConfig = Annotated[
    PhantomSource | NpzSource | FolderSource | TilesSource, Field(discriminator="kind")
]
"""Any source; ``kind`` says which."""


@dataclass(frozen=True)
class IntakeReport:
    """What became of the images a source offered. SENSITIVE: exact counts of a site.

    Attributes:
        source: Name of the source.
        offered: Images in the source, after its ``splits`` were chosen.
        accepted: Images that went on.
        set_aside: Reason -> images; with ``accepted`` it adds up to ``offered``.
        duplicates: Exact duplicates among the accepted images.
    """

    source: str
    offered: int
    accepted: int
    set_aside: Mapping[str, int]
    duplicates: Duplicates

    def as_fact_value(self) -> dict[str, Any]:
        """The value of the fact ``data.intake``."""
        return {
            "offered": self.offered,
            "accepted": self.accepted,
            "set_aside": dict(self.set_aside),
            "duplicates": {
                "groups": self.duplicates.groups,
                "images": self.duplicates.images,
                "across_patients": self.duplicates.across_patients,
            },
        }


@dataclass(frozen=True)
class Intake:
    """The images of a source, and the report on them."""

    images: ImageSet
    report: IntakeReport


def load_source(
    config: PhantomSource | NpzSource | FolderSource | TilesSource,
    target: Target,
    root: Path | None,
) -> Intake:
    """Load, preprocess and check the images of one source.

    Args:
        config: Which source.
        target: The picture to reach.
        root: Where relative paths start; None where the scenario names no data root.

    Returns:
        Images with at least one row, and the intake report.

    Raises:
        DataError: The source cannot be used as it is (names the path and what was
            found), or not one image of it can.
        ConfigError: The label map does not fit the source or the classes.
    """
    collected = _collect(config, target, root)
    counts: dict[str, int] = dict(sorted(Counter(collected.set_aside).items()))
    accepted = len(collected.images)
    if accepted == 0:
        raise DataError(
            f"source {config.name!r}: none of the {collected.offered} images can be used; "
            f"set aside: {counts}"
        )
    report = IntakeReport(
        source=config.name,
        offered=collected.offered,
        accepted=accepted,
        set_aside=counts,
        duplicates=find_exact(collected.images),
    )
    return Intake(collected.images, report)


def _collect(
    config: PhantomSource | NpzSource | FolderSource | TilesSource,
    target: Target,
    root: Path | None,
) -> Collected:
    """Call the loader of the source's kind."""
    if isinstance(config, PhantomSource):
        return load_phantom(config, target)
    path = config.path.expanduser()
    if not path.is_absolute():
        if root is None:
            raise DataError(
                f"source {config.name!r}: path {str(path)!r} is relative and there is no data "
                "root; set data.root or the environment's SYNTHWARD_DATA"
            )
        path = root / path
    if isinstance(config, NpzSource):
        return load_npz(config, target, path)
    if isinstance(config, TilesSource):
        return load_tiles(config, target, path)
    return load_folder(config, target, path)
