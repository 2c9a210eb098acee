"""Facts of invented runs, in the shapes that real runs record, for the reporting tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synth_common.facts import Fact, Scope
from synth_common.plan import Plan, PrivacyPlan
from synth_common.reporting.grids import GridLook, write_grid

SITES = ("guangzhou-north", "guangzhou-south", "nih-clinical-center")
CLASSES = ["normal", "pneumonia"]
METRICS = {
    "frechet": ("lower", 14.2, 3.1),
    "kid": ("lower", 0.0412, 0.00123),
    "precision": ("higher", 0.613, 0.842),
    "recall": ("higher", 0.287, 0.851),
    "density": ("higher", 0.544, 0.983),
    "coverage": ("higher", 0.402, 0.917),
}
ENCODERS = ("radiomics-47", "convolution-seed-2024")
SECURE = {"kind": "secure", "statement": "Noise came from the operating system's secure source."}
SEEDED = {"kind": "simulation", "statement": "Noise came from a seeded generator."}


def _fact(name: str, value: Any, scope: Scope = "public", **where: Any) -> Fact:
    return Fact(
        name=name,
        value=value,
        scope=scope,
        source="tests.reporting_facts",
        time="2025-11-22T17:00:00+00:00",
        **where,
    )


def run_facts(
    sites: Sequence[str] = SITES,
    rounds: int = 6,
    epsilon: float = 8.0,
    unit: str = "patient",
    noise: dict[str, str] = SECURE,
    family: str = "vae",
) -> list[Fact]:
    """Every fact of the catalogue that a run records, but for the comparison's rows."""
    return [
        *_course(rounds),
        *_data(sites),
        *_privacy(sites, rounds, epsilon, unit, noise),
        _release(sites, epsilon),
        *_training(sites, rounds, family),
        *_quality(sites, family),
        *_utility(sites),
        *_segmentation(sites),
        *_tasks(),
        *_fairness(sites),
        *_membership(sites),
        _fact(
            "samples.grid",
            "samples/synthetic.png",
            "released",
            detail={
                "kind": "synthetic",
                "caption": "Drawn by the generator after the last round",
                "rows": CLASSES,
                "columns": 6,
            },
        ),
        _fact(
            "samples.grid",
            "samples/phantom.png",
            detail={
                "kind": "phantom",
                "caption": "Procedurally drawn reference",
                "rows": CLASSES,
                "columns": 6,
            },
        ),
        _fact(
            "samples.traversal",
            "samples/traversal-1.png",
            "released",
            detail={
                "direction": 1,
                "share": 0.4375,
                "change": 0.0625,
                "caption": "Direction 1, 44% of all change, from -3 to 3",
                "rows": CLASSES,
                "columns": 3,
                "positions": [-3.0, 0.0, 3.0],
            },
        ),
    ]


def _course(rounds: int) -> list[Fact]:
    plan = Plan(privacy=PrivacyPlan(epsilon=8.0))
    return [
        _fact("run.id", "20251122-170000-7f3a"),
        _fact(
            "run.scenario",
            {"name": "chest-xray-hospitals", "title": "Chest radiographs of three hospitals"},
        ),
        _fact("run.command", "synth-sim run chest-xray-hospitals --seed 7 --out runs/chest"),
        _fact("run.seed", 7),
        _fact("run.engine", "inprocess"),
        _fact("run.simulation", True),
        _fact("run.started", "2025-11-22T17:00:00+00:00"),
        _fact("run.finished", "2025-11-22T17:31:42+00:00"),
        *(
            _fact("run.seconds", seconds, detail={"phase": phase})
            for phase, seconds in {
                "data": 12.34,
                "training": 1422.6,
                "evaluation": 466.1,
                "total": 1901.9,
            }.items()
        ),
        _fact("run.peak_memory_bytes", 1_873_412_096),
        _fact("run.versions", {"python": "3.11.9", "torch": "2.13.0", "opacus": "1.6.0"}),
        _fact("run.device", {"device": "cpu", "threads": 2, "processor": "x86_64"}),
        _fact("run.rounds", {"planned": rounds, "completed": rounds, "ended": "completed"}),
        _fact("run.resumed", {"at_round": 3}),
        _fact("run.code", {"version": "0.1.0", "sha256": "c0de" * 16}),
        _fact("run.weights", "beef" * 16),
        _fact("run.roles", {"coordinator": "lungs", "sites": list(SITES)}),
        _fact(
            "run.energy",
            {
                "cpu_joules": 81234.5,
                "gpu_joules": None,
                "method": "Processors: RAPL counters of package-0. Accelerators: none was used.",
                "covers": "training and evaluation; the whole machine",
                "seconds": 1888.2,
            },
        ),
        _fact("security.link", "TLS with certificates of the federation's own authority"),
        _fact(
            "security.egress",
            {
                "tensors": "the generator's travelling state, in each of 6 rounds",
                "statistics": {"label_histogram": "Gaussian release"},
                "values": ["epsilon", "round"],
                "refused": ["accuracy", "loss"],
            },
        ),
        _fact("plan.digest", plan.digest()),
        _fact("plan.settings", plan.model_dump(mode="json")),
    ]


