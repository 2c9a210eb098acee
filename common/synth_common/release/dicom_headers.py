"""Identifiers in the header of a DICOM file.

An allow-list, as PS3.15, Annex E, and every study of de-identification advise: what is not known
to be harmless is a finding. Numbers and codes about the pixels are known; names, dates, ids,
devices, places, private elements and every text are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import ExplicitVRLittleEndian

from synth_common.errors import DataError
from synth_common.release.dicom import DERIVATION, MANUFACTURER, PATIENT
from synth_common.release.dicom_file import read
from synth_common.release.identifiers import Kind, in_text
from synth_common.release.image_headers import Found

_WORD: Final = re.compile(r"\w+")
_TEXT_VR: Final = frozenset(_WORD.findall("AE LO LT SH ST UC UR UT"))
_DATE_VR: Final = frozenset(("DA", "DT", "TM"))
_BIRTH: Final = frozenset(("PatientBirthDate", "PatientBirthTime"))
_IDS: Final = frozenset(
    _WORD.findall(
        "PatientID OtherPatientIDs AccessionNumber StudyID IssuerOfPatientID MedicalRecordLocator "
        "AdmissionID RequestedProcedureID ScheduledProcedureStepID PerformedProcedureStepID "
        "FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest "
        "ClinicalTrialSubjectID ServiceEpisodeID"
    )
)
_DEVICES: Final = frozenset(
    _WORD.findall(
        "StationName DeviceID DetectorID GantryID PlateID CassetteID GridID GeneratorID XRayTubeID "
        "Manufacturer ManufacturerModelName SoftwareVersions SourceApplicationEntityTitle "
        "ScheduledStationAETitle PerformedStationAETitle PerformedStationName"
    )
)
# What a keyword contains, whatever its value representation; the last are quasi-identifiers.
_MARKS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "contact": ("Address", "Telephone", "Email"),
    "institution": ("Institution", "Organization", "PerformedLocation", "CurrentPatientLocation"),
    "patient data": ("Patient", "EthnicGroup", "Occupation", "SmokingStatus", "PregnancyStatus"),
}
_HARMLESS: Final = frozenset(
    _WORD.findall(
        "SpecificCharacterSet PatientOrientation PatientPosition CodeValue CodingSchemeDesignator "
        "CodeMeaning ImplementationVersionName"
    )
)
_STANDARD_UIDS: Final = ("1.2.840.10008.", "2.25.")
_OVERLAYS: Final = range(0x6000, 0x6100, 2)
_CONTRIBUTION: Final = re.compile(
    r"(SIMULATION\. )?Trained under differential privacy: epsilon [\d.,]+, delta [\d.e-]+ per "
    r"(patient|image) at each site; run [0-9a-z-]{1,64}"
)
_OWN: Final = {
    "Manufacturer": re.compile(MANUFACTURER),
    "SoftwareVersions": re.compile(r"Synthward [0-9A-Za-z.+]{1,30}"),
    "DerivationDescription": re.compile(re.escape(DERIVATION)),
    "ContributionDescription": _CONTRIBUTION,
}
_DEEPEST = 12
_PIXELS: Final = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))


def in_dicom(path: Path) -> Iterator[Found]:
    """What a DICOM file says beside its pixels, to its last byte. Raises OSError."""
    with path.open("rb") as handle:
        preamble = handle.read(128)
    if preamble.strip(b"\0"):
        yield "hidden data", "preamble", f"{len(preamble.strip(bytes(1)))} bytes"
    try:
        file = read(path)
    except DataError as err:
        yield "unreadable", "header", str(err)
        return
    yield from (("hidden data", left.place, left.text) for left in file.leftovers)
    if file.cut:
        yield "unreadable", "data set", "the file ends within an element, or is damaged from one on"
    data = file.data
    yield from _in_dataset(data.file_meta, 0)
    yield from _in_dataset(data, 0)
    yield from _after_pixels(data)
    burned = str(data.get("BurnedInAnnotation", "is missing"))
    if burned != "NO":
        yield "burned-in text", "BurnedInAnnotation", f"{burned}; NO would say that there is none"


def _after_pixels(data: FileDataset) -> Iterator[Found]:
    """Bytes of the pixel data behind the last pixel, where these are not compressed."""
    syntax = data.file_meta.get("TransferSyntaxUID", ExplicitVRLittleEndian)
    if "PixelData" not in data or syntax.is_encapsulated:
        return
    try:
        expected = get_expected_length(data)
        raw = data.get_item("PixelData")
        if getattr(raw, "length", expected) <= expected + expected % 2:
            return
        after = bytes(data["PixelData"].value)[expected:]
    except Exception as err:  # the elements that say how large it is can be damaged or missing
        yield "unreadable", "PixelData", f"its size is not known: {type(err).__name__}"
        return
    if after.strip(b"\0"):
        yield "hidden data", "after the last pixel", f"{len(after)} bytes"


def _in_dataset(data: Dataset, depth: int) -> Iterator[Found]:
    """Every element, sequences included; one that cannot be read is a finding of its own."""
    for tag in sorted(data.keys()):
        if depth == 0 and tag in _PIXELS:
            continue
        try:
            element = data[tag]
            name = element.keyword or str(element.tag)
            if element.tag.is_private:
                yield "hidden data", f"private element {element.tag}", _shown(element.value)
            elif element.tag.group in _OVERLAYS and element.tag.element == 0x3000:
                yield "hidden data", f"overlay {element.tag}", "may hold text"
            elif element.VR == "SQ" and depth < _DEEPEST:
                for item in element.value:
                    yield from ((k, f"{name}/{p}", v) for k, p, v in _in_dataset(item, depth + 1))
            else:
                yield from _in_element(name, element.VR, element.value)
        except Exception as err:  # of one element; the others are looked at all the same
            yield "unreadable", f"element {tag}", type(err).__name__


def _in_element(name: str, vr: str, value: Any) -> Iterator[Found]:
    """One plain element."""
    text = _shown(value)
    if not text.strip() or name in _HARMLESS:
        return
    if name == "DataSetTrailingPadding":
        yield "hidden data", name, text
        return
    if name in ("PatientName", "PatientID") and text.startswith(PATIENT):
        return
    if name in _OWN and _OWN[name].fullmatch(text):
        return
    if name == "SeriesDescription" and text.startswith("Synthetic: ") and not list(in_text(text)):
        return
    kind = _kind(name, vr, text)
    if kind == "free text":
        found = list(in_text(text))
        yield from ((k, name, part) for k, part in found)
        if found:
            return
    if kind is not None:
        yield kind, name, text


def _kind(name: str, vr: str, text: str) -> Kind | None:
    """What an element is by its name and value representation; None for what is harmless."""
    if name in _BIRTH:
        return "date of birth"
    if vr == "PN":
        return "name"
    if vr in _DATE_VR:
        return "date"
    if vr == "UI":
        own = name.startswith("Implementation") or text.startswith(_STANDARD_UIDS)
        return None if own else "id"
    if name in _IDS:
        return "id"
    if name in _DEVICES or "Serial" in name or name.endswith("DeviceUID"):
        return "device"
    for kind, marks in _MARKS.items():
        if any(mark in name for mark in marks):
            return kind
    return "free text" if vr in _TEXT_VR else None


def _shown(value: Any) -> str:
    """A value as text; several as DICOM writes them."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return f"{len(value)} bytes" if value.strip(b"\0 ") else ""
    if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue":
        return "\\".join(str(item) for item in value)
    return str(value)


def grey_frame(path: Path) -> npt.NDArray[np.float64]:
    """The first frame of a DICOM file as (H, W) grey values, as they are stored.

    One that holds no image gives a single pixel.

    Raises:
        Exception: Whatever the decoder meets.
    """
    data = read(path).data
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return np.zeros((1, 1))
    pixels = np.asarray(data.pixel_array, dtype=np.float64)
    if int(data.get("NumberOfFrames", 1) or 1) > 1:
        pixels = pixels[0]
    return pixels.mean(axis=-1) if pixels.ndim == 3 else pixels
