"""A feature space from a file of the operator's: Inception, RadImageNet, DINO or any other.

The file is TorchScript. Reading one runs no Python: its pickles are read by torch's own C++
reader, which knows tensors and plain values only, and its code runs in torch's interpreter.
``torch.load`` and, up to now, ``torch.export.load`` fall back to Python's pickle, which runs
whatever the file says. TorchScript is still a program with torch's operators, so a file is
read only if it is the one whose SHA-256 the operator stated.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from synth_common.errors import ConfigError, DataError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.encoders import Encoder, extract_with

_LUMA = (0.299, 0.587, 0.114)
_PROBES = (1, 3)  # images, to see that any number of them can be asked about


def file_encoder(config: EvaluationConfig) -> Encoder | None:
    """The encoder of ``config.encoder_file``, named with its hash; None where none is set.

    Images are resized to ``encoder_size`` (bilinear, with anti-aliasing), grey is repeated to
    three channels or colour made grey (ITU-R BT.601) as ``encoder_channels`` says, and the
    file gets float32 (B, C, S, S) in [0, 1]: normalisation belongs into the file. Its answer
    is (B, D), or (B, D, 1, 1).

    Raises:
        ConfigError: The file's SHA-256 is not ``encoder_sha256``.
        DataError: The file is missing, is not TorchScript, or does not answer one row of
            finite numbers per image.
    """
    if config.encoder_file is None or config.encoder_sha256 is None:
        return None
    sha256 = config.encoder_sha256
    content = read_checked(config.encoder_file, sha256)
    network = _Prepared(_loaded(content, str(config.encoder_file)), config)
    _probe(network, config)
    name = f"{config.encoder_name or config.encoder_file.name} [{sha256[:12]}]"
    return Encoder(name, sha256, lambda images: extract_with(network, images))


def read_checked(path: Path, sha256: str) -> bytes:
    """The bytes of ``evaluation.encoder_file``, refused if they are not those that were stated."""
    try:
        content = path.expanduser().read_bytes()
    except OSError as err:
        raise DataError(
            f"evaluation.encoder_file = {str(path)!r} cannot be read: {err.strerror}; give the "
            "file, or leave the key out"
        ) from err
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ConfigError(
            f"evaluation.encoder_file = {str(path)!r} has the SHA-256 {found}, but "
            f"evaluation.encoder_sha256 = {sha256!r}; it is not read. Give the file "
            "that was meant, or state its hash if you trust where it comes from"
        )
    return content


@lru_cache(maxsize=2)
def _loaded(content: bytes, name: str) -> nn.Module:
    """The network of checked bytes, on the processor; once per process."""
    try:
        with warnings.catch_warnings():
            # Deprecated in favour of torch.export, whose files need Python's pickle.
            warnings.simplefilter("ignore", DeprecationWarning)
            network: nn.Module = torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as err:
        raise DataError(
            f"evaluation.encoder_file = {name!r} is not a TorchScript file (torch.jit.save)"
        ) from err
    return network.eval()


class _Prepared(nn.Module):
    """Brings images to what the network of the file expects."""

    def __init__(self, network: nn.Module, config: EvaluationConfig) -> None:
        super().__init__()
        self.network = network
        self.size, self.channels = config.encoder_size, config.encoder_channels

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [0, 1] to (B, D)."""
        if self.channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        elif self.channels == 1 and images.shape[1] == 3:
            luma = torch.tensor(_LUMA).view(1, 3, 1, 1)
            images = (images * luma).sum(dim=1, keepdim=True)
        if images.shape[-1] != self.size:
            images = functional.interpolate(
                images, (self.size, self.size), mode="bilinear", antialias=True
            ).clamp(0.0, 1.0)
        features: Tensor = self.network(images)
        return features.flatten(1) if features.dim() == 4 else features


def _probe(network: nn.Module, config: EvaluationConfig) -> None:
    """Refuse a network that does not give one row of finite numbers per image."""
    told: object = None
    for count in _PROBES:
        blank = torch.zeros(
            count, config.encoder_channels, config.encoder_size, config.encoder_size
        )
        try:
            with torch.no_grad():
                told = network(blank)
        except (RuntimeError, AttributeError) as err:
            raise DataError(f"{_refusal(config)} failed on {count} images: {err}") from err
        if not isinstance(told, Tensor) or told.dim() != 2 or len(told) != count:
            shape = tuple(told.shape) if isinstance(told, Tensor) else type(told).__name__
            raise DataError(f"{_refusal(config)} answers {shape} to {count} images, not (B, D)")
        if not torch.isfinite(told).all():
            raise DataError(f"{_refusal(config)} answers what is not a number to blank images")


def _refusal(config: EvaluationConfig) -> str:
    """How a refusal names the network and what it was given."""
    return (
        f"the network of evaluation.encoder_file = {str(config.encoder_file)!r} "
        f"(encoder_channels = {config.encoder_channels}, encoder_size = {config.encoder_size})"
    )
