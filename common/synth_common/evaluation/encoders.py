"""Feature spaces in which images are compared. None of them has ever seen a patient.

Three encoders: radiomics-style features (no weights), random convolutions drawn from a
fixed public seed, and, where a public or reference set exists, a network trained on it
without labels (:mod:`synth_common.evaluation.selfsupervised`). An encoder trained on the
hospitals' own images would carry what it learnt of them, so there is none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from synth_common.evaluation.radiomics import definition_sha256, radiomics_features

Array = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]

_WEIGHT_SEED = 20_190_412
_CHUNK = 512  # images copied out of a set at once
_BATCH_PIXELS = 65_536  # images of a batch together: activations stay in the cache
# Widths of the three random layers; their sum is the number of features per grid cell.
_WIDTHS = (16, 24, 24)


@dataclass(frozen=True)
class Encoder:
    """A named, hashed map from images to feature vectors.

    Attributes:
        name: As printed beside every number measured in this space.
        sha256: Of the weights, or of the definition where there are none.
        extract: float32 images (N, C, H, W) in [0, 1] to float64 features (N, D). The
            features of an image do not depend on the batch it comes in.
    """

    name: str
    sha256: str
    extract: Callable[[Images], Array]


def radiomics_encoder() -> Encoder:
    """The 72 radiomics-style features (81 in colour); no data, no weights."""
    return Encoder("radiomics-style features", definition_sha256(), radiomics_features)


def random_convolutions(channels: int, grid: int = 1, seed: int = _WEIGHT_SEED) -> Encoder:
    """Three convolution layers with weights from a fixed public seed.

    Every layer's activations are averaged over the cells of a ``grid`` x ``grid`` raster:
    64 features per cell. Grid 1 is for distances between sets; a finer grid keeps where
    things are, which telling one image from another (membership) needs.

    Args:
        channels: 1 or 3, as the images have.
        grid: 1 or more cells per side.
        seed: Public; names the weights.
    """
    network = _RandomConvolutions(channels, grid, seed)
    return Encoder(
        f"random convolutions, {64 * grid * grid} features, seed {seed}",
        weights_sha256(network.state_dict().values(), f"grid={grid}"),
        lambda images: extract_with(network, images),
    )


def extract_with(network: nn.Module, images: Images) -> Array:
    """Features of ``network`` for images in batches, without gradients: (N, D) float64."""
    network.eval()
    step = max(8, _BATCH_PIXELS // (images.shape[2] * images.shape[3]))
    with torch.no_grad():
        parts = [
            network(torch.from_numpy(images[i : i + step])).double().numpy()
            for i in range(0, max(len(images), 1), step)
        ]
    return np.concatenate(parts)


def in_chunks(extract: Callable[[Images], Array], images: Images, index: Index) -> Array:
    """Features of the images at ``index``, a chunk at a time: no copy of them all is made.

    Args:
        extract: Images (N, C, H, W) to rows (N, D).
        images: All images.
        index: (M,) positions.

    Returns:
        (M, D) float64.
    """
    starts = range(0, max(len(index), 1), _CHUNK)
    return np.concatenate([extract(images[index[i : i + _CHUNK]]) for i in starts])


def weights_sha256(tensors: Iterable[torch.Tensor], definition: str) -> str:
    """SHA-256 of a definition in words and of tensors in order."""
    digest = hashlib.sha256(definition.encode())
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


class _RandomConvolutions(nn.Module):
    """He-scaled random convolutions; the mean activation of every channel is a feature."""

    def __init__(self, channels: int, grid: int, seed: int) -> None:
        super().__init__()
        # NumPy's stream, because it does not change between torch versions.
        rng = np.random.default_rng(seed)
        before = channels
        for i, (width, side) in enumerate(zip(_WIDTHS, (5, 3, 3), strict=True)):
            scale = np.sqrt(2.0 / (before * side * side))
            weight = rng.normal(0.0, scale, (width, before, side, side)).astype(np.float32)
            self.register_buffer(f"weight{i}", torch.from_numpy(weight))
            before = width
        self.grid = grid

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [0, 1] to (B, 64 * grid * grid)."""
        x = (images - 0.5) / 0.25
        features = []
        for i in range(len(_WIDTHS)):
            if i:
                x = functional.avg_pool2d(x, 2)
            x = torch.relu(functional.conv2d(x, self.get_buffer(f"weight{i}"), padding="same"))
            features.append(functional.adaptive_avg_pool2d(x, self.grid).flatten(1))
        return torch.cat(features, dim=1)
