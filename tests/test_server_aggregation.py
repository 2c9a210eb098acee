"""Rules of aggregation against a slow version, and the bound on updates against Adam itself."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from small_sites import small_plan

from synth_common.errors import ConfigError
from synth_common.generators import build_generator
from synth_common.validation import validate
from synth_server.aggregation import aggregate, doubts, largest_update
from synth_server.run_settings import AggregationConfig

State = dict[str, torch.Tensor]


def _states(count: int, seed: int = 0) -> list[State]:
    rng = torch.Generator().manual_seed(seed)
    return [
        {"w": torch.randn(3, 2, generator=rng), "n": torch.tensor(i)} for i in range(count)
    ]  # fmt: skip


def _slow(values: list[float], config: AggregationConfig) -> float:
    """One coordinate, the obvious way."""
    ordered = sorted(values)
    if config.rule == "median":
        middle = len(ordered) // 2
        pair = ordered[middle - 1 : middle + 1] if len(ordered) % 2 == 0 else [ordered[middle]]
        return sum(pair) / len(pair)
    out = math.floor(config.trim * len(ordered)) if config.rule == "trimmed-mean" else 0
    kept = ordered[out : len(ordered) - out]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    "config",
    [
        AggregationConfig(),
        AggregationConfig(rule="median"),
        AggregationConfig(rule="trimmed-mean", trim=0.34),
        AggregationConfig(rule="trimmed-mean", trim=0.1),
    ],
    ids=lambda config: f"{config.rule}-{config.trim}",
)
def test_every_coordinate_is_that_of_the_slow_version(
    config: AggregationConfig, count: int
) -> None:
    states = _states(count)
    made = aggregate(config)
    for state in states:
        made.add(state.items())
    result = made.result({"w": torch.float32, "n": torch.int64})
    assert result["w"].dtype == torch.float32
    assert result["n"].dtype == torch.int64
    for index in np.ndindex(3, 2):
        slow = _slow([float(state["w"][index]) for state in states], config)
        assert float(result["w"][index]) == pytest.approx(slow, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_the_order_of_replies_does_not_matter_and_one_liar_moves_nothing_far(rule: str) -> None:
    config = AggregationConfig.model_validate({"rule": rule, "trim": 0.34})
    honest = _states(2)
    liar = {"w": torch.full((3, 2), 1e9), "n": torch.tensor(0)}
    results = []
    for order in permutations([*honest, liar]):
        made = aggregate(config)
        for state in order:
            made.add(state.items())
        results.append(made.result({"w": torch.float32, "n": torch.int64})["w"])
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert float(results[0].abs().max()) <= max(float(s["w"].abs().max()) for s in honest)


@pytest.mark.parametrize(
    ("values", "sites", "said"),
    [
        ({}, 3, []),
        ({"rule": "median"}, 2, ["median of 2 replies is their mean", "at least 2 MB"]),
        ({"rule": "median"}, 3, ["at least 3 MB"]),
        (
            {"rule": "trimmed-mean"},
            3,
            ["leaves nobody out.*takes 10 replies, or trim = 0.34 or more", "at least 3 MB"],
        ),
        ({"rule": "trimmed-mean", "trim": 0.34}, 3, ["at least 3 MB"]),
        ({"rule": "trimmed-mean"}, 2, ["leaves nobody out.*takes 10 replies$", "at least 2 MB"]),
    ],
)
def test_what_a_rule_cannot_do_is_said(
    values: dict[str, object], sites: int, said: list[str]
) -> None:
    config = AggregationConfig.model_validate(values)
    found = doubts(config, sites, 1_000_000)
    assert len(found) == len(said)
    for text, pattern in zip(found, said, strict=True):
        with pytest.raises(AssertionError, match=pattern):
            raise AssertionError(text)


def test_the_share_that_is_advised_does_leave_one_out() -> None:
    for sites in range(3, 40):
        advised = math.ceil(100 / sites - 1e-9) / 100
        assert AggregationConfig(rule="trimmed-mean", trim=advised).trimmed(sites) == 1


@pytest.mark.parametrize("values", [{"rule": "krum"}, {"trim": 0.5}, {"largest_update": -1}])
def test_impossible_settings_are_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        validate(AggregationConfig, values, "server.toml")


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_no_gradients_make_adam_move_further_than_the_bound(family: str) -> None:
    """Gradients that are rare and large move Adam furthest; the default bound bears them."""
    plan = small_plan(family)
    generator = build_generator(plan.generator, 0)
    bound = largest_update(plan, generator, AggregationConfig().largest_update)
    assert bound is not None
    rate = plan.training.learning_rate or generator.private_rate
    moving = [p for p in generator.parameters() if p.is_floating_point()]
    before = [p.detach().clone() for p in moving]
    optimiser = torch.optim.AdamW(moving, lr=rate, betas=generator.private_betas, weight_decay=0)
    for _ in range(2000):  # what came before the round: hardly any gradient
        for parameter in moving:
            parameter.grad = torch.full_like(parameter, 1e-9)
        optimiser.step()
    before = [p.detach().clone() for p in moving]
    for step in range(plan.training.steps_per_round):
        for parameter in moving:
            parameter.grad = torch.full_like(parameter, 1e3 * 30.0**step)
        optimiser.step()
    moved = math.sqrt(
        sum(float((p.detach() - b).square().sum()) for p, b in zip(moving, before, strict=True))
    )
    steps = plan.training.steps_per_round
    usual = rate * steps * math.sqrt(sum(p.numel() for p in moving))
    assert usual < moved < bound  # the case is worse than a step of the rate in one direction
    assert largest_update(plan, generator, 0.0) is None
    assert largest_update(plan, generator, 8.0) == pytest.approx(2 * bound)