def _data(sites: Sequence[str]) -> list[Fact]:
    facts = [
        _fact("data.classes", CLASSES),
        _fact("data.shape", {"size": 64, "channels": 1, "with_mask": True}),
        _fact(
            "data.minimisation",
            {"kept": ["pixels, 64 x 64, grey", "class"], "dropped": ["file names and folders"]},
        ),
        _fact("data.partition", {"kind": "sources", "holdout": 0.25}),
        _fact(
            "data.licence",
            "CC BY 4.0, Kermany, Zhang and Goldbaum 2018",
            detail={"source": "cxr_site_a"},
        ),
        _fact(
            "data.intake",
            {
                "offered": 5863,
                "accepted": 5856,
                "set_aside": {"constant image": 4, "unreadable": 3},
                "duplicates": {"groups": 32, "images": 65, "across_patients": 2},
            },
            "site-local",
            detail={"source": "cxr_site_a"},
        ),
    ]
    facts.append(
        _fact(
            "data.label_shares",
            {"normal": 0.31, "pneumonia": 0.69},
            "released",
            detail={"noise": 8.0},
        )
    )
    for i, site in enumerate(sites):
        split = {
            "train_patients": 1204 + i,
            "train_images": 2310 + 7 * i,
            "holdout_patients": 301 + i,
            "holdout_images": 588 + i,
            "train_per_class": {"normal": 611 + i, "pneumonia": 1699 + i},
            "holdout_per_class": {"normal": 160 + i, "pneumonia": 428 + i},
        }
        facts += [
            _fact(
                "data.source",
                {"name": "cxr_site_a", "kind": "npz", "path": "cxr_site_a/images.npz"},
                site=site,
            ),
            _fact("data.split", split, "site-local", site=site),
        ]
    shift = {"simulated": True, "gamma": 1.12, "blur": 0.4, "noise": 0.01, "border_text": "L"}
    return [*facts, _fact("data.scanner_shift", shift, site=sites[-1])]


def _privacy(
    sites: Sequence[str], rounds: int, epsilon: float, unit: str, noise: dict[str, str]
) -> list[Fact]:
    private = math.isfinite(epsilon)
    facts = [
        _fact("privacy.unit", unit),
        _fact("privacy.delta", 1e-5),
        _fact(
            "privacy.trust_model",
            {
                "name": "local",
                "meaning": "A patient trusts only the own hospital; every update that leaves it "
                "already carries the noise of the stated epsilon.",
            },
        ),
        _fact("privacy.adjacency", f"One {unit} is added or removed."),
        _fact("privacy.noise_source", noise),
    ]
    for i, site in enumerate(sites):
        rate, steps = 0.0531 + 0.0007 * i, 40 * rounds
        multiplier = 1.021 + 0.013 * i if private else 0.0
        facts.append(
            _fact(
                "privacy.site",
                {
                    "epsilon": epsilon - 0.0123 - 0.021 * i if private else "inf",
                    "target_epsilon": epsilon if private else "inf",
                    "budget_epsilon": 10.0 if private else "inf",
                    "delta": 1e-5,
                    "noise_multiplier": multiplier,
                    "sample_rate": rate,
                    "steps": steps,
                    "accountant": "prv",
                    "clip_norm": 1.0,
                    "max_images_per_patient": 4 if unit == "patient" else 1,
                    "denominator": 64,
                    "ledger_head": f"{i + 1:064x}",
                    "history": [
                        {"noise_multiplier": multiplier, "sample_rate": rate, "steps": steps}
                    ],
                },
                site=site,
            )
        )
        for r in range(1, rounds + 1):
            spent = (epsilon - 0.0123 - 0.021 * i) * (r / rounds) ** 0.6 if private else "inf"
            facts.append(_fact("privacy.epsilon", spent, site=site, round=r))
    return facts


