"""Simulated scanner character: each setting does what it says, and says it is simulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from synth_common.errors import ConfigError
from synth_common.images.imageset import ImageSet
from synth_common.images.phantom import PhantomSource
from synth_common.images.preprocess import Target
from synth_common.images.sources import load_source
from synth_common.validation import validate
from synth_sim.scanner import Scanner, apply


@pytest.fixture(scope="module")
def images() -> ImageSet:
    target = Target(size=64, channels=1, classes=("normal", "lesion"), with_mask=True)
    return load_source(PhantomSource(patients=5), target, None).images


def _scanner(**values: Any) -> Scanner:
    return validate(Scanner, values, "scanner")


def test_the_neutral_scanner_changes_nothing(images: ImageSet) -> None:
    np.testing.assert_array_equal(apply(Scanner(), images, 0).images, images.images)


@pytest.mark.parametrize(
    "values",
    [{"gamma": 2.5}, {"blur": 1.5}, {"noise": 0.1}, {"window": (-0.3, 1.4)}, {"border_text": True}],
)
def test_only_pixels_change_and_they_stay_in_range(images: ImageSet, values: Any) -> None:
    shifted = apply(_scanner(**values), images, 1)
    assert shifted.images.dtype == np.float32
    assert not np.array_equal(shifted.images, images.images)
    np.testing.assert_array_equal(shifted.labels, images.labels)
    np.testing.assert_array_equal(shifted.masks, images.masks)
    np.testing.assert_array_equal(shifted.patient_ids, images.patient_ids)


def test_gamma_and_window_follow_their_formulas(images: ImageSet) -> None:
    shown = apply(_scanner(gamma=2.0, window=(0.2, 0.7)), images, 0).images
    np.testing.assert_allclose(shown, np.clip((images.images - 0.2) / 0.5, 0, 1) ** 2, atol=1e-5)


def test_blur_spreads_a_point_by_its_sigma_and_not_across_images(images: ImageSet) -> None:
    point = np.zeros((2, 1, 65, 65), dtype=np.float32)
    point[0, 0, 32, 32] = 1.0
    dots = ImageSet(images=point, labels=np.zeros(2, dtype=np.int64), class_names=("a",))
    out = apply(_scanner(blur=2.0), dots, 0).images
    assert out[1].max() == 0.0
    x = np.arange(65) - 32
    assert np.sqrt((out[0, 0].sum(axis=0) * x**2).sum()) == pytest.approx(2.0, rel=0.03)


def test_noise_has_its_standard_deviation_and_its_seed() -> None:
    grey = ImageSet(
        images=np.full((20, 1, 64, 64), 0.5, dtype=np.float32),
        labels=np.zeros(20, dtype=np.int64),
        class_names=("a",),
    )
    one, same, other = (apply(_scanner(noise=0.05), grey, s).images for s in (1, 1, 2))
    assert one.std() == pytest.approx(0.05, rel=0.02)
    np.testing.assert_array_equal(one, same)
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.02
    assert np.corrcoef(one[0].ravel(), one[1].ravel())[0, 1] < 0.1


def test_text_is_the_same_on_every_image_and_other_at_another_site(images: ImageSet) -> None:
    one = apply(_scanner(border_text=True), images, 1).images
    other = apply(_scanner(border_text=True), images, 2).images
    changed = one != images.images
    assert changed.any(axis=(1, 2, 3)).all()
    assert (one[changed] == 1.0).all()
    assert not changed[:, :, 8:].any()  # a corner of the image, nothing else
    assert not changed[:, :, :, 24:].any()
    assert not np.array_equal(one, other)


def test_the_fact_says_simulated() -> None:
    fact = _scanner(gamma=1.3, window=(0.1, 0.9)).as_fact_value()
    assert fact == {
        "simulated": True,
        "window": [0.1, 0.9],
        "gamma": 1.3,
        "blur": 0.0,
        "noise": 0.0,
        "border_text": False,
    }


@pytest.mark.parametrize(
    "values",
    [
        {"gamma": 0},
        {"blur": -1},
        {"noise": 2},
        {"window": (0.6, 0.5)},
        {"window": (0.5,)},
        {"tint": 1},
    ],
)
def test_impossible_characters_are_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        _scanner(**values)
