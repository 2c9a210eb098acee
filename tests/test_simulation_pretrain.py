"""Public weights: made of public images alone, named by their SHA-256, and checked twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from simulation_scenario import write_tiny
from small_sites import approve, blobs, small_plan, small_site

from synth_client.outbox import Outbox
from synth_client.round import RoundRequest, train_round
from synth_client.site import load_site
from synth_common.errors import CheckpointError, ConfigError, PrivacyError, StorageError
from synth_common.facts import read_facts
from synth_common.generators import build_generator
from synth_common.plan import PretrainingPlan
from synth_common.privacy.egress import state_digest
from synth_common.privacy.public_training import train_openly
from synth_server.rounds import refined
from synth_server.strategy import UniformAverage
from synth_sim import pretrain as pretraining
from synth_sim.pretrain import Pretrained, pretrain
from synth_sim.run import RunOptions, run_scenario
from synth_sim.scenario import Scenario, load_scenario
from synth_sim.weights import initial_generator

_PUBLIC = """
kind = "phantom"
name = "{name}"
look = "{look}"
patients = 20
images_per_patient = [1, 1]
seed = {seed}
"""


def _public(folder: Path, name: str = "teaching set", look: str = "mri", seed: int = 8) -> str:
    path = folder / "public.toml"
    path.write_text(_PUBLIC.format(name=name, look=look, seed=seed), encoding="utf-8")
    return str(path)


def _scenario(folder: Path, *overrides: str) -> Scenario:
    return load_scenario(str(write_tiny(folder)), overrides)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    """Weights of the tiny scenario's generator, from twenty public phantoms."""
    folder = tmp_path_factory.mktemp("public")
    return pretrain(_scenario(folder), _public(folder), 6, folder / "weights.safetensors")


def test_the_file_the_command_and_the_facts_say_the_same(made: Pretrained) -> None:
    assert hashlib.sha256(made.path.read_bytes()).hexdigest() == made.sha256
    (fact,) = read_facts(made.path.with_suffix(".facts.jsonl"))
    assert fact.value["sha256"] == made.sha256
    assert "teaching set" in fact.value["public_data"]
    assert "Apache-2.0" in fact.value["public_data"]
    assert (fact.detail["images"], fact.detail["steps"]) == (20, 6)


def test_the_printed_settings_start_a_generator_from_the_weights(
    tmp_path: Path, made: Pretrained
) -> None:
    scenario = _scenario(tmp_path, *made.settings())
    state, weights = initial_generator(scenario).shared_state(), load_file(made.path)
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    other = scenario.pretraining.model_copy(update={"sha256": "0" * 64})
    named_otherwise = scenario.plan.model_copy(update={"pretraining": other})
    assert named_otherwise.digest() != scenario.plan.digest()