def _release(sites: Sequence[str], epsilon: float) -> Fact:
    """A release before the first round, summed under masks."""
    private = math.isfinite(epsilon)
    value = {
        "kind": "embedding",
        "trust_model": "secure-aggregation",
        "meaning": "A patient trusts the own hospital, and that few enough of the others conspire.",
        "sites": list(sites),
        "attempts": 2,
        "size": 4200,
        "noise_multiplier": 3.731 if private else 0.0,
        "sigma": 4.571 if private else 0.0,
        "noise_shares": dict.fromkeys(sites, 2.639 if private else 0.0),
        "epsilon": 0.17 * epsilon if private else "inf",
        "epsilon_if_all_others_collude": 0.26 * epsilon if private else "inf",
        "bytes_up": 100_800,
        "messages": 2 * len(sites),
        "seconds": 1.84,
        "learning_seconds": 91.7,
    }
    return _fact("release.embedding", value)


def _training(sites: Sequence[str], rounds: int, family: str) -> list[Fact]:
    facts = [
        _fact(
            "generator.summary",
            {
                "family": family,
                "parameters": 412_833,
                "private_parameters": 398_112,
                "travelling": ["decoder.0.weight", "decoder.0.bias"],
                "bytes": 1_651_332,
            },
        ),
        _fact(
            "pretraining.public",
            {"sha256": None, "public_data": None, "tune": "all", "rank": None},
        ),
        _fact(
            "training.warning",
            "The images of one class resemble each other: diversity 0.08 is below 0.10.",
            "released",
            round=2,
        ),
        _fact(
            "federation.failure",
            {"code": "timeout", "reason": "No reply within 3600 s."},
            site=sites[-1],
            round=2,
        ),
    ]
    for r in range(1, rounds + 1):
        present = [s for s in sites if (s, r) != (sites[-1], 2)]
        facts += [
            _fact(
                "training.loss",
                612.0 - 31.7 * r + 8.3 * i,
                "site-local",
                site=site,
                round=r,
                detail={"loss": "negative ELBO, nats per image"},
            )
            for i, site in enumerate(present)
        ]
        facts += [
            _fact(
                "training.health",
                {"pixel_spread": 0.11 + 0.004 * r, "pairwise_distance": 3.1 + 0.2 * r},
                "released",
                round=r,
            ),
            _fact(
                "federation.round",
                {
                    "replies": present,
                    "seconds": 237.1 + r,
                    "bytes_down": 1_651_332 * len(sites),
                    "bytes_up": 1_651_332 * len(present),
                },
                round=r,
            ),
        ]
    return facts


