"""The GAN's own options: the critic's pace and bounds, and where the generator is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from simulation_scenario import write_tiny
from small_sites import blobs, small_plan
from torch import nn

from synth_common.errors import ConfigError
from synth_common.generators import build_generator
from synth_common.generators.critic import CriticPace, constrain, spectral_norm
from synth_common.plan import GeneratorPlan, Plan, TrainingPlan
from synth_common.privacy.training import Mechanism, PrivateTrainer, Steps
from synth_common.randomness import SimulationNoise
from synth_common.validation import validate
from synth_server.checkpoint import load_latest
from synth_server.rounds import refined
from synth_sim.run import RunOptions, run_scenario
from synth_sim.scenario import load_scenario


def _plan(training: dict[str, object] | None = None, **generator: object) -> Plan:
    plan = small_plan("gan")
    wanted = {**plan.generator.model_dump(), **generator}
    trained = {**plan.training.model_dump(), **(training or {})}
    return plan.model_copy(
        update={
            "generator": GeneratorPlan.model_validate(wanted),
            "training": TrainingPlan.model_validate(trained),
        }
    )


def _trained(plan: Plan, steps: int = 4, data=None, sigma: float = 1.0):
    """The plan's GAN after some private steps, watched after each."""
    generator = build_generator(plan.generator, seed=0)
    data = blobs(12) if data is None else data
    mechanism = Mechanism(sigma, 1.0, 1.0, 4, 10)
    trainer = PrivateTrainer(generator, data, mechanism, plan.training, SimulationNoise(0))
    trainer.run(Steps(0, steps, 1), {})
    return generator


# ------------------------------------------------------------------ the critic's pace

_TOLD, _MISSED = torch.full((8,), -3.0), torch.full((8,), 3.0)


def _pace(**options: object) -> CriticPace:
    return CriticPace(GeneratorPlan(family="gan", critic_steps=2, critic_steps_max=8, **options))


def test_the_critic_gets_more_steps_when_it_misses_fakes_up_to_the_most():
    pace = _pace(critic_floor=0.6)
    seen = []
    for _ in range(100):
        pace.saw(_MISSED)
        seen.append(pace.critic_steps)
    assert seen[18] == 2  # the running accuracy is given time to say something
    assert sorted(set(seen)) == [2, 4, 8]
    assert seen == sorted(seen)
    assert seen.count(4) == 20


@pytest.mark.parametrize(("floor", "logits"), [(0.6, _TOLD), (0.0, _MISSED)])
def test_the_pace_stays_while_fakes_are_told_or_where_it_is_not_asked_for(floor, logits):
    pace = _pace(critic_floor=floor)
    for _ in range(60):
        pace.saw(logits)
    assert pace.critic_steps == 2


def test_the_generator_waits_for_as_many_critic_steps_as_the_pace_says():
    pace = _pace()
    assert [pace.due() for _ in range(4)] == [False, True, False, True]
    pace.steps.fill_(4.0)
    assert [pace.due() for _ in range(4)] == [False, False, False, True]


def test_the_pace_follows_fakes_alone(monkeypatch: pytest.MonkeyPatch):
    """Whoever the patients are, equal logits on fakes give an equal pace."""
    plan = _plan(critic_floor=0.9, critic_steps_max=16)
    shown = CriticPace.saw
    monkeypatch.setattr(CriticPace, "saw", lambda self, logits: shown(self, logits * 0 + 1.0))
    paces = []
    for data in (blobs(12), blobs(4, seed=3), blobs(30, seed=8)):
        generator = _trained(plan, steps=45, data=data)
        paces.append({k: v.item() for k, v in generator.pace.state_dict().items()})
    assert paces[0] == paces[1] == paces[2]
    assert paces[0]["steps"] == 8.0


def test_a_pace_whose_most_is_below_its_start_is_refused():
    with pytest.raises(ConfigError, match=r"critic_steps_max = 2 is below critic_steps = 4"):
        validate(
            GeneratorPlan, {"critic_steps": 4, "critic_steps_max": 2, "critic_floor": 0.5}, "plan"
        )


