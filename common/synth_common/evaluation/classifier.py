"""The small convolutional classifier that utility and the Inception Score rest on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from synth_common.evaluation.encoders import Images, extract_with, weights_sha256
from synth_common.images.imageset import ImageSet
from synth_common.randomness import derive_seed, numpy_stream

WIDTH = 8
"""Channels of the first layer; each of the next three doubles them."""

_LAYERS = 4


@dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
        name: As printed beside every number that rests on it.
        sha256: Of its weights.
        network: Images (B, C, H, W) in [0, 1] to logits (B, K).
    """

    name: str
    sha256: str
    network: nn.Module

    def probabilities(self, images: Images) -> npt.NDArray[np.float64]:
        """Class probabilities (N, K) of images (N, C, H, W)."""
        logits = torch.from_numpy(extract_with(self.network, images))
        return torch.softmax(logits, dim=1).numpy()


def _widths(width: int) -> list[int]:
    """Channels of the layers."""
    return [width * 2**layer for layer in range(_LAYERS)]


def classifier_name(steps: int, batch: int, width: int = WIDTH) -> str:
    """What the classifier is, in one line."""
    layers = "-".join(map(str, _widths(width)))
    return f"CNN {layers}, BatchNorm, {steps} class-balanced steps of {batch}"


def train_classifier(
    train: ImageSet, steps: int, batch: int, seed: int, width: int = WIDTH
) -> Classifier:
    """Train from scratch with class-balanced batches, so that rare classes count as much.

    Deterministic for equal arguments on one machine. The step count is fixed, so training
    on more images takes no longer.
    """
    picks = numpy_stream(seed, "classifier", "batches")
    classes = [np.flatnonzero(train.labels == c) for c in np.unique(train.labels)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier", "weights"))
        network = _network(train.channels, len(train.class_names), width)
    # A third faster on processors; torch's stubs do not know the argument.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=max(steps, 2))
    network.train()
    for _ in range(steps):
        drawn = picks.integers(len(classes), size=batch)
        chosen = np.array([picks.choice(classes[c]) for c in drawn])
        logits = network(torch.from_numpy(train.images[chosen]))
        loss = functional.cross_entropy(logits, torch.from_numpy(train.labels[chosen]))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    network.eval()
    digest = weights_sha256(network.state_dict().values(), "classifier")
    return Classifier(classifier_name(steps, batch, width), digest, network)


class _Centre(nn.Module):
    """[0, 1] to about [-2, 2]: public constants, no statistics of anybody's images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - 0.5) / 0.25


def _network(channels: int, classes: int, first: int) -> nn.Module:
    """Strided convolutions with BatchNorm (this network is never released), then average."""
    layers: list[nn.Module] = [_Centre()]
    before = channels
    for width in _widths(first):
        layers += [
            nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        before = width
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * before, classes)]
    return nn.Sequential(*layers)
