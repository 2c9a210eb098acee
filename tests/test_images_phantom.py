"""Phantoms: what is said of them is true of the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, uniform_filter
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from synth_common.errors import ConfigError
from synth_common.images.imageset import ImageSet
from synth_common.images.phantom import PhantomSource, draw
from synth_common.images.preprocess import LUMA, Target
from synth_common.images.sources import load_source
from synth_common.validation import validate

LOOKS = ("radiograph", "ct", "mri", "histology")
look_of = pytest.mark.parametrize("look", LOOKS)


def _set(size: int = 32, channels: int = 1, with_mask: bool = True, **options: object) -> ImageSet:
    target = Target(size=size, channels=channels, classes=("normal", "lesion"), with_mask=with_mask)
    return load_source(validate(PhantomSource, options, "source"), target, None).images


@look_of
@pytest.mark.parametrize("size", [28, 64])
def test_shapes_and_ranges(look: str, size: int) -> None:
    image, mask = draw(look, True, 3, size)
    assert image.shape == ((size, size, 3) if look == "histology" else (size, size))
    assert image.dtype == np.float32
    assert 0.0 <= image.min() < 0.25
    assert 0.6 < image.max() <= 1.0
    assert mask.shape == (size, size)
    assert set(np.unique(mask)) == {0, 1}


@look_of
def test_the_mask_is_where_the_lesion_is(look: str) -> None:
    """The same seed without the lesion is the same picture but for the masked place."""
    for seed in range(5):
        sick, mask = draw(look, True, seed, 64)
        well, empty = draw(look, False, seed, 64)
        assert empty.sum() == 0
        change = np.abs(sick - well).reshape(64, 64, -1).mean(axis=2)
        # The swelling around an MRI tumour is wider than the others' soft edges.
        near = binary_dilation(mask, iterations=6 if look == "mri" else 4)
        assert change[~near].max() == 0.0
        assert change[mask == 1].mean() > 0.08
        assert (change[mask == 1] > 0.02).mean() > 0.75


@look_of
def test_an_image_does_not_depend_on_how_many_are_drawn(look: str) -> None:
    few = _set(look=look, patients=3, seed=5)
    many = _set(look=look, patients=6, seed=5)
    np.testing.assert_array_equal(few.images, many.images[: len(few)])
    np.testing.assert_array_equal(few.labels, many.labels[: len(few)])
    more_each = _set(look=look, patients=3, images_per_patient=(4, 4), seed=5)
    first = np.unique(few.units(), return_index=True)[1]
    np.testing.assert_array_equal(few.images[first], more_each.images[::4])


def test_another_seed_draws_other_people() -> None:
    one, same, other = (_set(patients=2, images_per_patient=(1, 1), seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.images, same.images)
    assert np.abs(one.images - other.images).mean() > 0.01


@look_of
def test_images_of_one_patient_are_alike_and_never_equal(look: str) -> None:
    images = _set(look=look, patients=6, images_per_patient=(2, 2), lesion_share=0.0, size=64)
    # Rough outlines: the pose differs by a pixel or two, the anatomy does not.
    flat = images.images.reshape(6, 2, 8, 8, 8, 8).mean(axis=(3, 5)).reshape(6, 2, -1)
    own = np.abs(flat[:, 0] - flat[:, 1]).mean()
    others = np.abs(flat[:, 0] - np.roll(flat[:, 1], 1, axis=0)).mean()
    assert 0.0 < own < others


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_lesion_share_patients_and_images(share: float) -> None:
    images = _set(patients=40, images_per_patient=(1, 3), lesion_share=share)
    assert images.unit_count() == 40
    counts = np.bincount(images.units())
    assert set(counts) == {1, 2, 3}
    sick = {str(p) for p in images.patient_ids[images.labels == 1]}
    assert len(sick) == round(40 * share)
    assert not sick & {str(p) for p in images.patient_ids[images.labels == 0]}
    assert images.masks is not None
    assert ((images.masks.sum(axis=(1, 2)) > 0) == (images.labels == 1)).all()


def test_channels_and_masks_follow_the_target() -> None:
    options = {"look": "histology", "patients": 2}
    colour, grey = _set(channels=3, **options), _set(channels=1, with_mask=False, **options)
    assert colour.images.shape[1:] == (3, 32, 32)
    np.testing.assert_allclose(
        grey.images[:, 0], np.moveaxis(colour.images, 1, 3) @ LUMA, atol=1e-6
    )
    assert grey.masks is None
    radiograph = _set(channels=3, patients=2)
    np.testing.assert_array_equal(radiograph.images[:, 0], radiograph.images[:, 2])


@look_of
def test_a_simple_classifier_sees_the_lesion_at_32_px(look: str) -> None:
    images = _set(look=look, patients=160, images_per_patient=(1, 1), with_mask=False)
    # Brightness by place, and the ranked brightness and contrast of 3 by 3 neighbourhoods.
    picture = images.images[:, 0]
    smooth = uniform_filter(picture, (0, 3, 3))
    contrast = uniform_filter(picture**2, (0, 3, 3)) - smooth**2
    ranked = [np.sort(f.reshape(160, -1), axis=1)[:, ::-8] for f in (smooth, contrast)]
    features = np.concatenate([smooth[:, ::4, ::4].reshape(160, -1), *ranked], axis=1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    model.fit(features[:100], images.labels[:100])
    assert model.score(features[100:], images.labels[100:]) > 0.8


def test_a_radiograph_has_dark_lungs_beside_a_bright_spine() -> None:
    pictures = np.stack([draw("radiograph", False, s, 64)[0] for s in range(8)]).mean(axis=0)
    lungs = (pictures[26:34, 16:22].mean() + pictures[26:34, 42:48].mean()) / 2
    assert pictures[26:34, 31:33].mean() > lungs + 0.25
    assert pictures[54:, 24:40].mean() > lungs + 0.25


def test_classes_must_fit() -> None:
    target = Target(size=32, channels=1, classes=("healthy", "ill"))
    with pytest.raises(ConfigError, match="label_map"):
        load_source(PhantomSource(patients=2), target, None)
    maps = {"normal": "healthy", "lesion": "ill"}
    images = load_source(PhantomSource(patients=2, label_map=maps), target, None).images
    assert images.class_names == ("healthy", "ill")
    with pytest.raises(ConfigError, match="fewest"):
        validate(PhantomSource, {"images_per_patient": (3, 1)}, "data")
