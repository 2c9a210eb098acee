"""What only a simulation can do at the end: pool the sites, and show pictures.

In a federation no one sees all hospitals' images. One machine that plays them all can
ask what the synthetic images are worth to a classifier beside the pooled real ones; the
facts made here are therefore marked as local to the sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from synth_client.evaluate import class_labels, sample_images
from synth_client.site import Site
from synth_common.evaluation.config import Tell, quiet
from synth_common.evaluation.suite import evaluate_segmentation, evaluate_utility
from synth_common.facts import Fact, Scope
from synth_common.generators import Generator
from synth_common.generators.traversal import POSITIONS, Direction, active_directions, traverse
from synth_common.images.drawn import drawn_images
from synth_common.images.imageset import ImageSet, concatenate
from synth_common.images.phantom import draw
from synth_common.randomness import derive_seed
from synth_common.reporting.grids import GridLook, write_grid
from synth_sim.scenario import Scenario

_SOURCE = "synth_sim.judge"


def pooled_utility(
    scenario: Scenario,
    sites: Sequence[Site],
    generator: Generator,
    shares: Sequence[float] = (),
    tell: Tell = quiet,
) -> list[Fact]:
    """Classifiers, and segmenters where there are masks, on synthetic, real and both.

    All are tested on all sites' held-out patients. There are as many synthetic images as real
    training images, but at most ``evaluation.utility_images``, in the released ``shares`` of
    the classes, or the classes in turn where none were released. A single class leaves nothing
    to classify. ``tell`` is told of each stage as it begins.
    """
    train = concatenate([_named(site.train, site.name) for site in sites])
    holdout = concatenate([_named(site.holdout, site.name) for site in sites])
    seed = derive_seed(scenario.seed, "utility")
    config, plan = scenario.evaluation, scenario.generator
    labels = class_labels(scenario.plan, min(len(train), config.utility_images), shares)
    tell(f"drawing {len(labels)} synthetic images")
    synthetic = sample_images(generator, labels, seed)
    facts = []
    if len(plan.classes) > 1:
        facts += evaluate_utility(train, holdout, synthetic, config, seed, tell)
    if plan.with_mask:
        facts += evaluate_segmentation(train, holdout, synthetic, config, seed, tell)
    return facts


def _named(images: ImageSet, site: str) -> ImageSet:
    """A site's images for pooling: equal ids of two hospitals are different people."""
    ids = images.patient_ids
    if ids is not None:
        ids = np.array([f"{site}/{patient}" for patient in ids.tolist()], dtype=np.str_)
    return replace(images, patient_ids=ids, sites=np.full(len(images), site))


def write_grids(
    scenario: Scenario, sites: Sequence[Site], generator: Generator, out: Path
) -> list[Fact]:
    """Below ``out/samples``: traversals, and grids of synthetic, phantom, and real if asked.

    Returns:
        One ``samples.grid`` fact per picture, and one ``samples.traversal`` fact per latent
        direction of a family that has a latent space.
    """
    facts = [_synthetic_grid(scenario, generator, out)]
    if scenario.look is not None:
        facts.append(_phantom_grid(scenario, out))
    if scenario.report.show_real:
        facts += [_real_grid(scenario, site, out) for site in sites]
    return facts + _traversals(scenario, generator, out)


def _traversals(scenario: Scenario, generator: Generator, out: Path) -> list[Fact]:
    """One picture and fact per active latent direction; from released weights alone."""
    count, seed = scenario.report.traversals, derive_seed(scenario.seed, "traversal")
    facts: list[Fact] = []
    for number, direction in enumerate(active_directions(generator, count, seed), start=1):
        drawn = traverse(generator, direction)
        if drawn is not None:
            facts.append(_traversal(scenario, (number, direction), drawn.numpy(), out))
    return facts


