"""How long a full audit of a release takes, stage by stage.

Run ``python simulations/benchmarks/audit.py [--images N] [--size PIXELS]``. By default 2,000
synthetic images are audited against 2,000 members, 2,000 non-members and 2,000 others at
64 pixels, all on smooth random images; nothing is asserted.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from synth_sim.audit_run import AuditOptions, run_audit


def _write(path: Path, count: int, size: int, seed: int) -> str:
    """Smooth random images of two classes, one per patient, as a file; returns its name."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    smooth = gaussian_filter(rng.normal(size=(count, size, size)), (0, 2, 2)) * 2
    fine = gaussian_filter(rng.normal(size=(count, size, size)), (0, 0.7, 0.7)) * 0.05
    pixels = np.clip(0.4 + 0.3 * smooth + fine + 0.1 * labels[:, None, None], 0, 1)
    np.savez(
        path,
        images=np.rint(pixels * 255).astype(np.uint8),
        labels=np.array(["a", "b"])[labels],
        patient_ids=np.array([f"{seed}-{i}" for i in range(count)]),
    )
    return str(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2000, help="images in each set")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = [
            _write(Path(folder) / f"{seed}.npz", options.images, options.size, seed)
            for seed in range(4)
        ]
        began = last = time.perf_counter()

        def tell(stage: str) -> None:
            nonlocal last
            now = time.perf_counter()
            print(f"{now - last:8.1f} s, then: {stage}")
            last = now

        print(
            f"{options.images} images a set, {options.size} px, {torch.get_num_threads()} threads"
        )
        done = run_audit(
            AuditOptions(names[0], names[1], names[2], Path(folder) / "out", names[3]), tell
        )
        print(f"{time.perf_counter() - last:8.1f} s; verdict: {done.verdict}")
        print(f"{time.perf_counter() - began:8.1f} s in all")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{peak:8.2f} GB largest resident memory")


if __name__ == "__main__":
    main()