def _quality(sites: Sequence[str], family: str) -> list[Fact]:
    facts = []
    for i, site in enumerate([None, *sites]):
        n = {"n_real": 1767 if site is None else 588 + i, "n_synthetic": 2000}
        for j, encoder in enumerate(ENCODERS):
            for name, (better, value, floor) in METRICS.items():
                detail = {
                    **n,
                    "encoder": encoder,
                    "encoder_sha256": "ab12" * 16,
                    "floor": floor * (1 + 0.3 * j),
                    "better": better,
                }
                facts.append(
                    _fact(
                        f"quality.{name}",
                        value * (1 + 0.05 * i + 0.21 * j),
                        "site-local",
                        site=site,
                        detail=detail,
                    )
                )
        own = {**n, "encoder_sha256": "cd34" * 16, "better": "higher"}
        facts += [
            _fact(
                "quality.ms_ssim_diversity",
                0.412 + 0.01 * i,
                "site-local",
                site=site,
                detail={**own, "encoder": "pixels", "floor": 0.561},
            ),
            _fact(
                "quality.inception_score",
                1.62 + 0.01 * i,
                "site-local",
                site=site,
                detail={
                    **own,
                    "encoder": "classifier-chest",
                    "floor": None,
                    "interval": [1.55, 1.71],
                },
            ),
        ]
        if family == "vae":
            error = {"ssim": 0.587, "psnr": 19.83, "mse": 0.0104, "mae": 0.0733}
            bound = {"reconstruction_loss": 401.2, "kl": 18.63}
            facts += [
                _fact(
                    "quality.reconstruction",
                    error,
                    "site-local",
                    site=site,
                    detail={"n_real": n["n_real"]},
                ),
                _fact(
                    "quality.elbo", bound, "site-local", site=site, detail={"n_real": n["n_real"]}
                ),
            ]
    return facts


def _utility(sites: Sequence[str]) -> list[Fact]:
    facts = []
    for i, site in enumerate([None, *sites]):
        for trained_on, score in {"synthetic": 0.703, "real": 0.871, "both": 0.882}.items():
            value = score - 0.011 * i
            facts.append(
                _fact(
                    "utility.classification",
                    {
                        "balanced_accuracy": value,
                        "accuracy": value + 0.02,
                        "auc": value + 0.05,
                        "per_class": {"normal": value - 0.03, "pneumonia": value + 0.03},
                    },
                    "site-local",
                    site=site,
                    detail={
                        "trained_on": trained_on,
                        "interval": [value - 0.034, value + 0.028],
                        "seeds": 3,
                        "n_train": 2000,
                        "n_test": 1767 if site is None else 588 + i,
                        "test_patients": 904 if site is None else 301 + i,
                        "classifier": "small convolutional network",
                    },
                )
            )
    return facts


def _segmentation(sites: Sequence[str]) -> list[Fact]:
    facts = []
    for i, site in enumerate([None, *sites]):
        for trained_on, score in {
            "synthetic": 0.612,
            "real": 0.851,
            "both": 0.853,
            "second observer": 0.781,
        }.items():
            value, real = score - 0.013 * i, 0.851 - 0.013 * i
            ratio = value / real
            facts.append(
                _fact(
                    "utility.segmentation",
                    {
                        "dice": value,
                        "dice_nonempty": value - 0.02,
                        "ratio_to_real": ratio,
                        "surface_distance": 2.5 - value,
                        "hausdorff_95": 9.5 - value,
                    },
                    "site-local",
                    site=site,
                    detail={
                        "trained_on": trained_on,
                        "interval": [value - 0.021, value + 0.019],
                        "ratio_interval": [ratio - 0.03, ratio + 0.02],
                        "surface_interval": [2.1 - value, 2.8 - value],
                        "hausdorff_interval": [8.1 - value, 10.8 - value],
                        "distance_unit": "pixels",
                        "missed": 0.021,
                        "seeds": 3,
                        "n_train": 2000,
                        "n_test": 1767 if site is None else 588 + i,
                        "n_nonempty": 900 if site is None else 300 + i,
                        "test_patients": 904 if site is None else 301 + i,
                        "segmenter": "a second observer"
                        if trained_on == "second observer"
                        else "small U-Net",
                        "per_class": {"normal": value + 0.03, "pneumonia": value - 0.03},
                    },
                )
            )
    return facts