def _traversal(
    scenario: Scenario,
    direction: tuple[int, Direction],
    drawn: npt.NDArray[np.float32],
    out: Path,
) -> Fact:
    """Write the picture of one numbered direction, classes in rows."""
    (number, found), classes = direction, scenario.generator.classes
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), len(POSITIONS))
    images = drawn_images(scenario.generator, drawn, labels)
    ends = drawn.reshape(len(classes), len(POSITIONS), -1).astype(np.float64)
    change = float(np.sqrt(np.mean((ends[:, -1] - ends[:, 0]) ** 2)))
    caption = f"Direction {number}, {found.share:.0%} of all change, from -3 to 3"
    name = f"samples/traversal-{number}.png"
    look = GridLook(headings=tuple(f"{p:+g}" if p else "0" for p in POSITIONS))
    write_grid(images.images, classes, out / name, caption, images.masks, look)
    detail = {
        "direction": number,
        "share": found.share,
        "change": change,
        "caption": caption,
        "rows": list(classes),
        "columns": len(POSITIONS),
        "positions": list(POSITIONS),
    }
    scope: Scope = "released" if scenario.privacy.private else "site-local"
    return Fact("samples.traversal", name, scope, f"{_SOURCE}._traversals", detail=detail)


def _grid(
    out: Path, name: str, images: ImageSet, text: tuple[str, str], scope: Scope, columns: int
) -> Fact:
    """Write one grid (rows of one class each) and say what it shows."""
    kind, caption = text
    rows = [images.class_names[label] for label in images.labels[::columns]]
    path = out / "samples" / f"{name}.png"
    write_grid(images.images, rows, path, caption, masks=images.masks)
    detail = {"kind": kind, "caption": caption, "rows": rows, "columns": columns}
    return Fact(
        "samples.grid", f"samples/{name}.png", scope, f"{_SOURCE}.write_grids", detail=detail
    )


def _synthetic_grid(scenario: Scenario, generator: Generator, out: Path) -> Fact:
    columns = scenario.report.grid_columns
    labels = np.repeat(np.arange(len(scenario.generator.classes), dtype=np.int64), columns)
    images = sample_images(generator, labels, derive_seed(scenario.seed, "grid"))
    private = scenario.privacy.private
    caption = f"Synthetic images by {scenario.generator.family.upper()}" + (
        f", epsilon {scenario.privacy.epsilon:g} per {scenario.privacy.unit}"
        if private
        else ", trained WITHOUT privacy"
    )
    # Without privacy the samples are computed from patients, uncharged: they must not leave.
    scope: Scope = "released" if private else "site-local"
    return _grid(out, "synthetic", images, ("synthetic", caption), scope, columns)


def _phantom_grid(scenario: Scenario, out: Path) -> Fact:
    """Fresh phantoms of the fitting look; nobody at a site was drawn from these seeds."""
    columns, plan, look = scenario.report.grid_columns, scenario.generator, scenario.look
    pictures: list[npt.NDArray[np.float32]] = []
    for lesion in (False, True):
        for i in range(columns):
            seed = derive_seed(scenario.seed, "phantom grid", int(lesion), i) % 2**31
            picture, _ = draw(look or "radiograph", lesion, seed, plan.size)
            pictures.append(picture if picture.ndim == 3 else picture[..., None])
    images = ImageSet(
        images=np.stack(pictures).transpose(0, 3, 1, 2).copy(),
        labels=np.repeat(np.arange(2, dtype=np.int64), columns),
        class_names=("normal", "lesion"),
    )
    caption = f"Phantoms ({look}): drawn by the program, not images of patients"
    return _grid(out, "phantom", images, ("phantom", caption), "public", columns)


def _real_grid(scenario: Scenario, site: Site, out: Path) -> Fact:
    """Real held-out images of a site, classes in rows; repeated where a class has few."""
    columns, picks = scenario.report.grid_columns, []
    for label in range(len(site.holdout.class_names)):
        found = np.flatnonzero(site.holdout.labels == label)
        if len(found):
            picks.append(np.resize(found, columns))
    images = site.holdout.subset(np.concatenate(picks))
    caption = f"REAL held-out patients of {site.name} (report.show_real = true)"
    return _grid(out, f"real-{site.name}", images, ("real", caption), "site-local", columns)
