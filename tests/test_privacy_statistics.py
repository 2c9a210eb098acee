"""The label histogram: one patient, one vote, and noise of the declared scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from synth_common.images.imageset import ImageSet
from synth_common.privacy.statistics import label_histogram
from synth_common.randomness import SecureNoise, SimulationNoise

CLASSES = tuple(f"class-{i}" for i in range(400))


class _NoNoise(SimulationNoise):
    """Lets the exact sum through, to see what one patient moves."""

    def gaussian(self, shape):
        return torch.zeros(shape)


def _images(labels, patients=None) -> ImageSet:
    labels = np.asarray(labels, dtype=np.int64)
    ids = None if patients is None else np.asarray(patients, dtype=str)
    return ImageSet(np.zeros((len(labels), 1, 4, 4), np.float32), labels, CLASSES, ids)


def test_a_patient_counts_once_however_many_images_there_are():
    exact = label_histogram(
        _images([0, 0, 0, 1, 2, 2], ["a", "a", "a", "a", "b", "c"]), 400, 1.0, _NoNoise(0)
    )
    assert exact[:4].tolist() == [0.75, 0.25, 2.0, 0.0]
    by_image = label_histogram(_images([0, 0, 1]), 400, 1.0, _NoNoise(0))
    assert by_image[:2].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("labels", [[5], [5] * 9, [5, 6], list(range(9))])
def test_one_patient_moves_the_histogram_by_at_most_one(labels):
    others = ([0, 1, 2, 2], ["a", "b", "c", "c"])
    without = label_histogram(_images(*others), 400, 1.0, _NoNoise(0))
    more = _images([*others[0], *labels], [*others[1], *["new"] * len(labels)])
    moved = label_histogram(more, 400, 1.0, _NoNoise(0)) - without
    assert float(moved.norm()) <= 1.0 + 1e-6
    assert float(moved.abs().sum()) == pytest.approx(1.0)


def _passes(values: np.ndarray, scale: float) -> bool:
    """Whether values look like N(0, scale^2)."""
    return stats.kstest(values, "norm", args=(0, scale)).pvalue > 1e-3


@pytest.mark.parametrize("kind", [lambda i: SimulationNoise(i), lambda _: SecureNoise()])
def test_the_noise_of_a_release_has_the_declared_scale_and_no_other(kind):
    """Passes at the declared 5 patients; the same draws fail at 0.7 and 1.3 of it."""
    data, exact = _images([0, 1]), _images([0, 1])
    truth = label_histogram(exact, 400, 1.0, _NoNoise(0)).numpy()
    noise = np.concatenate(
        [label_histogram(data, 400, 5.0, kind(i)).numpy() - truth for i in range(20)]
    )
    assert _passes(noise, 5.0)
    assert not _passes(noise, 5.0 * 0.7)
    assert not _passes(noise, 5.0 * 1.3)


def test_an_audits_canaries_have_no_vote():
    mixed = _images([0, 1, 3, 3], ["a", "b", "canary", "canary"])
    assert label_histogram(mixed, 2, 1.0, _NoNoise(0)).tolist() == [1.0, 1.0]
