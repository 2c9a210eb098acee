"""Images from a run's generator, as PNG files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from synth_common.errors import CheckpointError, ConfigError, StorageError
from synth_common.images.imageset import ImageSet
from synth_common.randomness import derive_seed
from synth_sim.run import load_run

_MOST = 100_000


def sample_run(run: Path, count: int, label: str, out: Path, seed: int = 0) -> Path:
    """Draw images of one class from a run's newest checkpoint.

    Writes ``00000.png`` ..., ``mask-00000.png`` ... where the generator makes masks, and
    ``metadata.csv`` (file_name, label), so that the folder is a source for another run.

    Args:
        run: A run directory.
        count: How many images, 1 to 100000.
        label: A class name of the run.
        out: Folder for the images; made if missing, must be empty.
        seed: Another seed gives other images.

    Returns:
        ``out``.

    Raises:
        ConfigError: Not a run, an unknown label, an impossible count, or ``out`` is not empty.
        CheckpointError: The run has no checkpoint, or its newest is damaged.
        StorageError: The disk refuses.
    """
    from synth_common.evaluation.synthetic import sample_images
    from synth_common.generators import build_generator
    from synth_server.checkpoint import load_latest

    scenario = load_run(run)
    classes = scenario.generator.classes
    if label not in classes:
        raise ConfigError(f"--label {label!r} is none of the run's classes: {', '.join(classes)}")
    if not 1 <= count <= _MOST:
        raise ConfigError(f"--n {count}: must be 1 to {_MOST}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not an empty folder; choose another")
    plan = scenario.plan
    checkpoint = load_latest(run / "checkpoints", scenario.run_id(), plan.digest())
    if checkpoint is None:
        raise CheckpointError(f"{run} has no checkpoint: no round was completed yet")
    generator = build_generator(plan.generator, seed=0, pretraining=plan.pretraining)
    generator.load_shared_state(checkpoint.state)
    generator.eval()
    labels = np.full(count, classes.index(label), dtype=np.int64)
    images = sample_images(generator, labels, derive_seed(seed, "sample command", label))
    _write(images, label, out)
    return out


def _write(images: ImageSet, label: str, out: Path) -> None:
    """One PNG per image and mask, and the table of them."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    has_masks = images.masks is not None
    writer.writerow(["file_name", "label", *(["mask"] if has_masks else [])])
    try:
        out.mkdir(parents=True, exist_ok=True)
        for i in range(len(images)):
            name = f"{i:05d}.png"
            _png(np.rint(images.images[i] * 255).astype(np.uint8), out / name)
            row = [name, label]
            if images.masks is not None:
                _png(images.masks[i][None] * np.uint8(255), out / f"mask-{name}")
                row.append(f"mask-{name}")
            writer.writerow(row)
        (out / "metadata.csv").write_text(table.getvalue(), encoding="utf-8")
    except OSError as err:
        raise StorageError(f"cannot write images into {out}: {err.strerror}") from err


def _png(pixels: npt.NDArray[np.uint8], path: Path) -> None:
    """Write (1 or 3, H, W) as a PNG."""
    from PIL import Image

    flat = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(flat)).save(path)
