"""A scenario with a release, and a stand-in for a family that learns from one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from simulation_scenario import write_tiny

from synth_common.generators.embedding import Released
from synth_common.generators.vae import VAE
from synth_sim.scenario import Scenario, load_scenario


def learn(self: VAE, released: Released, seed: int, tell: Callable[[str], None]) -> None:
    """Stands in for learning: weights that show every bit of what was released."""
    tell(f"learning from {len(released.vector)} numbers")
    assert released.vector.dtype == torch.float64
    with torch.no_grad():
        for i, parameter in enumerate(self.parameters()):
            values = torch.sin(released.vector * (i + 1) + released.sigma + seed % 7)
            flat = values.repeat(1 + parameter.numel() // len(values))[: parameter.numel()]
            parameter.copy_((0.1 * flat).reshape(parameter.shape))


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The VAE can learn from a release."""
    monkeypatch.setattr(VAE, "learn_release", learn)


def scenario(
    folder: Path, *overrides: str, sites: int = 3, trust: str = "secure-aggregation"
) -> Scenario:
    """One release of three small hospitals, and no round."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = [
        f"privacy.trust_model={trust}",
        "training.rounds=0",
        "release.embedding={}",
        "partition.min_patients=3",
        "generator.features=40",
        "generator.refine_steps=3",
    ]
    return load_scenario(str(write_tiny(folder, sites)), [*settings, *overrides])
