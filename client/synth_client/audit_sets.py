"""The two sets of real images that an audit of a release needs, as this site holds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from synth_client.site import Site
from synth_common.errors import ConfigError, StorageError
from synth_common.images.imageset import ImageSet
from synth_common.images.npz_writer import npz_bytes
from synth_common.reporting.files import replace_bytes

MEMBERS, NONMEMBERS = "members.npz", "nonmembers.npz"


def write_audit_sets(site: Site, out: Path) -> tuple[Path, Path]:
    """Write the images that were trained on and those kept out. SENSITIVE: they are patients'.

    Returns:
        ``out/members.npz`` and ``out/nonmembers.npz``, readable by their owner only.

    Raises:
        ConfigError: One is there already.
        StorageError: The disk refused.
    """
    for name in (MEMBERS, NONMEMBERS):
        if (out / name).exists():
            raise ConfigError(f"--out {out}: {name} is there already; choose another folder")
    train, holdout = _of_site(site, site.train), _of_site(site, site.holdout)
    return write_private(out / MEMBERS, train), write_private(out / NONMEMBERS, holdout)


def _of_site(site: Site, images: ImageSet) -> ImageSet:
    """Images that say whose they are: an audit of updates needs to know."""
    return replace(images, sites=np.full(len(images), site.name))


def write_private(path: Path, images: ImageSet) -> Path:
    """Write images as ``.npz`` for their owner only. Returns ``path``; raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, npz_bytes(images), mode=0o600)
    except OSError as err:
        raise StorageError(f"cannot write {path}: {err.strerror}") from err
    return path
