"""Folders of PNG and JPEG, with and without metadata, and files that are not what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synth_common.errors import DataError
from synth_common.images.preprocess import LUMA, Target
from synth_common.images.sources import FolderSource, Intake, load_source

CLASSES = ("normal", "pneumonia")


def _picture(seed: int = 0, height: int = 40, width: int = 40) -> np.ndarray:
    """A smooth picture: JPEG keeps it nearly as it is."""
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 3, height))
    return (127 + 90 * np.sin(x + seed) * np.cos(y + 2 * seed)).astype(np.uint8)


def _save(file: Path, picture: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file)
    return file


def _load(folder: Path, with_mask: bool = False, channels: int = 1) -> Intake:
    target = Target(size=32, channels=channels, classes=CLASSES, with_mask=with_mask)
    return load_source(FolderSource(name="f", path=folder), target, None)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Two classes, a PNG and a JPEG each."""
    for label in CLASSES:
        _save(tmp_path / label / "1.png", _picture(1 + len(label)))
        _save(tmp_path / label / "2.jpg", _picture(2 + len(label)))
    return tmp_path


def test_sub_folders_are_classes(plain: Path) -> None:
    (plain / "normal" / ".hidden").write_bytes(b"x")
    intake = _load(plain)
    assert intake.images.labels.tolist() == [0, 0, 1, 1]
    assert intake.images.patient_ids is None
    assert (intake.report.offered, intake.report.set_aside) == (4, {})


def test_unusable_files_are_set_aside_with_a_reason(plain: Path) -> None:
    normal = plain / "normal"
    (normal / "empty.png").touch()
    (normal / "notes.txt").write_text("nothing to see")
    (normal / "text.png").write_text("not a picture at all")
    _save(normal / "flat.png", np.full((40, 40), 7, dtype=np.uint8))
    _save(normal / "strip.png", _picture(3, 10, 200))
    _save(normal / "dot.png", _picture(3, 4, 4))
    for suffix in ("png", "jpg"):
        noise = np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8)
        cut = _save(normal / f"cut.{suffix}", noise)
        cut.write_bytes(cut.read_bytes()[:2000])
    intake = _load(plain)
    assert intake.report.set_aside == {
        "constant": 1,
        "empty": 1,
        "not-an-image": 2,
        "unreadable": 2,
        "wrong-shape": 2,
    }
    assert intake.report.offered == 12
    assert intake.report.accepted == len(intake.images) == 4


