"""The canary audit lets the right code pass and catches each way of breaking its promise.

Every mutant changes the running code the way the bug would look. All else is the whole
pipeline: draw, clip, noise, ledger, egress, messages, average. Alpha is 0.001, and the power
against half the noise is above 99 %, so that neither answer is luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from canary_scenario import small_scenario

from synth_client.site import Site
from synth_common.audit.canaries import AuditResult
from synth_common.images.imageset import ImageSet
from synth_common.privacy import accounting, training
from synth_common.privacy.accounting import Use
from synth_common.privacy.gradients import PatientGradients, Rows
from synth_common.privacy.optimiser import PatientOptimiser
from synth_common.privacy.sampling import PatientSampler
from synth_sim.canaries import AuditOptions, audit_scenario

Patch = pytest.MonkeyPatch
FAMILIES = pytest.mark.parametrize("family", ["vae", "gan"])
_IMAGES = 3


def _audit(folder: Path, family: str, canaries: int, images: int = 1) -> AuditResult:
    scenario = small_scenario(
        folder, f"generator.family={family}", f"privacy.max_images_per_patient={images}"
    )
    options = AuditOptions(folder / "audit", canaries=canaries, alpha=0.001)
    return audit_scenario(scenario, options).result


@FAMILIES
def test_the_code_as_it_is_passes_close_to_detection(tmp_path: Path, family: str) -> None:
    result = _audit(tmp_path, family, 2000)
    assert result.verdict == "claim not refuted"
    assert 7.5 < result.claim.epsilon <= 8.0
    assert result.cp_gdp > 0.35 * result.claim.epsilon
    assert result.power.half_noise > 0.99
    assert result.power.detectable_epsilon < 2.5 * result.claim.epsilon


def _noise_times(factor: float) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        add_noise = PatientOptimiser.add_noise

        def weaker(self: PatientOptimiser) -> None:
            declared = self.noise_multiplier
            self.noise_multiplier = factor * declared
            add_noise(self)
            self.noise_multiplier = declared

        patch.setattr(PatientOptimiser, "add_noise", weaker)

    return apply


def _clip_off(patch: Patch) -> None:
    clipped_sum = PatientGradients.clipped_sum
    patch.setattr(
        PatientGradients,
        "clipped_sum",
        lambda self, loss, rows, clip: clipped_sum(self, loss, rows, math.inf),
    )


def _clip_per_image(patch: Patch) -> None:
    """The sum over a patient's images of clipped image gradients."""
    patch.setattr(training, "Rows", lambda counts: Rows((1,) * sum(counts)))


def _images_are_units(patch: Patch) -> None:
    """Every image is drawn and clipped on its own, as if it were a patient."""
    units = ImageSet.units
    patch.setattr(
        ImageSet,
        "units",
        lambda self: units(ImageSet(self.images, self.labels, self.class_names)),
    )


def _accountant_forgets_rounds(patch: Patch) -> None:
    """Each round is calibrated and charged as if it were the only one."""
    composed, per_round = accounting._epsilon, 6

    def alone(history: tuple[Use, ...], delta: float, accountant: str) -> float:
        cut = [Use(u.noise_multiplier, u.sample_rate, min(u.steps, per_round)) for u in history]
        return composed(tuple(cut), delta, accountant)

    patch.setattr(accounting, "_epsilon", alone)


def _rate_by_images(patch: Patch) -> None:
    """The declared number counts images; patients are drawn more often than that says."""
    declared, build = Site.sample_rate, PatientSampler.__init__
    patch.setattr(Site, "sample_rate", lambda self, plan: declared(self, plan) / _IMAGES)

    def more_often(self, units, sample_rate, most, noise) -> None:
        build(self, units, _IMAGES * sample_rate, most, noise)

    patch.setattr(PatientSampler, "__init__", more_often)


@FAMILIES
@pytest.mark.parametrize(
    ("mutant", "canaries", "images"),
    [
        pytest.param(_noise_times(0.0), 400, 1, id="noise off"),
        pytest.param(_noise_times(0.5), 2000, 1, id="half the noise"),
        pytest.param(_clip_off, 400, 1, id="clip off"),
        pytest.param(_accountant_forgets_rounds, 1500, 1, id="accountant reset each round"),
        pytest.param(_clip_per_image, 400, _IMAGES, id="each image clipped on its own"),
        pytest.param(_images_are_units, 400, _IMAGES, id="each image drawn on its own"),
        pytest.param(_rate_by_images, 1200, 1, id="rate charged by images"),
    ],
)
def test_each_mutant_is_caught(
    tmp_path: Path,
    monkeypatch: Patch,
    family: str,
    mutant: Callable[[Patch], None],
    canaries: int,
    images: int,
) -> None:
    mutant(monkeypatch)
    result = _audit(tmp_path, family, canaries, images)
    assert result.verdict == "claim refuted", result
    assert result.claim.epsilon <= 8.0
