"""With the draws fixed and no noise, one patient moves one sum, by at most the clip.

The canary audit sees the draw, the clip, the noise and the accounting. What it cannot see,
because it leaves through other tensors or through the number of public examples, is held
here: two runs that differ by one patient, step by step, and the mutants that fail them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_sites import SteadyNoise, blobs, small_plan
from torch import nn
from torch.nn import functional as F

from synth_common.generators import build_generator
from synth_common.generators.gan import GAN
from synth_common.generators.networks import Encoder
from synth_common.images.imageset import ImageSet, concatenate
from synth_common.plan import GeneratorPlan, StrictModel, TrainingPlan
from synth_common.privacy import gradients
from synth_common.privacy.gradients import Rows
from synth_common.privacy.optimiser import PatientOptimiser
from synth_common.privacy.sampling import PatientSampler
from synth_common.privacy.training import Mechanism, PrivateTrainer, Steps
from synth_common.randomness import SimulationNoise

Patch = pytest.MonkeyPatch
CLIP, DENOMINATOR, STEPS = 0.5, 10, 2
FAMILIES = pytest.mark.parametrize("family", ["vae", "gan"])
OPTIONS: dict[str, dict[str, object]] = {
    "vae": {},
    "vae, learned prior": {"prior": "learned"},
    "vae, rising KL": {"kl_schedule": "linear", "kl_weight": 8.0},
    "gan": {},
    "gan, adaptive": {"critic_floor": 0.9},
    "gan, spectral": {"critic_constraint": "spectral"},
    "gan, clipped weights": {"critic_constraint": "clip", "critic_bound": 0.1},
    "gan, at the server": {"generator_training": "server"},
}
"""Every option that touches the private network or what travels beside it."""


def _extra(kind: str) -> ImageSet:
    """A patient with three images, more than anybody else, so drawn last."""
    rng = np.random.default_rng(5)
    pixels = {
        "blob": blobs(3, seed=9).images,
        "black": np.zeros((3, 1, 28, 28)),
        "white": np.ones((3, 1, 28, 28)),
        "static": rng.random((3, 1, 28, 28)),
    }[kind]
    labels = np.array([0, 1, 1], dtype=np.int64)
    return ImageSet(pixels.astype(np.float32), labels, ("left", "right"), np.array(["zz"] * 3))


def _of(section: type[StrictModel], options: dict[str, object]) -> dict[str, object]:
    """The options that belong to a section of the plan."""
    return {k: v for k, v in options.items() if k in section.model_fields}


def _steps(family: str, data: ImageSet) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Each step's gradient times the denominator, and what travels; every patient is drawn.

    The private weights are put back after each step: what they did is judged by the
    gradient, and all else that changes then changes for a reason of its own.
    """
    plan, options = small_plan(family.split(",")[0]), OPTIONS[family]
    wanted = plan.generator.model_copy(
        update={"latent_dim": 16, "critic_steps": 1, **_of(GeneratorPlan, options)}
    )
    training = plan.training.model_copy(update=_of(TrainingPlan, options))
    generator = build_generator(wanted, seed=0)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        step = PatientOptimiser.private_step

        def watched(self, clipped, public) -> None:
            before = [p.detach().clone() for p in self.params]
            step(self, clipped, public)
            seen.append(DENOMINATOR * torch.cat([p.grad.flatten() for p in self.params]))
            with torch.no_grad():
                for parameter, value in zip(self.params, before, strict=True):
                    parameter.copy_(value)

        patch.setattr(PatientOptimiser, "private_step", watched)
        mechanism = Mechanism(0.0, 1.0, CLIP, 3, DENOMINATOR)
        trainer = PrivateTrainer(generator, data, mechanism, training, SteadyNoise(0))
        trainer.run(Steps(0, STEPS, 1), {})
    return seen, generator.shared_state()


def _one_more(family: str) -> tuple[float, set[str]]:
    """The farthest that any of four patients moves a step's sum, and what else they change."""
    everyone = blobs(12)
    before, state = _steps(family, everyone)
    farthest, changed = 0.0, set()
    for kind in ("blob", "black", "white", "static"):
        after, other = _steps(family, concatenate([everyone, _extra(kind)]))
        moved = [(b - a).norm().item() for a, b in zip(before, after, strict=True)]
        farthest = max(farthest, *moved)
        changed |= {n for n in state if n not in other or not torch.equal(state[n], other[n])}
    return farthest, changed


@pytest.mark.parametrize("family", OPTIONS)
def test_one_patient_moves_the_sum_by_at_most_the_clip_and_nothing_else(family: str) -> None:
    farthest, changed = _one_more(family)
    assert 0.9 * CLIP < farthest <= CLIP * (1 + 1e-4)
    assert changed == set()


def test_the_generator_and_its_average_do_move_in_these_steps() -> None:
    """What the test above finds unchanged is not merely at rest."""
    _, state = _steps("gan", blobs(12))
    plan = small_plan("gan").generator.model_copy(update={"latent_dim": 16, "critic_steps": 1})
    fresh = build_generator(plan, seed=0).shared_state()
    moved = {name for name in state if not torch.equal(state[name], fresh[name])}
    assert {name.split(".")[0] for name in moved} >= {"generator", "average", "pace"}


