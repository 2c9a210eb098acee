"""A federation of one small hospital whose claim a thousand canaries can nearly reach."""

from __future__ import annotations

from pathlib import Path

from synth_sim.scenario import Scenario, load_scenario

SMALL = """
name = "small"
title = "One small hospital for audits"
seed = 3

[data]
holdout_share = 0.3

[[data.sources]]
kind = "phantom"
name = "drawn"
patients = 12
images_per_patient = [1, 2]
seed = 3

[partition]
kind = "iid"
min_patients = 3

[[partition.sites]]
name = "solo"
nominal_patients = 24

[generator]
family = "vae"
size = 28
latent_dim = 2
width = 8
fakes_per_step = 4

[training]
rounds = 8
steps_per_round = 6
patients_per_step = 12
physical_batch = 1024
schedule = "constant"
device = "cpu"

[privacy]
epsilon = 8.0
delta = 1e-5
accountant = "rdp"
max_images_per_patient = 2
spare_rounds = 0

[federation]
min_sites = 1
"""


def small_scenario(folder: Path, *overrides: str) -> Scenario:
    """The scenario with ``--set`` overrides applied."""
    path = folder / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return load_scenario(str(path), overrides)
