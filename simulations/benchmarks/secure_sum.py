"""How long a site's part of a secure sum takes: discrete noise and masks.

``python simulations/benchmarks/secure_sum.py``. No images: the vector is zeros.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from synth_common.privacy.pairwise_masks import MaskContext, public_bytes, total_mask
from synth_common.privacy.secure_sum import Lattice, NoiseTerms, noisy
from synth_common.randomness import SecureNoise

_SIZE = 200_000
_REPEATS = 7


def median(action: Callable[[], object]) -> float:
    """Median seconds of some runs."""
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    """Print a line per number of sites."""
    for sites in (3, 5, 20):
        names = [f"site-{i:02d}" for i in range(sites)]
        keys = {name: X25519PrivateKey.generate() for name in names}
        public = {name: public_bytes(key) for name, key in keys.items()}
        context = MaskContext("run", 1, tuple(names), "plan")
        terms = NoiseTerms(3.7, _SIZE, Lattice(), sites, 1)
        zeros, variance, own = np.zeros(_SIZE), terms.variance(), names[0]
        noise = median(lambda: noisy(zeros, variance, terms.lattice, sites, SecureNoise()))  # noqa: B023
        masks = median(lambda: total_mask(own, keys[own], public, context, _SIZE))  # noqa: B023
        print(f"{sites} sites, {_SIZE} numbers: noise {noise:.3f} s, masks {masks:.3f} s")


if __name__ == "__main__":
    main()