def test_pretraining_learns_from_the_public_images(tmp_path: Path) -> None:
    scenario = _scenario(tmp_path, "training.patients_per_step=16")
    losses = []
    for steps in (1, 40):
        done = pretrain(scenario, "mri", steps, tmp_path / f"{steps}.safetensors")
        generator = build_generator(scenario.generator, 0)
        generator.load_shared_state(load_file(done.path))
        generator.eval()
        images, labels = torch.full((4, 1, 28, 28), 0.05), torch.tensor([0, 1, 0, 1])
        rng = torch.Generator().manual_seed(0)
        losses.append(generator.private_loss(images, labels, rng).mean().item())
    assert losses[1] < 0.8 * losses[0]  # the pictures are mostly dark


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "named", [{"name": "drawn"}, {"look": "radiograph", "seed": 3}], ids=["name", "place"]
)
def test_a_private_source_as_public_is_refused(tmp_path: Path, named: dict[str, object]) -> None:
    public = _public(tmp_path, **named)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match=r"private source"):
        pretrain(_scenario(tmp_path), public, 1, tmp_path / "w.safetensors")
    with pytest.raises(PrivacyError, match=r"private source"):
        pretrain(_scenario(tmp_path), "drawn", 1, tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_a_private_image_under_another_name_is_refused(tmp_path: Path) -> None:
    """One shared image among others, in a file with another name."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 28, 28), dtype=np.uint8)
    labels = np.array(["normal", "lesion"] * 6)
    for name, rows in (("private", slice(0, 8)), ("public", slice(7, 12)), ("clean", slice(8, 12))):
        np.savez(tmp_path / f"{name}.npz", images=pixels[rows], labels=labels[rows])
    source = 'kind = "npz"\nname = "{0}"\npath = "{0}.npz"\n'
    for name in ("public", "clean"):
        (tmp_path / f"{name}.toml").write_text(source.format(name))
    scenario = _scenario(
        tmp_path,
        f"data.root={tmp_path}",
        'data.sources=[{kind="npz", name="private", path="private.npz"}]',
        "privacy.unit=image",
    )
    with pytest.raises(PrivacyError, match=r"1 images of 'public' are in the private source"):
        pretrain(scenario, str(tmp_path / "public.toml"), 1, tmp_path / "w.safetensors")
    pretrain(scenario, str(tmp_path / "clean.toml"), 1, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("public", "steps", "name", "match"),
    [
        ("reference", 1, "w.safetensors", "no data.reference"),
        ("xray", 1, "w.safetensors", "phantom look"),
        ("nowhere.toml", 1, "w.safetensors", "cannot be read"),
        ("mri", 0, "w.safetensors", "--steps 0"),
        ("mri", 1, "w.bin", "safetensors"),
    ],
)
def test_impossible_pretraining_is_refused(
    tmp_path: Path, public: str, steps: int, name: str, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        pretrain(_scenario(tmp_path), public, steps, tmp_path / name)


def test_a_family_without_parameters_is_refused_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["generator.family=embedding", "training.rounds=0", "release.embedding={}"]
    scenario = _scenario(tmp_path, *settings)
    monkeypatch.setattr(pretraining, "load_source", lambda *_: pytest.fail("read the images"))
    with pytest.raises(ConfigError, match=r"generator\.family = embedding"):
        pretrain(scenario, "mri", 1, tmp_path / "w.safetensors")
    generator = build_generator(scenario.generator, 0)
    with pytest.raises(ConfigError, match=r"generator\.family = embedding"):
        train_openly(generator, blobs(4), scenario.training, 1, seed=0)


def test_other_weights_than_the_plans_are_refused(tmp_path: Path, made: Pretrained) -> None:
    tensors = load_file(made.path)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1e-6
    save_file(tensors, tmp_path / "other.safetensors")
    settings = [f"data.weights={tmp_path / 'other.safetensors'}", *made.settings()[1:]]
    scenario = _scenario(tmp_path, *settings)
    with pytest.raises(CheckpointError, match="but the plan names"):
        run_scenario(scenario, RunOptions(tmp_path / "run"))
    assert not (tmp_path / "run" / "sites").exists()  # before any data was read


def test_weights_without_a_plan_and_a_plan_without_weights_are_refused(
    tmp_path: Path, made: Pretrained
) -> None:
    for part in (made.settings()[:1], made.settings()[1:]):
        with pytest.raises(ConfigError, match="give both, or neither"):
            initial_generator(_scenario(tmp_path, *part))
    (tmp_path / "text.safetensors").write_text("no tensors")
    broken = [f"data.weights={tmp_path / 'text.safetensors'}", *made.settings()[1:]]
    with pytest.raises(CheckpointError, match="cannot be read"):
        initial_generator(_scenario(tmp_path, *broken))


def test_weights_of_another_generator_are_refused(tmp_path: Path, made: Pretrained) -> None:
    with pytest.raises(CheckpointError, match=r"fit|shape"):
        initial_generator(_scenario(tmp_path, *made.settings(), "generator.width=16"))


def test_a_site_refuses_a_first_round_from_other_weights_and_charges_nothing(
    tmp_path: Path,
) -> None:
    site, plain = small_site(tmp_path), small_plan()
    public = build_generator(plain.generator, 5)
    tuning = PretrainingPlan(
        sha256=state_digest(public.shared_state()), public_data="drawn", tune="adapters"
    )
    plan = plain.model_copy(update={"pretraining": tuning})
    approve(site, plan)
    other = build_generator(plan.generator, 6, tuning).shared_state()
    with pytest.raises(CheckpointError, match=r"pretraining\.sha256"):
        train_round(site, RoundRequest("run", 1, plan, other))
    own = build_generator(plan.generator, 6, tuning, public.shared_state()).shared_state()
    reply = train_round(site, RoundRequest("run", 1, plan, own))
    assert reply.values["steps"] == 5  # the refused request is not among them
    frozen = public.shared_state()["network.encoder.mixing.weight"]
    assert torch.equal(reply.tensors["network.encoder.mixing.weight"], frozen)


# ------------------------------------------------------------------ runs


@pytest.mark.parametrize(
    "tune", [*(pytest.param(t, marks=pytest.mark.slow) for t in ("all", "last")), "adapters"]
)
def test_a_run_from_public_weights_says_so_in_its_report(
    tmp_path: Path, made: Pretrained, tune: str
) -> None:
    settings = [*made.settings(), f"pretraining.tune={tune}", "privacy.epsilon=8"]
    scenario = _scenario(tmp_path, *settings)
    page = run_scenario(scenario, RunOptions(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    start = report["training"]["pretraining"]
    assert (start["sha256"], start["tune"]) == (made.sha256, tune)
    assert "teaching set" in start["public_data"]
    assert "teaching set" in page.read_text(encoding="utf-8")


def test_the_sites_normalisation_comes_back_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed or not, the last kept normalisation is the same, and it is not the identity."""
    scenario = _scenario(tmp_path, "generator.site_normalisation=true", "privacy.epsilon=8")
    run_scenario(scenario, RunOptions(tmp_path / "whole"))
    aggregate = UniformAverage.aggregate_train

    def first_round_only(self: UniformAverage, number: int, replies: Any) -> Any:
        if number > 1:
            raise StorageError("stopped by the test")
        return aggregate(self, number, replies)

    with monkeypatch.context() as patched:
        patched.setattr(UniformAverage, "aggregate_train", first_round_only)
        with pytest.raises(StorageError):
            run_scenario(scenario, RunOptions(tmp_path / "parts"))
    run_scenario(scenario, RunOptions(tmp_path / "parts", resume=True))
    whole, parts = (
        Outbox(load_site(tmp_path / out / "sites" / "alpha")).site_state(scenario.run_id(), 2)
        for out in ("whole", "parts")
    )
    assert whole
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    fresh = build_generator(scenario.generator, 0).site_state()
    assert all(not torch.equal(whole[name], fresh[name]) for name in whole)


def test_a_site_that_missed_a_round_keeps_its_normalisation(tmp_path: Path) -> None:
    plan, site = small_plan(), small_site(tmp_path)
    plan = plan.model_copy(
        update={"generator": plan.generator.model_copy(update={"site_normalisation": True})}
    )
    approve(site, plan)
    state = build_generator(plan.generator, 0).shared_state()
    train_round(site, RoundRequest("run", 1, plan, state))
    outbox = Outbox(site)
    own = outbox.site_state("run", 1)
    missed = outbox.kept_before("run", 3)
    assert own
    assert missed.keys() == {f"site.{name}" for name in own}  # and no moments
    assert outbox.kept_before("run", 2).keys() > missed.keys()


def test_the_coordinator_refines_an_adapted_gan_and_leaves_its_critic_alone() -> None:
    plain = small_plan("gan")
    tuning = PretrainingPlan(sha256="0" * 64, public_data="drawn", tune="adapters")
    training = plain.training.model_copy(update={"generator_training": "server"})
    plan = plain.model_copy(update={"pretraining": tuning, "training": training})
    state = build_generator(plan.generator, 3, tuning).shared_state()
    after = refined(plan, state, "run", 1)
    moved = {name.split(".")[0] for name in state if not torch.equal(after[name], state[name])}
    assert "generator" in moved
    assert "critic" not in moved
