"""Image sets to ``.npz`` files that source kind ``npz`` reads again."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from synth_common.images.imageset import ImageSet


def npz_bytes(images: ImageSet) -> bytes:
    """A file that source kind ``npz`` reads.

    It holds ``images`` uint8 (N, size, size, C), pixels rounded to 8 bits, ``labels`` as text, and
    ``patient_ids``, ``masks``, ``second_masks``, ``site``, ``split``, ``sex`` and ``age`` where the
    set has them.
    """
    columns: dict[str, Any] = {
        "images": np.rint(images.images.transpose(0, 2, 3, 1) * 255.0).astype(np.uint8),
        "labels": np.array(images.class_names)[images.labels],
        "patient_ids": images.patient_ids,
        "masks": images.masks,
        "site": images.sites,
        "split": images.splits,
        "second_masks": images.second_masks,
        "sex": images.sexes,
        "age": images.ages,
    }
    packed = io.BytesIO()
    np.savez_compressed(packed, **{k: v for k, v in columns.items() if v is not None})
    return packed.getvalue()
