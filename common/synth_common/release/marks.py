"""Whether the images of a release say that they are synthetic, by the files themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from synth_common.errors import DataError, VerificationError
from synth_common.facts import Fact
from synth_common.release import png
from synth_common.release.marking import XMP_KEYWORD, is_marked
from synth_common.release.names import DICOM, IMAGES, METADATA, SPLITS

_PNG_MARK = "XMP digital source type trainedAlgorithmicMedia"
_DICOM_MARK = "Synthetic Data (0008,001C) = YES"


def is_png(name: str) -> bool:
    """Whether a file of a bundle is one of its PNG images."""
    return name.startswith(f"{IMAGES}/") and name.endswith(".png")


def unmarked(name: str, path: Path) -> list[str]:
    """Why a file among a bundle's images is not marked; empty for what is, or lies elsewhere.

    Raises:
        OSError: It cannot be read.
    """
    if is_png(name):
        return _unmarked_png(path)
    if name.endswith(".dcm"):
        from synth_common.release.dicom import unmarked as unmarked_dicom

        return unmarked_dicom(path)
    if name != METADATA and name.startswith((f"{IMAGES}/", f"{DICOM}/")):
        return ["it is of a kind that a release does not have among its images"]
    return []


def counts_of(names: Iterable[str]) -> dict[str, int]:
    """Images of a bundle by split, from the names of its files; masks are none."""
    found = dict.fromkeys(SPLITS, 0)
    for name in filter(is_png, names):
        split, _, file = name.removeprefix(f"{IMAGES}/").partition("/")
        if split in found and not file.startswith("mask-"):
            found[split] += 1
    return found


def marking_fact(plain: Mapping[str, Path]) -> Fact:
    """The recorded fact that every image was marked, once each file was read again.

    Args:
        plain: The files of a bundle by name.

    Raises:
        VerificationError: One is not; names it.
    """
    value: dict[str, Any] = {"verified": 0}
    for name, path in plain.items():
        mark = {"png": _PNG_MARK, "dcm": _DICOM_MARK}.get(name.rpartition(".")[2])
        if mark is None:
            continue
        if why := unmarked(name, path):
            raise VerificationError(f"{name} is not marked as synthetic: {why[0]}")
        value["png" if mark == _PNG_MARK else "dicom"] = mark
        value["verified"] += 1
    return Fact("release.marking", value, "public", f"{__name__}.marking_fact")


def _unmarked_png(path: Path) -> list[str]:
    """Why a PNG is not marked; empty if it is."""
    try:
        found = [png.text_of(c) for c in png.chunks(path.read_bytes()) if c.kind == "iTXt"]
    except DataError as err:
        return [str(err)]
    packets = [text for keyword, text in found if keyword == XMP_KEYWORD]
    if is_marked(packets):
        return []
    return ["its XMP does not say trainedAlgorithmicMedia" if packets else "it has no XMP packet"]
