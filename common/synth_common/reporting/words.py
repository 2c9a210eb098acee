"""What the page calls things: metrics, families, trained-on, and the glossary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FAMILIES: Final[Mapping[str, str]] = {
    "vae": "variational autoencoder (VAE)",
    "gan": "generative adversarial network (GAN)",
    "embedding": "model of class means and covariances (embedding)",
}

TRAINED_ON: Final[Mapping[str, str]] = {
    "real": "Trained on real",
    "synthetic": "Trained on synthetic",
    "both": "Trained on both",
    "second observer": "Second observer",
}

AUC_SERIES: Final = (
    ("Attack", "auc", "auc_interval"),
    ("Blind baseline", "baseline_auc", "baseline_interval"),
    ("Control", "control_auc", "control_interval"),
)
"""What stands side by side of a membership attack: its name, and the fields of AUC and interval."""

METRICS: Final[Mapping[str, tuple[str, str]]] = {
    "frechet": (
        "Fréchet distance",
        "How far the synthetic images as a whole lie from the real ones.",
    ),
    "kid": (
        "Kernel distance (KID)",
        "The same question by another statistic, fairer to small samples.",
    ),
    "precision": ("Precision", "Share of synthetic images that look like some real image."),
    "recall": ("Recall", "Share of real images that some synthetic image looks like."),
    "density": ("Density", "How densely real images surround the synthetic ones."),
    "coverage": ("Coverage", "Share of real images with a synthetic image nearby."),
    "ms_ssim_diversity": (
        "MS-SSIM diversity",
        "1 − MS-SSIM: how different two synthetic images of one class are.",
    ),
    "inception_score": (
        "Inception Score",
        "How clearly and how evenly a classifier sees the classes.",
    ),
}


def metric_title(name: str) -> str:
    """A metric's name as printed."""
    return METRICS[name][0] if name in METRICS else name.replace("_", " ")


GLOSSARY: Final[Mapping[str, str]] = {
    "Synthetic image": "A picture that a trained generator drew. It is nobody's X-ray, but it was "
    "learnt from real patients, so it can still say something about them.",
    "Differential privacy": "A mathematical promise: whether or not any one patient took part, the "
    "released results are almost equally likely. Random noise added in training keeps the promise.",
    "Epsilon (ε)": "How much 'almost' allows, per unit. Smaller is safer; infinity means no "
    "promise. It is a worst-case ceiling, not a measured risk. With delta 0.00001, an attacker who "
    "wrongly accuses 1 % of outsiders can find at most 2.7 % of patients at epsilon 1, 7.4 % at 2, "
    "54.6 % at 4, and nearly all of them at 8 (at most e^ε · 1 % + δ, for small ε).",
    "Delta (δ)": "A small probability that the epsilon ceiling does not hold. It should be well "
    "below one divided by the number of patients.",
    "Unit: patient or image": "Whose presence the promise hides. Per patient covers all images of "
    "a patient together; per image covers only one picture at a time.",
    "Noise multiplier": "How much noise each training step adds, relative to the largest "
    "influence one patient may have on that step.",
    "Sampling rate": "The chance that a patient takes part in one training step.",
    "Accountant and ledger": "The accountant adds up epsilon over all steps; the ledger, kept at "
    "the hospital, records each one and refuses steps beyond the budget.",
    "Trust model": "Whom a patient must trust. Local: only the patient's own hospital, because "
    "noise is added before anything leaves it. Secure aggregation: for a vector that is sent once, "
    "also that not too many hospitals conspire with the coordinator. Each vector is hidden under "
    "masks that cancel in the sum, and the noise of all hospitals together keeps the promise.",
    "Release": "One message of every hospital before any training round: a noisy sum of fixed "
    "features over its patients. What is learnt from it later costs no more privacy.",
    "Floor (real v real)": "The same metric computed between two halves of the real images: what a "
    "perfect generator would reach.",
    "Encoder": "The program that turns images into numbers before they are compared. Scores from "
    "different encoders cannot be compared with each other.",
    "Balanced accuracy": "Share of correct answers, averaged over the classes so that a common "
    "class does not dominate. With two classes, guessing gives 0.5.",
    "Second observer": "Another person who drew the same structures. How far two people agree is "
    "what a segmenter can sensibly be asked for.",
    "Surface distance": "How far, on average, the outline that was found lies from the real one, "
    "in pixels. The 95 % Hausdorff distance is what 95 % of the outline stay within.",
    "AUROC": "Chance that a picture with a finding gets a higher anomaly score than a normal one. "
    "0.5 is guessing, 1 is perfect.",
    "Membership attack": "A test that tries to tell from the synthetic images who was in the "
    "training data. An AUC of 0.5 is guessing and 1 finds everyone.",
    "Baseline and control": "The blind baseline attacks without seeing synthetic images, and the "
    "control compares members with members. Both should stay near 0.5; if not, the attack's AUC "
    "says less about the generator.",
    "TPR at 1 % FPR": "Share of true members found when only 1 in 100 outsiders may be wrongly "
    "accused. It shows whether a few patients are exposed even if most are not.",
    "Hold-out": "Patients kept out of training, used to test the result.",
    "Site-local": "A figure computed from patients without a privacy charge. In a real federation "
    "it stays inside the hospital.",
}
