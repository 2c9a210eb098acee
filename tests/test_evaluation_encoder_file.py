"""A feature space from a file: named by its hash, refused if it is another, asked as documented."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sets import blob_set, with_images
from torch import Tensor, nn

from synth_common.errors import ConfigError, DataError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.encoder_file import file_encoder
from synth_common.evaluation.suite import evaluate_fidelity
from synth_common.validation import validate
from synth_sim.scenario import load_scenario


class _Means(nn.Module):
    """Per channel: mean and maximum of the image."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean(dim=(2, 3)), images.amax(dim=(2, 3))], dim=1)


class _OneRow(nn.Module):
    """One row whatever is asked."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(0, 2, 3))[None]


def _file(folder: Path, network: nn.Module, side: int = 24, channels: int = 3) -> Path:
    path = folder / "tiny.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(network, torch.zeros(2, channels, side, side)), path)
    return path


def _config(path: Path, **other: object) -> EvaluationConfig:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    values = {"encoder_file": path, "encoder_sha256": sha256, "encoder_size": 24, **other}
    return validate(EvaluationConfig, values, "evaluation")


def test_features_are_those_of_the_resized_image(tmp_path: Path) -> None:
    encoder = file_encoder(_config(_file(tmp_path, _Means()), encoder_name="Means"))
    assert encoder is not None
    assert encoder.name == f"Means [{encoder.sha256[:12]}]"
    grey = np.full((5, 1, 32, 32), 0.25, dtype=np.float32)
    grey[1] = 0.75
    features = encoder.extract(grey)
    np.testing.assert_allclose(features, np.repeat(grey[:, 0, 0, :1], 6, axis=1), atol=1e-6)
    one = file_encoder(_config(_file(tmp_path, _Means(), channels=1), encoder_channels=1))
    assert one is not None
    colour = np.zeros((2, 3, 24, 24), dtype=np.float32)
    colour[:, 1] = 1.0
    np.testing.assert_allclose(one.extract(colour)[:, 0], 0.587, atol=1e-6)
    assert file_encoder(EvaluationConfig()) is None


def test_scores_carry_the_name_and_the_hash(tmp_path: Path) -> None:
    config = _config(_file(tmp_path, _Means()), diversity_pairs=5, classifier_steps=1)
    holdout, train, fresh = blob_set(30, 1), blob_set(40, 2), blob_set(30, 3)
    facts = evaluate_fidelity(
        holdout, train, with_images(fresh, fresh.images), None, config, 0, "A"
    )
    mine = [f for f in facts if str(f.detail["encoder"]).startswith("tiny.pt [")]
    assert [f.name for f in mine] == [f.name for f in facts][:6]
    assert {f.detail["encoder_sha256"] for f in mine} == {config.encoder_sha256}
    assert all(f.value is not None and f.detail["floor"] is not None for f in mine)
    assert {f.scope for f in mine} == {"site-local"}


def test_another_file_is_refused_unread(tmp_path: Path) -> None:
    path = _file(tmp_path, _Means())
    config = _config(path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ConfigError, match=f"encoder_sha256 = '{config.encoder_sha256}'; it is not"):
        file_encoder(config)
    with pytest.raises(DataError, match=r"encoder_file = .*missing\.pt.* cannot be read"):
        file_encoder(config.model_copy(update={"encoder_file": tmp_path / "missing.pt"}))
    with pytest.raises(ConfigError, match="belong together"):
        validate(EvaluationConfig, {"encoder_file": path}, "evaluation")


def test_a_pickle_is_no_encoder_and_runs_nothing(tmp_path: Path) -> None:
    class _Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "bomb.pt"
    torch.save({"weights": _Bomb()}, path)
    with pytest.raises(DataError, match="is not a TorchScript file"):
        file_encoder(_config(path))
    assert not (tmp_path / "ran").exists()


def test_a_network_that_does_not_answer_per_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"answers \(1, 3\) to 3 images, not \(B, D\)"):
        file_encoder(_config(_file(tmp_path, _OneRow())))
    broken = _file(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 4)))
    with pytest.raises(DataError, match=r"encoder_size = 48\) failed on 1 images"):
        file_encoder(_config(broken, encoder_size=48))


def test_a_run_is_named_by_the_hash_and_not_by_the_place() -> None:
    first, moved, other = (
        load_scenario(
            "phantom-hospitals",
            [f"evaluation.encoder_file={place}", f'evaluation.encoder_sha256="{digit * 64}"'],
        ).run_id()
        for place, digit in (("a.pt", "1"), ("b/c.pt", "1"), ("a.pt", "2"))
    )
    assert first == moved != other
