"""Shadow trainings follow a run's recipe, leave nothing behind, and find what a release leaks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_sets import phantoms
from simulation_scenario import write_tiny

from synth_client.site import load_site
from synth_common.errors import BudgetError, ConfigError, DataError
from synth_common.evaluation.synthetic import sample_images
from synth_common.images.imageset import ImageSet
from synth_common.images.preprocess import Target
from synth_common.privacy.ledger import Ledger
from synth_common.terminal import guarded
from synth_sim import audit_cli, shadows
from synth_sim.audit_model import load_model
from synth_sim.run import RunOptions, run_scenario
from synth_sim.scenario import load_scenario
from synth_sim.shadow_recipe import read_recipe
from synth_sim.shadows import ShadowTrainer

FAMILIES = {
    "vae": (),
    "gan": ("generator.family=gan",),
    "embedding": (
        "generator.family=embedding",
        "training.rounds=0",
        "release.embedding={share=1.0}",
    ),
    "curriculum": ("release.embedding={share=0.3, warm_steps=3}",),
    "masked sums": (
        "generator.family=embedding",
        "training.rounds=0",
        "privacy.trust_model=secure-aggregation",
        "release.embedding={share=1.0}",
    ),
}


def _run(folder: Path, settings: Sequence[str], sites: int = 2) -> Path:
    """A finished run."""
    out = folder / "run"
    run_scenario(load_scenario(str(write_tiny(folder, sites)), settings), RunOptions(out))
    return out


def _people(patients: int, seed: int = 21) -> ImageSet:
    target = Target(size=28, channels=1, classes=("normal", "lesion"))
    return phantoms(patients, seed, images=(1, 2), target=target, look="radiograph")


def _trainer(run: Path, folder: Path, told: list[str]) -> ShadowTrainer:
    return ShadowTrainer(read_recipe(run, load_model(run)), folder, 8, 0, told.append)


def _digest(folder: Path) -> str:
    """SHA-256 over every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = [f"{path}:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shadow_has_the_mechanism_of_the_run_and_leaves_nothing(
    name: str, tmp_path: Path
) -> None:
    run = _run(tmp_path, FAMILIES[name], sites=3 if name == "masked sums" else 2)
    before, told = _digest(run), []
    trainer = _trainer(run, tmp_path / "audit", told)
    people, labels = _people(20), np.arange(12, dtype=np.int64) % 2
    first, again, other = (trainer.draw(number, people, labels) for number in (0, 0, 1))
    assert first.labels.tolist() == labels.tolist()
    assert np.array_equal(np.rint(first.images * 255) / np.float32(255), first.images)
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
    record = trainer.record()
    assert record["recipe_sha256"] == load_model(run).plan.digest()
    assert record["noise_multiplier"] == pytest.approx(record["noise_multiplier_of_run"])
    assert min(record["noise_multiplier"].values()) > 0.1
    assert _digest(run) == before
    assert list((tmp_path / "audit").iterdir()) == []


def test_patients_are_dealt_whole_in_proportion_to_what_sites_declared(tmp_path: Path) -> None:
    run = _run(tmp_path, ["partition.sites.0.nominal_patients=240"])
    trainer = _trainer(run, tmp_path, [])
    people = _people(30)
    place = tmp_path / "place"
    dealt = trainer._sites(0, people, place)
    assert [site.nominal_patients for site in dealt] == [240, 120]
    ids = [set(site.train.patient_ids.tolist()) for site in dealt]  # type: ignore[union-attr]
    assert [len(each) for each in ids] == [20, 10]
    assert not ids[0] & ids[1]
    assert sum(len(site.train) for site in dealt) == len(people)
    other = trainer._sites(1, people, tmp_path / "other")
    assert set(other[0].train.patient_ids.tolist()) != ids[0]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="1 patients to train on, for 2 sites"):
        trainer._sites(0, people.subset(people.units() == 0), tmp_path / "few")


def test_a_run_that_ended_early_is_followed_as_far_as_it_went(tmp_path: Path) -> None:
    run, told = _run(tmp_path, ["training.rounds=4"]), []
    trainer = _trainer(run, tmp_path / "audit", told)
    people = _people(20)

    def rounds(upto: int) -> int:
        """Rounds in the ledger of a shadow's site, read before it is deleted."""
        trainer.recipe = replace(trainer.recipe, rounds=upto)
        place = tmp_path / f"place-{upto}"
        trainer._train(0, people, place)
        with Ledger.read(place / "sites" / "alpha" / "ledger.sqlite") as ledger:
            return len(ledger.reservations())

    assert (rounds(4), rounds(2)) == (4, 2)
    early = [line for line in told if line.startswith("shadow models: round 2 of 4 of the first")]
    assert early == told  # and nothing of two rounds, which are as soon done as told
    assert len(told) == 1


def test_a_failure_names_the_model_and_the_sites_own_words(tmp_path: Path) -> None:
    run = _run(tmp_path, [])
    trainer = _trainer(run, tmp_path / "audit", [])
    poor = {n: replace(t, budget_epsilon=1e-3) for n, t in trainer.recipe.sites.items()}
    trainer.recipe = replace(trainer.recipe, sites=poor)
    with pytest.raises(BudgetError, match=r"shadow model 3 of 8: .*alpha: .*BudgetError"):
        trainer.draw(2, _people(20), np.zeros(2, dtype=np.int64))
    assert list((tmp_path / "audit").iterdir()) == []


