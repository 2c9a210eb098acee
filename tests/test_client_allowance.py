"""What a message may weigh follows from the plans that a site knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sites import approve, release_plan, small_plan, small_site

from synth_client.allowance import Allowance, weight
from synth_common.flower import arrays_of
from synth_common.generators import build_generator
from synth_common.plan import Plan


@pytest.mark.parametrize(
    "plan", [small_plan(), small_plan("gan"), release_plan(), Plan()], ids=lambda p: p.digest()[:6]
)
def test_every_message_of_a_plan_is_light_enough_and_twice_of_it_is_not(plan: Plan) -> None:
    state = build_generator(plan.generator, 0).shared_state()
    sent = sum(len(array.data) for array in arrays_of(state).values())
    assert sent <= weight(plan)
    if sent > 2**20:
        assert 2 * sent > weight(plan)


def test_an_approval_while_the_service_runs_counts_at_the_next_message(tmp_path: Path) -> None:
    small, large = small_plan(), small_plan()
    generator = large.generator.model_copy(update={"width": 32, "latent_dim": 32})
    large = large.model_copy(update={"generator": generator})
    site = small_site(tmp_path)
    allowance = Allowance(site.ledger_path, small)
    assert allowance() == weight(small)
    approve(site, large)
    assert allowance() == weight(large) > weight(small)


def test_a_ledger_that_cannot_be_read_leaves_the_plan_of_the_kit(tmp_path: Path) -> None:
    allowance = Allowance(tmp_path / "gone.sqlite", small_plan())
    assert allowance() == weight(small_plan())
