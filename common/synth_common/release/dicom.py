"""Synthetic images as DICOM: Secondary Capture, and nothing that claims a scanner.

Secondary Capture Image IOD: DICOM PS3.3, A.8.1. Synthetic Data (0008,001C): PS3.3, C.12.1. A CT or
MR object is never written: its acquisition attributes would have to be invented. Dates, times
and names are empty (type 2) or left out; nobody was examined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from synth_common.errors import DataError
from synth_common.release.dicom_file import read
from synth_common.release.marking import software
from synth_common.release.names import DICOM
from synth_common.release.picture import Picture

MARK: Mapping[str, str] = {
    "SyntheticData": "YES",
    "ConversionType": "SYN",
    "BurnedInAnnotation": "NO",
}
"""What marks an object as synthetic, by keyword."""
IMAGE_TYPE = ("DERIVED", "SECONDARY")
MANUFACTURER = "Synthward"
PATIENT = "SYN-"
DERIVATION = "Drawn by a trained generator; shows no patient"
_UNREADABLE = "it cannot be read as DICOM"
_PROCESSING = ("109102", "DCM", "Processing Equipment")  # PS3.16, CID 7005


@dataclass(frozen=True)
class Origin:
    """What every object of a release says of where it came from.

    Attributes:
        release: Eight digits that differ between releases; begin the patient ids.
        contribution: Epsilon, delta and the run, in words (at most 1024 characters).
    """

    release: str
    contribution: str


class DicomWriter:
    """``dicom/SPLIT/NNNNNN.dcm``, one study of one made-up patient per image."""

    def __init__(self, folder: Path, classes: Sequence[str], origin: Origin) -> None:
        self._folder, self._classes, self._origin = folder, classes, origin

    def add(self, picture: Picture) -> None:
        """See :class:`synth_common.release.formats.Writer`."""
        path = self._folder / DICOM / picture.split / f"{picture.stem}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = _object(picture, self._classes[picture.label], self._origin)
        data.save_as(path, enforce_file_format=True)

    def close(self) -> None:
        """Nothing is left to write."""


def unmarked(path: Path) -> list[str]:
    """Which marks of a synthetic object a DICOM file lacks, in words; damaged files lack all.

    Raises:
        OSError: There is no such file, or it may not be read.
    """
    try:
        file = read(path)
    except DataError:
        return [_UNREADABLE]
    try:
        return [*([_UNREADABLE] if file.cut else []), *_lacking(file.data)]
    except Exception:  # damaged values raise a dozen exception types
        return [_UNREADABLE]


def _lacking(data: Dataset) -> list[str]:
    """The marks that are not in a data set."""
    lacks = [f"{k} is not {v}" for k, v in MARK.items() if str(data.get(k, "")) != v]
    kind = tuple(data.get("ImageType") or ())
    patient = str(data.get("PatientID", ""))
    sop = str(data.get("SOPClassUID", ""))
    if kind != IMAGE_TYPE:
        lacks.append("ImageType is not DERIVED\\SECONDARY")
    if not patient.startswith(PATIENT):
        lacks.append(f"PatientID does not begin with {PATIENT}")
    if sop != SecondaryCaptureImageStorage:
        lacks.append("it is no Secondary Capture")
    return lacks


def _object(picture: Picture, label: str, origin: Origin) -> Dataset:
    """One image as a Secondary Capture object."""
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = SecondaryCaptureImageStorage
    # UUID-derived (2.25, PS3.5 B.2): fresh, and under nobody's root.
    data.SOPInstanceUID = generate_uid(prefix=None)
    data.StudyInstanceUID = generate_uid(prefix=None)
    data.SeriesInstanceUID = generate_uid(prefix=None)
    for keyword, value in MARK.items():
        setattr(data, keyword, value)
    data.ImageType = list(IMAGE_TYPE)
    data.Modality = "OT"
    patient = f"{PATIENT}{origin.release}-{picture.stem}"
    data.PatientName, data.PatientID = patient, patient
    for empty in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        setattr(data, empty, "")
    for empty in ("AccessionNumber", "ReferringPhysicianName", "PatientOrientation"):
        setattr(data, empty, "")
    data.SeriesNumber = data.InstanceNumber = 1
    data.SeriesDescription = f"Synthetic: {label}"[:64]
    data.DerivationDescription = DERIVATION
    data.ContributingEquipmentSequence = Items([_equipment(origin)])
    _put_pixels(data, picture.pixels)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def _equipment(origin: Origin) -> Dataset:
    """This program, as PS3.3, C.12.1.1.5 wants it."""
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = _PROCESSING
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Items([purpose])
    item.Manufacturer = MANUFACTURER
    item.SoftwareVersions = software()
    item.ContributionDescription = origin.contribution
    return item


def _put_pixels(data: Dataset, pixels: np.ndarray) -> None:
    """Image pixel module (PS3.3, C.7.6.3) of (1 or 3, H, W) uint8."""
    channels, data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel = channels
    data.PhotometricInterpretation = "MONOCHROME2" if channels == 1 else "RGB"
    if channels == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    content = pixels.transpose(1, 2, 0).tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2)
