"""Latent traversals: which directions are found, what they show, and that a run shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from simulation_scenario import write_tiny
from small_sites import small_plan

from synth_common.errors import ConfigError
from synth_common.facts import read_facts
from synth_common.generators import build_generator
from synth_common.generators.traversal import POSITIONS, Direction, active_directions, traverse
from synth_common.reporting.numbers import measured
from synth_sim.run import RunOptions, run_scenario
from synth_sim.scenario import load_scenario


def _generator(family: str = "vae"):
    return build_generator(small_plan(family).generator, seed=0)


class _Planted:
    """Decodes a latent along one known axis strongly, along another weakly, else not at all."""

    def __init__(self) -> None:
        self.plan = small_plan().generator
        self.strong = torch.tensor([0.6, 0.8, 0.0, 0.0])
        self.weak = torch.tensor([0.0, 0.0, 0.0, 1.0])

    def decode(self, latent, labels):
        images = torch.full((len(latent), 1, 8, 8), 0.5)
        images[:, :, 0] += 0.02 * (latent @ self.strong)[:, None, None]
        images[:, :, 1] += 0.01 * (latent @ self.weak)[:, None, None]
        return images


def test_the_direction_that_changes_images_most_comes_first_with_its_share():
    planted = _Planted()
    first, second = active_directions(planted, 2, seed=1)
    assert torch.allclose(first.axis, planted.strong, atol=1e-3)
    assert torch.allclose(second.axis, planted.weak, atol=1e-3)
    assert first.share == pytest.approx(0.8, abs=1e-3)
    assert second.share == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_directions_are_orthogonal_and_their_shares_add_up(family):
    found = active_directions(_generator(family), 9, seed=1)
    assert len(found) == 4  # no more than the latent space has
    axes = torch.stack([direction.axis for direction in found])
    assert torch.allclose(axes @ axes.mT, torch.eye(4), atol=1e-5)
    shares = [direction.share for direction in found]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)
    again = active_directions(_generator(family), 1, seed=1)
    assert torch.equal(again[0].axis, found[0].axis)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_traversal_has_a_row_per_class_and_passes_the_middle(family):
    generator = _generator(family)
    axis = torch.tensor([1.0, 0.0, 0.0, 0.0])
    images = traverse(generator, Direction(axis, 1.0))
    assert images.shape == (2 * len(POSITIONS), 1, 28, 28)
    rows = images.view(2, len(POSITIONS), 1, 28, 28)
    latent = torch.stack([0 * axis, -3 * axis, 3 * axis])
    for label in (0, 1):
        alone = generator.decode(latent, torch.full((3,), label))
        assert torch.allclose(rows[label][[3, 0, 6]], alone, atol=1e-5)


def test_without_a_latent_space_or_any_change_there_is_nothing_to_show():
    planted = _Planted()
    planted.strong = planted.weak = torch.zeros(4)
    assert active_directions(planted, 2, seed=1) == []
    planted.decode = lambda latent, labels: None
    assert active_directions(planted, 2, seed=1) == []
    assert traverse(planted, Direction(torch.ones(4), 1.0)) is None
    with pytest.raises(ConfigError, match="count = -1"):
        active_directions(planted, -1, seed=1)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_run_shows_its_most_active_directions(tmp_path: Path, family):
    scenario = load_scenario(
        str(write_tiny(tmp_path)), [f"generator.family={family}", "report.traversals=2"]
    )
    out = tmp_path / "run"
    page = run_scenario(scenario, RunOptions(out)).read_text(encoding="utf-8")
    facts = [f for f in read_facts(out / "facts.jsonl") if f.name == "samples.traversal"]
    assert [f.value for f in facts] == ["samples/traversal-1.png", "samples/traversal-2.png"]
    assert all(f.scope == "released" for f in facts)
    for fact in facts:
        with Image.open(out / fact.value) as picture:
            assert picture.width > len(POSITIONS) * 96
        assert f'alt="{fact.detail["caption"]}. Rows from the top: normal, lesion' in page
    shown = json.loads((out / "report.json").read_text())["traversals"]
    assert [t["share"] for t in shown] == [f.detail["share"] for f in facts]
    for entry in shown:
        assert 0 < entry["change"] < 1
        assert f"A pixel changes by {measured(entry['change'])} from end to end" in page


def test_a_run_shows_none_where_none_are_asked_for(tmp_path: Path):
    scenario = load_scenario(str(write_tiny(tmp_path)), ["report.traversals=0"])
    out = tmp_path / "run"
    page = run_scenario(scenario, RunOptions(out)).read_text(encoding="utf-8")
    assert "No latent directions were recorded" in page
    assert not list((out / "samples").glob("traversal*"))
