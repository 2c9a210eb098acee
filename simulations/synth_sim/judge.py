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

from synth_client.site import Site
from synth_common.evaluation.config import Tell, quiet
from synth_common.evaluation.synthetic import class_labels, sample_images
from synth_common.evaluation.tasks import evaluate_tasks
from synth_common.facts import Fact
from synth_common.generators import Generator
from synth_common.images.imageset import ImageSet, concatenate
from synth_common.images.phantom import draw
from synth_common.randomness import derive_seed
from synth_server.pictures import Gallery, grid, synthetic_grid, traversals
from synth_sim.scenario import Scenario


def pooled_utility(
    scenario: Scenario,
    sites: Sequence[Site],
    generator: Generator,
    shares: Sequence[float] = (),
    tell: Tell = quiet,
) -> list[Fact]:
    """Classifiers, segmenters and anomaly detectors on synthetic, real and both.

    All are tested on all sites' held-out patients. There are as many synthetic images as real
    training images, but at most ``evaluation.utility_images``, in the released ``shares`` of
    the classes, or the classes in turn where none were released. A single class leaves nothing
    to classify; segmenters need masks, detectors ``evaluation.anomaly_normal``. ``tell`` is told
    of each stage as it begins.
    """
    train = concatenate([_named(site.train, site.name) for site in sites])
    holdout = concatenate([_named(site.holdout, site.name) for site in sites])
    seed = derive_seed(scenario.seed, "utility")
    config = scenario.evaluation
    labels = class_labels(scenario.plan, min(len(train), config.utility_images), shares)
    tell(f"drawing {len(labels)} synthetic images")
    synthetic = sample_images(generator, labels, seed)
    return evaluate_tasks(train, holdout, synthetic, config, seed, tell)


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
    gallery = Gallery(out, scenario.seed, scenario.report.grid_columns, scenario.report.traversals)
    facts = [synthetic_grid(scenario.plan, generator, gallery)]
    if scenario.look is not None:
        facts.append(_phantom_grid(scenario, gallery))
    if scenario.report.show_real:
        facts += [_real_grid(site, gallery) for site in sites]
    return facts + traversals(scenario.plan, generator, gallery)


def _phantom_grid(scenario: Scenario, gallery: Gallery) -> Fact:
    """Fresh phantoms of the fitting look; nobody at a site was drawn from these seeds."""
    columns, plan, look = gallery.columns, scenario.generator, scenario.look
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
    return grid(gallery, "phantom", images, ("phantom", caption), "public")


def _real_grid(site: Site, gallery: Gallery) -> Fact:
    """Real held-out images of a site, classes in rows; repeated where a class has few."""
    picks = []
    for label in range(len(site.holdout.class_names)):
        found = np.flatnonzero(site.holdout.labels == label)
        if len(found):
            picks.append(np.resize(found, gallery.columns))
    images = site.holdout.subset(np.concatenate(picks))
    caption = f"REAL held-out patients of {site.name} (report.show_real = true)"
    return grid(gallery, f"real-{site.name}", images, ("real", caption), "site-local")
