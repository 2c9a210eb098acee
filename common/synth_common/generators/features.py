"""Fixed random features of an image: a kernel mean embedding that needs no public data.

The mean of such features over a class says what its pictures look like beyond their moments: that
strokes are strokes and edges are sharp. Every constant is public and the same everywhere.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache, cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from synth_common.errors import ConfigError
from synth_common.randomness import numpy_stream

_FILTERS = 8
_SIDE = 5
_CELLS = 7
"""Cells along one side of the grid that responses are averaged over."""
_SCALES = (0.25, 4.0)
"""Range of squared length scales, relative to a typical squared distance; logarithmic."""
_TYPICAL_DISTANCE = 0.4
"""Squared distance of two images in any of the views, roughly."""
_WITHIN = 1.0 - 1e-6
"""Keeps the norm below 1 whatever single precision rounds."""
_AT_ONCE = 2**16
"""Values of images that are mapped at once."""
_FAINT = 0.02
"""Root mean square response below which a picture counts as without texture."""
_KNOWN_CONSTANTS = "f12b35ad1a7dc7c981a1aa65fb9d77b6391d76a86834771086a71b9663cf3c81"
"""SHA-256 of the rounded constants of one small configuration."""
_ROUNDING = 0.01
"""Far above what processors compute differently; no constant of that configuration lies near the
border between two steps."""


class RandomFeatures:
    """Random Fourier features of random-convolution responses and of pixels.

    Three views of an image: responses to eight random 5x5 filters at full and at half
    resolution (rectified, averaged over a grid of about 7x7 cells, and brought to norm 1, as
    kinds of image differ in contrast), and its pixels on a grid of at most 32x32. Each view z
    becomes cos(w z) and sin(w z) (Rahimi & Recht 2007), w normal with an inverse length scale
    that is drawn log-uniformly, so that the kernel is a mixture of Gaussians of many scales.

    Args:
        shape: (C, H, W) of the images, with the mask channel.
        count: Features, even.
        radius: Public bound on the root mean square of a picture less its centre.
    """

    def __init__(self, shape: tuple[int, int, int], count: int, radius: float) -> None:
        self.shape, self.count, self.radius = shape, count, radius

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, count) of its type and norm at most 1 (and hardly less)."""
        if self.count == 0:
            return images.new_zeros(len(images), 0)
        few = max(1, _AT_ONCE // math.prod(self.shape))
        return torch.cat([self._of_few(part) for part in torch.split(images, few)])

    def _of_few(self, images: Tensor) -> Tensor:
        """The same of a number of images whose responses fit the processor's cache."""
        parts = []
        for view, directions in zip(self._views(images), self._directions, strict=True):
            angles = view @ directions.to(view)
            parts += [angles.cos(), angles.sin()]
        return torch.cat(parts, dim=1) * (_WITHIN / math.sqrt(self.count / 2))

    def _views(self, images: Tensor) -> list[Tensor]:
        size = self.shape[1]
        coarse = functional.avg_pool2d(images, 2)
        small = images if size <= 32 else functional.avg_pool2d(images, math.ceil(size / 32))
        return [
            self._responses(images, 0),
            self._responses(coarse, 1),
            small.flatten(1) / (self.radius * math.sqrt(small[0].numel())),
        ]

    def _responses(self, images: Tensor, level: int) -> Tensor:
        filters = self._filters[level].to(images)
        if level == 0:
            # At every pixel: a network that is taught by every second one fills those between
            # with a chequered pattern. Over four times the channels that is twice as fast.
            four = functional.conv2d(functional.pixel_unshuffle(images, 2), filters, padding=1)
            found = four.relu().view(len(images), _FILTERS, 4, *four.shape[2:]).mean(2)
        else:
            found = functional.conv2d(images, filters, padding=_SIDE // 2).relu()
        cell = max(1, found.shape[2] // _CELLS)
        cells = functional.avg_pool2d(found, cell).flatten(1)
        strength = cells.square().sum(1, keepdim=True)
        faint = _FAINT**2 * cells.shape[1]
        return cells / (strength + faint).sqrt()

    @cached_property
    def _filters(self) -> list[Tensor]:
        """Two banks of zero mean and norm 1: (4 filters, 4 C, 3, 3), and (filters, C, 5, 5)."""
        banks = []
        for level in range(2):
            shape = (_FILTERS, self.shape[0], _SIDE, _SIDE)
            drawn = numpy_stream(0, "random features", "filters", level).standard_normal(shape)
            bank = torch.from_numpy(drawn)
            bank = bank - bank.mean((1, 2, 3), keepdim=True)
            bank = bank / bank.flatten(1).norm(dim=1)[:, None, None, None]
            banks.append(bank.to(torch.float32))
        return [_for_four(banks[0]), banks[1]]

    @cached_property
    def _directions(self) -> list[Tensor]:
        """One matrix (values of the view, pairs of features) for each view."""
        with torch.no_grad():
            lengths = [view.shape[1] for view in self._views(torch.zeros(1, *self.shape))]
        pairs, drawn = self.count // 2, []
        for number, length in enumerate(lengths):
            own = pairs // 3 + (1 if number < pairs % 3 else 0)
            rng = numpy_stream(0, "random features", "directions", number)
            low, high = (math.log(_TYPICAL_DISTANCE * scale) for scale in _SCALES)
            scales = torch.from_numpy(rng.uniform(low, high, own)).exp()
            directions = torch.from_numpy(rng.standard_normal((length, own))) / scales.sqrt()
            drawn.append(directions.to(torch.float32))
        return drawn


@cache
def require_known_constants() -> None:
    """Check, once a process, that the installed NumPy draws the constants that all others have.

    Sites and coordinator never exchange them, and NumPy may change what a seed gives from one
    release to the next (NEP 19): sums of different features would add up to nonsense unnoticed.

    Raises:
        ConfigError: It draws others.
    """
    steps = np.round(_sample_of_constants() / _ROUNDING).astype("<i8")
    if hashlib.sha256(steps.tobytes()).hexdigest() != _KNOWN_CONSTANTS:
        raise ConfigError(
            f"generator.features: NumPy {np.__version__} draws other constants of random features "
            "than this version of Synthward was made with, and what sites release would not add "
            "up; install the NumPy that constraints.txt names"
        )


def _sample_of_constants() -> np.ndarray:
    """Every constant of a small configuration, float64 (n,)."""
    small = RandomFeatures((1, 4, 4), 12, radius=0.5)
    constants = [*small._filters, *small._directions]
    return torch.cat([part.flatten() for part in constants]).to(torch.float64).numpy()


def _for_four(bank: Tensor) -> Tensor:
    """Filters (F, C, 5, 5) as (4 F, 4 C, 3, 3) of pictures after a pixel unshuffle by 2.

    Of the four outputs of a filter, one is for each pixel of a 2x2 square.
    """
    filters, channels = bank.shape[:2]
    found = bank.new_zeros(filters, 2, 2, channels, 2, 2, 3, 3)
    for (dy, dx), (v, u) in product(product(range(2), repeat=2), product(range(_SIDE), repeat=2)):
        y, x = dy + v - _SIDE // 2, dx + u - _SIDE // 2
        found[:, dy, dx, :, y % 2, x % 2, y // 2 + 1, x // 2 + 1] = bank[:, :, v, u]
    return found.reshape(4 * filters, 4 * channels, 3, 3)
