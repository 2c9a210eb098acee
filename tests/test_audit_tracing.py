"""Tracing: who is in a sum without noise is found, and noise keeps the attack within its bound."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from audit_sets import POLICY, audit_set, nobodys, phantoms
from release_scenario import learner, scenario  # noqa: F401

from synth_common.audit.gathering import Inputs
from synth_common.audit.gaussian import gaussian_auc
from synth_common.audit.policy import AuditPolicy, WrittenPolicy
from synth_common.audit.release_audit import Outcomes, audit_release
from synth_common.audit.released_model import ReleasedModel
from synth_common.audit.statistics import auc
from synth_common.audit.tracing import TRACING, patient_vectors, trace_sum
from synth_common.generators import build_generator
from synth_common.generators.embedding import Released, build_embedding
from synth_common.images.imageset import ImageSet
from synth_common.plan import GeneratorPlan, Plan
from synth_common.privacy.accounting import calibrate
from synth_common.privacy.statistics import embedding_sum
from synth_common.randomness import SimulationNoise
from synth_common.validation import validate

DELTA = 1e-5
PLAN = Plan.model_validate(
    {
        "generator": {
            "family": "embedding",
            "size": 32,
            "classes": ("lesion", "normal"),
            "frequencies": 6,
            "features": 400,
            "refine_steps": 1,
        },
        "privacy": {"epsilon": 1.0, "delta": DELTA},
        "release": {"embedding": {}},
        "training": {"rounds": 0},
    }
)


def _sum(images: ImageSet, sigma: float, seed: int = 0) -> Released:
    """What the sites release of these patients."""
    embedding, noise = build_embedding(PLAN.generator), SimulationNoise(seed, "tracing")
    vector = embedding_sum(images, embedding, PLAN.generator, 4, noise)
    noisy = torch.from_numpy(vector) + sigma * noise.gaussian((embedding.size,)).double()
    return Released(noisy, sigma, embedding)


Sides = tuple[ImageSet, ImageSet, ImageSet]
CURVE = calibrate((), (1.0, 1), (1.0, DELTA), "prv")
"""Noise of a release at epsilon 1."""


@pytest.fixture(scope="module")
def sides() -> Sides:
    """Members, others and reference, of one to three images a patient."""
    first, second, third = (
        phantoms(count, seed, images=(1, 3)) for count, seed in ((80, 31), (80, 32), (250, 33))
    )
    return first, second, third


def _scores(sides: Sides, released: Released) -> list[np.ndarray]:
    """Of members and of others."""
    *both, reference = sides
    found = [trace_sum(released, side, side.units(), reference, "patient") for side in both]
    assert [len(s) for s in found] == [side.unit_count() for side in both]
    return found


def test_without_noise_members_are_traced_and_strangers_are_not(sides: Sides) -> None:
    members, others, reference = sides
    scores = _scores(sides, _sum(members, 0.0))
    assert auc(*scores) > 0.85
    strangers = phantoms(80, 34, images=(1, 3))
    assert abs(auc(*_scores((strangers, others, reference), _sum(members, 0.0))) - 0.5) < 0.12


@pytest.mark.parametrize("sigma", [1.0, CURVE])
def test_with_noise_the_attack_stays_below_what_the_noise_allows(
    sides: Sides, sigma: float
) -> None:
    scores = [_scores(sides, _sum(sides[0], sigma, seed)) for seed in range(4)]
    found = [auc(*pair) for pair in scores]
    assert np.mean(found) < gaussian_auc(1.0 / sigma)
    # Of others the score is standard normal: a threshold means the same for everybody.
    others = np.concatenate([pair[1] for pair in scores])
    assert abs(others.mean()) < 0.5
    assert 0.8 < others.std() < 1.25
    assert gaussian_auc(1.0) == pytest.approx(0.7602, abs=1e-4)
    if sigma == CURVE:
        assert max(found) < 0.6


def test_a_score_is_that_of_the_formula_written_out(sides: Sides) -> None:
    small = GeneratorPlan(family="embedding", size=32, classes=("lesion", "normal"), frequencies=2)
    embedding = build_embedding(small)
    members, others, reference = (s.subset(np.arange(60)) for s in sides)

    def vectors(images: ImageSet) -> np.ndarray:
        """(P, size), each a sum over one patient alone, by what a site runs."""
        units, noise = images.units(), SimulationNoise(0)
        own = (images.subset(units == u) for u in range(images.unit_count()))
        return np.stack([embedding_sum(o, embedding, small, 4, noise) for o in own])

    z, x = vectors(others), vectors(reference)
    assert (np.linalg.norm(z, axis=1) <= 1.0).all()
    released = Released(torch.from_numpy(vectors(members).sum(0)), 0.3, embedding)
    found = trace_sum(released, others, others.units(), reference, "patient")

    n, r, size = members.unit_count(), len(x), embedding.size
    count = lambda v: embedding.class_counts(torch.from_numpy(v)).numpy()  # noqa: E731
    means = np.zeros((2, size))
    for k, part in enumerate((slice(None, size // 2), slice(size // 2, None))):
        means[k, part] = x[:, part].sum(0) / sum(count(v)[k] for v in x)
    rest = x - np.stack([count(v) @ means for v in x])
    diagonal = (rest**2).mean(0) * 1.0
    diagonal += 1e-4 * diagonal.mean()
    unit = rest / np.sqrt(diagonal)
    sample = unit.T @ unit / r
    spread = np.mean([((np.outer(u, u) - sample) ** 2).sum() for u in unit]) / r
    target = np.trace(sample) / size * np.eye(size)
    rho = spread / ((sample - target) ** 2).sum()
    covariance = (1 - rho) * rest.T @ rest / r + rho * np.diag(diagonal)
    inverse = np.linalg.inv(n * (1 + n / r) * covariance + 0.3**2 * np.eye(size))
    middle = np.linalg.inv(means @ inverse @ means.T)
    p = inverse - inverse @ means.T @ middle @ means @ inverse
    wanted = z @ p @ released.vector.numpy() / np.sqrt(np.einsum("ni,ij,nj->n", z, p, z))
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-8)


def test_a_patient_is_traced_by_what_the_site_adds_for_the_patient(sides: Sides) -> None:
    embedding = build_embedding(PLAN.generator)
    few = sides[0].subset(sides[0].units() < 8)
    assert np.bincount(few.units()).max() > 1
    by_patient = torch.cat([*patient_vectors(embedding, few, few.units(), "patient")])
    by_image = torch.cat([*patient_vectors(embedding, few, few.units(), "image")])
    for u in range(8):
        own = few.subset(few.units() == u)
        for vector, unit in ((by_patient[u], "patient"), (by_image[u], "image")):
            added = own if unit == "patient" else nobodys(own)
            site = embedding_sum(added, embedding, PLAN.generator, 4, SimulationNoise(0))
            assert vector.numpy() == pytest.approx(site, abs=1e-12)


def test_a_class_that_the_reference_lacks_breaks_nothing(sides: Sides) -> None:
    members, others, reference = sides
    one = reference.subset(reference.labels == 0)
    scores = _scores((members, others, one), _sum(members, 0.0))
    assert all(np.isfinite(s).all() for s in scores)


def _audited(sides: Sides, family: str, sigma: float, epsilon: float) -> Outcomes:
    """An audit of fresh images and of a model that learnt from a release, or will."""
    generator = PLAN.generator.model_copy(update={"family": family})
    plan = PLAN.model_copy(update={"generator": generator})
    model = ReleasedModel(
        plan, build_generator(generator, 0), 0, epsilon, "here", released=_sum(sides[0], sigma)
    )
    sets = [audit_set(side) for side in sides]
    given = Inputs(audit_set(nobodys(phantoms(80, 35))), *sets)
    policy = validate(AuditPolicy, tomllib.loads(POLICY), "tests")
    return audit_release(
        given, WrittenPolicy(policy, POLICY, "tests"), model, 0, lambda stage: None
    )


def _verdicts(found: Outcomes, view: str) -> dict[str, str]:
    facts = [f.value for f in found.facts if f.name == "audit.attack"]
    return {v["attack"]: v["verdict"] for v in facts if v["view"] == view and v["group"] is None}


def test_an_audit_finds_the_sum_without_noise_and_not_at_epsilon_1(sides: Sides) -> None:
    """Also where another family starts from it: its own weights say nothing here."""
    found = _audited(sides, "vae", 0.0, math.inf)
    verdicts = _verdicts(found, "model")
    assert verdicts.pop(TRACING) == "found"
    assert set(verdicts.values()) == {"not found"}
    gate = next(g for g in found.gates if g.gate.view == "model")
    assert gate.outcome == "fail"
    assert TRACING in gate.reason
    private = _audited(sides, "embedding", CURVE, 1.0)
    assert _verdicts(private, "model") == {TRACING: "not found"}


def test_a_run_hands_its_released_sum_to_the_audit(
    tmp_path: Path,
    learner: None,  # noqa: F811
) -> None:
    from synth_sim.audit_model import load_model
    from synth_sim.run import RunOptions, run_scenario

    run_scenario(scenario(tmp_path), RunOptions(tmp_path / "run"))
    model = load_model(tmp_path / "run")
    assert model.released is not None
    (file,) = (tmp_path / "run" / "checkpoints").glob("release.safetensors")
    from safetensors.torch import load_file

    assert torch.equal(model.released.vector, load_file(file)["sum"])
    assert model.released.sigma > 0
    assert model.released.embedding.features == 40
    file.unlink()
    assert load_model(tmp_path / "run").released is None
