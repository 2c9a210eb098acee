"""Small sites with real structure, for tests that train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synth_client.enrol import agree, make_key
from synth_client.site import Site
from synth_common.generators import features
from synth_common.images.imageset import ImageSet
from synth_common.plan import FederationPlan, GeneratorPlan, Plan, PrivacyPlan, TrainingPlan
from synth_common.privacy.ledger import Budget, Decision, Ledger
from synth_common.randomness import SimulationNoise, derive_seed, numpy_stream

OPERATOR = Decision("operator", "test")


class SteadyNoise(SimulationNoise):
    """Call i gives the same first values however many are asked for, then and before.

    So a patient more does not move what the others draw: the coupling of the proof, fixed.
    """

    def __init__(self, root: int) -> None:
        super().__init__(root)
        self._root, self._calls = root, 0

    def uniform(self, n: int) -> np.ndarray:
        self._calls += 1
        return numpy_stream(self._root, "call", self._calls).random(n)


def other_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the installed NumPy drew other numbers from the seeds of the random features."""
    other = np.random.MT19937
    monkeypatch.setattr(
        features, "numpy_stream", lambda *path: np.random.Generator(other(derive_seed(*path)))
    )
    features.require_known_constants.cache_clear()


def blobs(n: int, seed: int = 0, size: int = 28, per_patient: int = 2) -> ImageSet:
    """Two classes of bright blobs, left and right; patients with several images."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    y, x = np.mgrid[:size, :size]
    centre = size * (0.35 + 0.3 * labels) + rng.normal(0, 1.5, n)
    images = np.exp(-((x - centre[:, None, None]) ** 2 + (y - size / 2) ** 2) / size)
    patients = np.array([f"{seed}-{i // per_patient}" for i in range(n)])
    return ImageSet(
        images[:, None].astype(np.float32), labels.astype(np.int64), ("left", "right"), patients
    )


def small_plan(family: str = "vae", **privacy: object) -> Plan:
    """Three short rounds on 28 px."""
    terms = {"noise": "simulation", "epsilon": 8.0, **privacy}
    return Plan(
        generator=GeneratorPlan(
            family=family, size=28, classes=("left", "right"), width=8, latent_dim=4,
            fakes_per_step=8, critic_steps=2,
        ),
        training=TrainingPlan(rounds=3, steps_per_round=5, patients_per_step=10),
        privacy=PrivacyPlan.model_validate(terms),
        federation=FederationPlan(min_sites=2),
    )  # fmt: skip


def small_site(
    directory: Path, name: str = "north", seed: int = 0, budget: float = 8.0, unit: str = "patient"
) -> Site:
    """Forty patients, declared as forty."""
    site = Site(
        name=name,
        directory=directory / name,
        train=blobs(80, seed),
        holdout=blobs(20, seed + 1000),
        nominal_patients=40,
        seed=seed,
        simulated=True,
    )
    Ledger.create(site.ledger_path, name)
    with Ledger.hold(site.ledger_path) as ledger:
        ledger.set_budget(Budget(budget, 1e-5, unit=unit), OPERATOR)
    return site


def approve(site: Site, plan: Plan) -> None:
    """The operator agrees to a plan; agreeing twice is agreeing once."""
    with Ledger.hold(site.ledger_path) as ledger:
        if plan.digest() not in ledger.approved():
            ledger.approve(plan.digest(), plan.to_json(), OPERATOR)


def release_plan(trust: str = "secure-aggregation", rounds: int = 0, **release: object) -> Plan:
    """A plan with one release before ``rounds`` short rounds; RDP, so that it is quick."""
    settings = {"share": 1.0 if rounds == 0 else 0.4, **release}
    base = small_plan(accountant="rdp").model_dump()
    base["privacy"]["trust_model"] = trust
    base["training"]["rounds"] = rounds
    base["release"] = {"embedding": settings}
    base["generator"] |= {"features": 40, "refine_steps": 3}
    return Plan.model_validate(base)


def enrolled_sites(
    directory: Path, names: tuple[str, ...] = ("east", "north", "west")
) -> list[Site]:
    """Sites that know each other's keys."""
    sites = [small_site(directory, name, seed=i + 1) for i, name in enumerate(names)]
    public = {site.name: make_key(site.directory) for site in sites}
    for site in sites:
        agree(site.directory, {n: k for n, k in public.items() if n != site.name})
    return sites
