"""How well a generator with an encoder gives back held-out images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from synth_common.errors import DataError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.encoders import Images
from synth_common.facts import Fact
from synth_common.generators.interface import Generator, Reconstruction
from synth_common.images.imageset import ImageSet

_BATCH = 128
_EXACT = 1e-10
_EXACT_PSNR = 100.0
_SOURCE = "synth_common.evaluation.reconstruction.evaluate_reconstruction"


def evaluate_reconstruction(
    generator: Generator, holdout: ImageSet, config: EvaluationConfig, site: str | None
) -> list[Fact]:
    """SSIM, PSNR and pixel error of reconstructions, with reconstruction loss and KL.

    Args:
        generator: Any family; one without an encoder gives no facts.
        holdout: Images no site trained on; at most ``config.max_images`` are used. With
            ``plan.with_mask`` they need masks; the image scores leave the mask channel out.
        config: Settings.
        site: The site the facts speak of.

    Raises:
        DataError: The generator needs masks and ``holdout`` has none.
    """
    chosen = holdout.subset(np.arange(min(len(holdout), config.max_images)))
    done = _reconstruct(generator, chosen)
    if done is None:
        return []
    rebuilt = done.images[:, : holdout.channels].float().numpy()
    detail = {"n_real": len(chosen)}
    return [
        Fact(
            "quality.reconstruction",
            pixel_scores(chosen.images, rebuilt),
            "site-local",
            _SOURCE,
            site=site,
            detail=detail,
        ),
        Fact(
            "quality.elbo",
            {
                "reconstruction_loss": float(done.reconstruction_loss.mean()),
                "kl": float(done.kl.mean()),
            },
            "site-local",
            _SOURCE,
            site=site,
            detail=detail | {"unit": "nats per image"},
        ),
    ]


def pixel_scores(real: Images, rebuilt: Images) -> dict[str, float]:
    """Mean SSIM (Wang 2004, 7-pixel window), PSNR in dB, MSE and MAE of (N, C, H, W) in [0, 1].

    An image given back exactly has no finite PSNR; it counts as 100 dB.
    """
    scores = [_pixel_scores(a, b) for a, b in zip(real, rebuilt, strict=True)]
    return {key: float(np.mean([s[key] for s in scores])) for key in scores[0]}


def _pixel_scores(
    real: npt.NDArray[np.float32], rebuilt: npt.NDArray[np.float32]
) -> dict[str, float]:
    """The scores of one image (C, H, W)."""
    a, b = real.astype(np.float64), rebuilt.astype(np.float64)
    squared = float(np.mean((a - b) ** 2))
    exact = squared < _EXACT
    # scikit-image says it is typed, but these two functions are not.
    ssim = structural_similarity(a, b, data_range=1.0, channel_axis=0)  # type: ignore[no-untyped-call]
    psnr = peak_signal_noise_ratio(a, b, data_range=1.0) if not exact else _EXACT_PSNR  # type: ignore[no-untyped-call]
    return {
        "ssim": float(ssim),
        "psnr": float(psnr),
        "mse": squared,
        "mae": float(np.mean(np.abs(a - b))),
    }


def _tensor(images: ImageSet, with_mask: bool) -> Tensor:
    """Images (N, C, H, W), with the mask as last channel if the generator makes masks."""
    tensor = torch.from_numpy(images.images)
    if not with_mask:
        return tensor
    if images.masks is None:
        raise DataError(
            "the generator makes masks (generator.with_mask = true), but the holdout has none; "
            "give a source with masks or set generator.with_mask = false"
        )
    masks = torch.from_numpy(images.masks).float().unsqueeze(1)
    return torch.cat([tensor, masks], dim=1)


def _reconstruct(generator: Generator, holdout: ImageSet) -> Reconstruction | None:
    """Reconstruct in batches; None when the family has no encoder or there is no image."""
    if not len(holdout):
        return None
    images, labels = _tensor(holdout, generator.plan.with_mask), torch.from_numpy(holdout.labels)
    device = next((p.device for p in generator.parameters()), torch.device("cpu"))
    parts: list[Reconstruction] = []
    training = generator.training
    generator.eval()
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            batch = slice(start, start + _BATCH)
            part = generator.reconstruct(images[batch].to(device), labels[batch].to(device))
            if part is None:
                break
            parts.append(part)
    generator.train(training)
    if not parts:
        return None
    return Reconstruction(
        images=torch.cat([p.images for p in parts]).cpu(),
        reconstruction_loss=torch.cat([p.reconstruction_loss for p in parts]).cpu(),
        kl=torch.cat([p.kl for p in parts]).cpu(),
    )
