"""The three layouts of npz files, label maps, and refusals that say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synth_common.errors import ConfigError, DataError
from synth_common.images.preprocess import Target
from synth_common.images.sources import Intake, NpzSource, load_source
from synth_common.validation import validate

CLASSES = ("normal", "pneumonia")


def _pictures(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size), dtype=np.uint8)


def _load(folder: Path, target: Target | None = None, **options: Any) -> Intake:
    source = validate(NpzSource, {"name": "s", "path": "set.npz", **options}, "source")
    return load_source(source, target or Target(size=32, channels=1, classes=CLASSES), folder)


def _save(folder: Path, **arrays: Any) -> None:
    np.savez(folder / "set.npz", **arrays)


def _save_own(folder: Path, n: int = 6, **changes: Any) -> None:
    arrays = {
        "images": _pictures(n),
        "labels": np.arange(n, dtype=np.uint8) % 2,
        "class_names": np.array(CLASSES),
    }
    arrays.update(changes)
    _save(folder, **{k: v for k, v in arrays.items() if v is not None})


def test_medmnist_layout(tmp_path: Path) -> None:
    _save(
        tmp_path,
        train_images=_pictures(4),
        train_labels=np.array([[0], [1], [1], [0]], dtype=np.uint8),
        val_images=_pictures(2, seed=1),
        val_labels=np.array([[1], [1]], dtype=np.uint8),
        test_images=_pictures(3, seed=2),
        test_labels=np.array([[0], [0], [1]], dtype=np.uint8),
    )
    every = _load(tmp_path, labels=CLASSES).images
    assert every.labels.tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 1]
    assert every.splits is not None
    assert every.splits.tolist() == ["train"] * 4 + ["val"] * 2 + ["test"] * 3
    assert every.patient_ids is None
    some = _load(tmp_path, labels=CLASSES, splits=("train", "test")).images
    assert some.labels.tolist() == [0, 1, 1, 0, 0, 0, 1]
    np.testing.assert_array_equal(some.images[4:], every.images[6:])


def test_mnist_layout(tmp_path: Path) -> None:
    _save(
        tmp_path,
        x_train=_pictures(3, 28),
        y_train=np.array([1, 0, 1]),
        x_test=_pictures(1, 28, 1),
        y_test=np.array([0]),
    )
    images = _load(tmp_path, labels=CLASSES).images
    assert images.images.shape == (4, 1, 32, 32)
    assert images.labels.tolist() == [1, 0, 1, 0]


def test_own_layout_with_every_column(tmp_path: Path) -> None:
    masks = np.zeros((4, 32, 32), dtype=np.uint8)
    masks[:, 4:9, 4:9] = 1
    _save_own(
        tmp_path,
        4,
        patient_ids=np.array([7, 7, 8, 9]),
        masks=masks,
        split=np.array(["train", "train", "test", "train"]),
        acquisition_group=np.array([0, 1, 1, 0], dtype=np.uint8),
    )
    target = Target(size=32, channels=1, classes=CLASSES, with_mask=True)
    options = {"site_key": "acquisition_group", "site_names": ("east", "west")}
    images = _load(tmp_path, target, splits=("train",), **options).images
    assert images.patient_ids is not None
    assert images.patient_ids.tolist() == ["7", "7", "9"]
    assert images.sites is not None
    assert images.sites.tolist() == ["east", "west", "east"]
    np.testing.assert_array_equal(images.masks, masks[[0, 1, 3]])
    assert _load(tmp_path).images.masks is None


def test_label_map_and_left_out_classes(tmp_path: Path) -> None:
    names = np.array(["virus", "no_finding", "odd", "pneumonia"])
    _save_own(tmp_path, 4, labels=np.array([0, 1, 2, 3]), class_names=names)
    maps = {"virus": "pneumonia", "no_finding": "normal"}
    intake = _load(tmp_path, label_map=maps, leave_out=("odd",))
    assert intake.images.labels.tolist() == [1, 0, 1]
    assert intake.report.set_aside == {"class-left-out": 1}


def test_text_labels_and_a_single_class(tmp_path: Path) -> None:
    _save_own(tmp_path, 3, labels=np.array(["pneumonia", "normal", "normal"]), class_names=None)
    assert _load(tmp_path).images.labels.tolist() == [1, 0, 0]
    target = Target(size=32, channels=1, classes=("cell",))
    assert _load(tmp_path, target, single_class="cell").images.labels.tolist() == [0, 0, 0]


def test_label_key_needs_its_own_names(tmp_path: Path) -> None:
    _save_own(tmp_path, 4, group=np.array([1, 1, 0, 0]))
    assert _load(tmp_path, label_key="group", labels=CLASSES).images.labels.tolist() == [1, 1, 0, 0]
    with pytest.raises(DataError, match="without names"):
        _load(tmp_path, label_key="group")


def test_unusable_images_are_set_aside_and_counted(tmp_path: Path) -> None:
    pictures = _pictures(6)
    pictures[1] = 128
    pictures[5] = pictures[4]
    ids = np.array(["a", "b", "", "c", "d", "e"])
    _save_own(tmp_path, images=pictures, patient_ids=ids)
    intake = _load(tmp_path)
    assert intake.report.as_fact_value() == {
        "offered": 6,
        "accepted": 4,
        "set_aside": {"constant": 1, "no-patient-id": 1},
        "duplicates": {"groups": 1, "images": 2, "across_patients": 1},
    }
    assert intake.images.patient_ids is not None
    assert intake.images.patient_ids.tolist() == ["a", "c", "d", "e"]


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    _save_own(tmp_path, images=np.zeros((6, 32, 32), dtype=np.uint8))
    with pytest.raises(DataError, match=r"none of the 6 .*'constant': 6"):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"images": None}, {}, r"key 'images' is missing; found labels, class_names; expected"),
        ({"labels": None}, {}, r"key 'labels' is missing"),
        ({"labels": np.array([0, 1, 2, 0, 1, 0])}, {}, r"run from 0 to 2; 2 names allow 0 to 1"),
        ({"labels": np.array([0, -1, 1, 0, 1, 0])}, {}, r"run from -1"),
        ({"labels": np.zeros(6)}, {}, r"float64; expected integers"),
        ({"labels": np.zeros((6, 2), dtype=int)}, {}, r"shape \(6, 2\)"),
        ({"labels": np.zeros(5, dtype=int)}, {}, r"labels has 5 rows for 6 images"),
        ({"class_names": None}, {}, r"without names; list them in labels"),
        ({"class_names": np.array(["normal", "tumour"])}, {}, r"class 'tumour' is none of"),
        ({"images": np.zeros((6, 32, 32), dtype=np.float32)}, {}, r"float32; expected one of"),
        ({"images": np.zeros((6, 32), dtype=np.uint8)}, {}, r"shape \(6, 32\)"),
        (
            {"images": np.zeros((0, 32, 32), dtype=np.uint8), "labels": np.zeros(0, dtype=int)},
            {},
            "no images",
        ),
        ({"patient_ids": np.array(["a"])}, {}, r"patient_ids has 1 rows"),
        ({}, {"splits": ("train",)}, r"no key 'split'"),
        (
            {"split": np.array(["x"] * 6)},
            {"splits": ("train",)},
            r"'train'.* not there; found \['x'\]",
        ),
        ({}, {"site_key": "hospital"}, r"key 'hospital' is missing"),
    ],
)
def test_bad_files_name_what_was_found(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    _save_own(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        _load(tmp_path, **options)
    assert str(tmp_path / "set.npz") in str(caught.value)


def test_ragged_images_are_refused_without_unpickling(tmp_path: Path) -> None:
    ragged = np.empty(6, dtype=object)
    ragged[:] = [np.zeros((i + 1, 4), dtype=np.uint8) for i in range(6)]
    _save_own(tmp_path, images=ragged)
    with pytest.raises(DataError, match="pickle"):
        _load(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "bare"])
def test_unreadable_files_are_data_errors(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "set.npz"
    if damage == "text":
        file.write_text("not an archive")
    elif damage == "truncated":
        _save_own(tmp_path)
        file.write_bytes(file.read_bytes()[:3000])
    elif damage == "bare":
        with file.open("wb") as handle:
            np.save(handle, _pictures(2))
    with pytest.raises(DataError, match=r"set\.npz"):
        _load(tmp_path)


def test_a_flipped_byte_in_the_images_is_a_data_error(tmp_path: Path) -> None:
    _save_own(tmp_path)
    data = bytearray((tmp_path / "set.npz").read_bytes())
    data[2000] ^= 0xFF
    (tmp_path / "set.npz").write_bytes(bytes(data))
    with pytest.raises(DataError, match="not a readable"):
        _load(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"label_map": {"normal": "healthy"}},
        {"label_map": {"nrmal": "normal"}},
        {"leave_out": ("x",)},
    ],
)
def test_label_maps_that_do_not_fit_are_config_errors(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    _save_own(tmp_path)
    with pytest.raises(ConfigError, match="label_map"):
        _load(tmp_path, **options)


def test_wanted_masks_must_be_there(tmp_path: Path) -> None:
    _save_own(tmp_path)
    with pytest.raises(DataError, match="with_mask"):
        _load(tmp_path, Target(size=32, channels=1, classes=CLASSES, with_mask=True))


def test_a_relative_path_needs_a_root() -> None:
    source = NpzSource(name="s", path=Path("set.npz"))
    with pytest.raises(DataError, match=r"data\.root"):
        load_source(source, Target(size=32, channels=1, classes=CLASSES), None)


def test_unknown_keys_of_a_source_are_refused() -> None:
    with pytest.raises(ConfigError, match="lable_map"):
        validate(NpzSource, {"name": "s", "path": "x.npz", "lable_map": {}}, "data.sources")


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    pictures = _pictures(4)
    inside = (pictures > 128).astype(np.uint8)
    columns = {"who": np.array(["p", "p", "q", "r"]), "part": np.array(["train"] * 3 + ["test"])}
    np.savez(tmp_path / "set.npz", scans=pictures, outlines=inside, x_train=pictures, **columns)
    renamed = {
        "image_key": "scans", "mask_key": "outlines", "patient_key": "who", "split_key": "part",
        "single_class": "normal",
    }  # fmt: skip
    target = Target(size=32, channels=1, classes=CLASSES, with_mask=True)
    images = _load(tmp_path, target, **renamed, splits=["train"]).images
    assert images.patient_ids is not None
    assert images.patient_ids.tolist() == ["p", "p", "q"]
    np.testing.assert_array_equal(images.masks, inside[:3])
    np.testing.assert_allclose(images.images[:, 0], pictures[:3] / 255, atol=1e-6)
    for option in ("image_key", "mask_key", "patient_key", "split_key"):
        with pytest.raises(DataError, match="key 'absent' is missing"):
            _load(tmp_path, target, **{**renamed, option: "absent"})


def test_a_hospital_column_of_several_numbers_is_one_text(tmp_path: Path) -> None:
    sizes = np.array([[256, 320], [256, 256], [256, 320]], dtype=np.int16)
    np.savez(tmp_path / "set.npz", images=_pictures(3), size_hw=sizes)
    images = _load(tmp_path, single_class="normal", site_key="size_hw").images
    assert images.sites is not None
    assert images.sites.tolist() == ["256x320", "256x256", "256x320"]
