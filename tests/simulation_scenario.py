"""A federation small enough for tests: two or three hospitals with a few drawn patients."""

from __future__ import annotations

from pathlib import Path

TINY = """
name = "tiny"
title = "Small hospitals for tests"
seed = 5

[data]
holdout_share = 0.3

[[data.sources]]
kind = "phantom"
name = "drawn"
patients = {patients}
images_per_patient = [1, 2]
seed = 3

[partition]
kind = "iid"
min_patients = 3
{sites}

[generator]
family = "vae"
size = 28
latent_dim = 4
width = 8

[training]
rounds = 2
steps_per_round = 3
patients_per_step = 6
physical_batch = 64
device = "cpu"

[privacy]
epsilon = 2.0
delta = 1e-3
accountant = "rdp"
max_images_per_patient = 2

[federation]
min_sites = 2

[evaluation]
synthetic_images = 24
max_images = 24
diversity_pairs = 6
encoder_steps = 2
classifier_steps = 3
classifier_batch = 16
segmenter_steps = 2
segmenter_batch = 4
utility_seeds = 1
bootstrap = 20
"""

_SITE = """
[[partition.sites]]
name = "{name}"
nominal_patients = 120
"""


def write_tiny(folder: Path, sites: int = 2, patients: int = 18) -> Path:
    """Write the scenario, with so many patients a site, as ``tiny.toml`` and return its path."""
    names = ("alpha", "beta", "gamma", "delta")[:sites]
    text = TINY.replace("{patients}", str(patients * sites))
    text = text.replace("{sites}", "".join(_SITE.format(name=name) for name in names))
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path