def _tasks() -> list[Fact]:
    """Anomaly detection, and classifiers on shares of the real patients."""
    facts = []
    for trained_on, value in {"synthetic": 0.713, "real": 0.804, "both": 0.797}.items():
        detail = {
            "trained_on": trained_on,
            "interval": [value - 0.041, value + 0.037],
            "seeds": 3,
            "n_train": 1000,
            "n_normal": 480,
            "n_other": 1287,
            "test_patients": 904,
            "normal": "normal",
            "detector": "mean distance to 5 nearest normal images",
        }
        score = {"auroc": value, "per_class": {"pneumonia": value}}
        facts.append(_fact("utility.anomaly", score, "site-local", detail=detail))
    for share in (0.05, 0.1, 0.25, 1.0):
        for trained_on in ("real", "both"):
            value, helped = 0.86 - 0.05 / share**0.5, trained_on == "both"
            gain = 0.02 / share**0.5
            detail = {
                "share": share,
                "trained_on": trained_on,
                "interval": [value - 0.03 + gain * helped, value + 0.04 + gain * helped],
                "gain_interval": [gain - 0.03, gain + 0.03] if helped else None,
                "seeds": 3,
                "n_real": [int(6000 * share), int(6100 * share)],
                "train_patients": [int(3600 * share)] * 2,
                "of_patients": 3600,
                "n_synthetic": 6000 if helped else 0,
                "n_test": 1767,
                "test_patients": 904,
                "classifier": "small convolutional network",
            }
            score = {"balanced_accuracy": value + gain * helped, "gain": gain if helped else None}
            facts.append(_fact("utility.augmentation", score, "site-local", detail=detail))
    return facts


def _fairness(sites: Sequence[str]) -> list[Fact]:
    """Groups by class, site, sex and age, the oldest too few to show."""
    groups = [("class", name) for name in CLASSES] + [("site", name) for name in sites]
    groups += [
        ("sex", "female"),
        ("sex", "male"),
        ("age", "0-17"),
        ("age", "18-39"),
        ("age", "65+"),
    ]
    facts = []
    for i, (dimension, group) in enumerate(groups):
        hidden = group == "65+"
        for trained_on, score in {"synthetic": 0.703, "real": 0.871, "both": 0.882}.items():
            value = score - 0.007 * (i % 9)
            gap = score - 0.871
            margin = 0.0 if trained_on == "real" else 0.02  # its own gap is 0
            detail: dict[str, Any] = {
                "dimension": dimension,
                "group": group,
                "trained_on": trained_on,
                "measure": "recall" if dimension == "class" else "balanced accuracy",
                "interval": None if hidden else [value - 0.04, value + 0.03],
                "gap_interval": None if hidden else [gap - margin, gap + margin],
                "seeds": 3,
                "n_test": None if hidden else 588 + i,
                "test_patients": None if hidden else 301 + i,
                "classes": None if hidden else 2,
                "smallest": hidden or (dimension, group) in (("sex", "male"), ("class", "normal")),
                "suppressed": "fewer than 10 patients" if hidden else None,
            }
            value_ = {"score": None if hidden else value, "gap_to_real": None if hidden else gap}
            facts.append(_fact("fairness.group", value_, "site-local", detail=detail))
    return facts


def _membership(sites: Sequence[str]) -> list[Fact]:
    facts = []
    for i, site in enumerate(sites):
        for j, attack in enumerate(("distance", "calibrated distance")):
            auc = 0.504 + 0.009 * i + 0.004 * j
            resolvable = i == 0
            facts.append(
                _fact(
                    "membership.attack",
                    {
                        "attack": attack,
                        "auc": auc,
                        "auc_interval": [auc - 0.031, auc + 0.033],
                        "tpr_at_1pct_fpr": 0.0133 if resolvable else "not resolvable",
                        "tpr_interval": [0.0036, 0.0338] if resolvable else "not resolvable",
                        "baseline_auc": 0.496,
                        "baseline_interval": [0.463, 0.529],
                        "control_auc": 0.501,
                        "control_interval": [0.467, 0.535],
                        "verdict": "attack not found",
                        "power": "would have found an AUC of 0.55 or more 9 times in 10",
                    },
                    "site-local",
                    site=site,
                    detail={
                        "n_members": 301,
                        "n_nonmembers": 301 if resolvable else 250,
                        "n_synthetic": 2000,
                        "encoder": ENCODERS[0],
                        "encoder_sha256": "ab12" * 16,
                    },
                )
            )
    return facts