def test_the_pace_is_a_signal_and_an_exhausted_critic_a_warning():
    generator = build_generator(_plan(critic_floor=0.6, critic_steps_max=4).generator, seed=0)
    images, labels = torch.rand(8, 1, 28, 28), torch.zeros(8, dtype=torch.int64)
    assert generator.health(images, labels).signals["critic_steps"] == 2
    assert not generator.health(images, labels).warnings
    generator.pace.steps.fill_(4.0)
    generator.pace.grace.zero_()
    warnings = generator.health(images, labels).warnings
    assert any("does not keep up" in w for w in warnings)


# ------------------------------------------------------------------ bounds on the critic


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (6, 3, 3, 3), (1, 7)])
def test_the_spectral_norm_is_the_largest_singular_value(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    slow = torch.linalg.svdvals(weight.flatten(1).double()).max().item()
    assert spectral_norm(weight) == pytest.approx(slow, rel=1e-9)
    assert spectral_norm(torch.zeros(shape)) == 0.0


@pytest.mark.parametrize("bound", [0.3, 1.0])
def test_a_spectral_bound_holds_for_every_layer_after_noisy_steps(bound):
    generator = _trained(_plan(critic_constraint="spectral", critic_bound=bound), sigma=20.0)
    norms = {
        name: torch.linalg.svdvals(p.detach().flatten(1)).max().item()
        for name, p in generator.critic.named_parameters()
        if p.dim() > 1
    }
    assert len(norms) == 5
    assert max(norms.values()) <= bound * (1 + 1e-5)
    free = _trained(_plan(), sigma=20.0)
    assert max(spectral_norm(p) for p in free.critic.parameters() if p.dim() > 1) > 1.1 * bound


def test_a_clipped_critic_stays_within_its_bound():
    generator = _trained(_plan(critic_constraint="clip", critic_bound=0.02), sigma=20.0)
    assert max(p.abs().max().item() for p in generator.critic.parameters()) <= 0.02 + 1e-9


def test_weights_within_the_bound_are_left_alone():
    layer = nn.Linear(6, 4)
    before = layer.weight.clone()
    plan = GeneratorPlan(family="gan", critic_constraint="spectral", critic_bound=100.0)
    constrain(layer, plan)
    assert torch.equal(layer.weight, before)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    assert spectral_norm(layer.weight) != spectral_norm(layer.weight)  # reported by health


# ------------------------------------------------------------------ where the generator is trained

_SERVER = {"generator_training": "server"}


def _parts(before, after) -> set[str]:
    """First names of the tensors that differ."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_at_a_site_the_generator_rests_when_the_server_trains_it():
    plan = _plan(_SERVER)
    fresh = build_generator(plan.generator, seed=0).shared_state()
    assert _parts(fresh, _trained(plan).shared_state()) == {"critic", "pace"}


def test_the_server_moves_the_generator_and_nothing_else_and_repeats_itself():
    plan = _plan(_SERVER)
    state = _trained(plan).shared_state()
    once, again = refined(plan, state, "run", 1), refined(plan, state, "run", 1)
    assert _parts(state, once) == {"generator", "average", "gradient_norm", "generator_steps"}
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert _parts(once, refined(plan, state, "run", 2)) >= {"generator"}
    assert refined(_plan(), state, "run", 1) is state


def test_the_server_takes_as_many_steps_as_the_pace_leaves():
    plan = _plan({**_SERVER, "steps_per_round": 12})
    generator = build_generator(plan.generator, seed=0)
    generator.refine(plan.training, 1)
    assert generator.generator_steps.item() == 6
    generator.pace.steps.fill_(4.0)
    generator.refine(plan.training, 2)
    assert generator.generator_steps.item() == 9


@pytest.mark.parametrize("options", [{}, {"critic_constraint": "spectral", "critic_floor": 0.6}])
def test_a_run_whose_server_trains_the_generator_ends_and_repeats(tmp_path: Path, options):
    settings = [
        "generator.family=gan",
        "generator.critic_steps=1",
        "training.generator_training=server",
        *(f"generator.{key}={value}" for key, value in options.items()),
    ]
    scenario = load_scenario(str(write_tiny(tmp_path)), settings)
    states = []
    for name in ("first", "second"):
        assert run_scenario(scenario, RunOptions(tmp_path / name)).is_file()
        checkpoint = load_latest(tmp_path / name / "checkpoints")
        assert checkpoint is not None
        states.append(checkpoint.state)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[0]["generator_steps"].item() == 6
