"""Pictures of what a generator learnt, from released weights alone: samples and traversals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from synth_common.evaluation.synthetic import sample_images
from synth_common.facts import Fact, Scope
from synth_common.generators import Generator
from synth_common.generators.traversal import POSITIONS, Direction, active_directions, traverse
from synth_common.images.drawn import drawn_images
from synth_common.images.imageset import ImageSet
from synth_common.plan import Plan
from synth_common.randomness import derive_seed
from synth_common.reporting.grids import GridLook, write_grid

_SOURCE = "synth_server.pictures"


@dataclass(frozen=True)
class Gallery:
    """Which pictures, and where.

    Attributes:
        out: Run directory; pictures go below ``out/samples``.
        seed: Of the run.
        columns: Images per class in a grid.
        traversals: Latent directions shown, the most active first.
    """

    out: Path
    seed: int
    columns: int = 8
    traversals: int = 3


def scope_of(plan: Plan) -> Scope:
    """Who may see what the weights give: without privacy nothing of it was charged."""
    return "released" if plan.privacy.private else "site-local"


def synthetic_grid(plan: Plan, generator: Generator, gallery: Gallery) -> Fact:
    """Synthetic images, a class in each row."""
    labels = np.repeat(np.arange(len(plan.generator.classes), dtype=np.int64), gallery.columns)
    images = sample_images(generator, labels, derive_seed(gallery.seed, "grid"))
    terms = plan.privacy
    caption = f"Synthetic images by {_family(plan)}" + (
        f", epsilon {terms.epsilon:g} per {terms.unit}"
        if terms.private
        else ", trained WITHOUT privacy"
    )
    return grid(gallery, "synthetic", images, ("synthetic", caption), scope_of(plan))


def _family(plan: Plan) -> str:
    """The family, and what a release had to do with it."""
    family = plan.generator.family
    if family == "embedding":
        return "one release"
    if plan.release.embedding is None:
        return family.upper()
    return f"{family.upper()} {'started from' if plan.training.rounds else 'taught by'} a release"


def grid(
    gallery: Gallery, name: str, images: ImageSet, text: tuple[str, str], scope: Scope
) -> Fact:
    """Write one grid (rows of one class each) and say what it shows.

    Args:
        gallery: Where, and how many columns.
        name: Of the file.
        images: The images, row by row.
        text: What kind of images they are, and the caption.
        scope: Who may see them.
    """
    kind, caption = text
    rows = [images.class_names[label] for label in images.labels[:: gallery.columns]]
    path = gallery.out / "samples" / f"{name}.png"
    write_grid(images.images, rows, path, caption, masks=images.masks)
    detail = {"kind": kind, "caption": caption, "rows": rows, "columns": gallery.columns}
    return Fact("samples.grid", f"samples/{name}.png", scope, f"{_SOURCE}.grid", detail=detail)


def traversals(plan: Plan, generator: Generator, gallery: Gallery) -> list[Fact]:
    """One picture and fact per active latent direction; none of a family without a latent space."""
    seed = derive_seed(gallery.seed, "traversal")
    facts: list[Fact] = []
    directions = active_directions(generator, gallery.traversals, seed)
    for number, direction in enumerate(directions, start=1):
        drawn = traverse(generator, direction)
        if drawn is not None:
            facts.append(_traversal(plan, (number, direction), drawn.numpy(), gallery.out))
    return facts


def _traversal(
    plan: Plan, direction: tuple[int, Direction], drawn: npt.NDArray[np.float32], out: Path
) -> Fact:
    """Write the picture of one numbered direction, classes in rows."""
    (number, found), classes = direction, plan.generator.classes
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), len(POSITIONS))
    images = drawn_images(plan.generator, drawn, labels)
    caption = f"Direction {number}, {found.share:.0%} of all change, from -3 to 3"
    name = f"samples/traversal-{number}.png"
    look = GridLook(headings=tuple(f"{p:+g}" if p else "0" for p in POSITIONS))
    write_grid(images.images, classes, out / name, caption, images.masks, look)
    detail = {
        "direction": number,
        "share": found.share,
        "change": _change(drawn, classes),
        "caption": caption,
        "rows": list(classes),
        "columns": len(POSITIONS),
        "positions": list(POSITIONS),
    }
    return Fact("samples.traversal", name, scope_of(plan), f"{_SOURCE}.traversals", detail=detail)


def _change(drawn: npt.NDArray[np.float32], classes: Sequence[str]) -> float:
    """Root mean square difference of the pixels between the two ends of a direction."""
    ends = drawn.reshape(len(classes), len(POSITIONS), -1).astype(np.float64)
    return float(np.sqrt(np.mean((ends[:, -1] - ends[:, 0]) ** 2)))
