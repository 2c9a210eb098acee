"""The values that each part of a report must have; one that lacks prints NOT RECORDED."""

from __future__ import annotations

from typing import Final

RUN: Final = (
    "id",
    "command",
    "seed",
    "engine",
    "simulation",
    "started",
    "finished",
    "peak_memory_bytes",
    "weights",
)
ENERGY: Final = ("cpu_joules", "gpu_joules", "method", "covers", "seconds")
PHASES: Final = ("data", "training", "evaluation", "total")
PRIVACY_SITE: Final = (
    "epsilon",
    "target_epsilon",
    "budget_epsilon",
    "delta",
    "noise_multiplier",
    "sample_rate",
    "steps",
    "accountant",
    "clip_norm",
    "max_images_per_patient",
    "denominator",
    "ledger_head",
    "history",
)
RELEASE: Final = (
    "kind",
    "trust_model",
    "meaning",
    "sites",
    "attempts",
    "size",
    "noise_multiplier",
    "sigma",
    "noise_shares",
    "epsilon",
    "epsilon_if_all_others_collude",
    "bytes_up",
    "messages",
    "seconds",
    "learning_seconds",
)
SPLIT: Final = (
    "train_patients",
    "train_images",
    "holdout_patients",
    "holdout_images",
    "train_per_class",
    "holdout_per_class",
)
METRICS: Final = (
    "quality.frechet",
    "quality.kid",
    "quality.precision",
    "quality.recall",
    "quality.density",
    "quality.coverage",
    "quality.ms_ssim_diversity",
    "quality.inception_score",
)
METRIC_DETAIL: Final = ("n_real", "n_synthetic", "encoder", "encoder_sha256", "floor", "better")
UTILITY: Final = ("balanced_accuracy", "accuracy", "auc", "per_class")
UTILITY_DETAIL: Final = (
    "trained_on",
    "interval",
    "seeds",
    "n_train",
    "n_test",
    "test_patients",
    "classifier",
)
SEGMENTATION: Final = (
    "dice",
    "dice_nonempty",
    "ratio_to_real",
    "surface_distance",
    "hausdorff_95",
    "surface_distance_mm",
    "hausdorff_95_mm",
)
SEGMENTATION_DETAIL: Final = (
    "trained_on",
    "interval",
    "ratio_interval",
    "surface_interval",
    "hausdorff_interval",
    "distance_unit",
    "surface_mm_interval",
    "hausdorff_mm_interval",
    "pixel_mm",
    "missed",
    "seeds",
    "n_train",
    "n_test",
    "n_nonempty",
    "test_patients",
    "segmenter",
    "per_class",
)
ANOMALY: Final = ("auroc", "per_class")
ANOMALY_DETAIL: Final = (
    "trained_on",
    "interval",
    "seeds",
    "n_train",
    "n_normal",
    "n_other",
    "test_patients",
    "normal",
    "detector",
)
AUGMENTATION: Final = ("balanced_accuracy", "gain")
AUGMENTATION_DETAIL: Final = (
    "share",
    "trained_on",
    "interval",
    "gain_interval",
    "seeds",
    "n_real",
    "train_patients",
    "of_patients",
    "n_synthetic",
    "n_test",
    "test_patients",
    "classifier",
)
FAIRNESS: Final = ("score", "gap_to_real")
FAIRNESS_DETAIL: Final = (
    "dimension",
    "group",
    "trained_on",
    "measure",
    "interval",
    "gap_interval",
    "seeds",
    "n_test",
    "test_patients",
    "classes",
    "smallest",
    "suppressed",
)
ATTACK: Final = (
    "attack",
    "auc",
    "auc_interval",
    "tpr_at_1pct_fpr",
    "tpr_interval",
    "baseline_auc",
    "baseline_interval",
    "control_auc",
    "control_interval",
    "verdict",
    "power",
)
ATTACK_DETAIL: Final = ("n_members", "n_nonmembers", "n_synthetic", "encoder", "encoder_sha256")
GENERATOR: Final = ("family", "parameters", "private_parameters", "travelling", "bytes")
PRETRAINING: Final = ("public_data", "sha256", "tune", "rank")
INTAKE: Final = ("offered", "accepted", "set_aside", "duplicates")
ROUND: Final = ("replies", "seconds", "bytes_down", "bytes_up")
RECONSTRUCTION: Final = ("ssim", "psnr", "mse", "mae")
TRAVERSAL: Final = (
    "direction",
    "share",
    "change",
    "caption",
    "rows",
    "columns",
    "positions",
)
ELBO: Final = ("reconstruction_loss", "kl")