def variants() -> dict[str, list[Fact]]:
    """Runs that a report must survive, by name."""
    many = [f"hospital-{i}" for i in range(1, 33)]
    whole = run_facts()
    long = "Universitätsklinikum der Stadt mit dem sehr langen Namen & Söhne <Radiologie> $1 "
    training = ("run.", "plan.", "data.", "privacy.", "training.", "generator.", "federation.")
    holes = [
        f for f in whole if not (f.name in ("privacy.epsilon", "training.loss") and f.round == 4)
    ]
    return {
        "whole": whole,
        "simulation-noise": run_facts(noise=SEEDED),
        "no-privacy": run_facts(epsilon=math.inf),
        "image-unit": run_facts(unit="image", noise=SEEDED),
        "gan": run_facts(family="gan"),
        "many-sites": run_facts(sites=many, rounds=20),
        "one-site": run_facts(sites=["only"], rounds=1),
        "long-names": run_facts(sites=[long + "Nord", long + "Süd", "_北京医院"]),
        "training-only": [f for f in whole if f.name.startswith(training)],
        "missing-rounds": holes,
        "missing-privacy": [f for f in whole if not f.name.startswith("privacy.")],
        "nothing": [],
    }


def write_samples(run_dir: Path) -> None:
    """Sample grids that the facts name: blobs in noise, from a fixed seed."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    lungs = np.exp(-((np.abs(x) - 0.45) ** 2 / 0.06 + y**2 / 0.3))
    images = 0.75 - 0.5 * lungs + rng.normal(0, 0.03, (12, 1, 32, 32))
    spots = np.stack(
        [(x - a) ** 2 + (y - b) ** 2 < 0.04 for a, b in rng.uniform(-0.5, 0.5, (12, 2))]
    )
    spots[:6] = False
    images = np.clip(images + 0.3 * spots[:, None], 0, 1)
    write_grid(images, CLASSES, run_dir / "samples/synthetic.png", "Synthetic")
    write_grid(images, CLASSES, run_dir / "samples/phantom.png", "Phantom", masks=spots)
    look = GridLook(headings=("-3", "0", "+3"))
    write_grid(images[:6], CLASSES, run_dir / "samples/traversal-1.png", "Direction", look=look)


def comparison_facts() -> list[Fact]:
    """A comparison of two families at three budgets, with one number missing."""
    rows = []
    for i, family in enumerate(("vae", "gan")):
        for j, epsilon in enumerate((8.0, "inf", 1.0)):
            loss = (0.0, -1.0, 1.0)[j]
            row = {
                "generator": family,
                "family": family,
                "epsilon": epsilon,
                "seed": 7,
                "epsilon_spent": epsilon if epsilon == "inf" else 0.99 * float(epsilon),
                "frechet_radiomics": 14.2 + 3.1 * loss + i,
                "kid_radiomics": 0.0412 + 0.008 * loss,
                "precision_radiomics": 0.613 - 0.07 * loss,
                "recall_radiomics": 0.287 - 0.06 * loss + 0.05 * i,
                "ms_ssim_diversity": 0.412 + 0.02 * loss - 0.1 * i,
                "utility_synthetic_balanced_accuracy": 0.703 - 0.06 * loss,
                "utility_synthetic_balanced_accuracy_interval": [
                    0.67 - 0.06 * loss,
                    0.74 - 0.06 * loss,
                ],
                "utility_real_balanced_accuracy": 0.871,
                "membership_auc": 0.52 - 0.03 * loss,
                "membership_auc_interval": [0.49 - 0.03 * loss, 0.55 - 0.03 * loss],
                "membership_tpr_at_1pct_fpr": 0.0133,
                "seconds": 640.5 + 120 * i,
                "peak_memory_bytes": 1_873_412_096 + 10**8 * i,
                "report": f"{family}-{epsilon}/report.html",
            }
            if (family, epsilon) == ("gan", 1.0):
                del row["membership_auc"]
            rows.append(_fact("compare.row", row, "site-local"))
    together = {"epsilon": 13.37, "site": "site-a", "runs": 4, "unit": "patient"}
    return [*_course(6), *rows, _fact("compare.together", together)]
