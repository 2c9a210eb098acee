"""A scenario's sites as files, each as a hospital would hold it: for rehearsing a deployment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from synth_client.audit_sets import write_private
from synth_common.errors import ConfigError
from synth_common.images.imageset import ImageSet
from synth_common.randomness import derive_seed
from synth_sim.partition import deal
from synth_sim.prepare import load_private, require_data
from synth_sim.scanner import apply
from synth_sim.scenario import Scenario


def deal_files(scenario: Scenario, out: Path) -> Iterator[tuple[Path, ImageSet]]:
    """Write ``out/SITE.npz`` for every site, readable by their owner only.

    Each is what :func:`synth_common.images.npz_writer.npz_bytes` packs.

    Yields:
        The file and the images of each site, as it is written.

    Raises:
        ConfigError: A file is there already.
        DataError: A source is missing or cannot be used.
        StorageError: The disk refused.
    """
    require_data(scenario)
    paths = {site.name: out / f"{site.name}.npz" for site in scenario.partition.sites}
    there = [str(path) for path in paths.values() if path.exists()]
    if there:
        raise ConfigError(f"--out {out}: {there[0]} exists; choose another folder")
    dealt = deal(load_private(scenario), scenario.partition, scenario.seed)
    for site in scenario.partition.sites:
        images = dealt[site.name]
        if site.scanner is not None:
            images = apply(site.scanner, images, derive_seed(scenario.seed, "scanner", site.name))
        write_private(paths[site.name], images)
        yield paths[site.name], images
