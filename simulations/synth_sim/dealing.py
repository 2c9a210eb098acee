"""A scenario's sites as files, each as a hospital would hold it: for rehearsing a deployment."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from synth_common.errors import ConfigError, StorageError
from synth_common.images.imageset import ImageSet
from synth_common.randomness import derive_seed
from synth_common.reporting.files import replace_bytes
from synth_sim.partition import deal
from synth_sim.prepare import load_private, require_data
from synth_sim.scanner import apply
from synth_sim.scenario import Scenario


def deal_files(scenario: Scenario, out: Path) -> Iterator[tuple[Path, ImageSet]]:
    """Write ``out/SITE.npz`` for every site, readable by their owner only.

    Each holds what source kind ``npz`` reads: ``images`` uint8 (N, size, size, C), ``labels`` as
    text, and ``patient_ids``, ``masks``, ``second_masks``, ``split``, ``sex`` and ``age`` where the
    sources have them. Pixels are rounded to 8 bits.

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
        _write(paths[site.name], images)
        yield paths[site.name], images


def _write(path: Path, images: ImageSet) -> None:
    columns: dict[str, Any] = {
        "images": np.rint(images.images.transpose(0, 2, 3, 1) * 255.0).astype(np.uint8),
        "labels": np.array(images.class_names)[images.labels],
        "patient_ids": images.patient_ids,
        "masks": images.masks,
        "split": images.splits,
        "second_masks": images.second_masks,
        "sex": images.sexes,
        "age": images.ages,
    }
    packed = io.BytesIO()
    np.savez_compressed(packed, **{k: v for k, v in columns.items() if v is not None})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, packed.getvalue(), mode=0o600)
    except OSError as err:
        raise StorageError(f"cannot write {path}: {err.strerror}") from err