def test_a_stop_leaves_no_patient_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer(_run(tmp_path, []), tmp_path / "audit", [])
    there: list[Path] = []

    def stop(*_arguments: object) -> None:
        there.extend((tmp_path / "audit").rglob("data.npz"))
        raise KeyboardInterrupt

    monkeypatch.setattr(shadows, "_federate", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.draw(0, _people(20), np.zeros(2, dtype=np.int64))
    assert len(there) == 2
    assert list((tmp_path / "audit").iterdir()) == []


OVERFITTED = (
    "training.rounds=4",
    "training.steps_per_round=100",
    "training.patients_per_step=20",
    "training.learning_rate=0.006",
    "generator.width=16",
    "generator.latent_dim=32",
    "generator.kl_weight=0.05",
    "data.sources.0.patients=40",
    "data.holdout_share=0.2",
    "partition.sites.0.nominal_patients=40",
    "federation.min_sites=1",
)


def _npz(path: Path, images: ImageSet) -> Path:
    ids = {} if images.patient_ids is None else {"patient_ids": images.patient_ids}
    pixels = np.rint(images.images[:, 0] * 255).astype(np.uint8)
    np.savez(path, images=pixels, labels=np.array(images.class_names)[images.labels], **ids)
    return path


def _call(*arguments: object) -> int:
    return guarded(lambda: audit_cli.app([str(a) for a in arguments], standalone_mode=True))


def _audited(folder: Path, epsilon: str) -> tuple[int, dict, Path]:
    """A run of a VAE that is trained long on few patients, and its audit with shadow models."""
    folder.mkdir()
    run = _run(folder, [*OVERFITTED, f"privacy.epsilon={epsilon}"], sites=1)
    members = load_site(run / "sites" / "alpha").train
    model, labels = load_model(run), np.arange(600, dtype=np.int64) % 2
    before, out = _digest(run), folder / "audit"
    code = _call(
        *("run", "--synthetic", _npz(folder / "s.npz", sample_images(model.generator, labels, 9))),
        *("--members", _npz(folder / "m.npz", members)),
        *("--nonmembers", _npz(folder / "n.npz", _people(members.unit_count()))),
        *("--reference", _npz(folder / "r.npz", _people(60, 23))),
        *("--model", run, "--shadow-models", 8, "--out", out),
    )
    assert _digest(run) == before
    return code, json.loads((out / "audit.json").read_text(encoding="utf-8")), out


@pytest.mark.slow
@pytest.mark.timeout(600)  # nine trainings
def test_an_overfitted_model_is_found_by_its_shadows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, audit, out = _audited(tmp_path / "inf", "inf")
    said = capsys.readouterr().out
    assert "shadow models: 1 of 8 took" in said
    assert "Ctrl-C stops" in said
    found = {a["space"][:6]: a for a in audit["attacks"] if a["attack"] == "Shadow models (LiRA)"}
    plain = next(a["auc"] for a in audit["attacks"] if a["attack"].endswith("full black box"))
    assert code == 21
    assert found["random"]["verdict"] == "found"
    assert found["random"]["auc"] > max(0.7, plain + 0.1)
    assert not any("Shadow" in u["what"] for u in audit["untested"])
    assert audit["shadows"]["models"] == 8
    page = (out / "audit.html").read_text(encoding="utf-8")
    assert "Shadow trainings" in page
    assert audit["shadows"]["recipe_sha256"] in page
    assert not list(out.glob(".shadow-*"))


@pytest.mark.slow
@pytest.mark.timeout(600)  # nine trainings
def test_the_private_twin_is_not_found_by_its_shadows(tmp_path: Path) -> None:
    code, audit, _ = _audited(tmp_path / "private", "1")
    shadowed = [a for a in audit["attacks"] if a["attack"] == "Shadow models (LiRA)"]
    assert code != 21
    assert [a["verdict"] for a in shadowed] == ["not found", "not found"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--shadow-models", "8"), "--shadow-models needs --model"),
        (("--shadow-models", "7", "--model", "run"), "--shadow-models 7: must be even"),
        (("--shadow-models", "6", "--model", "run"), "--shadow-models 6: must be even"),
    ],
)
def test_shadow_models_without_a_recipe_odd_or_few_are_refused_first(
    more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("--synthetic", "s", "--members", "m", "--nonmembers", "n", "--out", tmp_path / "out")
    assert _call("run", *sets, *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    run = _run(tmp_path, [])
    model = load_model(run)
    facts = run / "facts.jsonl"
    kept = facts.read_text(encoding="utf-8").splitlines()
    without = [line for line in kept if '"privacy.site"' not in line]
    facts.write_text("\n".join(without) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--shadow-models: .*records no site or no seed"):
        read_recipe(run, model)
    facts.write_text("\n".join(kept) + "\n", encoding="utf-8")
    public = model.plan.pretraining.model_copy(update={"sha256": "ab" * 32, "public_data": "x"})
    named = replace(model, plan=model.plan.model_copy(update={"pretraining": public}))
    with pytest.raises(ConfigError, match="does not name their file"):
        read_recipe(run, named)