def _counted(patch: Patch) -> list[int]:
    """How many patients the last draw held."""
    drawn, draw = [0], PatientSampler.draw

    def counting(self):
        found = draw(self)
        drawn[0] = len(found)
        return found

    patch.setattr(PatientSampler, "draw", counting)
    return drawn


def _fakes(generator: GAN, count: int, rng: torch.Generator) -> torch.Tensor:
    """Loss of ``count`` fresh fakes."""
    with torch.no_grad():
        fakes, label = generator._fakes(count, rng)
    return F.softplus(generator.critic(fakes, label))


def _fakes_follow_the_draw(patch: Patch) -> None:
    drawn = _counted(patch)
    patch.setattr(GAN, "public_examples", property(lambda self: drawn[0]))
    patch.setattr(GAN, "public_loss", lambda self, rng: _fakes(self, drawn[0], rng))


def _fakes_join_before_the_noise(patch: Patch) -> None:
    drawn, private = _counted(patch), PrivateTrainer._private_gradient

    def joined(self, rng, losses, norms):
        total = private(self, rng, losses, norms)
        part = self._engine.clipped_sum(
            lambda: _fakes(self._generator, drawn[0], rng), Rows((1,) * drawn[0]), CLIP
        )
        return {p: g + part.gradients.get(p, 0.0) for p, g in total.items()}

    patch.setattr(PrivateTrainer, "_private_gradient", joined)
    patch.setattr(GAN, "public_examples", property(lambda self: 0))


def _batch_norm(tracked: bool) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        build, activate = Encoder.__init__, Encoder._activate

        def with_norm(self, channels, size, width, **options) -> None:
            build(self, channels, size, width, **options)
            self.norm = nn.BatchNorm2d(
                self.mixing.out_channels, affine=False, track_running_stats=tracked
            )

        def normalised(self, x, place):
            fits = x.shape[1] == self.mixing.out_channels
            return F.leaky_relu(self.norm(x), 0.2) if fits else activate(self, x, place)

        patch.setattr(Encoder, "__init__", with_norm)
        patch.setattr(Encoder, "_activate", normalised)
        patch.setattr(gradients.ModuleValidator, "validate", lambda *_, **__: [])

    return apply


@pytest.mark.parametrize("mutant", [_fakes_follow_the_draw, _fakes_join_before_the_noise])
def test_fakes_that_follow_the_draw_are_caught(monkeypatch: Patch, mutant) -> None:
    mutant(monkeypatch)
    farthest, changed = _one_more("gan")
    assert farthest > 1.02 * CLIP or changed


@FAMILIES
@pytest.mark.parametrize("tracked", [True, False])
def test_batch_normalisation_is_caught(monkeypatch: Patch, family: str, tracked: bool) -> None:
    _batch_norm(tracked)(monkeypatch)
    farthest, changed = _one_more(family)
    assert farthest > 1.02 * CLIP
    assert any("norm.running" in name for name in changed) == tracked


# ------------------------------------------------------------------ who is drawn

_UNITS, _RATE, _DRAWS = 60, 0.25, 800


def _entered() -> np.ndarray:
    """(draws, units) who was drawn, with one image each."""
    sampler = PatientSampler(np.arange(_UNITS), _RATE, 1, SimulationNoise(11))
    table = np.zeros((_DRAWS, _UNITS))
    for row in table:
        for images in sampler.draw():
            row[images[0]] = 1
    return table


def _independence(table: np.ndarray) -> dict[str, float]:
    """Statistics that are 1, 0 and 0 (within ``_NEAR``) for independent draws.

    A number of drawn patients that is fixed has variance 0; a shuffle that deals everybody
    out once before anybody comes again makes neighbours in time repel each other.
    """
    spread = _RATE * (1 - _RATE)
    centred = table - _RATE
    pairs = centred.T @ centred / (_DRAWS * spread)
    between = (pairs.sum() - np.trace(pairs)) / (_UNITS * (_UNITS - 1))
    after = (centred[1:] * centred[:-1]).mean() / spread
    return {
        "count": table.sum(1).var() / (_UNITS * spread),
        "between patients": between * _UNITS,
        "between steps": after,
    }


def _poisson(table: np.ndarray) -> bool:
    found = _independence(table)
    return (
        0.8 < found["count"] < 1.2
        and abs(found["between patients"]) < 0.2
        and abs(found["between steps"]) < 4 / math.sqrt(_DRAWS * _UNITS)
    )


def test_patients_enter_independently_and_their_number_varies() -> None:
    assert _poisson(_entered()), _independence(_entered())


@pytest.mark.parametrize("refill", [True, False])
def test_shuffling_into_batches_is_caught(monkeypatch: Patch, refill: bool) -> None:
    """Batches of fixed size, from one deck dealt out to its end or shuffled at every step."""
    size, rng = int(_RATE * _UNITS), np.random.default_rng(0)
    deck: list[int] = []

    def dealt(self):
        if refill or not deck:
            deck[:] = rng.permutation(_UNITS).tolist()
        return [self._images_of[deck.pop()] for _ in range(size)]

    monkeypatch.setattr(PatientSampler, "draw", dealt)
    found = _independence(_entered())
    assert found["count"] == 0
    assert found["between patients"] < -0.5
    assert refill or found["between steps"] < -0.1
    assert not _poisson(_entered())