def test_every_cut_of_a_file_is_survived(plain: Path) -> None:
    """Whatever the place of the cut, the run goes on and the counts add up."""
    whole = {s: (plain / "normal" / s).read_bytes() for s in ("1.png", "2.jpg")}
    for k in range(1, 24):
        for name, data in whole.items():
            cut = plain / "pneumonia" / f"{k}-{name}"
            cut.write_bytes(data[: len(data) * k // 24])
    report = _load(plain).report
    assert report.offered == 4 + 46
    assert report.accepted + sum(report.set_aside.values()) == report.offered
    assert report.accepted < 8


def test_a_giant_is_set_aside_before_it_is_decoded(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synth_common.images.folder._MAX_PIXELS", 50 * 50)
    _save(plain / "normal" / "big.png", _picture(5, 60, 60))
    assert _load(plain).report.set_aside == {"too-large": 1}


def test_colour_kinds_of_files_agree(tmp_path: Path) -> None:
    colour = np.stack([_picture(1), _picture(2), _picture(3)], axis=2)
    base = Image.fromarray(colour)
    (tmp_path / "normal").mkdir()
    base.save(tmp_path / "normal" / "a.png")
    base.convert("RGBA").save(tmp_path / "normal" / "b.png")
    base.save(tmp_path / "normal" / "c.jpg", quality=98, subsampling=0)
    base.convert("CMYK").save(tmp_path / "normal" / "d.jpg", quality=98, subsampling=0)
    three = _load(tmp_path, channels=3).images.images
    np.testing.assert_array_equal(three[0], three[1])
    assert np.abs(three - three[0]).max() < 0.05
    grey = _load(tmp_path).images.images[0, 0]
    np.testing.assert_allclose(grey, np.moveaxis(three[0], 0, 2) @ LUMA, atol=1e-5)


def test_sixteen_bit_grey_keeps_its_scale(tmp_path: Path) -> None:
    deep = (_picture(1).astype(np.uint16) * 257).astype(np.uint16)
    _save(tmp_path / "normal" / "deep.png", deep)
    _save(tmp_path / "normal" / "flat.png", _picture(1))
    images = _load(tmp_path).images.images
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)


def test_metadata_gives_labels_patients_and_masks(tmp_path: Path) -> None:
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:20, 10:20] = 255
    for k in range(5):
        _save(tmp_path / "images" / f"{k}.png", _picture(k + 1))
    _save(tmp_path / "masks" / "0.png", mask)
    _save(tmp_path / "masks" / "1.png", mask[:30])
    _save(tmp_path / "masks" / "4.png", mask)
    (tmp_path / "masks" / "3.png").write_text("broken")
    (tmp_path / "metadata.csv").write_text(
        "file_name,label,patient_id,mask\n"
        "images/0.png,pneumonia,anna,masks/0.png\n"
        "images/1.png,normal,anna,masks/1.png\n"
        "images/2.png,normal,ben,\n"
        "images/3.png,normal,ben,masks/3.png\n"
        "images/4.png,normal,,masks/4.png\n"
        "images/5.png,normal,cleo,masks/0.png\n",
        encoding="utf-8-sig",
    )
    intake = _load(tmp_path, with_mask=True)
    assert intake.report.set_aside == {
        "file-missing": 1,
        "mask-missing": 1,
        "mask-shape": 1,
        "mask-unreadable": 1,
        "no-patient-id": 1,
    }
    assert intake.images.labels.tolist() == [1]
    assert intake.images.patient_ids is not None
    assert intake.images.patient_ids.tolist() == ["anna"]
    assert intake.images.masks is not None
    assert intake.images.masks.sum() == 8 * 8  # a quarter of 40 px is 8 px of 32
    without = _load(tmp_path)
    assert without.report.accepted == 4
    assert without.report.set_aside == {"file-missing": 1, "no-patient-id": 1}


def test_files_without_a_row_are_counted(plain: Path) -> None:
    (plain / "metadata.csv").write_text("file_name,patient_id\nnormal/1.png,a\npneumonia/2.jpg,b\n")
    intake = _load(plain)
    assert intake.images.labels.tolist() == [0, 1]
    assert intake.report.set_aside == {"not-in-metadata": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\nnormal/1.png,normal\n", r"columns \['name', 'label'\]; expected file_name"),
        ("file_name\nnormal/1.png\nnormal/1.png\n", "lists normal/1.png twice"),
        ("file_name\n../secret.png\n", "not inside the folder"),
        ("file_name,label\nnormal/1.png,tumour\n", "class 'tumour' is none of"),
        ("file_name\nloose.png\n", "no label"),
        ("", "columns"),
    ],
)
def test_bad_metadata_is_refused(plain: Path, text: str, message: str) -> None:
    (plain / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        _load(plain)


def test_metadata_in_another_encoding_is_refused(plain: Path) -> None:
    (plain / "metadata.csv").write_bytes("file_name\nä.png\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read"):
        _load(plain)


def test_folders_that_hold_nothing_usable_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        _load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no images"):
        _load(tmp_path)
    _save(tmp_path / "loose.png", _picture())
    with pytest.raises(DataError, match="beside the class sub-folders"):
        _load(tmp_path)


def test_an_unknown_class_folder_is_refused(plain: Path) -> None:
    _save(plain / "tumour" / "1.png", _picture())
    with pytest.raises(DataError, match="class 'tumour' is none of"):
        _load(plain)


def test_wanted_masks_must_be_there(plain: Path) -> None:
    with pytest.raises(DataError, match="mask column"):
        _load(plain, with_mask=True)
