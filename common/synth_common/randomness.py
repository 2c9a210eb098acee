"""Two sources of randomness that must never be mixed up.

Everything public (initial weights, sample seeds, partitions) comes from *reproducible*
generators derived from one root seed. Everything whose secrecy the guarantee rests on
(released noise, the Poisson draw of patients) comes from a :class:`NoiseSource`: the
secure one draws on the operating system, the simulation one is seeded so that a test
can repeat a run, and a report made with it says that it is not a release.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Literal, Protocol

from synth_common.errors import PrivacyError

if TYPE_CHECKING:
    import numpy as np
    import torch

NoiseKind = Literal["secure", "simulation"]


def derive_seed(root: int, *path: str | int) -> int:
    """A 63-bit seed for the stream named by ``path`` under ``root`` (BLAKE2b).

    Streams with different paths are independent for every practical purpose, and a
    stream does not move when another one is added.
    """
    text = "/".join([str(root), *map(str, path)]).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_stream(root: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for the stream named by ``path``."""
    import numpy as np

    return np.random.default_rng(derive_seed(root, *path))


def torch_stream(root: int, *path: str | int) -> torch.Generator:
    """A CPU torch generator for the stream named by ``path``."""
    import torch

    return torch.Generator().manual_seed(derive_seed(root, *path))


class NoiseSource(Protocol):
    """Draws the randomness a privacy guarantee rests on."""

    kind: NoiseKind

    def gaussian(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Independent standard normal values, float32, on the CPU."""
        ...

    def uniform(self, n: int) -> np.ndarray:
        """``n`` independent values uniform on [0, 1), float64."""
        ...

    def words(self, n: int) -> np.ndarray:
        """``n`` independent words of 64 random bits, uint64."""
        ...


class SimulationNoise:
    """Seeded noise for simulations and tests: repeatable, and therefore not a release."""

    kind: NoiseKind = "simulation"

    def __init__(self, root: int, *path: str | int) -> None:
        self._torch = torch_stream(root, *path, "gaussian")
        self._numpy = numpy_stream(root, *path, "uniform")
        self._words = numpy_stream(root, *path, "words")

    def gaussian(self, shape: tuple[int, ...]) -> torch.Tensor:
        """See :class:`NoiseSource`."""
        import torch

        return torch.randn(shape, generator=self._torch)

    def uniform(self, n: int) -> np.ndarray:
        """See :class:`NoiseSource`."""
        return self._numpy.random(n)

    def words(self, n: int) -> np.ndarray:
        """See :class:`NoiseSource`."""
        import numpy as np

        return self._words.integers(0, 2**64, n, dtype=np.uint64)


class SecureNoise:
    """Noise from a ChaCha20 key stream keyed by the operating system (RFC 8439).

    Gaussians come from 53-bit uniforms by the Box-Muller transform; floating-point
    limits are those of any floating-point Gaussian and are named in the guarantee.
    """

    kind: NoiseKind = "secure"

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

        self._cipher = Cipher(algorithms.ChaCha20(os.urandom(32), os.urandom(16)), mode=None)
        self._stream = self._cipher.encryptor()

    def words(self, n: int) -> np.ndarray:
        """See :class:`NoiseSource`."""
        import numpy as np

        return np.frombuffer(bytearray(self._stream.update(bytes(8 * n))), dtype="<u8")

    def uniform(self, n: int) -> np.ndarray:
        """See :class:`NoiseSource`."""
        import numpy as np

        words = self.words(n)
        words >>= np.uint64(11)
        values = words.astype(np.float64)
        values *= 2.0**-53
        return values

    def gaussian(self, shape: tuple[int, ...]) -> torch.Tensor:
        """See :class:`NoiseSource`."""
        import math

        import torch

        n = math.prod(shape)
        half = (n + 1) // 2
        # Float64 until the last step: the tail reaches sqrt(106 ln 2) = 8.6 standard deviations.
        radius = torch.from_numpy(self.uniform(half)).neg_().log1p_().mul_(-2.0).sqrt_()
        angle = torch.from_numpy(self.uniform(half)).mul_(2.0 * math.pi)
        values = torch.empty(2 * half)
        values[:half] = angle.cos().mul_(radius)
        values[half:] = angle.sin_().mul_(radius)
        return values[:n].reshape(shape)


_WORDS = 624
_STATE = slice(24, 24 + 8 * _WORDS)
"""Where torch keeps the words of its Mersenne Twister, 64 bits each, in a generator's state."""


def secret_generator(noise: NoiseSource) -> torch.Generator:
    """A CPU generator whose whole state is drawn from ``noise``.

    ``manual_seed`` keeps 32 bits, which can be tried one by one; the state has 19,968.

    Raises:
        PrivacyError: This version of torch keeps its state in another form.
    """
    import numpy as np
    import torch

    generator = torch.Generator()
    state = generator.manual_seed(1).get_state()
    if state[_STATE].numpy().view("<u8")[0] != 1:  # the first word is the seed
        raise PrivacyError(f"torch {torch.__version__}: generator states have an unknown form")
    words = (noise.uniform(_WORDS) * 2.0**32).astype(np.uint64)
    state[_STATE] = torch.from_numpy(words.view(np.uint8))
    return generator.set_state(state)


def noise_source(kind: NoiseKind, root: int, *path: str | int) -> NoiseSource:
    """The noise source of the given kind; ``root`` and ``path`` serve the simulation one only."""
    return SecureNoise() if kind == "secure" else SimulationNoise(root, *path)
