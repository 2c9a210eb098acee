"""``synth-audit run`` as a privacy officer meets it: sets in, exit code and page out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from audit_sets import phantoms
from page_checks import browser_faults
from PIL import Image
from simulation_scenario import write_tiny

from synth_client.site import load_site
from synth_common.audit.intake import UNLABELLED, common_target, load_set, outline
from synth_common.audit.released_model import batch, model_scores, update_scores
from synth_common.errors import ConfigError, DataError
from synth_common.images.imageset import ImageSet, concatenate
from synth_common.images.preprocess import Target
from synth_common.release import names
from synth_common.reporting.audit_page import render_audit
from synth_common.reporting.audit_report import build_audit
from synth_common.terminal import guarded
from synth_sim import audit_cli

SMALL = Target(size=28, channels=1, classes=("normal", "lesion"))


def _call(*arguments: object) -> int:
    return guarded(lambda: audit_cli.app([str(a) for a in arguments], standalone_mode=True))


def _npz(path: Path, images: ImageSet, **columns: np.ndarray) -> Path:
    """A set as a file; ids only where it has them."""
    ids = {} if images.patient_ids is None else {"patient_ids": images.patient_ids}
    names = np.array(images.class_names)
    pixels = np.rint(images.images[:, 0] * 255).astype(np.uint8)
    sites = {} if images.sites is None else {"site": images.sites}
    np.savez(path, images=pixels, labels=names[images.labels], **ids, **sites, **columns)
    return path


def _folder(path: Path, images: ImageSet, **columns: Sequence[str]) -> Path:
    """A set as a folder with a metadata.csv."""
    path.mkdir()
    names = ["file_name", "label", "patient_id", *columns]
    lines = [",".join(names)]
    assert images.patient_ids is not None
    for i, picture in enumerate(images.images):
        pixels = np.rint(picture[0] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
        label = images.class_names[images.labels[i]]
        row = [f"{i}.png", label, images.patient_ids[i], *(c[i] for c in columns.values())]
        lines.append(",".join(map(str, row)))
    (path / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Files:
    """The files of a small audit, and where the finished one lies."""

    members: Path
    others: Path
    fresh: Path
    out: Path
    code: int


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """An audit of the training set: a folder and files, with sex and age."""
    folder = tmp_path_factory.mktemp("audit")
    drawn = [phantoms(64, seed, target=SMALL) for seed in (11, 12, 13)]
    sex = np.where(np.arange(64) % 2 == 0, "f", "m")
    age = (20 + np.arange(64)).astype(str)
    members = _folder(folder / "members", drawn[0], sex=sex.tolist(), age=age.tolist())
    others = _npz(folder / "others.npz", drawn[1], sex=sex, age=np.arange(64) + 20)
    fresh = _npz(folder / "fresh.npz", drawn[2])
    out = folder / "out"
    code = _call(
        *("run", "--synthetic", members, "--members", members, "--nonmembers", others),
        *("--reference", fresh, "--out", out, "--site-local"),
    )
    return Files(members, others, fresh, out, code)


def test_the_training_set_ends_with_21_and_says_what_failed(files: Files) -> None:
    assert files.code == 21
    audit = json.loads((files.out / "audit.json").read_text(encoding="utf-8"))
    assert audit["verdict"] == "fail"
    outcomes = {(g["measure"], g["view"]): g["outcome"] for g in audit["gates"]}
    assert outcomes["near-copies", "images"] == outcomes["membership", "images"] == "fail"
    assert outcomes["tpr-at-1-percent", "images"] == "not resolvable"
    assert outcomes["membership", "server"] == "not run"
    assert len(audit["policy"]["sha256"]) == 64
    groups = {g["group"] for g in audit["groups"]}
    assert {"sex f", "sex m", "class normal", "age 20 to 41"} <= groups
    assert audit["sets"]["members"]["patients"] == 64
    assert audit["shadows"] is None
    untested = {u["what"]: u["why"] for u in audit["untested"]}
    assert "--shadow-models K" in untested["Shadow models (LiRA)"]
    assert "Shadow trainings" not in (files.out / "audit.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_else_and_only_the_local_edition_shows_patients(
    files: Files,
) -> None:
    page, local = (
        (files.out / name).read_text(encoding="utf-8")
        for name in ("audit.html", "report-site-local.html")
    )
    for text in (page, local):
        assert "<script" not in text
        assert not any(word in text for word in ('href="http', 'src="http', "anony" + "mous"))
        assert text.count("<svg") == text.count('role="img"') >= 3
    assert "FAILED: do not release" in page
    assert "data:image/png" not in page
    assert "data:image/png" in local
    assert "REAL PATIENTS" in local
    order = ["Gates</h2>", "Images only</h2>", "released model</h2>", "server</h2>", "not tested"]
    places = [page.rindex(word) if word == "not tested" else page.index(word) for word in order]
    assert places[:4] == sorted(places[:4])


@pytest.mark.browser
@pytest.mark.parametrize("width", [500, 1200])
def test_a_browser_finds_contrast_and_no_overflow(files: Files, width: int, tmp_path: Path) -> None:
    page = Path(shutil.copy(files.out / "audit.html", tmp_path))
    assert browser_faults(page, width) == []


def test_alternatives_of_plots_hold_the_numbers_of_the_table(files: Files) -> None:
    audit = json.loads((files.out / "audit.json").read_text(encoding="utf-8"))
    page = (files.out / "audit.html").read_text(encoding="utf-8")
    alt = page.split('aria-label="AUC of attacks')[1].split('"')[0]
    first = audit["attacks"][0]
    assert f"{first['attack']} in {first['space']} {first['auc']:.3g}".rstrip("0") in alt


def test_a_report_without_facts_says_not_recorded_everywhere(tmp_path: Path) -> None:
    page = render_audit(build_audit([]), tmp_path)
    assert page.count("NOT RECORDED") > 15
    assert "VERDICT" in page
    assert "PASSED" not in page


def test_unlike_sets_end_with_23_and_leave_nothing(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = ("--synthetic", files.fresh, "--members", files.members, "--nonmembers", files.members)
    assert _call("run", *given, "--out", out) == 23
    assert "not alike" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (("--policy", "none.toml"), 2, "--policy none.toml"),
        (("--size", "50"), 2, "multiple of 4"),
        (("--model", "none"), 2, "holds no run"),
        (("--updates", "none"), 2, "--updates needs --model"),
        (("--synthetic", "none"), 3, "--synthetic none: neither a folder"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    code: int,
    said: str,
) -> None:
    given = {
        "--synthetic": files.fresh,
        "--members": files.members,
        "--nonmembers": files.others,
        "--out": tmp_path / "out",
        change[0]: change[1],
    }
    assert _call("run", *(word for pair in given.items() for word in pair)) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "code", "said"),
    [
        ("--synthetic", 3, "is a release; name its images: --synthetic {bundle}/images"),
        ("--model", 2, "is a release, which holds no weights; name the directory of the run"),
    ],
)
def test_the_root_of_a_release_is_refused_with_what_to_name_instead(
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    code: int,
    said: str,
) -> None:
    bundle = tmp_path / "lungs-1.0.0"
    shutil.copytree(files.members, bundle / names.IMAGES)
    (bundle / names.SIGNATURE).write_text("{}\n")
    given = {"--members": files.members, "--nonmembers": files.others, "--out": tmp_path / "out"}
    given |= {"--synthetic": bundle / names.IMAGES, option: bundle}
    assert _call("run", *(word for pair in given.items() for word in pair)) == code
    assert said.format(bundle=bundle) in capsys.readouterr().err
    assert (
        len(load_set(outline(str(bundle / names.IMAGES), "--synthetic"), SMALL, "s").images) == 64
    )


def test_a_directory_in_use_is_left_alone(files: Files) -> None:
    given = ("--synthetic", files.fresh, "--members", files.members, "--nonmembers", files.others)
    assert _call("run", *given, "--out", files.out) == 2


def test_flat_folders_splits_and_colour_are_read(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(flat / f"{i}.png")
    many = rng.integers(0, 255, (9, 64, 64), dtype=np.uint8)
    np.savez(
        tmp_path / "med.npz",
        train_images=many,
        train_labels=np.zeros((9, 1), int),
        test_images=many[:4],
        test_labels=np.ones((4, 1), int),
    )
    seen = outline(str(flat), "--synthetic")
    split = outline(f"{tmp_path / 'med.npz'}:test", "--members")
    target = common_target([seen, split], None)
    assert (target.size, target.channels, target.classes) == (40, 3, (UNLABELLED,))
    assert len(load_set(seen, target, "flat").images) == 6
    assert len(load_set(split, target, "med").images) == 4
    named = common_target([split, outline(str(tmp_path / "med.npz"), "--members")], 32)
    assert (named.size, named.channels, named.classes) == (32, 1, ("0", "1"))
    assert load_set(split, named, "med").images.labels.tolist() == [1] * 4
    with pytest.raises(ConfigError, match="--size 130"):
        common_target([seen], 130)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no PNG or JPEG"):
        outline(str(tmp_path / "empty"), "--members")


def test_columns_ids_and_dates_follow_the_split_of_a_file(tmp_path: Path) -> None:
    number = np.arange(12)
    columns = {
        "split": np.array(["train", "test"] * 6),
        "labels": number // 2 % 2,
        "patient_ids": np.array([f"p{n // 4}" for n in number]),
        "sex": np.where(number % 4 < 2, "f", "m"),
        "study_date": np.array([f"2020-01-{n + 1:02d}" for n in number]),
    }
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", images=images, **columns)
    part = outline(f"{tmp_path / 'own.npz'}:test", "--members")
    assert part.patients is not None
    assert part.patients.tolist() == columns["patient_ids"][1::2].tolist()
    read = load_set(part, common_target([part], None), "own")
    assert read.attributes["sex"].tolist() == columns["sex"][1::2].tolist()
    assert read.images.patient_ids is not None
    assert read.images.patient_ids.tolist() == part.patients.tolist()
    assert (read.dates - read.dates[0]).tolist() == [0, 2, 4, 6, 8, 10]


def _at(site: str, images: ImageSet) -> ImageSet:
    """The images of one hospital."""
    return replace(images, sites=np.full(len(images), site))


@dataclass(frozen=True)
class Twin:
    """A run, the patients it was trained on, and its model."""

    run: Path
    members: ImageSet


TRAINING = (
    "training.steps_per_round=100",
    "training.rounds=8",
    "training.patients_per_step=20",
    "training.learning_rate=0.006",
    "generator.width=16",
    "generator.latent_dim=32",
    "generator.kl_weight=0.05",
    "data.holdout_share=0.2",
)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twin]:
    """A VAE that was trained long on few patients without noise, and its epsilon-1 twin."""
    from synth_sim.run import RunOptions, run_scenario
    from synth_sim.scenario import load_scenario

    folder = tmp_path_factory.mktemp("twins")
    path = str(write_tiny(folder, patients=27))
    found = {}
    for epsilon in ("inf", "1"):
        out = folder / epsilon
        scenario = load_scenario(path, [*TRAINING, f"privacy.epsilon={epsilon}"])
        run_scenario(scenario, RunOptions(out, keep_updates=True))
        sites = [load_site(site) for site in sorted((out / "sites").iterdir())]
        found[epsilon] = Twin(out, concatenate([_at(s.name, s.train) for s in sites]))
    return found


@pytest.mark.slow
def test_an_overfitted_model_is_found_and_its_private_twin_is_not(
    twins: dict[str, Twin], tmp_path: Path
) -> None:
    classes = twins["inf"].members.class_names
    target = Target(size=28, channels=1, classes=classes)
    others, fresh, third = (
        phantoms(60, seed, images=(1, 2), target=target, look="radiograph") for seed in (21, 22, 23)
    )
    half = others.units() < 30
    others = concatenate([_at("alpha", others.subset(half)), _at("beta", others.subset(~half))])
    found = {}
    for epsilon, twin in twins.items():
        out = tmp_path / f"out-{epsilon}"
        code = _call(
            *("run", "--synthetic", _npz(tmp_path / "s.npz", fresh)),
            *("--members", _npz(tmp_path / "m.npz", twin.members)),
            *("--nonmembers", _npz(tmp_path / "n.npz", others)),
            *(
                "--reference",
                _npz(tmp_path / "r.npz", third),
            ),
            *("--model", twin.run, "--updates", twin.run / "updates", "--out", out),
        )
        audit = json.loads((out / "audit.json").read_text(encoding="utf-8"))
        found[epsilon] = (
            code,
            {a["attack"] for a in audit["attacks"] if a["verdict"] == "found"},
            {(a["view"], a["members"]) for a in audit["attacks"]},
            audit["ceiling"],
        )
    code, attacks, views, ceiling = found["inf"]
    assert (code, ceiling["epsilon"], ceiling["tpr_at_1pct"]) == (21, "inf", 1.0)
    assert "VAE reconstruction error" in attacks
    members = twins["inf"].members
    assert members.sites is not None
    of_sites = {
        ("server", members.subset(members.sites == site).unit_count()) for site in ("alpha", "beta")
    }
    everybody = members.unit_count()
    assert views == {("images", everybody), ("model", everybody)} | of_sites
    code, attacks, _, ceiling = found["1"]
    assert (code, attacks) == (22, set())
    assert 0.0 < ceiling["epsilon"] <= 1.0
    assert ceiling["tpr_at_1pct"] < 0.04


@pytest.mark.slow
def test_updates_of_several_sites_need_to_know_whose_the_patients_are(
    twins: dict[str, Twin], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = twins["inf"]
    members = replace(twin.members, sites=None)
    target = Target(size=28, channels=1, classes=members.class_names)
    others, fresh = (
        phantoms(60, seed, images=(1, 2), target=target, look="radiograph") for seed in (21, 22)
    )
    code = _call(
        *("run", "--synthetic", _npz(tmp_path / "s.npz", fresh)),
        *("--members", _npz(tmp_path / "m.npz", members)),
        *("--nonmembers", _npz(tmp_path / "n.npz", others)),
        *("--model", twin.run, "--updates", twin.run / "updates", "--out", tmp_path / "out"),
    )
    told = capsys.readouterr()
    assert code == 2
    assert "--updates holds those of alpha, beta, and no column `site`" in told.err
    assert "membership attacks" not in told.out  # before anything long


@pytest.mark.slow
def test_the_inner_product_is_that_of_the_records_gradient(twins: dict[str, Twin]) -> None:
    from synth_sim.audit_model import load_model

    twin = twins["inf"]
    model = load_model(twin.run, twin.run / "updates")
    assert "SIMULATION" not in model.origin  # nothing is promised, so nothing is to be warned of
    private = load_model(twins["1"].run)
    assert private.origin.endswith("a SIMULATION: its seeded noise protects nobody")
    assert set(model.updates) == {"alpha", "beta"}
    updates = model.updates["alpha"][:1]
    few = twin.members.subset(np.arange(3))
    quick = update_scores(model.generator, updates, few)
    before = model_scores(model.generator, few)
    generator, update = model.generator, updates[0]
    generator.load_shared_state(update.sent)
    generator.eval()
    import torch

    x, y = batch(few, 0, 3)
    losses = generator.private_loss(x, y, torch.Generator().manual_seed(0))
    named = dict(generator.named_parameters())
    private = {id(p) for p in generator.private_module.parameters()}
    names = [n for n, p in named.items() if id(p) in private]
    for i in range(3):
        slopes = torch.autograd.grad(losses[i], [named[n] for n in names], retain_graph=True)
        way = [update.sent[n] - update.replied[n] for n in names]
        slow = sum(float((s * w).sum()) for s, w in zip(slopes, way, strict=True))
        assert quick[i] == pytest.approx(slow, rel=1e-3)
    assert set(before) == {"VAE reconstruction error", "VAE evidence lower bound"}
