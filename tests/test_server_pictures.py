"""A sample grid says what made the images, and at which price."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sites import release_plan, small_plan

from synth_common.generators import build_generator
from synth_common.plan import Plan
from synth_server.pictures import Gallery, synthetic_grid


def _one_release() -> Plan:
    whole = release_plan().model_dump()
    whole["generator"]["family"] = "embedding"
    return Plan.model_validate(whole)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (small_plan("vae"), "Synthetic images by VAE, epsilon"),
        (small_plan("gan"), "Synthetic images by GAN, epsilon"),
        (_one_release(), "Synthetic images by one release, epsilon"),
        (release_plan(), "Synthetic images by VAE taught by a release, epsilon"),
        (release_plan(rounds=2), "Synthetic images by VAE started from a release, epsilon"),
    ],
)
def test_a_grid_is_captioned_with_what_made_it(plan: Plan, says: str, tmp_path: Path) -> None:
    fact = synthetic_grid(plan, build_generator(plan.generator, 1), Gallery(tmp_path, 1, columns=2))
    assert str(fact.detail["caption"]).startswith(says)
    assert (tmp_path / str(fact.value)).is_file()
